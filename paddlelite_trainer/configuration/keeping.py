"""KeepsConfiguration: a run's whole configuration, in its directory and in each of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..callback import Callback
from ..checkpoint.filesystem import atomic_file
from ..run.directory import CONFIG_FILE, CONFIG_HEAD
from .which_run import differences, kept_configuration

KEY = "configuration"
"""Where a checkpoint has it."""


class KeepsConfiguration(Callback):
    """Writes config.yaml as a fit begins and adds the configuration to checkpoints.

    Where the run has another, that is told, and the present one takes its place.
    """

    def __init__(self, text: str, tree: dict[str, Any]) -> None:
        self._text, self._tree = text, tree

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if not trainer.is_global_zero or trainer.run_dir is None:
            return
        before = kept_configuration(trainer.run_dir)
        for change in differences(before, self._tree) if before is not None else ():
            trainer.print(f"the configuration has changed since the run began: {change}")
        _write(trainer.run_dir / CONFIG_FILE, f"{CONFIG_HEAD}.\n{self._text}")

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self._tree


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
