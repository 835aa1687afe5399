"""Words, tables, sizes and ages for people who read a terminal or a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any


def say(text: str, style: str | None = None) -> None:
    """Print text as it is, in colour where there is a terminal."""
    from rich.text import Text

    _print(Text(_printable(text), style=style or ""), soft_wrap=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
    heading: bool = True,
) -> None:
    """Print rows below `columns`; those whose index is in `right` are aligned right, those in `whole` not broken."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=heading, pad_edge=True, header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold", no_wrap=index in whole)
    for row in rows:
        table.add_row(
            *(Text(_printable(cell), style="red" if cell in ("DAMAGED", "unreadable") else "") for cell in row)
        )
    _print(table)


def _print(what: Any, **options: Any) -> None:
    screen = console()
    with screen.capture() as captured:
        screen.print(what, **options)
    # Not printed by rich: it pads every line of a table with spaces, and ends the program where a pipe is closed.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _printable(text: str) -> str:
    """A name out of a file must not steer the terminal: what is no character is shown as its escape."""
    return "".join(char if char.isprintable() or char == "\n" else f"{char!a}"[1:-1] for char in text)


def console() -> Any:
    """A rich Console on the present stdout."""
    from rich.console import Console

    # Into a pipe or a file a row is one line, however long.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def count(number: int, noun: str) -> str:
    """1 checkpoint, 2 checkpoints."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size(nbytes: float) -> str:
    """1.5 MB, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 99.95 else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def seconds_since(created: str) -> float | None:
    """Seconds since a date in ISO 8601, None where it is none."""
    try:
        return time.time() - datetime.fromisoformat(created).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def age(seconds: float | None) -> str:
    """42 s, 12 min, 3 h, 5 d."""
    if seconds is None:
        return "?"
    for limit, divisor, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
