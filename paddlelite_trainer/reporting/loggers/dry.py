"""DryLogger: what `self.logger` is where nothing is to be written, so that a step that uses it runs all the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Logger
from .nothing import Nothing


class DryLogger(Logger):
    """Stands for a logger under `fast_dev_run` and on other ranks than 0.

    Everything that one could be asked for is taken, nothing is written.
    """

    def __init__(self, name: str = "fast_dev_run") -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Nothing()

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> Any:
        return Nothing()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        pass

    def open(self, run_dir: Path, run_id: str, resumed: bool, state: Mapping[str, Any] | None) -> None:
        pass
