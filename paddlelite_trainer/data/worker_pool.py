"""Loader worker processes: batches fetched elsewhere, in order; a failure is an error here, never a hang."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import pickle
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from multiprocessing.util import Finalize
from typing import Any, NoReturn

from paddle.io import DataLoader

from ..errors import DataError, add_note
from ..importing import LOADER_WORKER, TRAINS_AS_IT_IS_IMPORTED
from ..machine.signals import WAITS_FOR_DATA
from .fetch import END, to_tensors
from .handing_over import handed_over
from .worker_process import BatchMaking, Post, live_forked, live_spawned
from .worker_transport import BATCH, ENDED, ERROR, HANDS_OVER_DESCRIPTORS, Channel, MemoryChannel

SKIPPED: Any = object()  # the reply to a task that asked only to pass over a batch

_GRACE_SECONDS = 2.0  # for workers to end by themselves before they are killed
_START_SECONDS = 60.0  # that a worker may take to begin, beyond the loader's timeout
_open_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def start_method(multiprocessing_context: str) -> str:
    """ "fork" or "spawn" for "auto" too: macOS has forks, which its own libraries do not stand."""
    if multiprocessing_context != "auto":
        return multiprocessing_context
    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return "fork" if can_fork else "spawn"


class WorkerPool:
    """`num_workers` processes that fetch batches of one DataLoader, forked or spawned.

    Each worker answers its tasks in order, so whoever submits round-robin receives round-robin. At most `depth` tasks
    of a worker are under way. A worker never waits in answering. There is no thread here: the caller's own read waits,
    and ends when the worker does.

    A forked worker has the loader as it is here; a spawned one is a new Python, which imports what the loader is made
    of, takes seconds for that, and is handed a pickle of it.
    """

    def __init__(self, loader: DataLoader, *, name: str, seed: int, multiprocessing_context: str = "auto") -> None:
        self.num_workers: int = loader.num_workers
        self.depth: int = loader.prefetch_factor
        self.name = name
        self.closed = False
        self.generation = 0
        self._timeout: float = loader.timeout
        method = start_method(multiprocessing_context)
        self.is_spawned = method == "spawn"
        making = BatchMaking(loader)
        self._pickled = None if method == "fork" else handed_over(making, name=name, instead=self._instead())
        context = multiprocessing.get_context(method)
        self.workers = [_Worker(number, self.depth, context) for number in range(self.num_workers)]
        self._shut_down = Finalize(self, _shut_down, (self.workers,), exitpriority=100)
        _open_pools.add(self)
        try:
            for worker in self.workers:
                post = Post.here(worker.number, self.num_workers, seed)
                worker.start(post, making if self._pickled is None else None)
        except BaseException:
            self.close()
            raise
        finally:
            for worker in self.workers:
                worker.channel.far.close()

    def hand_over(self) -> None:
        """Give spawned workers, once and before anything else, what they need; it waits until they have come up."""
        pickled, self._pickled = self._pickled, None
        if pickled is not None:
            for worker in self.workers:
                worker.channel.send_bytes(pickled)

    def begin_epoch(self, seed: int, epoch: int | None) -> None:
        """Drop what is still under way and, for iterable data, start every worker's iteration under `seed`.

        An epoch that is not None is told to the workers' copies of the dataset and of collate_fn.
        """
        self.cancel()
        for worker in self.workers:
            while worker.under_way:
                self._read(worker)
            self._send(worker, ("epoch", self.generation, seed, epoch))

    def cancel(self) -> None:
        """Let workers pass over the tasks that they have not begun."""
        self.generation += 1
        for worker in self.workers if not self.closed else ():
            if worker.under_way:
                self._send(worker, ("cancel", self.generation, 0, None))

    def check(self, generation: int) -> None:
        """Raise DataError if an epoch begun in between has taken the workers."""
        if self.generation != generation:
            raise DataError(f"an epoch of {self.name} was gone on with after another one was begun")

    def submit(self, number: int, *, seed: int, indices: Any = None, skip: bool = False) -> None:
        worker = self.workers[number]
        self._send(worker, ("skip" if skip else "fetch", self.generation, seed, indices))
        worker.count(+1)

    def has_answered(self, number: int) -> bool:
        """Whether `receive` would not have to wait. A worker that has died has not answered."""
        worker = self.workers[number]
        if not worker.has_begun:
            if not self._is_ready(worker):
                return False
            self._await_begin(worker)
        return self._is_ready(worker)

    def receive(self, number: int) -> Any:
        """The oldest batch under way in worker `number`; END when its data has ended; the worker's error is raised."""
        worker = self.workers[number]
        kind, payload = self._read(worker)
        if kind == BATCH:
            return to_tensors(payload)
        if kind == ENDED:
            return END
        if kind == ERROR:
            _raise_remote(*payload, worker=f"{self.name}'s worker {worker.number}")
        return SKIPPED

    def close(self) -> None:
        """End the workers: they get two seconds, then SIGKILL. Safe to call twice."""
        self.closed = True
        _open_pools.discard(self)
        self._shut_down()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise DataError(f"{self.name} was closed in the middle of an epoch")

    def _send(self, worker: _Worker, task: tuple[Any, ...]) -> None:
        self._refuse_if_closed()
        worker.channel.send(task)

    def _is_ready(self, worker: _Worker) -> bool:
        has_come, has_ended = worker.channel.ready(0)
        return has_come and not has_ended

    def _read(self, worker: _Worker) -> tuple[int, Any]:
        self._refuse_if_closed()
        if not worker.has_begun:
            self._await_begin(worker)
        self._wait(worker, self._timeout)
        reply = self._take(worker)
        worker.count(-1)
        return reply

    def _await_begin(self, worker: _Worker) -> None:
        self._wait(worker, self._timeout and self._timeout + _START_SECONDS)
        self._take(worker)
        worker.begin()

    def _take(self, worker: _Worker) -> tuple[int, Any]:
        try:
            return worker.channel.read()
        except EOFError:
            death = self._death_of(worker)
        raise death

    def _wait(self, worker: _Worker, timeout: float) -> None:
        deadline = time.monotonic() + timeout if timeout else None
        while True:
            has_come, has_ended = worker.channel.ready(
                None if deadline is None else max(0.0, deadline - time.monotonic())
            )
            if has_come:
                return  # a reply, or the end of the pipe: read tells
            # What a process that has ended wrote before is in the pipe by now.
            if has_ended and not worker.channel.ready(0)[0]:
                raise self._death_of(worker)
            if not has_ended:
                who = f"{self.name}: worker {worker.number} (pid {worker.process.pid})"
                self.close()
                late = f"gave no batch within timeout={self._timeout} s"
                if not worker.has_begun:
                    late = f"did not come up within {timeout:g} s, {_START_SECONDS:g} s more than timeout"
                raise DataError(
                    f"{who} {late}. Raise the DataLoader's `timeout`, or look for what blocks in the dataset."
                )

    def _death_of(self, worker: _Worker) -> DataError:
        worker.process.join(_GRACE_SECONDS)
        pid, code = worker.process.pid, worker.process.exitcode
        self.close()
        who = f"{self.name}: worker {worker.number} (pid {pid})"
        if code == TRAINS_AS_IT_IS_IMPORTED:
            return DataError(
                f"{self.name}: this script trains, or makes a Trainer of several ranks, as it is imported, and a "
                "spawned worker imports it to find the classes of its dataset. Put that under "
                "`if __name__ == '__main__':`. "
                f"{self._instead()}"
            )
        killed = code is not None and code < 0
        how = f"was killed by {signal.Signals(-code).name}" if killed else f"ended with exit code {code}"
        if killed and signal.Signals(-code).name == "SIGKILL":
            remedy = "The kernel does this when memory runs out: lower num_workers, prefetch_factor or batch_size."
        elif worker.has_begun:
            remedy = "Run with num_workers=0 to see where it happens."
        else:
            remedy = (
                "A spawned worker imports this script and what its dataset is made of, and the error above is from "
                f"there. {self._instead()}"
            )
        when = "while loading a batch" if worker.has_begun else "as it was started"
        return DataError(f"{who} {how} {when}. {remedy}")

    def _instead(self) -> str:
        if start_method("auto") == "fork":
            return "Or fork the workers, Trainer(multiprocessing_context='fork'), or set num_workers=0."
        return "Or set num_workers=0: the batches are the same, fetched by the training process itself."


