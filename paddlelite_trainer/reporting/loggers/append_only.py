"""Log files that are only appended to, and the one way to replace one whole."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import LogWriteError

FLUSH_SECONDS = 2.0  # a reader of the files sees a line at most this long after the next one was logged
FLUSH_BYTES = 1 << 16


class AppendOnlyFile:
    """Appends whole records; `append` is cheap, `flush` hands them to the system, `sync` to the disk.

    Its buffer is not a file object's: a forked child (a DataLoader worker) must not write it a second time when it
    exits, and a kill must not leave half a record. What a full disk does not take waits, and goes on where it ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming(path):
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
            with naming(self._path):
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
            with naming(self._path):
                os.fsync(self._descriptor)
            self._dirty = False

    def close(self) -> None:
        try:
            self.flush()
        finally:
            descriptor, self._descriptor = self._descriptor, -1  # its number may soon be another file's
            os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A new file that takes the path's place when all of it is on the disk, or leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.new")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise what the system says as a LogWriteError that names the file."""
    try:
        yield
    except OSError as error:
        told = LogWriteError(f"the log {path} could not be written: {error.strerror or error}")
        told.errno = error.errno
        raise told from error
