"""How tasks reach a worker process and batches come back: two pipes, and memory without a name where systems have it.

A channel has a parent's end, `Channel`, and a far end, `FarEnd`, which the worker inherits by a fork or is handed by
multiprocessing's pickle. A reply is one of five kinds, and a batch or an error may come with it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import select
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Any

from ..errors import DataError

BATCH, ENDED, ERROR, SKIPPED, BEGUN = range(5)

HANDS_OVER_DESCRIPTORS = os.name == "posix"
"""Whether a new process can be given a descriptor of memory: Windows has none to give."""

_REPLY = struct.Struct("<4Q")  # kind, size of the slot, length of the pickle, number of buffers
_EXTENT = struct.Struct("<2Q")  # offset and length of a buffer in the slot
_ALIGNMENT = 64


class Channel:
    """The parent's end of one worker's pipes. A batch comes as bytes through the pipe, on every system.

    A reply never holds up the worker: a thread of its own sends them, so that tasks are always taken out of their pipe.
    """

    def __init__(self, context: Any) -> None:
        tasks_out, self._tasks = context.Pipe(duplex=False)
        self._replies, replies_in = context.Pipe(duplex=False)
        self._ready: Callable[[float | None], tuple[bool, bool]] | None = None
        self.far: FarEnd = FarEnd(tasks_out, replies_in)

    def watch(self, sentinel: Any) -> None:
        """Let `ready` look at the process's end too."""
        self._ready = _watch(self._replies, sentinel)

    def send(self, task: tuple[Any, ...]) -> None:
        """Where the worker is dead, nothing: what it answered before may still be read, then its death shows."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._tasks.send(task)

    def send_bytes(self, payload: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._tasks.send_bytes(payload)

    def ready(self, seconds: float | None) -> tuple[bool, bool]:
        """Whether `read` would find something, and whether the process has ended; waits until one of the two is so.

        Of a pipe that a process has left `read` may find no more than its end.
        """
        assert self._ready is not None
        return self._ready(seconds)

    def read(self) -> tuple[int, Any]:
        """The next reply's kind, and what came with it; waits for it.

        Raises:
            EOFError: there is none, and the worker has ended.
        """
        try:
            kind = self._replies.recv_bytes()[0]
            return kind, pickle.loads(self._replies.recv_bytes()) if kind in (BATCH, ERROR) else None
        except OSError as error:  # as Windows tells of a pipe that was left
            raise EOFError from error

    def hang_up(self) -> None:
        """The worker ends when it has done what it is at."""
        self._tasks.close()

    def leave(self) -> None:
        """Close this end alone, in a forked worker that goes on with the far one."""
        self._tasks.close()
        self._replies.close()

    def close(self) -> None:
        self.leave()


class MemoryChannel(Channel):
    """A batch comes in memory that has no name and that both processes have mapped; 32 bytes of it through the pipe.

    So a crash leaves nothing in /dev/shm, and a container's small /dev/shm does not matter. At most `depth` batches
    are under way.
    """

    def __init__(self, context: Any, depth: int) -> None:
        super().__init__(context)
        self._slots = Slots([Slot(_memory_without_a_name()) for _ in range(depth)])
        self.far = MemoryFarEnd(self.far.tasks, self.far.replies, self._slots)

    def read(self) -> tuple[int, Any]:
        reply = os.read(self._replies.fileno(), _REPLY.size)
        if len(reply) < _REPLY.size:
            raise EOFError
        kind, slot_size, pickle_length, buffer_count = _REPLY.unpack(reply)
        if kind == BEGUN:
            return kind, None
        slot = self._slots.pass_on()
        if kind in (ENDED, SKIPPED):
            return kind, None
        return kind, slot.read(slot_size, pickle_length, buffer_count)

    def close(self) -> None:
        super().close()
        self._slots.close()


class FarEnd:
    """The worker's end. It reads tasks ahead, so that it knows at once of an epoch given up and of its parent's end."""

    def __init__(self, tasks: Any, replies: Any) -> None:
        self.tasks, self.replies = tasks, replies
        self.generation = 0
        """The newest of which the parent has told."""
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._has_more: Callable[[], bool] | None = None
        self._outgoing: SimpleQueue[bytes] | None = None

    def receive_bytes(self) -> bytes:
        """What the parent sends before any task; raises EOFError as `next_task` does."""
        try:
            return self.tasks.recv_bytes()  # type: ignore[no-any-return]
        except OSError as error:
            raise EOFError from error

    def next_task(self) -> tuple[Any, ...]:
        """(what, generation, seed, arguments).

        Raises:
            EOFError: the parent has hung up or is gone, whatever tasks are left.
        """
        if self._has_more is None:
            self._has_more = _has_more(self.tasks)
        while not self._waiting or self._has_more():
            try:
                task = self.tasks.recv()
            except OSError as error:
                raise EOFError from error
            self.generation = task[1]
            if task[0] != "cancel":
                self._waiting.append(task)
        return self._waiting.popleft()

    def reply(self, kind: int, value: Any = None) -> None:
        """Answer the oldest task. What cannot be pickled raises, and the task waits for another answer."""
        if kind == BEGUN:  # there at once, whatever becomes of the worker next
            self.replies.send_bytes(bytes([kind]))
            return
        if self._outgoing is None:
            self._outgoing = SimpleQueue()
            threading.Thread(target=self._send_all, args=(self._outgoing,), name="replies", daemon=True).start()
        parts = [bytes([kind])]
        if kind in (BATCH, ERROR):
            parts.append(pickle.dumps(value, protocol=5))  # now: the next batch may be made in the same arrays
        for part in parts:
            self._outgoing.put(part)

    def close(self) -> None:
        self.tasks.close()
        self.replies.close()

    def _send_all(self, outgoing: SimpleQueue[bytes]) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, which the next task tells
            while True:
                self.replies.send_bytes(outgoing.get())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tasks, self.replies)


class MemoryFarEnd(FarEnd):
    """The same, of a MemoryChannel. It never waits in answering."""

    def __init__(self, tasks: Any, replies: Any, slots: Slots) -> None:
        super().__init__(tasks, replies)
        self._slots = slots

    def reply(self, kind: int, value: Any = None) -> None:
        written = self._slots.first.write(value) if kind in (BATCH, ERROR) else (0, 0, 0)
        if kind != BEGUN:
            self._slots.pass_on()
        with contextlib.suppress(BrokenPipeError):  # the parent is gone, which the next task tells
            os.write(self.replies.fileno(), _REPLY.pack(kind, *written))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tasks, self.replies, self._slots)


class Slots:
    """Used in turn on both sides; one is free again once its reply has been read."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.first = slots[0]
        self._passed = 0

    def pass_on(self) -> Slot:
        """The one whose turn it was."""
        slot = self.first
        self._passed += 1
        self.first = self.slots[self._passed % len(self.slots)]
        return slot

    def close(self) -> None:
        for slot in self.slots:
            slot.close()


