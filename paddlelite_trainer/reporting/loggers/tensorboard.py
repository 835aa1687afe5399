"""TensorBoardLogger: event files that TensorBoard shows, and a SummaryWriter for what is not a number."""

from __future__ import annotations

import functools
import re
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .append_only import AppendOnlyFile
from .base import EpochCurve, FileLogger, as_json, flat, number_of, wav
from .event_files import EventFiles
from .nothing import Nothing

_NOT_IN_A_TAG = re.compile(r"[^-/\w.]")


class TensorBoardLogger(FileLogger):
    """Metrics as TensorBoard event files, hyper-parameters as a text and in HPARAMS: `tensorboard --logdir runs`.

    `experiment` is a tensorboardX `SummaryWriter` on the same file, for images, histograms and the like; what it writes
    is taken back on resume as exactly as the metrics are. Every process that works on a run adds one file; files of
    other writers in the run directory are left alone. `pip install crc32c`, which tensorboardX uses where it is there,
    makes large images cheap: without it checksums are computed in Python, 0.1 s a megabyte.

    `directory` is a folder inside the run directory.
    """

    OWN_SUFFIX = EventFiles.OWN_SUFFIX

    def _forget(self) -> None:
        super()._forget()
        self._path: Path | None = None
        self._experiment: Any = None
        self._last_step = 0
        self._purge_from: int | None = None
        self._hyperparams: str | None = None
        self._epoch = EpochCurve()

    @property
    def experiment(self) -> Any:
        """A tensorboardX `SummaryWriter` that writes into this logger's file."""
        if self._stands_aside:
            return Nothing()
        if self._experiment is None:
            self._experiment = _summary_writer(self)
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = self._last_step if step is None else int(step)
        values = [(name, number_of(name, value)) for name, value in self._epoch.once(metrics, step).items()]
        self.write_event(scalars_event(values, step, time.time()))

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        content = as_json(params)
        if content != self._hyperparams:  # a resumed run has the same ones, and they are in the file
            self._hyperparams = content
            self._write(summary_of("text", "hparams", f"```json\n{content}\n```"), 0)
            if params:
                # The start of a session alone: of which curves the table tells, TensorBoard finds by itself then.
                self._write(summary_of("hparams", flat(params), {})[1], 0)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """The HPARAMS tab is told that the run has ended; its numbers are the curves' last points."""
        if self._hyperparams is not None:
            self._write(summary_of("hparams", {}, {})[2], self._last_step)

    def log_image(self, name: str, image: Any, step: int) -> None:
        self._write(summary_of("image", _tag(name), image, dataformats="HWC"), step)

    def log_text(self, name: str, text: str, step: int) -> None:
        self._write(summary_of("text", _tag(name), text), step)

    def log_histogram(self, name: str, values: Any, step: int) -> None:
        self._write(summary_of("histogram", _tag(name), values, "auto", 512), step)

    def log_audio(self, name: str, samples: Any, sample_rate: int, step: int) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        audio = Summary.Audio(
            sample_rate=sample_rate,
            num_channels=samples.shape[1],
            length_frames=len(samples),
            encoded_audio_string=wav(samples, sample_rate),
            content_type="audio/wav",
        )
        self._write(Summary(value=[Summary.Value(tag=_tag(name), audio=audio)]), step)

    def state_dict(self) -> dict[str, Any]:
        """The length of each of our event files."""
        if self._file is not None:
            self._file.flush()
        return {
            "files": self._files.lengths(),
            "last_step": self._last_step,
            "hyperparams": self._hyperparams,
            "epoch": self._epoch.state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._forget()
        lengths = state_dict.get("files", {})
        self._files.cut(lengths)
        self._last_step = int(state_dict.get("last_step", 0))
        self._hyperparams = state_dict.get("hyperparams")
        self._epoch = EpochCurve(state_dict.get("epoch"))
        # A TensorBoard that is already running forgets the steps that were taken back.
        self._purge_from = self._last_step + 1 if lengths else None

    @property
    def _files(self) -> EventFiles:
        return EventFiles(self.folder, "events.out.tfevents", "TensorBoard")

    def _write(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.write_event(Event(summary=summary, step=step, wall_time=time.time()))

    def write_event(self, event: Any) -> None:
        """Append one TensorBoard event."""
        if self._file is None:
            self._file = self._open_file()
        self._last_step = max(self._last_step, event.step)
        self._file.append(_record(event))

    def _open_file(self) -> AppendOnlyFile:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._path is None:
            self._path = self._files.new()
        file = AppendOnlyFile(self._path)
        if file.size == 0:
            now = time.time()
            file.append(_record(Event(wall_time=now, file_version="brain.Event:2")))
            if self._purge_from is not None:
                start = SessionLog(status=SessionLog.START)
                file.append(_record(Event(wall_time=now, step=self._purge_from, session_log=start)))
        return file


def _record(event: Any) -> bytes:
    """One TFRecord: length, its checksum, the bytes, their checksum.

    By hand, because tensorboardX's own writer is a queue and a thread, and its flush does not wait for them.
    """
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


def summary_of(kind: str, *arguments: Any, **named: Any) -> Any:
    """What a function of `tensorboardX.summary` makes."""
    from tensorboardX import summary

    return getattr(summary, kind)(*arguments, **named)


def scalars_event(values: Sequence[tuple[str, float]], step: int, wall_time: float) -> Any:
    """One event with a scalar for each name: its checksum, in Python, is what costs.

    tensorboardX's own `scalar` makes three NumPy arrays for each number, 200 us in a training loop.
    """
    from tensorboardX.proto.event_pb2 import Event

    event = Event(wall_time=wall_time, step=step)
    for name, number in values:
        event.summary.value.add(tag=_tag(name), simple_value=number)
    return event


@functools.lru_cache(maxsize=1024)
def _tag(name: str) -> str:
    """The name with the characters replaced that tensorboardX replaces."""
    return _NOT_IN_A_TAG.sub("_", name).lstrip("/")


def _summary_writer(logger: TensorBoardLogger) -> Any:
    """A tensorboardX SummaryWriter whose events go through `logger.write_event`, without a queue and a thread.

    The one place that relies on private names of tensorboardX (2.6.5, writer.py): SummaryWriter asks its own method
    `_get_file_writer` for a FileWriter whenever it writes, and `FileWriter.add_event` looks into `_default_metadata`.
    """
    from tensorboardX.writer import FileWriter, SummaryWriter

    class EventWriter:
        def get_logdir(self) -> str:
            return str(logger.log_dir)

        def add_event(self, event: Any) -> None:
            logger.write_event(event)

        def flush(self) -> None:
            logger.save()

        def close(self) -> None:
            logger.save()

        def reopen(self) -> None: ...

    class Writer(FileWriter):  # type: ignore[misc]
        def __init__(self) -> None:  # that of FileWriter would start a thread and open a file
            self.event_writer = EventWriter()
            self._default_metadata: dict[str, Any] = {}

    class Experiment(SummaryWriter):  # type: ignore[misc]
        all_writers: Any

        def _get_file_writer(self) -> Any:
            if self.all_writers is None:
                writer = Writer()
                self.file_writer, self.all_writers = writer, {writer.get_logdir(): writer}
            return self.file_writer

    return Experiment(logdir=logger.log_dir)
