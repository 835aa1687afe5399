"""Saver: asks callbacks at each save point whether a checkpoint is due, and takes it."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..callback import Pins, Reason, SavePoint
from ..checkpoint.links import check_tag
from ..errors import CheckpointSaveError, ConfigurationError, LogWriteError
from ..machine.ranks import sendable
from ..run.directory import locked
from .mark import BATCH, VALIDATION, Mark

if TYPE_CHECKING:
    from ..checkpoint import Entry
    from ..machine.ranks import Ranks
    from ..progress import Progress
    from ..reporting.book import Book
    from ..run.identity import Run
    from ..settings import Settings
    from .hooks import Hooks
    from .stopping import StopRequests


class Saver:
    """Asks callbacks at each save point, and writes what they and the user want kept.

    `candidate` names the checkpoint that would be written now; `write` collects and writes it under pins, in full or
    of weights only, as of a mark where there is one. `make_mark` remembers the present moment; `may_remember` tells
    whether a checkpoint could be made of it later.
    """

    def __init__(
        self,
        settings: Settings,
        progress: Progress,
        ranks: Ranks,
        hooks: Hooks,
        stopping: StopRequests,
        book: Book,
        run: Run,
        asks_ranks_after: Callable[[int], bool],
        candidate: Callable[[], Entry],
        write: Callable[[Entry | None, Pins, bool, Mark | None], Entry],
        make_mark: Callable[[tuple[str, ...]], Mark],
        may_remember: Callable[[], bool],
    ) -> None:
        self.settings, self.progress, self.ranks, self.hooks = settings, progress, ranks, hooks
        self.stopping, self.book, self.run = stopping, book, run
        self.asks_ranks_after, self.candidate, self.write = asks_ranks_after, candidate, write
        self.make_mark, self.may_remember = make_mark, may_remember
        self.savers = hooks.savers if run.store is not None else []
        self.requested: dict[str, bool] = {}
        """{tag that the user asked for: whether weights are enough}."""
        self.saved_at: tuple[Any, ...] | None = None
        self.keeps_marks = ranks.world_size == 1 and hooks.save_exceptions
        self.mark: Mark | None = None
        self.follows_validation = False
        self._as_of: Mark | None = None
        self._written = 0  # checkpoints
        self.adds = False
        """Whether what is being saved is of a moment at which the run had no checkpoint of its own, and comes of a
        crash or a signal."""
        self._was_added = False
        book.call_before_log(self._remember_logs)
        self.take: Callable[..., Entry | None] = self._take
        self.await_save: Callable[[], bool] = self._await_save
        self.await_here: Callable[[], bool] = self._await_here
        self.save_point: Callable[[Reason], None] = self._save_point

    def note_resumed(self, *, was_added: bool) -> None:
        """What was restored is saved already, perhaps by what a crash or a signal has added."""
        self.saved_at = self.progress.position
        self._was_added = was_added

    @property
    def is_saved(self) -> bool:
        """Whether the newest checkpoint is of the present moment."""
        return self.saved_at == self.progress.position

    @property
    def lacks_its_own(self) -> bool:
        """Whether it is, and was added by a crash or a signal, so that the run's own would still rank it."""
        return self.is_saved and self._was_added

    def _save_point(self, reason: Reason) -> None:
        """Everything of this batch or epoch has run: let callbacks ask for a checkpoint, and take one."""
        if reason == "train_batch" and self.follows_validation:
            reason = "validation"
        self.follows_validation = False
        if (
            self.ranks.world_size > 1
            and reason == "train_batch"
            and not self.asks_ranks_after(self.progress.global_step)
        ):
            return
        leaving = self.stopping.signals.received is not None
        if self.ranks.world_size > 1:  # before the savers are asked, who write more where a run ends
            leaving = self.stopping.agree()
        elif reason == "train_epoch":
            self.stopping.ask_clock()
        pins: dict[str, Sequence[str]] = {}
        weights_only = True  # where nobody asks for more
        point = error = None
        is_added = reason == "exception" or (reason == "stop" and not self.stopping.training_is_over)
        if self.savers:
            point = SavePoint(reason, self.awaited_candidate, self.entries, is_added)
            try:
                for callback, ask in self.savers:
                    wanted = ask(point)
                    if wanted:
                        pins.update(wanted)
                        weights_only = weights_only and getattr(callback, "save_weights_only", False)
            except Exception as raised:
                if self.ranks.world_size == 1:
                    raise
                error = raised  # the other ranks wait, and are told
        if self.ranks.world_size > 1:
            # `saved_at` too: rank 0 alone has noticed where a save in the background has failed.
            sent = None if error is None else sendable(error)
            agreed = self.ranks.broadcast_object((sent, pins, weights_only, self.requested, self.saved_at))
            mine = self.requested
            theirs, pins, weights_only, self.requested, self.saved_at = agreed
            if theirs is not None:
                self.ranks.raise_of_rank_zero(theirs if error is None else error)
            for tag in mine.keys() - self.requested.keys():
                raise ConfigurationError(
                    f"save_checkpoint({tag!r}) was called on rank {self.ranks.rank} and not on rank 0: all ranks must "
                    "call it"
                )
        # Where training is over too, the run's own last save comes next, as in an undisturbed one.
        wants_all = reason == "stop" or (leaving and reason != "lr_drop" and not self.stopping.training_is_over)
        if wants_all and self.settings.enable_checkpointing and self.hooks.savers:
            pins.setdefault("latest", [])  # filled in with this checkpoint
            weights_only = False
        if pins or self.requested:
            self.adds = is_added and (not self.is_saved or self.lacks_its_own)
            try:
                self.take(pins, weights_only=weights_only, point=point)
            finally:
                self.adds = False
        if self.keeps_marks and reason in ("train_batch", "validation"):
            self.remember(BATCH)

    def entries(self) -> Sequence[Entry]:
        """Checkpoints on disk, oldest first; one that is still being written is waited for."""
        self.await_here()
        return self.run.checkpoints.entries()

    def awaited_candidate(self) -> Entry:
        self.await_here()
        return self.candidate()

    def _take(self, pins: Pins, *, weights_only: bool = True, point: SavePoint | None = None) -> Entry | None:
        """Write one checkpoint under these pins and those that users asked for, full if one of them is to be.

        Every rank calls it.
        """
        weights_only = weights_only and all(self.requested.values())
        candidate = None
        if self.run.store is not None:
            candidate = self.candidate() if point is None else point.candidate
        mine = [candidate.name] if candidate is not None else []
        all_pins = {**pins, **dict.fromkeys(self.requested, mine)}
        if "latest" in all_pins:
            all_pins["latest"] = all_pins["latest"] or mine
        elif candidate is not None and candidate.healthy and not weights_only and self._keeps_latest():
            all_pins["latest"] = mine  # the newest that a run can go on from, whoever asked for it
        self.stopping.note_seconds()
        try:
            entry = self.write(candidate, all_pins, weights_only, self._as_of)
        except (CheckpointSaveError, LogWriteError) as error:  # it holds how far the logs had come
            self._after_failed_save(error)
            return None
        self.requested.clear()
        self._written += 1
        if not weights_only:
            self.saved_at = self.progress.position
            self._was_added = self.adds
        return entry

    def _keeps_latest(self) -> bool:
        """Whether a callback wants `latest`, or there is one, as what an interruption saved is."""
        return self.hooks.keep_latest or "latest" in self.run.checkpoints.pins()

    def keep(self, tag: str, *, weights_only: bool, replace: bool, at_once: bool) -> Path | None:
        """Trainer.save_checkpoint: at the next save point, or at once where the fit is over; every rank calls it."""
        _refuse_path(tag, self.run.path)
        check_tag(tag)
        if not at_once:
            self._refuse_taken(tag, replace)
            self.requested[tag] = weights_only
            return None
        assert self.run.path is not None
        path, lock = self.run.path, contextlib.ExitStack()

        def begin() -> None:
            self._refuse_taken(tag, replace)
            lock.enter_context(locked(path))

        with lock:  # on rank 0; nobody goes on before it is known that it may write
            self.ranks.on_rank_zero(begin)
            self.requested[tag] = weights_only
            try:
                entry = self.take({})
                is_written = self.await_save()
            finally:
                self.requested.clear()
        return entry.path if entry is not None and is_written else None

    def _refuse_taken(self, tag: str, replace: bool) -> None:
        """Raise ConfigurationError for a tag of another step; this step's is the same command again."""
        holders = () if replace else self.run.checkpoints.by_pin(tag)
        others = [entry.name for entry in holders if entry.step != self.progress.global_step]
        if others:
            raise ConfigurationError(
                f"the tag {tag!r} is taken, by {', '.join(others)}. Choose another, or pass replace=True."
            )

    def take_requested(self) -> None:
        """What was asked for in one of the last hooks."""
        if self.requested:
            self.take({})

    def _await_save(self) -> bool:
        """Let a background save end, and return whether it is on the disk; every rank calls it.

        Its error is raised, or told where `on_save_error="warn"`, on every rank alike: what follows depends on it.
        """
        return self.run.path is None or self._awaited(lambda: self.ranks.on_rank_zero(self._wait))

    def _await_here(self) -> bool:
        """The same on rank 0 alone, while it decides what is to be saved."""
        return self._awaited(self._wait)

    def _wait(self) -> None:
        if self.run.store is not None:
            self.run.store.wait()

    def _awaited(self, wait: Callable[[], None]) -> bool:
        try:
            wait()
        except CheckpointSaveError as error:
            self._after_failed_save(error)
            return False
        return True

    def _after_failed_save(self, error: CheckpointSaveError | LogWriteError) -> None:
        if self.settings.on_save_error == "raise":
            raise error
        self.saved_at = None
        self.book.print(
            f"WARNING: a checkpoint was not written, and training goes on as on_save_error='warn' asks: {error}"
        )

    # -- what an exception can still save ------------------------------------------------------------------------------
    def remember(self, hooks: tuple[str, ...], *, for_drop: bool = False) -> None:
        """Remember this moment, so that an exception after it can still save it, or a drop of the rate."""
        if self.keeps_marks or for_drop:
            self.mark = self.make_mark(hooks) if self.may_remember() else None

    def remember_validation(self) -> None:
        """A validation that a signal cuts off is not part of what is saved, whoever saves it."""
        self.mark = self.make_mark(VALIDATION)

    def note_validation(self) -> None:
        """The next save point follows a validation, whose marks are over."""
        self.mark, self.follows_validation = None, True

    def save_before_drop(self, *, as_of_mark: bool) -> None:
        """A rate is about to fall; after hooks that a run going on from there calls again, as of before them."""
        if as_of_mark and self.mark is not None and self.mark.holds:
            self._save_as_of(self.mark, "lr_drop")
        else:
            self.save_point("lr_drop")

    def save_stopped(self, *, as_of_mark: bool) -> None:
        """The last checkpoint of a process that leaves."""
        if as_of_mark and self.mark is not None and self.mark.holds:
            self._save_as_of(self.mark, "stop")
        else:
            self.save_point("stop")

    def save_after_error(self) -> None:
        """Where a callback wants it and no optimizer has moved since: save the last save point's state."""
        mark, self.mark = self.mark, None
        if mark is None or not self.keeps_marks or not mark.holds:
            return
        try:
            written = self._written
            where = self._save_as_of(mark, "exception")
            if self._written > written:
                self.book.print(f"Saved what was before the error: {where}.")
        except Exception as error:
            warnings.warn(f"the state before the error could not be saved: {error}", stacklevel=2)

    def _save_as_of(self, mark: Mark, reason: Reason) -> str:
        progress = self.progress
        with mark.applied():
            self._as_of = mark
            try:
                self.save_point(reason)
            finally:
                self._as_of = None
            batch, step = progress.batches_in_epoch, progress.global_step
            return f"epoch {progress.current_epoch}, batch {batch}, step {step}"

    def _remember_logs(self) -> None:
        mark = self.mark
        if mark is None or not mark.holds or mark.loggers is not None:
            return
        try:
            mark.remember_logs([logger.state_dict() for logger in self.book.loggers])
        except LogWriteError as error:
            self.mark = None  # without positions in the logs no checkpoint can be made of it
            self.book.after_failed_log(error)

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.take = timed("checkpoints: writing", self.take)
        self.save_point = timed("checkpoints: deciding", self.save_point)
        waiting = "checkpoints: waiting for one in the background"
        self.await_save, self.await_here = timed(waiting, self.await_save), timed(waiting, self.await_here)


def ranks_talk_after(settings: Settings, callbacks: Sequence[Any]) -> Callable[[int], bool]:
    """After which steps ranks talk: it costs a round trip, so not after each, and all must give the same answer."""

    def answer(step: int) -> bool:
        every = [getattr(callback, "every_n_train_steps", None) for callback in callbacks]
        return step % settings.log_every_n_steps == 0 or any(count and step % count == 0 for count in every)

    return answer


_FILES = {".ckpt", ".pt", ".pth", ".pdparams", ".pdopt", ".pdckpt", ".pdz", ".safetensors"}


def _refuse_path(tag: str | Path, run_dir: Path | None) -> None:
    """Raise ConfigurationError where a file's name or a path stands for a tag."""
    name = re.split(r"[/\\]", str(tag).rstrip("/\\"))[-1]
    stem = Path(name).stem if Path(name).suffix in _FILES else name
    if str(tag) != stem and stem:
        raise ConfigurationError(
            f"save_checkpoint takes a name and no path, got {str(tag)!r}: save_checkpoint({stem!r}) keeps "
            f"{run_dir}/{stem}.pdparams, and fit(ckpt_path={stem!r}) goes on from it."
        )
