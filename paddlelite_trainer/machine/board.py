"""Board: memory that the ranks of one machine share, on which each writes how far it is, and the others read it."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import secrets
import tempfile
import time
from pathlib import Path

from .bell import bell_of

ARRIVED, CHECKED, SETTLED, RECORDED = range(4)
"""What is counted: backwards come to, backwards looked at, backwards settled, the last one that has flags."""
FLAGS = 2**16
"""How many flags a rank has."""
_COUNTERS = 8
_ROW = 8 * _COUNTERS + FLAGS
_LONGEST_NAP = 0.01  # seconds between two looks; a tenth of what was waited, where that is less
_LONGEST_SLEEP = 0.1
_IN_ORDER = ("x86_64", "amd64", "i386", "i686")
"""Processors on which others see stores in the order in which they were made: flags before the counter after them."""


class Board:
    """A row for each rank, which it alone writes: counters that only grow, and flags.

    To read one costs a tenth of a microsecond and no word to another process.
    """

    def __init__(self, path: Path, rank: int, world_size: int) -> None:
        self.rank, self.others = rank, [one for one in range(world_size) if one != rank]
        with path.open("r+b") as file:
            shared = mmap.mmap(file.fileno(), world_size * _ROW)
        self._memory, self._bell = memoryview(shared), bell_of(shared)
        self._counters = self._memory.cast("Q")

    def post(self, what: int, count: int) -> None:
        where = self.rank * (_ROW // 8) + what
        self._counters[where] = count
        if self._bell is not None:
            self._bell.ring(8 * where)

    def doze(self, what: int, rank: int, count: int, waited: float) -> None:
        """Sleep until that rank may have come so far; for a while, or, without a bell, a tenth of what was waited."""
        where = rank * (_ROW // 8) + what
        if self._bell is None:
            time.sleep(min(waited / 10, _LONGEST_NAP))
        elif (here := self._counters[where]) < count:
            self._bell.await_ring(8 * where, here, _LONGEST_SLEEP)

    def of(self, what: int, rank: int) -> int:
        return self._counters[rank * (_ROW // 8) + what]

    def late(self, what: int, count: int) -> list[int]:
        """The other ranks that have not come so far."""
        counters, width = self._counters, _ROW // 8
        return [rank for rank in self.others if counters[rank * width + what] < count]

    def begin(self) -> None:
        """Count from nought again; no other rank may look meanwhile."""
        for what in range(_COUNTERS):
            self.post(what, 0)

    def write_flags(self, flags: bytes) -> None:
        start = self.rank * _ROW + 8 * _COUNTERS
        self._memory[start : start + len(flags)] = flags

    def flags_of(self, rank: int, count: int) -> bytes:
        start = rank * _ROW + 8 * _COUNTERS
        return bytes(self._memory[start : start + count])


def made(world_size: int) -> Path | None:
    """The file of a new board, which only this user may open; None where there is no room, or no order of stores."""
    if platform.machine().lower() not in _IN_ORDER:
        return None
    memory = Path("/dev/shm")  # elsewhere a file, which the system keeps in memory too
    path = None
    try:
        place = memory if memory.is_dir() else Path(tempfile.gettempdir())
        path = place / f"paddlelite-{secrets.token_hex(16)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, bytes(world_size * _ROW))  # written, as a hole would be a SIGBUS where memory is short
        finally:
            os.close(descriptor)
    except OSError:
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return None
    return path


def opened(path: Path | None, rank: int, world_size: int) -> Board | None:
    """The board, or None where this process cannot see it: on another machine, or in another container."""
    try:
        return None if path is None else Board(path, rank, world_size)
    except (OSError, ValueError):
        return None
