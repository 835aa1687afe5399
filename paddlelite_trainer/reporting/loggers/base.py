"""Logger, the base class of all, and what those that keep files in the run directory have in common."""

from __future__ import annotations

import importlib.util
import io
import json
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, ConfigurationTypeError, explains_unknown_arguments
from .append_only import AppendOnlyFile


class Logger:
    """Base class of loggers; a logger of your own needs `log_metrics` and nothing else.

    The Trainer calls all of it on rank 0 only: `open` before anything is logged, the rest as documented, `finalize` at
    the end; for what is logged after that, as by `trainer.test` after `fit`, it calls `open` and `finalize` again. What
    a logger returns from `state_dict` is kept in every checkpoint.

        class PrintLogger(Logger):
            def log_metrics(self, metrics, step=None):
                print(step, metrics)

    `log_image`, `log_text`, `log_histogram`, `log_figure`, `log_audio` and `log_summary` are called where a subclass
    has them. A logger that talks to a service derives from `ServiceLogger`.
    """

    _run_dir: Path | None = None
    _run_id: str | None = None
    _stands_aside = False

    def open(self, run_dir: Path, run_id: str, resumed: bool, state: Mapping[str, Any] | None) -> None:
        """Begin, or go on, to log the run in `run_dir`.

        Args:
            run_dir: the run's directory.
            run_id: 16 hexadecimal digits, drawn when the run began: one run has one id, whichever process goes on with
                it, also where the one before was killed before it had saved anything.
            resumed: whether the run has been logged before, by another process or before `finalize`.
            state: what `state_dict` returned for the checkpoint that is gone on from; what was logged later will be
                logged again. `{}` where that is everything: a fit that begins, or was killed before its first
                checkpoint. None where nothing is logged again: an evaluation, or a logger that the checkpoint does
                not know.

        Here, `state` is given to `load_state_dict`, unless it is None.
        """
        self._run_dir, self._run_id, self._stands_aside = Path(run_dir), run_id, False
        if state is not None:
            self.load_state_dict(dict(state))

    def stand_aside(self) -> None:
        """Called instead of `open` where nothing is to be written: under fast_dev_run, and on all ranks but 0."""
        self._stands_aside = True

    @property
    def is_open(self) -> bool:
        """Whether it can log now. Always, unless a subclass says otherwise because it needs what `open` gives it."""
        return True

    @property
    def run_dir(self) -> Path:
        """The directory of the run that is logged.

        Raises:
            ConfigurationError: no run has begun.
        """
        if self._run_dir is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no directory yet: the Trainer opens its loggers when a run begins. "
                "Pass it as Trainer(logger=...), and log from a hook or a step."
            )
        return self._run_dir

    @property
    def name(self) -> str:
        """The name of the directory that holds the runs."""
        return self.run_dir.parent.name

    @property
    def version(self) -> str:
        """The run's own name."""
        return self.run_dir.name

    @property
    def root_dir(self) -> str | None:
        """The directory that holds the runs; None before the first."""
        return None if self._run_dir is None else str(self._run_dir.parent)

    @property
    def save_dir(self) -> str | None:
        """The directory in which `name` lies."""
        return None if self._run_dir is None else str(self._run_dir.parent.parent)

    @property
    def log_dir(self) -> str | None:
        """Where this logger's files are."""
        return None if self._run_dir is None else str(self._run_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at a step; None means the step of the call before."""
        raise NotImplementedError(f"{type(self).__name__} must define log_metrics(metrics, step)")

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Log what the run was configured with; called once per fit."""

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """The newest value of every name, as a fit has ended by itself; called once, before `finalize`."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Called with the ModelCheckpoint that has asked for a checkpoint, once that is there: to upload it, say.

        That is before the next one, and at fit's end for the last.
        """

    def save(self) -> None:
        """Bring everything logged so far to the disk."""

    def finalize(self, status: str) -> None:
        """Called once when a fit or an evaluation of its own ends, with "finished" or "failed".

        An interrupted one has failed. Before anything more is logged `open` is called again.
        """
        self.save()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this logger: enough to take back all that comes later. `save` comes before."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back everything logged after `state_dict` was returned; all there is, where it is given `{}`."""


class FileLogger(Logger):
    """A logger with files in `directory`, a folder inside the run directory: it can log once `open` has named the run.

    Only the subclass opens `_file`; `save` and `finalize` are here.
    """

    _file: AppendOnlyFile | None

    @explains_unknown_arguments(
        {
            "save_dir": "Trainer(default_root_dir=...) says where runs are",
            "name": "Trainer(run_name=...) names the run",
            "version": "Trainer(run_name=...) names the run",
            "sub_dir": "pass directory=, a folder inside the run directory",
            "prefix": "pass directory=, or have it in the names that you log",
            "flush_logs_every_n_steps": "what is logged is on the disk at each save; Trainer(log_every_n_steps=...)",
            "log_graph": "nothing draws the graph",
            "default_hp_metric": "every curve of the run stands beside its hyper-parameters",
        }
    )
    def __init__(self, directory: str = "") -> None:
        self.directory = _inside_run(type(self).__name__, directory)
        self._forget()

    def _forget(self) -> None:
        """Be as new: nothing open, nothing known of a run."""
        self._file = None

    def open(self, run_dir: Path, run_id: str, resumed: bool, state: Mapping[str, Any] | None) -> None:
        self._close()
        if state is not None or Path(run_dir) != self._run_dir:  # else it only adds to what it has
            self._forget()
        super().open(run_dir, run_id, resumed, state)

    @property
    def is_open(self) -> bool:
        return self._run_dir is not None

    @property
    def folder(self) -> Path:
        """The directory of this logger's files."""
        return self.run_dir / self.directory

    @property
    def log_dir(self) -> str | None:
        return str(self.folder) if self.is_open else None

    def save(self) -> None:
        if self._file is not None:
            self._file.sync()

    def finalize(self, status: str) -> None:
        self._close()

    def _close(self) -> None:
        self.save()
        if self._file is not None:
            self._file.close()
            self._file = None


class EpochCurve:
    """Leaves out `epoch`, which comes with everything that is logged, where the step has one already."""

    def __init__(self, state: int | None = None) -> None:
        self.state = state
        """The step of its last point, for a checkpoint."""

    def once(self, metrics: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        if "epoch" not in metrics:
            return metrics
        if step == self.state:
            return {name: value for name, value in metrics.items() if name != "epoch"}
        self.state = step
        return metrics


def number_of(name: str, value: Any) -> float:
    item = getattr(value, "item", None)
    try:
        return float(item() if item is not None else value)
    except (TypeError, ValueError) as error:
        raise ConfigurationTypeError(
            f"metric {name!r} must be a single number, got {value!r} of type {type(value).__name__}"
        ) from error


def as_json(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), indent=2, ensure_ascii=False, default=repr)


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested names joined by `/`; a value that is no number, truth value or text becomes its repr."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}/"))
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, (str, int, float)) else repr(value)
    return found


def wav(samples: Any, sample_rate: int) -> bytes:
    """A WAV file, 16 bits a sample, of samples [length, channels] from -1 to 1."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((samples.clip(-1.0, 1.0) * 32767.0).round().astype("<i2").tobytes())
    return content.getvalue()


def refuse_missing(owner: str, library: str, extra: str) -> None:
    """Raise ConfigurationError where a logger's library is not installed; it is not imported here."""
    if importlib.util.find_spec(library) is None:
        raise ConfigurationError(
            f"{owner} needs {library}, which is not installed: pip install 'paddlelite_trainer[{extra}]'"
        )


def _inside_run(owner: str, directory: str) -> str:
    path = Path(directory)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigurationError(
            f"{owner}(directory=...) is a folder inside the run directory, got {directory!r}. Where runs are is said "
            "by Trainer(default_root_dir=..., run_name=...): a run's curves and checkpoints stay together."
        )
    return directory