WAITS_FOR_DATA.update({WorkerPool.hand_over.__code__, WorkerPool.receive.__code__})


class _Worker:
    """One process and the parent's end of its channel."""

    def __init__(self, number: int, depth: int, context: Any) -> None:
        self.number = number
        self.under_way = 0
        """Tasks sent and not yet answered."""
        self.has_begun = False
        has_memory = HANDS_OVER_DESCRIPTORS or context.get_start_method() == "fork"
        self.channel = MemoryChannel(context, depth) if has_memory else Channel(context)
        self.process: Any = None
        self._context = context

    def count(self, more: int) -> None:
        self.under_way += more

    def begin(self) -> None:
        self.has_begun = True

    def start(self, post: Post, making: BatchMaking | None) -> None:
        """Fork the process; where `making` is None spawn it, and it waits for what it is handed."""
        far, start = self.channel.far, self._context.Process
        if making is not None:
            close_others = functools.partial(_close_what_is_not_of, self)
            self.process = start(target=live_forked, args=(far, post, making, close_others), daemon=True)
            self.process.start()
        else:
            name = f"{LOADER_WORKER}{self.number}"
            self.process = start(target=live_spawned, args=(far, post), name=name, daemon=True)
            with _as_a_new_process_should_begin():
                self.process.start()
        self.channel.watch(self.process.sentinel)

    def end(self, deadline: float) -> None:
        """The parent has hung up; one that is still importing would not see it before its import is done."""
        process = self.process
        if process is not None and process.pid is not None:
            if self.has_begun or self.channel.ready(0)[0]:
                process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self.channel.close()


def _close_what_is_not_of(own: _Worker) -> None:
    """Close what the fork copied, or other workers would not see their parent hang up, nor their memory be freed."""
    for pool in list(_open_pools):
        for worker in pool.workers:
            if worker is own:
                worker.channel.leave()
            else:
                worker.channel.close()
                worker.channel.far.close()


@contextlib.contextmanager
def _as_a_new_process_should_begin() -> Iterator[None]:
    """Without the words of Paddle's import, and with SIGINT and SIGTERM waiting until it knows what to do with them."""
    words = "ignore:No ccache found"
    sys.warnoptions.append(words)  # a new process is given them
    blocks = hasattr(signal, "pthread_sigmask")
    if blocks:
        from multiprocessing.resource_tracker import ensure_running

        ensure_running()  # unblocks them when it is begun
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.warnoptions.remove(words)


class _WorkerTraceback(Exception):
    """Shows, as an exception's cause, the traceback that it had in the worker process."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _raise_remote(pickled: bytes | None, summary: str, text: str, *, worker: str) -> NoReturn:
    error: Any = None
    if pickled is not None:
        with contextlib.suppress(Exception):  # a class that only the worker has
            error = pickle.loads(pickled)
    if error is None:
        raise DataError(f"{worker} failed: {summary}") from _WorkerTraceback(text)
    add_note(error, f"in {worker}")
    raise error from _WorkerTraceback(text)


def _shut_down(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.channel.hang_up()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in workers:
        worker.end(deadline)
