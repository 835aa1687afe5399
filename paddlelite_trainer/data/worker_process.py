"""A worker process's life: it is handed what makes batches, and answers tasks until its parent hangs up or is gone."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.base import core
from paddle.io import DataLoader

from ..errors import DataError, add_note
from ..importing import module_named
from ..machine.paddle_internals import reads_in_order, set_current_place, set_worker_info
from ..machine.rng import IsolatedSeed, derive_seed
from .fetch import CPU, END, IterableFetcher, MapFetcher, to_arrays
from .knows_epoch import made_by, set_epoch_of
from .worker_transport import BATCH, BEGUN, ENDED, ERROR, SKIPPED, FarEnd

_PR_SET_PDEATHSIG = 1


class BatchMaking:
    """What of a DataLoader makes its batches; what draws their indices stays in the parent."""

    def __init__(self, loader: DataLoader) -> None:
        self.dataset = loader.dataset
        self.collate_fn = loader.collate_fn
        self.worker_init_fn = loader.worker_init_fn
        self.auto_collate_batch = loader.auto_collate_batch
        self.batch_size = getattr(loader, "batch_size", None)
        self.drop_last = getattr(loader, "drop_last", False)
        self.reads_in_order = reads_in_order(loader)


@dataclass(frozen=True)
class Post:
    """Which of how many workers, and whose."""

    number: int
    workers: int
    seed: int
    parent_pid: int
    default_dtype: str

    @classmethod
    def here(cls, number: int, workers: int, seed: int) -> Post:
        return cls(number, workers, seed, os.getpid(), paddle.get_default_dtype())


def live_forked(far: FarEnd, post: Post, making: BatchMaking, close_others: Callable[[], None]) -> None:
    """The target of a forked process. `close_others`: closes what the fork copied and is not its own."""
    _depend_on_parent(post.parent_pid)
    close_others()
    _work(far, post, making)


def live_spawned(far: FarEnd, post: Post) -> None:
    """The target of a spawned process, which reads what makes its batches, a pickle, from its pipe."""
    _depend_on_parent(post.parent_pid)
    set_current_place(CPU)  # before anything is made of the pickle: no accelerator is touched here
    paddle.set_default_dtype(post.default_dtype)
    with contextlib.suppress(EOFError):
        _work_with(far, post, far.receive_bytes())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as forked ones end: a second and more goes by in the end of a Python that has Paddle in it


def _work_with(far: FarEnd, post: Post, handed_over: bytes) -> None:
    try:
        making = _made_of(handed_over)
    except DataError as error:
        _refuse_all(far, error)
        return
    del handed_over  # as large as the dataset
    _work(far, post, making)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            module_named(module)  # no further than to where it would train
        return super().find_class(module, name)


def _made_of(handed_over: bytes) -> BatchMaking:
    try:
        return _Unpickler(io.BytesIO(handed_over)).load()  # type: ignore[no-any-return]
    except Exception as error:  # what a user's __setstate__ raises, and modules and names that are not found here
        raise DataError(
            "a spawned worker could not make what it was handed, the dataset, collate_fn and worker_init_fn: "
            f"{type(error).__name__}: {error}. Their classes and functions must be at the top level of a module or "
            "script that it can import, and not below `if __name__ == '__main__':`"
        ) from error


def _refuse_all(far: FarEnd, failure: Exception) -> None:
    far.reply(BEGUN)
    with contextlib.suppress(EOFError):
        while True:
            if far.next_task()[0] != "epoch":
                far.reply(ERROR, _describe(failure))


def _depend_on_parent(parent_pid: int) -> None:
    # A terminal's Ctrl-C and a batch system's SIGTERM reach the whole group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # blocked where it was spawned
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.name == "posix" and os.getppid() != parent_pid:
        os._exit(1)  # as the kernel would have ended it, had it been asked in time


def _work(far: FarEnd, post: Post, making: BatchMaking) -> None:
    core.set_num_threads(1)  # OpenMP's threads do not survive a fork
    set_current_place(CPU)
    set_worker_info(number=post.number, workers=post.workers, dataset=making.dataset, seed=post.seed)
    isolated = IsolatedSeed()
    fetcher: MapFetcher | IterableFetcher | None = None if making.reads_in_order else MapFetcher(making)
    failure: Exception | None = None
    has_begun = False
    far.reply(BEGUN)
    while True:
        try:
            task, generation, task_seed, arguments = far.next_task()
        except EOFError:
            return
        isolated.enter(task_seed)
        if not has_begun:
            has_begun = True
            failure = _run_init_fn(making, post, isolated)
        if task == "epoch":
            if failure is None:
                isolated.enter(task_seed)
                failure = _tell_epoch(making, arguments)
            if making.reads_in_order and failure is None:
                isolated.enter(task_seed)
                fetcher, failure = _start_iteration(making)
            continue
        if generation != far.generation:
            far.reply(SKIPPED)
            continue
        try:
            if failure is not None:
                raise failure
            assert fetcher is not None
            if task == "skip":
                far.reply(ENDED if fetcher.read() is END else SKIPPED)  # type: ignore[union-attr]
                continue
            batch = fetcher(arguments)
            if batch is END:
                far.reply(ENDED)
            else:
                far.reply(BATCH, to_arrays(batch))
        except BaseException as error:  # SystemExit too: the parent must hear of it
            far.reply(ERROR, _describe(error))


def _run_init_fn(making: BatchMaking, post: Post, isolated: IsolatedSeed) -> Exception | None:
    if making.worker_init_fn is None:
        return None
    isolated.enter(derive_seed(post.seed, "worker", post.number))
    try:
        making.worker_init_fn(post.number)
    except Exception as error:
        add_note(error, f"raised by worker_init_fn({post.number})")
        return error
    return None


def _tell_epoch(making: BatchMaking, epoch: int | None) -> Exception | None:
    try:
        if epoch is not None:
            set_epoch_of(made_by(making), epoch)
    except Exception as error:
        add_note(error, f"raised by set_epoch({epoch})")
        return error
    return None


def _start_iteration(making: BatchMaking) -> tuple[IterableFetcher | None, Exception | None]:
    try:
        return IterableFetcher(making), None
    except Exception as error:
        add_note(error, f"raised by {type(making.dataset).__name__}.__iter__")
        return None, error


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
