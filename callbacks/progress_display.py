"""What ProgressBar draws on: a terminal, a notebook's cell, or the terminal of the launcher of this process."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from paddlelite_trainer.callback import imports_without_a_draw, is_terminal

_LAUNCHER_LOOKS_SECONDS = 2.5  # Paddle's launcher shows every 2 s what its first process has printed


def rich_bar() -> Any:
    """A rich progress display with a `draw`, and drawn at no other time; or None where nobody would see it."""
    with imports_without_a_draw():
        from rich.console import Console

    console = Console()
    if console.is_jupyter:
        import importlib.util

        return None if importlib.util.find_spec("ipywidgets") is None else _progress(console)
    if is_terminal() and console.is_terminal and not console.is_dumb_terminal:
        return _progress(console)
    screen = _launchers_terminal()
    return None if screen is None else _LaunchedBar(screen)


def _progress(console: Any) -> Any:
    with imports_without_a_draw():
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.table import Column
        from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            total = "?" if task.total is None else str(int(task.total))
            return Text(f"{int(task.completed):>{len(total)}}/{total}")

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = "" if task.time_remaining is None else f"<{clock(task.time_remaining)}"
            speed = "" if task.speed is None else f"  {rate(task.speed)}/s"
            return Text(clock(task.elapsed or 0.0) + left + speed, style="dim")

    class Metrics(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["metrics"], no_wrap=True, overflow="ellipsis")

    class Bar(Progress):
        def refresh(self) -> None:
            """rich calls it with every task that comes, and it takes a millisecond."""

        def draw(self) -> None:
            super().refresh()

    whole = Column(no_wrap=True)  # in a narrow terminal the metrics give way, and nothing else
    return Bar(
        TextColumn("{task.description}", table_column=whole),
        BarColumn(  # rich's own red looks like an alarm
            bar_width=max(5, min(30, console.width // 8)),
            table_column=whole,
            complete_style="cyan",
            finished_style="green",
        ),
        Count(table_column=whole),
        Times(table_column=whole),
        Metrics(table_column=Column()),
        console=console,
        auto_refresh=False,  # a thread that redraws would take time from the training
        # In a notebook the cell shows prints beside the bar by itself, and IPython's display prints in its turn.
        redirect_stdout=not console.is_jupyter,
        redirect_stderr=not console.is_jupyter,
    )


class _LaunchedBar:
    """One line on the terminal of Paddle's launcher, which prints there what this process has written to its log.

    When it does so nobody knows. So the line is taken away before something is printed, and comes back when all of that
    has been shown; the cursor waits at the line's start, so that what comes in between stands on a line of its own.
    """

    def __init__(self, screen: TextIO) -> None:
        from rich.console import Console

        self._screen = screen
        width = os.get_terminal_size(screen.fileno()).columns - 1  # a full line would go on in the next one
        self._console = Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False)
        self._progress = _progress(self._console)
        self._printed, self._quiet_from = -1, 0.0
        self.live = self  # what rich's display has, for those who use it
        self.transient = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)  # add_task, update, remove_task, tasks

    def start(self) -> None: ...

    def draw(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            printed, now = os.fstat(sys.stdout.fileno()).st_size, time.monotonic()
            if printed != self._printed:
                self._printed = printed
                self.clear()
            elif now >= self._quiet_from:
                self._write(self._last_line() + "\r")

    def clear(self) -> None:
        """Something is being printed, which the launcher will show."""
        self._quiet_from = time.monotonic() + _LAUNCHER_LOOKS_SECONDS
        self._write("")

    def stop(self) -> None:
        self.clear()
        with contextlib.suppress(OSError):
            self._screen.close()

    def _last_line(self) -> str:
        with self._console.capture() as captured:
            self._console.print(self._progress.get_renderable())
        return next((line for line in reversed(captured.get().splitlines()) if line.strip()), "")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is closed ends no training
            self._screen.write(f"\r\x1b[2K{text}")
            self._screen.flush()


def _launchers_terminal() -> TextIO | None:
    """The launcher's terminal, if it has one, where this is the first process of its job and prints into a file."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) < 2 or os.environ.get("PADDLE_TRAINER_ID") != "0":
        return None
    path = f"/proc/{os.getppid()}/fd/1"
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):  # a file, which to open could empty
            return None
        screen = os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY), "w", encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):
        if screen.isatty() and os.get_terminal_size(screen.fileno()).columns >= 40:
            return screen
    screen.close()
    return None


class Columns:
    """Makes lines that come one by one a table: what has one name stands below each other."""

    def __init__(self) -> None:
        self._widths: dict[str, int] = {}

    def line(self, cells: Mapping[str, str]) -> str:
        """The cells, each as wide as the widest of its name so far."""
        for name, text in cells.items():
            self._widths[name] = max(self._widths.get(name, 0), len(text))
        return "  ".join(text.ljust(self._widths[name]) for name, text in cells.items()).rstrip()


def rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
