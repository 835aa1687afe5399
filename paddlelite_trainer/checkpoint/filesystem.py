"""The few file-system calls a checkpoint store makes, so that a test can record, fail and replay every one."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Buffer = bytes | bytearray | memoryview


class FileSystem:
    """The operating system's calls under our names; the store makes no other.

    Each method is one operation that either happens or raises OSError. Files are written through descriptors that
    `create` returns, and nothing is durable before `fsync` (a file's bytes) and `fsync_directory` (its name).
    """

    def mkdir(self, path: Path) -> None:
        """Make one directory; its parent exists, it does not."""
        os.mkdir(path)

    def create(self, path: Path) -> int:
        """Open a new file for writing and return its descriptor; the file must not exist (O_EXCL)."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, descriptor: int, data: Buffer) -> None:
        """Append all of `data`; a disk that takes only a part of it is asked again for the rest."""
        view = memoryview(data)
        while view.nbytes:
            view = view[os.write(descriptor, view) :]

    def fsync(self, descriptor: int) -> None:
        """Return when the file's bytes are on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def fsync_directory(self, path: Path) -> None:
        """Return when the names in this directory are on the disk; nothing to do where the system has no such call."""
        if os.name == "nt":
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory a name that is free."""
        os.rename(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file or link a name, atomically taking the place of what bore it."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def symlink(self, target: str, path: Path) -> None:
        """Make `path` a symbolic link holding the text `target`."""
        os.symlink(target, path, target_is_directory=not os.path.splitext(target)[1])

    def link(self, source: Path, path: Path) -> None:
        """Make `path` a second name (hard link) of the file `source`."""
        os.link(source, path)

    def listdir(self, path: Path) -> list[str]:
        return os.listdir(path)

    def readlink(self, path: Path) -> str:
        return os.readlink(path)

    def lstat(self, path: Path) -> os.stat_result:
        """Status of the name itself: of a link, not of what it points to."""
        return os.lstat(path)

    def resolve(self, path: Path) -> Path:
        """The path with every link in it followed; what does not exist stays as it is."""
        return path.resolve()

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def map(self, path: Path) -> mmap.mmap | bytes:
        """The file's bytes, mapped copy-on-write: writing to them never reaches the file. Empty files give b""."""
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            if os.fstat(descriptor).st_size == 0:
                return b""
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)

    def free_space(self, path: Path) -> int:
        """Bytes that this user may still write on the disk that holds `path`."""
        return shutil.disk_usage(path).free

    # What follows is composed of the calls above.

    def exists(self, path: Path) -> bool:
        """Whether the name exists, be it a link that points nowhere."""
        try:
            self.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_directory(self, path: Path) -> bool:
        """Whether the name itself is a directory; a link to one is not."""
        try:
            return stat.S_ISDIR(self.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_link(self, path: Path) -> bool:
        try:
            return stat.S_ISLNK(self.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def write_file(self, path: Path, data: bytes) -> None:
        """Write a new file and return when its bytes are on the disk."""
        descriptor = self.create(path)
        try:
            self.write(descriptor, data)
            self.fsync(descriptor)
        finally:
            self.close(descriptor)

    def remove_tree(self, path: Path) -> None:
        """Delete a file, a link or a directory with all that is in it; a name that is gone already is no error."""
        try:
            if not self.is_directory(path):
                self.unlink(path)
                return
            for name in self.listdir(path):
                self.remove_tree(path / name)
            self.rmdir(path)
        except FileNotFoundError:
            pass


REAL = FileSystem()


def temporary_path(directory: Path, kind: str, name: str) -> Path:
    """A free name of the form that a store sweeps away when it is opened."""
    return directory / f"{kind}-{name}-{secrets.token_hex(4)}"


def attempt(function: Callable[[], None]) -> None:
    """Clean up after an error, which counts for more than what may go wrong here; opening the store cleans up too."""
    try:
        function()
    except OSError:
        pass


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Name a file beside `path`: what is written there takes its place, whole and durable, or leaves nothing behind.

        with atomic_file(path) as temporary:
            temporary.write_bytes(content)

    For single files outside the store, which replaces its own through FileSystem.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
