"""RemoteCopy: keeps copies of a run's checkpoints in an object storage, and brings the newest back elsewhere."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.checkpoint import Copier, Remote, is_managed
from paddlelite_trainer.errors import (
    ConfigurationError,
    ConfigurationTypeError,
    did_you_mean,
    explains_unknown_arguments,
)

BEST = ("best", "best_*", "imported-best", "early-stopping-best")
"""What "best" stands for: all that later checkpoints are ranked against."""
DEFAULT = ("latest", "best", "tags")
_WORDS = (*DEFAULT, "all")


class RemoteCopy(Callback):
    """Copies checkpoints to `url` beside the training; `ckpt_path="last"` goes on from there on an empty machine.

        RemoteCopy("s3://bucket/runs/digits")                                      # needs pip install s3fs
        RemoteCopy("gs://bucket/runs/digits", what=("best", "tags"), keep_last_n=3)
        RemoteCopy("oss://bucket/runs/digits", storage_options={"endpoint": "..."})

    One URL is for one run, and says which: another is refused it, and of two processes that copy there at once the
    second stops copying, and says so. Committed checkpoints are verified and copied by a thread; the training never
    waits for it and never ends for it. Until a checkpoint is copied it is not deleted here; but where a newer one has
    taken its names, one whose copy has not begun is left out. A remote that fails is told once and tried again. When
    the fit ends, what is still to be copied gets `final_wait_seconds`, and what then is not copied is named.

    With `fit(..., ckpt_path="last")` the newest sound checkpoint, here or there, is the one to go on from; if it is
    there it is brought into the run's directory, with those that are best so far. docs/remote-copies.md says what is
    promised.

    Args:
        final_wait_seconds_after_signal: how long at most after SIGTERM or Ctrl-C.
        url: anything that fsspec opens; credentials come from where its library takes them, or from `storage_options`.
        what: "all" for every checkpoint, or names: "latest", "best" (of every ModelCheckpoint), patterns such as
            "epoch_*", and "tags" for all names that you gave (`trainer.save_checkpoint(tag)`,
            `ModelCheckpoint(filename=...)`). All that a name holds is copied.
        keep_last_n: how many of the newest stay there; of older ones those are deleted that no name there holds and
            that this run copied or went on from: never another run's. None deletes nothing.
        logs: copy what the run writes beside its checkpoints too (train.log, metrics.csv, TensorBoard's files), and
            bring it along where the run goes on elsewhere, so that its curves have no gap.
        final_wait_seconds: how long the end of a fit waits for copies at most; after SIGTERM or Ctrl-C
            `final_wait_seconds_after_signal`, which must fit into the machine's grace.
        if_unreachable: at the start of a fit the remote must answer, or a run that went on elsewhere would be lost:
            "raise" is an error, "local" goes on from what is here, or afresh.
        storage_options: handed to fsspec, as in pandas.

    Raises:
        ConfigurationError: at construction, for a URL that nothing installed can open; it says what to install.
        ConfigurationTypeError: keep_last_n is no integer, or logs no bool.
    """

    @explains_unknown_arguments({})
    def __init__(
        self,
        url: str,
        *,
        what: str | Sequence[str] = DEFAULT,
        keep_last_n: int | None = None,
        logs: bool = False,
        final_wait_seconds: float = 300.0,
        final_wait_seconds_after_signal: float = 20.0,
        if_unreachable: Literal["raise", "local"] = "raise",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.what = _names("what", what)
        if keep_last_n is not None and (isinstance(keep_last_n, bool) or not isinstance(keep_last_n, int)):
            raise ConfigurationTypeError(f"RemoteCopy(keep_last_n=...) must be an integer or None, got {keep_last_n!r}")
        if keep_last_n is not None and keep_last_n < 1:
            raise ConfigurationError(
                f"RemoteCopy(keep_last_n=...) must be >= 1, or None to delete nothing, got {keep_last_n}"
            )
        self.keep_last_n = keep_last_n
        if not isinstance(logs, bool):
            raise ConfigurationTypeError(f"RemoteCopy(logs=...) is True or False, got {logs!r}")
        self.logs = logs
        self.final_wait_seconds = _seconds("final_wait_seconds", final_wait_seconds)
        self.final_wait_seconds_after_signal = _seconds(
            "final_wait_seconds_after_signal", final_wait_seconds_after_signal
        )
        if if_unreachable not in ("raise", "local"):
            raise ConfigurationError(f"RemoteCopy(if_unreachable=...) is 'raise' or 'local', got {if_unreachable!r}")
        self.if_unreachable = if_unreachable
        self.remote = Remote(url, storage_options)
        """Where the copies are; the Trainer reads it when a fit starts."""
        self.not_copied: list[str] = []
        """Names of the checkpoints that were still to be copied when the last fit ended."""
        self._is_default = tuple(what) == DEFAULT
        self._matched: set[str] = set()  # of `what`
        self._copier: Copier | None = None
        self._waited_until: float | None = None

    @property
    def state_key(self) -> str:
        return f"RemoteCopy({self.remote.url!r})"

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit" and not trainer.enable_checkpointing and not trainer.fast_dev_run:
            raise ConfigurationError(
                "a RemoteCopy was passed together with enable_checkpointing=False: drop one of the two"
            )

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        self._start(trainer)

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        # All ranks together: one that went on alone would give up waiting for the first.
        trainer.ranks.on_rank_zero(lambda: self._wait_with_others(trainer))

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        self._start(trainer)  # what an earlier process did not come to copy
        trainer.ranks.on_rank_zero(lambda: self._wait_with_others(trainer))

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._copier is None or trainer.checkpoint_store is None:
            return
        try:
            trainer.checkpoint_store.wait()  # after a signal or an error the last save may still be under way
        finally:
            self._wait_with_others(trainer)
            self._finish(trainer)

    def _start(self, trainer: Trainer) -> None:
        if trainer.checkpoint_store is None or not trainer.enable_checkpointing:
            return
        self.not_copied, self._waited_until = [], None
        self._copier = Copier(
            trainer.checkpoint_store,
            self.remote,
            is_wanted=self._is_wanted,
            everything="all" in self.what,
            keep_last_n=self.keep_last_n,
            logs=self.logs,
            tell=trainer.print,
        )
        self._copier.start()
        for word in self.what:
            hint = "" if word in _WORDS else did_you_mean(word, _WORDS)
            if hint:
                trainer.print(f"WARNING: RemoteCopy(what={word!r}) copies checkpoints that are kept as {word!r}.{hint}")

    def _wait_with_others(self, trainer: Trainer) -> None:
        """Let the time of each RemoteCopy begin, as they copy side by side, and wait for this one."""
        for callback in trainer.callbacks:
            if isinstance(callback, RemoteCopy):
                callback.begin_to_wait(trainer)
        self._wait(trainer)

    def begin_to_wait(self, trainer: Trainer) -> None:
        """Let the time begin that the end of the fit waits for this one's copies; on rank 0."""
        copier, signals = self._copier, trainer.signals
        if copier is None or self._waited_until is not None:
            return
        self._waited_until = time.monotonic() + self.final_wait_seconds
        behind = copier.behind
        if behind and not copier.is_stopped:
            at_most = self.final_wait_seconds_after_signal if signals.received else self.final_wait_seconds
            trainer.print(f"Copying to {self.remote.url}, for {at_most:g} s at most: {_listed(behind)}")
        copier.hurry()

    def _wait(self, trainer: Trainer) -> None:
        copier, signals = self._copier, trainer.signals
        if copier is None or self._waited_until is None:
            return
        copier.wait(
            max(0.0, self._waited_until - time.monotonic()),
            is_urgent=lambda: signals.received is not None,
            urgent_seconds=self.final_wait_seconds_after_signal,
        )

    def _finish(self, trainer: Trainer) -> None:
        copier, self._copier = self._copier, None
        assert copier is not None
        left = copier.finish()
        self.not_copied = [entry.name for entry in left]
        if left:
            why = f" The last error: {copier.last_error}" if copier.last_error is not None else ""
            trainer.print(
                f"WARNING: not copied to {self.remote.url}: {_listed(left)}. "
                f"Started again here, the run copies what it still keeps of them.{why}"
            )
        if trainer.checkpoint_store is not None:
            trainer.checkpoint_store.prune()  # what was here only to be copied
            self._tell_of_idle_names(trainer, trainer.checkpoint_store.pins())

    def _tell_of_idle_names(self, trainer: Trainer, names: Collection[str]) -> None:
        """A name that nothing was ever kept under copies nothing: most often it is misspelt."""
        idle = [] if self._is_default else [one for one in self.what if one not in self._matched and one != "all"]
        if not idle or not names:  # nothing was saved: another line says so
            return
        known = sorted({*names, *DEFAULT, "all"})
        hints = "".join(did_you_mean(one, known) for one in idle)
        trainer.print(
            f"WARNING: RemoteCopy(what=...) to {self.remote.url}: no checkpoint was kept as "
            f"{', '.join(map(repr, idle))}, so nothing was copied for it.{hints} "
            f"This run has {', '.join(sorted(names))}."
        )

    def _is_wanted(self, name: str) -> bool:
        matched = {one for one in self.what if _stands_for(one, name)}
        self._matched |= matched
        return bool(matched)


def _stands_for(what: str, name: str) -> bool:
    """Whether a word of `what` means the checkpoints that are kept as `name`."""
    if what == "all" or (what == "tags" and not is_managed(name)):
        return True
    return any(fnmatchcase(name, pattern) for pattern in (BEST if what == "best" else (what,)))


def _listed(entries: Sequence[Any]) -> str:
    return ", ".join(f"{entry.name} ({', '.join(entry.pins)})" if entry.pins else entry.name for entry in entries)


def _names(argument: str, value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigurationTypeError(
            f"RemoteCopy({argument}=...) is 'all' or names such as ('latest', 'best', 'tags'), got {value!r}"
        )
    return tuple("latest" if name == "last" else name for name in names)


def _seconds(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationTypeError(f"RemoteCopy({argument}=...) is a number of seconds, got {value!r}")
    if not value >= 0:
        raise ConfigurationError(f"RemoteCopy({argument}=...) must be >= 0, got {value!r}")
    return float(value)
