"""Bell: Linux's futex, by which a process sleeps until another has changed a number in memory that both have."""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys

_NUMBER_OF_THE_CALL = 202  # on x86_64
_WAIT, _WAKE = 0, 1
_EVERYBODY = 2**31 - 1
_CALL = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)


class _Timeout(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Bell:
    """Rings for numbers of 32 bits within shared memory; places are in bytes from its begin."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = (ctypes.c_char * len(memory)).from_buffer(memory)
        self._begin = ctypes.addressof(self._memory)
        self._call = _CALL(("syscall", ctypes.CDLL(None)))

    def ring(self, place: int) -> bool:
        """Wake all that sleep for this number; whether this system can."""
        return bool(self._call(_NUMBER_OF_THE_CALL, self._begin + place, _WAKE, _EVERYBODY, None) >= 0)

    def await_ring(self, place: int, number: int, seconds: float) -> None:
        """Sleep until the bell rings, the time is over or a signal comes; not at all where the number is another."""
        whole = int(seconds)
        timeout = _Timeout(whole, int((seconds - whole) * 1e9))
        self._call(_NUMBER_OF_THE_CALL, self._begin + place, _WAIT, number & 0xFFFFFFFF, ctypes.byref(timeout))


def bell_of(memory: mmap.mmap) -> Bell | None:
    """None where this system has no such call, or forbids it."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    bell = Bell(memory)
    return bell if bell.ring(0) else None
