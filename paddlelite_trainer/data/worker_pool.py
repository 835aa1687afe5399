"""Loader worker processes: batches fetched elsewhere, in order; a failure is an error here, never a hang."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any, NoReturn

from paddle.base import core
from paddle.io import DataLoader

from ..errors import DataError
from ..machine.paddle_internals import reads_in_order, set_current_place, set_worker_info
from ..machine.rng import IsolatedSeed, derive_seed
from ..machine.signals import WAITS_FOR_DATA
from .fetch import CPU, END, IterableFetcher, MapFetcher, add_note, to_arrays, to_tensors
from .knows_epoch import made_by, set_epoch_of

SKIPPED: Any = object()  # the reply to a task that asked only to pass over a batch

_BATCH, _END, _ERROR, _SKIPPED = range(4)
_REPLY = struct.Struct("<4Q")  # kind, size of the slot, length of the pickle, number of buffers
_EXTENT = struct.Struct("<2Q")  # offset and length of a buffer in the slot
_ALIGNMENT = 64
_GRACE_SECONDS = 2.0  # for workers to end by themselves before they are killed
_PR_SET_PDEATHSIG = 1
_open_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


class WorkerPool:
    """`num_workers` forked processes that fetch batches of one DataLoader.

    Each worker answers its tasks in order, so whoever submits round-robin receives round-robin. At most `depth` tasks
    of a worker are under way. A reply travels through shared memory that has no name, so a crash leaves nothing in
    /dev/shm and a container's small /dev/shm does not matter; only 32 bytes of it go through a pipe, so that a worker
    never blocks in answering. There is no thread here: the caller's own read waits, and ends when the worker does.
    """

    def __init__(self, loader: DataLoader, *, name: str, seed: int) -> None:
        self.num_workers: int = loader.num_workers
        self.depth: int = loader.prefetch_factor
        self.name = name
        self.closed = False
        self.generation = 0
        self._timeout: float = loader.timeout
        self._current_generation = mmap.mmap(-1, 8)
        if "fork" not in multiprocessing.get_all_start_methods():
            raise DataError(
                f"{name}: num_workers={loader.num_workers} needs processes that fork, which this system has not. Set "
                "num_workers=0: the batches are the same, fetched by the training process itself."
            )
        context = multiprocessing.get_context("fork")
        self.workers = [_Worker(number, self.depth, context) for number in range(self.num_workers)]
        self._shut_down = Finalize(self, _shut_down, (self.workers, self._current_generation), exitpriority=100)
        _open_pools.add(self)
        for worker in self.workers:
            worker.start(_work, (loader, worker.number, self.workers, self._current_generation, seed, os.getpid()))
        for worker in self.workers:
            worker.close_far_ends()

    def begin_epoch(self, seed: int, epoch: int | None) -> None:
        """Drop what is still under way and, for iterable data, start every worker's iteration under `seed`.

        An epoch that is not None is told to the workers' copies of the dataset and of collate_fn.
        """
        self.cancel()
        for worker in self.workers:
            while worker.under_way:
                self._read(worker)
            self._send(worker, ("epoch", self.generation, seed, epoch))
            worker.count(-1)  # not answered

    def cancel(self) -> None:
        """Let workers pass over the tasks that they have not begun."""
        self.generation += 1
        self._current_generation[:] = self.generation.to_bytes(8, "little")

    def check(self, generation: int) -> None:
        """Raise DataError if an epoch begun in between has taken the workers."""
        if self.generation != generation:
            raise DataError(f"an epoch of {self.name} was gone on with after another one was begun")

    def submit(self, number: int, *, seed: int, indices: Any = None, skip: bool = False) -> None:
        self._send(self.workers[number], ("skip" if skip else "fetch", self.generation, seed, indices))

    def has_answered(self, number: int) -> bool:
        """Whether `receive` would not have to wait. A worker that died with nothing left to read has not answered."""
        worker = self.workers[number]
        descriptor = worker.replies_out.fileno()
        return any(ready == descriptor and event & select.POLLIN for ready, event in worker.poller.poll(0))

    def receive(self, number: int) -> Any:
        """The oldest batch under way in worker `number`; END when its data has ended; the worker's error is raised."""
        worker = self.workers[number]
        kind, payload = self._read(worker)
        if kind == _BATCH:
            return to_tensors(payload)
        if kind == _END:
            return END
        if kind == _ERROR:
            _raise_remote(*payload, worker=f"{self.name}'s worker {worker.number}")
        return SKIPPED

    def close(self) -> None:
        """End the workers: they get two seconds, then SIGKILL. Safe to call twice."""
        self.closed = True
        _open_pools.discard(self)
        self._shut_down()

    def _send(self, worker: _Worker, task: tuple[Any, ...]) -> None:
        if self.closed:
            raise DataError(f"{self.name} was closed in the middle of an epoch")
        try:
            worker.tasks_in.send(task)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is dead: what it answered before may still be read, and then its death is reported
        worker.count(+1)

    def _read(self, worker: _Worker) -> tuple[int, Any]:
        if self.closed:
            raise DataError(f"{self.name} was closed in the middle of an epoch")
        self._wait(worker)
        reply = os.read(worker.replies_out.fileno(), _REPLY.size)
        if len(reply) < _REPLY.size:
            self._report_death(worker)
        kind, slot_size, pickle_length, buffer_count = _REPLY.unpack(reply)
        slot = worker.next_slot()
        worker.count(-1)
        if kind in (_END, _SKIPPED):
            return kind, None
        return kind, slot.read(slot_size, pickle_length, buffer_count)

    def _wait(self, worker: _Worker) -> None:
        deadline = time.monotonic() + self._timeout if self._timeout else None
        while True:
            milliseconds = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = worker.poller.poll(milliseconds)
            if not ready:
                pid = worker.process.pid
                self.close()
                raise DataError(
                    f"{self.name}: worker {worker.number} (pid {pid}) gave no batch within timeout={self._timeout} s. "
                    "Raise the DataLoader's `timeout`, or look for what blocks in the dataset."
                )
            if any(descriptor == worker.replies_out.fileno() for descriptor, _ in ready):
                return  # a batch, or the end of the pipe: read tells
            # Only the process's end is ready. What it wrote before is in the pipe by now.
            if not worker.replies_out.poll(0):
                self._report_death(worker)

    def _report_death(self, worker: _Worker) -> NoReturn:
        worker.process.join(_GRACE_SECONDS)
        pid, code = worker.process.pid, worker.process.exitcode
        self.close()
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        remedy = (
            "The kernel does this when memory runs out: lower num_workers, prefetch_factor or batch_size."
            if code == -signal.SIGKILL
            else "Run with num_workers=0 to see where it happens."
        )
        raise DataError(f"{self.name}: worker {worker.number} (pid {pid}) {how} while loading a batch. {remedy}")


