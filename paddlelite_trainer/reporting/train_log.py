"""TrainLog: a run's train.log, which holds what a fit has told people, over all the processes that work on the run."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

TRAIN_LOG = "train.log"
_MOST_LINES_THAT_WAIT = 1000


class TrainLog:
    """The lines of one fit. What is said before there is a directory waits for it, and is dropped where none comes.

    Lines are few, so each opens the file, appends and closes it: nothing is left open or unwritten, whatever happens.
    A file that cannot be written is told once, and ends no training.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.path: Path | None = None
        self._tell = tell
        self._waiting: deque[str] = deque(maxlen=_MOST_LINES_THAT_WAIT)
        self._has_told = False

    def open(self, run_dir: Path) -> None:
        """Go on with the file of this run, with a heading for this process. Rank 0 alone calls it."""
        self.path = run_dir / TRAIN_LOG
        when = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        command = shlex.join([sys.executable, *sys.orig_argv[1:]])
        self._append(f"---- {when}, process {os.getpid()} on {socket.gethostname()}: {_one_line(command)}\n")
        while self._waiting:
            self._append(self._waiting.popleft())

    def write(self, text: str) -> None:
        """Append a line, or several; nobody sees them elsewhere."""
        if self.path is None:
            self._waiting.append(f"{text}\n")
        else:
            self._append(f"{text}\n")

    def printed(self, values: tuple[Any, ...], options: dict[str, Any]) -> None:
        """What print() was given, unless it was for another file."""
        if options.get("file") in (None, sys.stdout):
            self.write((" " if options.get("sep") is None else options["sep"]).join(map(str, values)))

    def failed(self, error: BaseException) -> None:
        """An exception that ends the fit, with the way it took."""
        self.write("".join(traceback.format_exception(error)).rstrip())

    @contextlib.contextmanager
    def hears_warnings(self) -> Iterator[None]:
        """Within, Python's warnings stand in the file too; they are shown as before, ours without a place of ours."""
        show, before = warnings.showwarning, warnings.formatwarning

        def heard(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            place = "" if _is_ours(filename) else f" ({category.__name__}, {filename}:{lineno})"
            self.write(f"WARNING: {message}{place}")
            show(message, category, filename, lineno, file, line)

        def shown(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
        ) -> str:
            ours = _is_ours(filename)
            return f"WARNING: {message}\n" if ours else before(message, category, filename, lineno, line)

        vars(warnings).update(showwarning=heard, formatwarning=shown)
        try:
            yield
        finally:
            if warnings.formatwarning is shown:
                vars(warnings)["formatwarning"] = before
            if warnings.showwarning is heard:  # else somebody has put another in its place, and puts that one back
                vars(warnings)["showwarning"] = show

    def _append(self, lines: str) -> None:
        assert self.path is not None
        try:
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(lines)
        except OSError as error:
            if not self._has_told:
                self._has_told = True
                self._tell(f"WARNING: {self.path} cannot be written ({error.strerror or error}); training goes on")


def _is_ours(filename: str) -> bool:
    """Whether a warning points into this package, which tells a user nothing; in a checkout callbacks lie beside it."""
    callbacks = sys.modules.get(f"{__package__.partition('.')[0]}.callbacks")
    folders = [str(Path(__file__).parent.parent), *getattr(callbacks, "__path__", ())]
    return any(filename.startswith(folder + os.sep) for folder in folders)


def _one_line(command: str) -> str:
    line = command.partition("\n")[0]
    return line if line == command else f"{line} ..."
