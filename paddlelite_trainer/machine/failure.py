"""Failure: which rank failed, where and why, as the last lines of every rank tell it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import paddle

from .signals import EXIT_PREEMPTED

_ENGINE, _PADDLE = Path(__file__).parent.parent, Path(paddle.__file__).parent
_LONGEST_REASON = 2000
_FRAMES_SHOWN = 12
Stack = Sequence[tuple[FrameType, int]]


@dataclass(frozen=True)
class Peer:
    """One process of the job."""

    rank: int
    host: str
    pid: int
    log: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """What ended a rank. `reason` is its traceback's last line, or what the others saw of its end."""

    rank: int
    host: str
    log: str
    reason: str
    place: str = ""
    stack: str = ""

    def __str__(self) -> str:
        lines = [f"Rank {self.rank} was here:\n{self.stack.rstrip()}"] if self.stack else []
        lines += [f"Rank {self.rank} on {self.host} failed first: {self.reason}"]
        lines += [f"  in {self.place}"] if self.place else []
        lines += [f"  its log: {self.log}"] if self.log else []
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def this_process(rank: int) -> Peer:
    return Peer(rank, socket.gethostname(), os.getpid(), _log_of_this_process())


def failure_of(peer: Peer, error: BaseException) -> Failure:
    """A rank's failure by an exception: its last line, and the place where it was raised."""
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SystemExit) and error.code != EXIT_PREEMPTED:
        reason = f"it left by sys.exit({'' if error.code is None else repr(error.code)}) in the midst of a run"
    return Failure(peer.rank, peer.host, peer.log, reason[:_LONGEST_REASON], place_of(stack_of(error.__traceback__)))


def stack_of(trace: TracebackType | None) -> Stack:
    """From the outermost frame to the one that raised."""
    found = []
    while trace is not None:
        found.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found


def stack_of_main_thread() -> Stack:
    """Where this process is; to be called in another thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    found = []
    while frame is not None:
        found.append((frame, frame.f_lineno))
        frame = frame.f_back
    return found[::-1]


def place_of(stack: Stack) -> str:
    """The hook or step in which a stack is: what of the user's the engine has called; and the innermost frame."""
    if not stack:
        return ""
    was_ours, found = False, [stack[-1]]
    for place in stack:
        is_ours = _is_ours(place[0])
        if was_ours and not is_ours and place[0] is not stack[-1][0]:
            found.insert(0, place)
            break
        was_ours = is_ours
    return ", at ".join(_name_of(*place) for place in found)


def shown(stack: Stack) -> str:
    """The innermost lines of a stack, as a traceback shows them."""
    return "".join(traceback.StackSummary.extract(iter(stack[-_FRAMES_SHOWN:])).format())


def _is_ours(frame: FrameType) -> bool:
    """Whether it is the engine's or Paddle's own, as against the user's or a callback's."""
    path = Path(frame.f_code.co_filename)
    return _PADDLE in path.parents or (_ENGINE in path.parents and _ENGINE / "callbacks" not in path.parents)


def _name_of(frame: FrameType, line: int) -> str:
    owner, name = frame.f_locals.get("self"), frame.f_code.co_name
    whole = name if owner is None else f"{type(owner).__name__}.{name}"
    return f"{whole} ({frame.f_code.co_filename}:{line})"


def _log_of_this_process() -> str:
    """The file that takes this process's errors, where it is one."""
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return ""
    return path if path.startswith("/") and not path.startswith("/dev/") else ""