WAITS_FOR_DATA.add(WorkerPool.receive.__code__)


class _Worker:
    """One process, its two pipes and its slots of shared memory, seen from the parent."""

    def __init__(self, number: int, depth: int, context: Any) -> None:
        self.number = number
        self.under_way = 0
        self.tasks_out, self.tasks_in = context.Pipe(duplex=False)
        self.replies_out, self.replies_in = context.Pipe(duplex=False)
        self.slots = [_Slot() for _ in range(depth)]
        self._context = context
        self._slots_used = 0
        self.process: Any = None

    def count(self, more: int) -> None:
        """Tasks sent and not yet answered."""
        self.under_way += more

    def start(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.process = self._context.Process(target=target, args=args, daemon=True)
        self.process.start()
        self.poller = select.poll()
        self.poller.register(self.replies_out.fileno(), select.POLLIN)
        self.poller.register(self.process.sentinel, select.POLLIN)

    def close_near_ends(self) -> None:
        self.tasks_in.close()
        self.replies_out.close()

    def close_far_ends(self) -> None:
        self.tasks_out.close()
        self.replies_in.close()

    def close_slots(self) -> None:
        for slot in self.slots:
            slot.close()

    def next_slot(self) -> _Slot:
        """Slots are used in turn on both sides; a slot is free again once its reply has been read."""
        slot = self.slots[self._slots_used % len(self.slots)]
        self._slots_used += 1
        return slot


class _Slot:
    """Shared memory for one reply, grown by the worker as needed: extents, pickle, then the arrays' bytes."""

    def __init__(self) -> None:
        self.descriptor = _memory_without_a_name()
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


def _memory_without_a_name() -> int:
    """A descriptor of memory, or of an unlinked file where this Python or kernel has none: it vanishes with its users.

    Raises:
        DataError: there is neither.
    """
    try:
        return os.memfd_create("batch", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # Pythons built for an old glibc; kernels before 3.17, sandboxes
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


class _WorkerTraceback(Exception):
    """Shows, as an exception's cause, the traceback that it had in the worker process."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _work(
    loader: DataLoader, number: int, workers: list[_Worker], current: mmap.mmap, seed: int, parent_pid: int
) -> None:
    """A worker's life: answer tasks until told to stop or the parent is gone."""
    _die_with_parent(parent_pid)
    # A terminal's Ctrl-C and a batch system's SIGTERM reach the whole group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    own = workers[number]
    _close_what_is_not_ours(own)
    core.set_num_threads(1)  # OpenMP's threads did not survive the fork
    set_current_place(CPU)
    set_worker_info(number=number, workers=len(workers), dataset=loader.dataset, seed=seed)
    isolated = IsolatedSeed()
    is_iterable = reads_in_order(loader)
    fetcher: MapFetcher | IterableFetcher | None = None if is_iterable else MapFetcher(loader)
    failure: Exception | None = None
    has_begun = False
    while True:
        try:
            task, generation, task_seed, indices = own.tasks_out.recv()
        except EOFError:
            return
        isolated.enter(task_seed)
        if not has_begun:
            has_begun = True
            failure = _run_init_fn(loader.worker_init_fn, number, derive_seed(seed, "worker", number), isolated)
        if task == "epoch":
            if failure is None:
                isolated.enter(task_seed)
                failure = _tell_epoch(loader, indices)
            if is_iterable and failure is None:
                isolated.enter(task_seed)
                fetcher, failure = _start_iteration(loader)
            continue
        slot = own.next_slot()
        if generation != int.from_bytes(current[:], "little"):
            _reply(own, _SKIPPED)
            continue
        try:
            if failure is not None:
                raise failure
            assert fetcher is not None
            if task == "skip":
                _reply(own, _END if fetcher.read() is END else _SKIPPED)  # type: ignore[union-attr]
                continue
            batch = fetcher(indices)
            if batch is END:
                _reply(own, _END)
            else:
                _reply(own, _BATCH, *slot.write(to_arrays(batch)))
        except BaseException as error:  # SystemExit too: the parent must hear of it
            _reply(own, _ERROR, *slot.write(_describe(error)))


def _close_what_is_not_ours(own: _Worker) -> None:
    """Close what the fork copied, or other workers would not see their parent hang up, nor their memory be freed."""
    for pool in list(_open_pools):
        for worker in pool.workers:
            worker.close_near_ends()
            if worker is not own:
                worker.close_far_ends()
                worker.close_slots()


def _run_init_fn(
    init_fn: Callable[[int], None] | None, number: int, seed: int, isolated: IsolatedSeed
) -> Exception | None:
    if init_fn is None:
        return None
    isolated.enter(seed)
    try:
        init_fn(number)
    except Exception as error:
        add_note(error, f"raised by worker_init_fn({number})")
        return error
    return None


def _tell_epoch(loader: DataLoader, epoch: int | None) -> Exception | None:
    try:
        if epoch is not None:
            set_epoch_of(made_by(loader), epoch)
    except Exception as error:
        add_note(error, f"raised by set_epoch({epoch})")
        return error
    return None


def _start_iteration(loader: DataLoader) -> tuple[IterableFetcher | None, Exception | None]:
    try:
        return IterableFetcher(loader), None
    except Exception as error:
        add_note(error, f"raised by {type(loader.dataset).__name__}.__iter__")
        return None, error


def _reply(worker: _Worker, kind: int, size: int = 0, pickle_length: int = 0, buffer_count: int = 0) -> None:
    os.write(worker.replies_in.fileno(), _REPLY.pack(kind, size, pickle_length, buffer_count))


def _describe(error: BaseException) -> tuple[bytes | None, str, str]:
    """The exception itself where it survives pickling, one line about it, and its traceback."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    summary = "".join(traceback.format_exception_only(type(error), error)).strip()
    pickled: bytes | None = None
    if isinstance(error, Exception):
        try:
            pickled = pickle.dumps(error)
            if type(pickle.loads(pickled)) is not type(error):
                pickled = None
        except Exception:  # an exception class may do anything here
            pickled = None
    return pickled, summary, text


def _raise_remote(pickled: bytes | None, summary: str, text: str, *, worker: str) -> NoReturn:
    if pickled is None:
        raise DataError(f"{worker} failed: {summary}") from _WorkerTraceback(text)
    error = pickle.loads(pickled)
    add_note(error, f"in {worker}")
    raise error from _WorkerTraceback(text)


def _die_with_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel would have, had it been asked in time


def _shut_down(workers: list[_Worker], current: mmap.mmap) -> None:
    current[:] = b"\xff" * 8  # no task is of this generation
    for worker in workers:
        worker.tasks_in.close()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in workers:
        if worker.process is None:
            continue
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
        worker.close_near_ends()
        worker.close_slots()
