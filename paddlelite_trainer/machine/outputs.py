"""Outputs: standard output and error while a fit runs, which no reader that leaves ends: `python train.py | head`."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import Any


class Outputs:
    """While entered, a pipe that nobody reads any more is written to no more, whoever writes: ours or the user's print.

    Streams that are no pipes, and streams of others (a notebook's, pytest's), are left as they are.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Outputs:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_pipe(stream):
                self._before[name] = stream
                setattr(sys, name, _Unbroken(stream))
        return self

    def __exit__(self, *exception: object) -> None:
        for name, stream in self._before.items():
            if isinstance(getattr(sys, name), _Unbroken):  # else somebody has put another there
                setattr(sys, name, stream)
        self._before.clear()


class _Unbroken:
    """A text stream whose writes go nowhere, instead of raising, once its reader has gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except BrokenPipeError as error:
            self._go_on_without(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError as error:
            self._go_on_without(error)

    def _go_on_without(self, error: BrokenPipeError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # for the rest of the process: what is in its buffer fails no more
        os.close(nowhere)
        with contextlib.suppress(OSError, ValueError):
            if self._stream.fileno() == 1:
                print(f"standard output cannot be written ({error}); the run goes on without it", file=sys.stderr)


def _is_pipe(stream: Any) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or none
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
