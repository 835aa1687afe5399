"""Logger, the base class of all, and what those that keep files in the run directory have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, ConfigurationTypeError, explains_unknown_arguments
from .append_only import AppendOnlyFile


class Logger:
    """Base class of loggers; a logger of your own needs `log_metrics` and nothing else.

    The Trainer calls `open` when a fit has its run directory, the rest as documented, on rank 0 only. What a logger
    returns from `state_dict` is kept in every checkpoint; a fit that resumes calls `load_state_dict` with it, and one
    that starts from nothing with `{}`, since nothing was logged then that is to stay.

        class PrintLogger(Logger):
            def log_metrics(self, metrics, step=None):
                print(step, metrics)
    """

    _run_dir: Path | None = None

    def open(self, run_dir: str | os.PathLike[str], resume_state: Mapping[str, Any] | None = None) -> None:
        """Begin to log into a run directory.

        A `resume_state` is given to `load_state_dict`, which takes back what was logged later. The Trainer passes `{}`
        where a fit starts from nothing, and None, which only adds, where it resumes.
        """
        self._run_dir = Path(run_dir)
        if resume_state is not None:
            self.load_state_dict(dict(resume_state))

    @property
    def is_open(self) -> bool:
        """Whether it can log now. Always, unless a subclass says otherwise because it needs what `open` gives it."""
        return True

    @property
    def run_dir(self) -> Path:
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

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Called with the ModelCheckpoint that has asked for a checkpoint, once that is there: to upload it, say.

        That is before the next one, and at fit's end for the last.
        """

    def save(self) -> None:
        """Bring everything logged so far to the disk."""

    def finalize(self, status: str) -> None:
        """Called once when a fit or an evaluation of its own ends, with "finished" or "failed"; more may follow.

        An interrupted one has failed.
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
            "default_hp_metric": "hyper-parameters are a text",
        }
    )
    def __init__(self, directory: str = "") -> None:
        self._directory = _inside_run(type(self).__name__, directory)
        self._forget()

    def _forget(self) -> None:
        """Be as new: nothing open, nothing known of a run."""
        self._file = None

    def open(self, run_dir: str | os.PathLike[str], resume_state: Mapping[str, Any] | None = None) -> None:
        self._close()
        self._forget()
        super().open(run_dir, resume_state)

    @property
    def is_open(self) -> bool:
        return self._run_dir is not None

    @property
    def folder(self) -> Path:
        """The directory of this logger's files."""
        return self.run_dir / self._directory

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


def _inside_run(owner: str, directory: str) -> str:
    path = Path(directory)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigurationError(
            f"{owner}(directory=...) is a folder inside the run directory, got {directory!r}. Where runs are is said "
            "by Trainer(default_root_dir=..., run_name=...): a run's curves and checkpoints stay together."
        )
    return directory