class Slot:
    """Shared memory for one reply, grown by the worker as needed: extents, pickle, then the arrays' bytes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._size = 0

    def write(self, value: Any) -> tuple[int, int, int]:
        """Store value; returns size of the slot, length of the pickle, number of buffers."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        end = len(raw) * _EXTENT.size + len(pickled)
        extents = []
        for view in raw:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + view.nbytes
            extents.append((start, view.nbytes))
        self._grow(end)
        memory = memoryview(self._map)  # type: ignore[arg-type]
        for index, extent in enumerate(extents):
            _EXTENT.pack_into(memory, index * _EXTENT.size, *extent)
        first = len(raw) * _EXTENT.size
        memory[first : first + len(pickled)] = pickled
        for (start, length), view in zip(extents, raw):
            memory[start : start + length] = view
        return self._size, len(pickled), len(raw)

    def read(self, size: int, pickle_length: int, buffer_count: int) -> Any:
        """The stored value; its arrays are views that the slot's next use overwrites."""
        if size != self._size:
            self._map = mmap.mmap(self.descriptor, size)
            self._size = size
        memory = memoryview(self._map)  # type: ignore[arg-type]
        extents = (_EXTENT.unpack_from(memory, index * _EXTENT.size) for index in range(buffer_count))
        first = buffer_count * _EXTENT.size
        return pickle.loads(
            memory[first : first + pickle_length],
            buffers=[memory[start : start + length] for start, length in extents],
        )

    def close(self) -> None:
        self._map = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _grow(self, size: int) -> None:
        if size > self._size:
            self._size = -(-size * 5 // 4 // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.descriptor, self._size)
            self._map = mmap.mmap(self.descriptor, self._size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _slot_of, (reduction.DupFd(self.descriptor),)  # only while a process is being started


def _slot_of(handed_over: Any) -> Slot:
    descriptor = handed_over.detach()
    os.set_inheritable(descriptor, False)  # what the dataset starts is not to keep it
    return Slot(descriptor)


def _memory_without_a_name() -> int:
    """A descriptor of memory, or of an unlinked file where this Python or kernel has none: it vanishes with its users.

    Raises:
        DataError: there is neither.
    """
    try:
        return os.memfd_create("batch", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # macOS; Pythons built for an old glibc; kernels before 3.17, sandboxes
        pass
    try:
        # Not in /dev/shm, which a container keeps small: a full one would be a bus error.
        with tempfile.TemporaryFile(prefix="paddlelite-batch-") as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise DataError(
            "num_workers > 0 needs memory that processes share: os.memfd_create does not work here, and no temporary "
            f"file could be made ({error}). Set TMPDIR to a directory that can be written, or num_workers=0."
        ) from error


def _watch(replies: Any, sentinel: Any) -> Callable[[float | None], tuple[bool, bool]]:
    """What `Channel.ready` calls: poll where there is one, since `wait` makes its own anew for every call."""
    if not hasattr(select, "poll"):

        def ready(seconds: float | None) -> tuple[bool, bool]:
            found = wait([replies, sentinel], seconds)
            return replies in found, sentinel in found

        return ready
    poller, descriptor = select.poll(), replies.fileno()
    poller.register(descriptor, select.POLLIN)
    poller.register(sentinel, select.POLLIN)

    def polled(seconds: float | None) -> tuple[bool, bool]:
        has_come = has_ended = False
        for found, event in poller.poll(None if seconds is None else seconds * 1000):
            if found == descriptor and event & select.POLLIN:
                has_come = True
            else:
                has_ended = True
        return has_come, has_ended

    return polled


def _has_more(connection: Any) -> Callable[[], bool]:
    """Whether there is a task to read, or the end of the pipe."""
    if not hasattr(select, "poll"):

        def has_more() -> bool:
            try:
                return bool(connection.poll(0))
            except OSError:  # as Windows tells of a pipe that was left
                return True

        return has_more
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return lambda: bool(poller.poll(0))
