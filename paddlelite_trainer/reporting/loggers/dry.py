"""DryLogger: what `self.logger` is where nothing is to be written, so that a step that uses it runs all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .base import Logger


class Nothing:
    """Takes every call and every attribute, and does nothing: a writer of whatever kind."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Nothing:
        return self

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, key: Any) -> Nothing:
        return self


class DryLogger(Logger):
    """Stands for a logger under `fast_dev_run`: everything that one could be asked for is taken, nothing is written."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Nothing()

    @property
    def name(self) -> str:
        return "fast_dev_run"

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> Any:
        return Nothing()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        pass

    def open(self, run_dir: Any, resume_state: Mapping[str, Any] | None = None) -> None:
        pass
