"""SIGTERM and SIGINT: the first asks the run to save and stop, the second ends the process at once; SIGHUP: neither."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

EXIT_PREEMPTED = 75
"""Exit code of a run that SIGTERM ended after it saved: EX_TEMPFAIL of sysexits.h, "run me again"."""


WAITS_FOR_DATA: set[CodeType] = set()
"""Functions in which a run waits for its next batch, and which may be left at any instruction without a trace."""


class WaitingEnded(BaseException):
    """A signal came while the run waited for data, so everything before is complete and may be saved at once."""


class SignalWatch:
    """While entered, catches SIGTERM and SIGINT and remembers the first in `received`.

    Until `wait_for_save_point` is called there is nothing to save, so the first ends the process as soon as Python runs
    again: SystemExit(75) or KeyboardInterrupt is raised. After that it is only remembered; but a wait for data, which
    may last longer than a machine's grace, is ended by WaitingEnded. Where SIGHUP would end the process, as the
    terminal's connection is lost, the run goes on without a terminal, as under nohup.

    Entered in any thread but the main one it does nothing, since Python delivers signals there only. Paddle installs a
    C-level SIGTERM handler when it is imported that Python cannot see; setting ours afterwards replaces it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._waits = False
        self._may_leave: Callable[[], bool] = lambda: False
        self._previous: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []  # asked before they are gone, as they are none any more then

    def __enter__(self) -> SignalWatch:
        self.received = None
        self._waits = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
                self._terminals = [descriptor for descriptor in (0, 1, 2) if _is_terminal(descriptor)]
                self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._go_on_without_a_terminal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def wait_for_save_point(self, may_leave: Callable[[], bool]) -> None:
        """From now on each save point asks `received`; `may_leave` tells whether all that is done can be saved."""
        self._waits, self._may_leave = True, may_leave

    def agree_on(self, received: signal.Signals | None) -> None:
        """What some rank received, all have."""
        self.received = received

    def _go_on_without_a_terminal(self, number: int, frame: FrameType | None) -> None:
        """What is written to the terminal goes nowhere from here on, instead of raising an error in whoever writes."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        if 2 not in self._terminals:
            with contextlib.suppress(OSError, ValueError):
                print("SIGHUP: the terminal is gone, and training goes on; SIGTERM stops it.", file=sys.stderr)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT and in_notebook():
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        what = "finishing this step, saving, then stopping" if self._waits else "stopping; there is nothing to save yet"
        with contextlib.suppress(OSError, ValueError):  # stderr may be a pipe that is closed
            print(f"\n{self.received.name}: {what}. Once more to stop at once.", file=sys.stderr)
        if not launched_by_paddle():
            # From now on the kernel itself ends us, even in the middle of a long kernel of Paddle's.
            for other in (signal.SIGTERM, signal.SIGINT):
                if not (other == signal.SIGINT and in_notebook()):  # where it would take the user's work with it
                    signal.signal(other, signal.SIG_DFL)
        if not self._waits:
            raise SystemExit(EXIT_PREEMPTED) if number == signal.SIGTERM else KeyboardInterrupt
        if not launched_by_paddle() and self._may_leave() and _waits_for_data(frame):
            raise WaitingEnded


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _waits_for_data(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in WAITS_FOR_DATA:
            return True
        frame = frame.f_back
    return False


def launched_by_paddle() -> bool:
    """Whether paddle.distributed.launch started this process: it sends SIGTERM three times for one request."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


def in_notebook() -> bool:
    """Whether this is an interactive session, where ending the process would lose the user's work."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)  # where a kernel runs, not where one is imported
    return shell is not None and shell() is not None
