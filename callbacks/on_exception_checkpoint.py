"""OnExceptionCheckpoint: keeps what was before an error under a name, until a fit ends without one."""

from __future__ import annotations

import os
from pathlib import Path

from paddlelite_trainer import Callback, Module, SavePoint, Trainer
from paddlelite_trainer.checkpoint import is_managed
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments


class OnExceptionCheckpoint(Callback):
    """Saves the state of the last complete batch where something raises, as the pin `filename` of the run.

        Trainer(callbacks=[OnExceptionCheckpoint()], ...)

    `fit(ckpt_path="last")` goes on from it, `ckpt_path="on_exception"` too. `ModelCheckpoint(save_on_exception=True)`
    does the same for the checkpoints that it keeps.

    Args:
        dirpath: checkpoints live in the run directory; a folder given here gets a link.
        filename: the pin's name.

    Raises:
        ConfigurationError: filename is no name of a file, or one that a run uses itself.
    """

    save_on_exception = True

    @explains_unknown_arguments({})
    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str = "on_exception") -> None:
        if not filename or is_managed(filename) or set(filename) & set('<>:"/\\|?*'):
            raise ConfigurationError(
                f"OnExceptionCheckpoint(filename={filename!r}) must be a file's name that a run does not use itself"
            )
        self.dirpath = None if dirpath is None else str(Path(dirpath).expanduser().absolute())
        self.filename = filename
        self._run_dir: Path | None = None

    @property
    def state_key(self) -> str:
        return f"OnExceptionCheckpoint({self.filename!r})"

    @property
    def ckpt_path(self) -> str:
        """Where the checkpoint is, or will be; "" before a fit."""
        return "" if self._run_dir is None else str(self._run_dir / self.filename)

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        self._run_dir = trainer.run_dir

    def on_save_point(self, trainer: Trainer, module: Module, save_point: SavePoint) -> dict[str, list[str]] | None:
        if save_point.reason != "exception":
            return None
        if self.dirpath is not None and trainer.run_dir is not None:
            link = Path(self.dirpath) / self.filename
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(trainer.run_dir / self.filename)
        return {self.filename: [save_point.candidate.name]}

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.checkpoint_store is None:
            return
        trainer.checkpoint_store.set_pins({self.filename: []})
        link = None if self.dirpath is None else Path(self.dirpath) / self.filename
        if link is not None and link.is_symlink():
            link.unlink()
