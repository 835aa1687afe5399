"""Copies the next batch to the accelerator while the present step runs, in a thread, where that was measured to pay."""

from __future__ import annotations

import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Literal

from ..machine.device import Device
from ..machine.paddle_internals import current_place, set_current_place
from ..machine.precision import is_out_of_memory
from .batch import move_to_device, nbytes, needs_only_copies

WARM_UP_BATCHES = 3  # kernels are loaded and memory is found in them
MEASURED_BATCHES = 10
WORTHWHILE_SHARE = 0.02  # of a batch's time
LARGEST_SHARE = 0.01  # of the device's memory; where the device tells it
HANDOVER_SECONDS = 50e-6  # that a batch's way through the thread costs the training thread: 36 us or more

NOT_COPIED = "they are on the device already, or are not made of Tensors alone"

# A forked process must not inherit a lock of Paddle's that the thread was just holding, so nobody forks during a copy.
_COPYING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_COPYING.acquire, after_in_parent=_COPYING.release, after_in_child=_COPYING.release)


class Prefetch:
    """Decides whether one loader's batches are copied ahead, and has the thread that copies them.

    The thread copies Tensors and does nothing else. Whatever may draw random numbers, run a user's code or look at the
    run's state (datasets, samplers, collating, hooks, objects with a `to` of their own), and every wait for a worker
    process, stays in the training thread and in its old place there. So what a batch holds, its position and its errors
    cannot depend on `is_on`, which was measured and may differ between two runs, or two ranks.

    While a step runs there is one batch more on the device. Only the training thread may call this.
    """

    def __init__(self, wanted: Literal[True, "auto"], device: Device) -> None:
        self.is_on: bool | None = True if wanted is True else None
        """None while the first batches are being timed. Only this class writes it."""
        self.why = "asked for" if self.is_on else "not decided: too few batches so far"
        self._tells_what_it_leaves = wanted is True
        self._device = device
        self._thread: _Thread | None = None
        self._copy_seconds: list[float] = []
        self._batch_seconds: list[float] = []
        self._last_start: float | None = None

    def move(self, batch: Any) -> Any:
        """The batch on the device, copied here and now unless it is there."""
        if self.is_on is not None:
            return move_to_device(batch, self._device.place)
        return self._timed_move(batch)

    def start(self, batch: Any) -> NextBatch:
        """Let the thread copy the next batch, where there is something to copy."""
        upcoming = NextBatch(self, batch)
        if needs_only_copies(batch, self._device.place):
            if self._thread is None:
                self._thread = _Thread(self._device.place)
            upcoming.set_out(self._thread.tasks)
        elif self._tells_what_it_leaves:
            self._tells_what_it_leaves = False
            warnings.warn(f"Trainer(prefetch_to_device=True) has no effect on some batches: {NOT_COPIED}", stacklevel=2)
        return upcoming

    def fetch_and_start(self, fetch: Callable[..., Any], *arguments: Any) -> NextBatch:
        """Fetch the next batch in this thread, then `start` it; what `fetch` raises is kept for that batch's turn."""
        try:
            batch = fetch(*arguments)
        except Exception as error:
            return NextBatch(self, None, failure=error)
        return self.start(batch)

    def close(self) -> None:
        """Wait for the copy under way and end the thread; `start` begins another one."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()

    def describe(self) -> str:
        """For people: whether, and why."""
        return f"prefetch to the device: {'on' if self.is_on else 'off'}; {self.why}"

    def out_of_memory(self) -> None:
        """There is no room for the batch that is ahead: copy none ahead from here on."""
        self.is_on = False
        self.why = f"one batch more does not fit into the memory of {self._device.name}"
        warnings.warn(f"prefetch_to_device is off from here on: {self.why}", stacklevel=2)

    def _timed_move(self, batch: Any) -> Any:
        self._device.synchronize()  # a copy waits for the work queued before it, which is not its own time
        started = time.perf_counter()
        moved = move_to_device(batch, self._device.place)
        self._copy_seconds.append(time.perf_counter() - started)
        if self._last_start is not None:
            self._batch_seconds.append(started - self._last_start)
        self._last_start = started
        if not needs_only_copies(batch, self._device.place):
            self.is_on, self.why = False, NOT_COPIED
        elif len(self._batch_seconds) == WARM_UP_BATCHES + MEASURED_BATCHES:
            self._decide(nbytes(moved))
        return moved

    def _decide(self, batch_bytes: int) -> None:
        memory = self._device.memory()
        if memory is not None and batch_bytes > LARGEST_SHARE * memory:
            self.is_on, self.why = False, f"one batch more takes over {LARGEST_SHARE:.0%} of the device's memory"
            return
        copy = statistics.median(self._copy_seconds[WARM_UP_BATCHES:])  # the median: some batches are validated after
        batch = statistics.median(self._batch_seconds[WARM_UP_BATCHES:])
        self.is_on = copy - HANDOVER_SECONDS >= WORTHWHILE_SHARE * batch
        self.why = f"copying took {copy * 1e3:.3g} of a batch's {batch * 1e3:.3g} ms"


class NextBatch:
    """The batch after the one being handled, on its way to the device."""

    def __init__(self, prefetch: Prefetch, batch: Any, failure: BaseException | None = None) -> None:
        self.is_under_way = False
        self._prefetch = prefetch
        self._batch = batch
        self._failure = failure
        self._found_no_room = False
        self._has_come = threading.Lock()
        self._has_come.acquire()

    def set_out(self, tasks: SimpleQueue[Any]) -> None:
        """Let the thread that reads `tasks` bring it."""
        self.is_under_way = True
        tasks.put(self)

    def wait(self) -> None:
        """Return when it has come; raises what fetching or copying it raised."""
        if self.is_under_way:
            self._has_come.acquire()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._found_no_room:
            self._prefetch.out_of_memory()  # still on the host, it is copied in the training thread, as without us

    def take(self) -> Any:
        """Hand it over and keep nothing of it: the device's memory is to be free as soon as the step is done."""
        batch, self._batch = self._batch, None
        return batch

    def copy(self, place: Any) -> None:
        """What the thread does."""
        try:
            with _COPYING:
                self._batch = move_to_device(self._batch, place)
        except BaseException as error:
            self._found_no_room = is_out_of_memory(error)
            self._failure = None if self._found_no_room else error
        self._has_come.release()


class _Thread:
    """Copies the batches put into `tasks`.

    Made of a queue and locks in C, which an exception out of a signal's handler can leave at any instruction; a
    Future's condition could be left locked, and the thread would wait for it.
    """

    def __init__(self, place: Any) -> None:
        self.tasks: SimpleQueue[NextBatch | None] = SimpleQueue()
        self._has_begun = threading.Lock()
        self._has_begun.acquire()
        self._thread = threading.Thread(
            target=self._run, args=(place, current_place()), name="prefetch_to_device", daemon=True
        )
        self._failure: BaseException | None = None
        self._thread.start()
        self._has_begun.acquire()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        self.tasks.put(None)
        self._thread.join()

    def _run(self, place: Any, expected_place: Any) -> None:
        # CUDA's current device is one by thread, which this sets. First of all, as the place itself is for all threads.
        try:
            set_current_place(expected_place)
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._has_begun.release()
        while (upcoming := self.tasks.get()) is not None:
            upcoming.copy(place)
