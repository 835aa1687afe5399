"""Streams a checkpoint's files to disk while hashing them, at once or from a snapshot in the background."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from math import prod
from queue import Queue
from typing import Any

import numpy as np

from .filesystem import Buffer, FileSystem
from .format import ALIGNMENT, Layout
from .manifest import StoredFile
from .tensors import STORED_AS, dtype_name, host_array, shape_of

CHUNK_BYTES = 8 << 20
# Pieces below this are gathered until they are so many bytes together.
SMALL_PIECE_BYTES = 64 << 10
TOGETHER_BYTES = 1 << 20
# A chunk that waits for its hash keeps its tensor; of a tensor on a device that is a copy on the host.
PENDING_CHUNKS = 16
# Below this a file is hashed in the writing thread: handing over costs more than it hides.
HASH_APART_BYTES = 1 << 20
# From here on the data is fsynced while the hashes are computed, at the price of one more flush for the manifest.
FSYNC_EARLY_BYTES = 32 << 20
# What `background="auto"` goes by: below the first a snapshot and a thread gain nothing, and from the second on a save
# that took this long is worth the cores that the writer takes from training.
SMALL_STATE_BYTES = 16 << 20
SLOW_SAVE_SECONDS = 0.1


def choose_background(nbytes: int, measured_seconds: float | None) -> bool:
    """Whether a state of this size is better saved in the background, given how long the last save's writing took.

    The writer competes with training for the cores of a machine without accelerator, so a small or quick save is
    cheaper where it stands.
    """
    if nbytes < SMALL_STATE_BYTES:
        return False
    return measured_seconds is None or measured_seconds >= SLOW_SAVE_SECONDS


class WrittenFile:
    """A file whose bytes the operating system has; its hash may still be under way."""

    def __init__(self, layout: Layout, hasher: _Hasher) -> None:
        self._layout = layout
        self._hasher = hasher

    def stored(self) -> StoredFile:
        """What the manifest says of it, as soon as the hash is known."""
        return StoredFile(self._layout.size, self._hasher.result(), self._layout.blocks)


def write_layout(file_system: FileSystem, descriptor: int, layout: Layout) -> WrittenFile:
    """Write a new file piece by piece, without a second copy of it in memory."""
    hasher = _Hasher(apart=layout.size >= HASH_APART_BYTES)
    small = bytearray()  # of many small pieces, which are written together: each write has its price

    def write(data: memoryview) -> None:
        hasher.update(data)
        file_system.write(descriptor, data)

    try:
        for piece in layout.pieces:
            data: Buffer = piece if isinstance(piece, bytes) else _bytes_of(host_array(piece))
            view = memoryview(data)
            if view.nbytes < SMALL_PIECE_BYTES:
                small += view
            if small and (len(small) >= TOGETHER_BYTES or view.nbytes >= SMALL_PIECE_BYTES):
                write(memoryview(small))
                small = bytearray()  # the hash may still read the one before
            if view.nbytes >= SMALL_PIECE_BYTES:
                for start in range(0, view.nbytes, CHUNK_BYTES):
                    write(view[start : start + CHUNK_BYTES])
        if small:
            write(memoryview(small))
    finally:
        hasher.no_more()
    return WrittenFile(layout, hasher)


def run_together(functions: Sequence[Callable[[], None]]) -> None:
    """Call all of them at the same time, and raise the first error when all have ended.

    fsyncs that wait at the same time share the disk's flush: 5 of them took 8 ms so, and 20 ms one after the other.
    """
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), name="checkpoint-fsync") for function in functions]
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if errors:
        raise errors[0]


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


class _Hasher:
    """SHA-256 in a thread of its own, beside the writing and the fsync; so far behind as PENDING_CHUNKS lets it be."""

    def __init__(self, apart: bool) -> None:
        self._hash = hashlib.sha256()
        self._queue: Queue[memoryview | None] = Queue(maxsize=PENDING_CHUNKS)
        self._thread = threading.Thread(target=self._run, name="checkpoint-hash", daemon=True) if apart else None
        if self._thread:
            self._thread.start()

    def update(self, chunk: memoryview) -> None:
        if self._thread:
            self._queue.put(chunk)
        else:
            self._hash.update(chunk)

    def no_more(self) -> None:
        if self._thread:
            self._queue.put(None)

    def result(self) -> str:
        if self._thread:
            self._thread.join()
        return self._hash.hexdigest()

    def _run(self) -> None:
        while (chunk := self._queue.get()) is not None:
            self._hash.update(chunk)


class HostBuffer:
    """Host memory that snapshots are copied into, kept from one save to the next; for one save at a time."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def snapshot(self, tensors: list[Any]) -> list[np.ndarray]:
        """Copies of the tensors, in order, which nothing that happens to the originals can change."""
        sizes = [STORED_AS[dtype_name(tensor)].itemsize * prod(shape_of(tensor)) for tensor in tensors]
        offsets = np.cumsum([0] + [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]).tolist()
        if self._memory.nbytes < offsets[-1]:
            self._memory = np.empty(0, np.uint8)  # let go of the old memory before asking for the new
            self._memory = np.empty(offsets[-1], np.uint8)
        copies = []
        for tensor, offset, size in zip(tensors, offsets, sizes):
            dtype = STORED_AS[dtype_name(tensor)]
            copy = self._memory[offset : offset + size].view(dtype).reshape(shape_of(tensor))
            np.copyto(copy, host_array(tensor))
            copies.append(copy)
        return copies


class BackgroundJob:
    """At most one function at a time, in a thread; what it raises is kept until `wait` raises it, once.

    In a forked child (a data-loading worker) Python counts its parent's thread as ended: there nothing is under way.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, function: Callable[[], None]) -> None:
        """Run `function` in the background; the previous one has been waited for."""
        assert not self.busy and self._error is None, "wait for the previous job first"
        # Not a daemon: an interpreter that ends in good order finishes the save first.
        self._thread = threading.Thread(target=self._run, args=(function,), name="checkpoint-save")
        self._thread.start()

    def join(self) -> None:
        """Return when nothing is under way; an error stays for `wait`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Return when nothing is under way, or raise what the last function raised."""
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            self._error = error
