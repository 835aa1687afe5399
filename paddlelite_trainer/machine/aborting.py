"""What gloo's abort says: it ends the process from within a backward, where nothing can be caught."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
from collections.abc import Callable

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_SIGNAL = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, _HANDLER)
_kept: list[object] = []  # C calls it for as long as the process lives


def call_on_abort(before: Callable[[], None]) -> None:
    """Call `before` when the process is about to abort; unless it ends the process, that goes on as without it.

    A handler of Python's would not do: Python runs it later, and after an abort there is no later. Once the process
    leaves it is gone: while Python is finalizing, a thread of gloo's that called it would end there, with what it
    holds locked, and the process would wait for that for ever.
    """
    set_handler, pid = _SIGNAL(("signal", ctypes.CDLL(None))), os.getpid()
    previous: list[int] = []

    def on_abort(number: int) -> None:
        if os.getpid() == pid:
            before()
        if previous and previous[0] > 1:  # 0 and 1 are to die by it, and to ignore it
            ctypes.cast(previous[0], _HANDLER)(number)

    handler = _HANDLER(on_abort)
    _kept.append(handler)
    previous.append(int(set_handler(signal.SIGABRT, handler) or 0))
    atexit.register(set_handler, signal.SIGABRT, ctypes.cast(previous[0], _HANDLER))
