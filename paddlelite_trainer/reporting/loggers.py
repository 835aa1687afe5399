"""Loggers: where metrics go, in files that a resumed run continues as if nothing had happened."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import re
import shutil
import socket
import struct
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, ConfigurationTypeError, LogWriteError

FLUSH_SECONDS = 2.0  # a reader of the files sees a line at most this long after the next one was logged
FLUSH_BYTES = 1 << 16


class Logger:
    """Base class of loggers; a logger of your own needs `log_metrics` and nothing else.

    The Trainer calls `open` when a fit has its run directory, the rest as documented, on rank 0 only. What a logger returns
    from `state_dict` is kept in every checkpoint; a fit that resumes calls `load_state_dict` with it, and one that starts from
    nothing with `{}`, since nothing was logged then that is to stay.

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
    def log_dir(self) -> str | None:
        """Where this logger's files are."""
        return None if self._run_dir is None else str(self._run_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at a step; None means the step of the call before."""
        raise NotImplementedError(f"{type(self).__name__} must define log_metrics(metrics, step)")

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Log what the run was configured with; called once per fit."""

    def save(self) -> None:
        """Bring everything logged so far to the disk."""

    def finalize(self, status: str) -> None:
        """Called when a fit ends, with "finished" or "failed" (an interrupted one has failed); logging may go on afterwards."""
        self.save()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this logger: enough to take back everything logged later. `save` comes before the checkpoint."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back everything logged after `state_dict` was returned; all there is, where it is given `{}`."""


class CSVLogger(Logger):
    """Metrics as `metrics.csv`, hyper-parameters as `hparams.json`; one row per step, one column per name.

    A name may appear at any time. Its column goes to the right end: the header is then replaced (the file is written
    anew under another name and renamed over the old one), the rows stay as they are, so early rows have fewer fields
    than the header. The csv module, pandas and spreadsheets read that as empty cells. Otherwise the file is only
    appended to, in whole rows.

    `directory` is a folder inside the run directory.
    """

    FILE_NAME = "metrics.csv"

    def __init__(self, directory: str = "") -> None:
        self._directory = _inside_run(type(self).__name__, directory)
        self._forget()

    def _forget(self) -> None:
        self._file: _AppendOnlyFile | None = None
        self._columns: list[str] = []
        self._header_bytes = 0
        self._step = 0
        self._row: dict[str, str] = {}  # the newest step's, until another step comes: several calls share one row

    def open(self, run_dir: str | os.PathLike[str], resume_state: Mapping[str, Any] | None = None) -> None:
        self.finalize("finished")
        self._forget()
        super().open(run_dir, resume_state)

    @property
    def is_open(self) -> bool:
        return self._run_dir is not None

    @property
    def log_dir(self) -> str | None:
        return None if self._run_dir is None else str(self._run_dir / self._directory)

    @property
    def path(self) -> Path:
        return self.run_dir / self._directory / self.FILE_NAME

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._begin()
        row = {name: _digits(_number(name, value)) for name, value in metrics.items()}
        step = self._step if step is None else int(step)
        if step != self._step or any(self._row.get(name, value) != value for name, value in row.items()):
            self._write_row()
        self._step = step
        self._row = {"step": str(step), **self._row, **row}

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        path = self.run_dir / self._directory / "hparams.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, (_as_json(params) + "\n").encode())

    def save(self) -> None:
        self._write_row()
        if self._file is not None:
            self._file.sync()

    def finalize(self, status: str) -> None:
        self.save()
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """The header and the number of bytes below it."""
        self._write_row()
        if self._file is not None:
            self._file.flush()
        columns, header_bytes = _read_header(self.path)
        return {"columns": columns, "data_bytes": self.path.stat().st_size - header_bytes} if columns else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._forget()
        columns, data_bytes = list(state_dict.get("columns", [])), int(state_dict.get("data_bytes", 0))
        if not columns:
            self.path.unlink(missing_ok=True)
            return
        found, header_bytes = _read_header(self.path)
        size = self.path.stat().st_size if found else 0
        if found[: len(columns)] != columns or size - header_bytes < data_bytes:
            warnings.warn(
                f"{self.path} does not hold what the checkpoint says was logged ({data_bytes} bytes below the columns "
                f"{', '.join(columns)}); somebody else changed it. It is kept as it is and appended to.",
                stacklevel=2,
            )
            return
        os.truncate(self.path, header_bytes + data_bytes)
        if found != columns:  # columns that came later go too, so that the file is the one the checkpoint saw
            _replace_header(self.path, header_bytes, _csv_line(columns))

    def _begin(self) -> None:
        if self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._columns, self._header_bytes = _read_header(self.path)
        self._file = _AppendOnlyFile(self.path)

    def _write_row(self) -> None:
        if not self._row:
            return
        self._begin()
        assert self._file is not None
        row, known = self._row, set(self._columns)
        if not row.keys() <= known:
            self._file.flush()  # what cannot be written stays there
            self._file.close()
            self._file = None
            columns = [*self._columns, *(name for name in row if name not in known)]
            header = _csv_line(columns)
            _replace_header(self.path, self._header_bytes, header)
            self._columns, self._header_bytes = columns, len(header)
            self._file = _AppendOnlyFile(self.path)
        # Only names need csv's quotes, numbers never do.
        self._file.append((",".join([row.get(name, "") for name in self._columns]) + "\n").encode())
        self._row = {}


class TensorBoardLogger(Logger):
    """Metrics as TensorBoard event files, hyper-parameters as a text; `tensorboard --logdir runs` shows them.

    `experiment` is a tensorboardX `SummaryWriter` on the same file, for images, histograms and the like; what it writes
    is taken back on resume as exactly as the metrics are. Every process that works on a run adds one file; files of
    other writers in the run directory are left alone. `pip install crc32c`, which tensorboardX uses where it is there,
    makes large images cheap: without it checksums are computed in Python, 0.1 s a megabyte.

    `directory` is a folder inside the run directory.
    """

    OWN_SUFFIX = ".paddlelite"

    def __init__(self, directory: str = "") -> None:
        self._directory = _inside_run(type(self).__name__, directory)
        self._forget()

    def _forget(self) -> None:
        self._path: Path | None = None
        self._file: _AppendOnlyFile | None = None
        self._experiment: Any = None
        self._last_step = 0
        self._purge_from: int | None = None
        self._hyperparams: str | None = None

    def open(self, run_dir: str | os.PathLike[str], resume_state: Mapping[str, Any] | None = None) -> None:
        self.finalize("finished")
        self._forget()
        super().open(run_dir, resume_state)

    @property
    def is_open(self) -> bool:
        return self._run_dir is not None

    @property
    def log_dir(self) -> str | None:
        return None if self._run_dir is None else str(self._run_dir / self._directory)

    @property
    def experiment(self) -> Any:
        """A tensorboardX `SummaryWriter` that writes into this logger's file."""
        if self._experiment is None:
            self._experiment = _summary_writer(self)
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = [(name, _number(name, value)) for name, value in metrics.items()]
        step = self._last_step if step is None else int(step)
        self.write_event(_scalars_event(values, step, time.time()))

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import text

        content = _as_json(params)
        if content != self._hyperparams:  # a resumed run has the same ones, and they are in the file
            self._hyperparams = content
            summary = text("hparams", f"```json\n{content}\n```")
            self.write_event(Event(summary=summary, step=0, wall_time=time.time()))

    def save(self) -> None:
        if self._file is not None:
            self._file.sync()

    def finalize(self, status: str) -> None:
        self.save()
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """The length of each of our event files."""
        if self._file is not None:
            self._file.flush()
        return {
            "files": {path.name: path.stat().st_size for path in self._own_files()},
            "last_step": self._last_step,
            "hyperparams": self._hyperparams,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._forget()
        lengths = state_dict.get("files", {})
        files = self._own_files()
        for path in files:
            length = lengths.get(path.name)
            if length is None:
                path.unlink()
            elif path.stat().st_size > length:
                os.truncate(path, length)
        short = [path.name for path in files if path.exists() and path.stat().st_size < lengths[path.name]]
        lost = sorted({*short, *(lengths.keys() - {path.name for path in files})})
        if lost:
            warnings.warn(
                f"event files in {self.log_dir} are shorter than when the checkpoint was taken, or gone: "
                f"{', '.join(lost)}. TensorBoard's curves have a gap there.",
                stacklevel=2,
            )
        self._last_step = int(state_dict.get("last_step", 0))
        self._hyperparams = state_dict.get("hyperparams")
        # A TensorBoard that is already running forgets the steps that were taken back.
        self._purge_from = self._last_step + 1 if lengths else None

    def _own_files(self) -> list[Path]:
        return sorted((self.run_dir / self._directory).glob(f"events.out.tfevents.*{self.OWN_SUFFIX}"))

    def write_event(self, event: Any) -> None:
        """Append one TensorBoard event."""
        if self._file is None:
            self._file = self._open_file()
        self._last_step = max(self._last_step, event.step)
        self._file.append(_record(event))

    def _open_file(self) -> _AppendOnlyFile:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._path is None:
            self._path = self._new_path()
        file = _AppendOnlyFile(self._path)
        if file.size == 0:
            now = time.time()
            file.append(_record(Event(wall_time=now, file_version="brain.Event:2")))
            if self._purge_from is not None:
                start = SessionLog(status=SessionLog.START)
                file.append(_record(Event(wall_time=now, step=self._purge_from, session_log=start)))
        return file

    def _new_path(self) -> Path:
        folder = self.run_dir / self._directory
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names: take a later one than all, whatever the clock says.
        stamps = [int(path.name.split(".")[3]) for path in self._own_files()]
        stamp = max(int(time.time()), max(stamps, default=0) + 1)
        return folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}{self.OWN_SUFFIX}"


class _AppendOnlyFile:
    """Appends whole records; `append` is cheap, `flush` hands them to the system, `sync` to the disk.

    Its buffer is not a file object's: a forked child (a DataLoader worker) must not write it a second time when it
    exits, and a kill must not leave half a record. What a full disk does not take waits, and goes on where it ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _naming(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._written = os.fstat(self._descriptor).st_size
        self._dirty = False
        self._next_flush = 0.0

    @property
    def size(self) -> int:
        return self._written + self._waiting_bytes

    def append(self, record: bytes) -> None:
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        now = time.monotonic()
        if now >= self._next_flush or self._waiting_bytes > FLUSH_BYTES:
            self._next_flush = now + FLUSH_SECONDS
            self.flush()

    def flush(self) -> None:
        data = memoryview(b"".join(self._waiting))
        try:
            with _naming(self._path):
                while data:
                    written = os.write(self._descriptor, data)
                    self._written += written
                    data = data[written:]
                    self._dirty = True
        finally:
            self._waiting, self._waiting_bytes = [bytes(data)] if data else [], len(data)

    def sync(self) -> None:
        self.flush()
        if self._dirty:
            with _naming(self._path):
                os.fsync(self._descriptor)
            self._dirty = False

    def close(self) -> None:
        try:
            self.flush()
        finally:
            descriptor, self._descriptor = self._descriptor, -1  # its number may soon be another file's
            os.close(descriptor)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise what the system says as a LogWriteError that names the file."""
    try:
        yield
    except OSError as error:
        told = LogWriteError(f"the log {path} could not be written: {error.strerror or error}")
        told.errno = error.errno
        raise told from error


# -- CSV ---------------------------------------------------------------------------------------------------------------
def _digits(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _csv_line(fields: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue().encode()


def _read_header(path: Path) -> tuple[list[str], int]:
    """The column names and the bytes of the header line; ([], 0) where there is no file or nothing in it."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return [], 0
    return next(csv.reader([line.decode()]), []), len(line)


def _replace_header(path: Path, old_header_bytes: int, header: bytes) -> None:
    with _replacing(path) as new, path.open("rb") as old:
        new.write(header)
        old.seek(old_header_bytes)
        shutil.copyfileobj(old, new)


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end, as a power loss may leave."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 4096)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            file.truncate(position)


# -- TensorBoard -------------------------------------------------------------------------------------------------------
_NOT_IN_A_TAG = re.compile(r"[^-/\w.]")


def _record(event: Any) -> bytes:
    """One TFRecord: length, its checksum, the bytes, their checksum.

    By hand, because tensorboardX's own writer is a queue and a thread, and its flush does not wait for them.
    """
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


def _scalars_event(values: Sequence[tuple[str, float]], step: int, wall_time: float) -> Any:
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
    """A tensorboardX SummaryWriter whose events go through `logger.write_event`, without a queue and a thread."""
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

    class Experiment(SummaryWriter):  # type: ignore[misc]
        all_writers: Any

        def _get_file_writer(self) -> Any:
            if self.all_writers is None:
                writer: Any = FileWriter.__new__(FileWriter)  # its __init__ would start a thread and open a file
                writer.event_writer = EventWriter()
                writer._default_metadata = {}
                self.file_writer, self.all_writers = writer, {writer.get_logdir(): writer}
            return self.file_writer

    return Experiment(logdir=logger.log_dir)


# -- both --------------------------------------------------------------------------------------------------------------
def _inside_run(owner: str, directory: str) -> str:
    path = Path(directory)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigurationError(
            f"{owner}(directory=...) is a folder inside the run directory, got {directory!r}. Where runs are is said "
            "by Trainer(default_root_dir=..., run_name=...): a run's curves and checkpoints stay together."
        )
    return directory


def _number(name: str, value: Any) -> float:
    item = getattr(value, "item", None)
    try:
        return float(item() if item is not None else value)
    except (TypeError, ValueError) as error:
        raise ConfigurationTypeError(
            f"metric {name!r} must be a single number, got {value!r} of type {type(value).__name__}"
        ) from error


def _as_json(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), indent=2, ensure_ascii=False, default=repr)


def _replace(path: Path, content: bytes) -> None:
    with _replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """A new file that takes the path's place when all of it is on the disk, or leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.new")
    with _naming(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
