"""VisualDLLogger: record files that VisualDL shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .base import EpochCurve, FileLogger, flat, number_of, refuse_missing
from .event_files import EventFiles
from .nothing import Nothing


class VisualDLLogger(FileLogger):
    """Metrics and hyper-parameters as VisualDL record files; `visualdl --logdir runs` shows them.

    `experiment` is a `visualdl.LogWriter` on the same file: what it writes is taken back on resume as exactly as the
    metrics are. Every process that works on a run adds one file. VisualDL keeps numbers as float32, and takes no `%` in
    a name, which becomes `_`.

    Args:
        directory: a folder inside the run directory.
    """

    def __init__(self, directory: str = "") -> None:
        refuse_missing("VisualDLLogger", "visualdl", "visualdl")
        super().__init__(directory)

    def _forget(self) -> None:
        super()._forget()
        self._writer: Any = None
        self._last_step = 0
        self._hyperparams: dict[str, Any] = {}
        self._epoch = EpochCurve()

    @property
    def experiment(self) -> Any:
        """A `visualdl.LogWriter` that writes into this logger's file."""
        if self._stands_aside:
            return Nothing()
        if self._writer is None:
            from visualdl import LogWriter

            path = self._files.new()
            self._writer = LogWriter(str(path.parent), file_name=path.name, display_name=self.version, flush_secs=2)
        return self._writer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = self._last_step if step is None else int(step)
        self._last_step = max(self._last_step, step)
        for name, value in self._epoch.once(metrics, step).items():
            self.experiment.add_scalar(_tag(name), number_of(name, value), step)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self._hyperparams = flat(params)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """The table of hyper-parameters, beside the curves' last points; it needs the curves' names."""
        if self._hyperparams:
            self.experiment.add_hparams(self._hyperparams, [_tag(name) for name in metrics])

    def log_image(self, name: str, image: Any, step: int) -> None:
        self.experiment.add_image(_tag(name), image, step)

    def log_text(self, name: str, text: str, step: int) -> None:
        self.experiment.add_text(_tag(name), text, step)

    def log_histogram(self, name: str, values: Any, step: int) -> None:
        self.experiment.add_histogram(_tag(name), values, step)

    def log_audio(self, name: str, samples: Any, sample_rate: int, step: int) -> None:
        self.experiment.add_audio(_tag(name), samples.mean(axis=1), step, sample_rate)  # it plays one channel

    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()
            with open(self._writer.file_name, "rb") as file:
                os.fsync(file.fileno())

    def state_dict(self) -> dict[str, Any]:
        """The length of each of our record files."""
        self.save()
        return {"files": self._files.lengths(), "last_step": self._last_step, "epoch": self._epoch.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._close()
        self._files.cut(state_dict.get("files", {}))
        self._last_step = int(state_dict.get("last_step", 0))
        self._epoch = EpochCurve(state_dict.get("epoch"))

    @property
    def _files(self) -> EventFiles:
        return EventFiles(self.folder, "vdlrecords", "VisualDL")

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _tag(name: str) -> str:
    return name.replace("%", "_")
