"""Journal: a run's journal.jsonl: when which process worked on it, from which step to which, and how that ended."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..progress import Progress

JOURNAL = "journal.jsonl"
_SECONDS_BETWEEN_MARKS = 1.0
_MARKS_OF_A_LONG_FIT = 500  # as it grows they grow apart, so that a week leaves some 4,000 lines


class Journal:
    """What logs and checkpoints do not say, for `paddlelite report`: when a step was made, and which work was lost.

    One JSON object a line, with `time` and `event`: "began" (a fit), "at" (how far it is), "ended". A fit without an
    end was killed. A resumed run adds to the file, and nothing is taken back: it is no log, and no part of what a
    checkpoint holds. Rank 0 alone calls `begin`; the rest does nothing without. It never ends a training.
    """

    def __init__(self, progress: Progress, tell: Callable[[str], None]) -> None:
        self._progress, self._tell = progress, tell
        self._path: Path | None = None
        self._began = self._next_mark = 0.0

    def begin(self, run_dir: Path, went_on_from: Path | None, **told: Mapping[str, Any]) -> None:
        """A fit begins at the present step, from the checkpoint at `went_on_from` or afresh; `told` says what it is."""
        self._path = run_dir / JOURNAL
        self._began = time.monotonic()
        self._next_mark = self._began + _SECONDS_BETWEEN_MARKS
        self._write(
            "began",
            process=os.getpid(),
            host=socket.gethostname(),
            command=shlex.join([sys.executable, *sys.orig_argv[1:]]),
            went_on_from=None if went_on_from is None else went_on_from.name,
            **told,
        )

    def mark(self, *, anyway: bool = False) -> None:
        """Note how far the fit is, unless that was noted a moment ago; `anyway` at a save, which one may go on from."""
        now = time.monotonic()
        if self._path is None or (now < self._next_mark and not anyway):
            return
        self._next_mark = now + max(_SECONDS_BETWEEN_MARKS, (now - self._began) / _MARKS_OF_A_LONG_FIT)
        self._write("at")

    def end(self, outcome: str) -> None:
        """The fit is over, or its process ends: "finished", "stopped: why", "failed: error", "interrupted: signal"."""
        if self._path is not None:
            self._write("ended", outcome=outcome)
            self._path = None

    def _write(self, event: str, **fields: Any) -> None:
        assert self._path is not None
        when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        place = {"step": self._progress.global_step, "epoch": self._progress.current_epoch}
        line = json.dumps(_plain({"time": when, "event": event, **place, **fields}), ensure_ascii=False)
        try:
            with open(self._path, "ab+") as file:
                # What a killed machine has torn stays a line of its own.
                torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
                file.write((("\n" if torn else "") + line + "\n").encode("utf-8", "backslashreplace"))
        except OSError as error:
            self._tell(f"WARNING: {self._path} cannot be written ({error.strerror or error}); training goes on")
            self._path = None


def _plain(value: Any) -> Any:
    """A hyper-parameter may be anything, and no training ends by one: what JSON has not becomes its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or type(value) in (str, int, float, bool) else str(value)
