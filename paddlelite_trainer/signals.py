"""SIGTERM and SIGINT: the first asks the run to save and stop, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

EXIT_PREEMPTED = 75
"""Exit code of a run that SIGTERM ended after it saved: EX_TEMPFAIL of sysexits.h, "run me again"."""


class SignalWatch:
    """While entered, remembers the first SIGTERM or SIGINT in `received` instead of dying of it.

    Entered in any thread but the main one it does nothing, since Python delivers signals there only. Paddle installs a C-level
    SIGTERM handler when it is imported that Python cannot see; setting ours afterwards replaces it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            print(
                f"\n{self.received.name}: finishing this step, saving, then stopping. Once more to stop at once.",
                file=sys.stderr,
            )
            if not launched_by_paddle():
                # From now on the kernel itself ends us, even in the middle of a long kernel of Paddle's.
                for other in self._previous:
                    signal.signal(other, signal.SIG_DFL)


def launched_by_paddle() -> bool:
    """Whether paddle.distributed.launch started this process: it sends SIGTERM three times for one request."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


def in_notebook() -> bool:
    """Whether this is an interactive session, where ending the process would lose the user's work."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules or bool(getattr(sys.flags, "interactive", 0))
