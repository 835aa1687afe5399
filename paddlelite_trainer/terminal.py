"""Words, tables, sizes and ages for people who read a terminal or a log file."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any


def say(text: str, style: str | None = None) -> None:
    """Print text as it is, in colour where there is a terminal."""
    from rich.text import Text

    _print(Text(_printable(text), style=style or ""), soft_wrap=True)


Cell = str | Sequence[str]
"""One text, or a list of which each item gets a line of its own where the table is too wide for the terminal."""


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
    heading: bool = True,
) -> None:
    """Print rows below `columns`; those whose index is in `right` are aligned right, they and those in `whole` not broken.

    In a narrow terminal texts break between words, and names only after `/`, `.` and `_`; where that does not do, each
    row is printed as a block of lines. Into a pipe a row is one line.
    """
    rows = list(rows)
    width = console().width if sys.stdout.isatty() else None
    lines = _lines(columns, rows, right, {*right, *whole}, heading, width)
    if lines is None:
        lines = _lines(columns, rows, right, {*right, *whole}, heading, width, narrow=True)
    if lines is None:
        return _blocks(columns, rows)
    for line in lines:
        _print(line, soft_wrap=True)
    return None


def _lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    right: Sequence[int],
    unbroken: Collection[int],
    heading: bool,
    width: int | None,
    narrow: bool = False,
) -> list[Any] | None:
    """The table's lines, or None where they do not fit; with `narrow` what may be broken is broken as far as needed."""
    from rich.cells import cell_len
    from rich.text import Text

    texts = [[_printable(cell if isinstance(cell, str) else _joined(cell, narrow)) for cell in row] for row in rows]
    widths, least = [], []
    for index, column in enumerate(columns):
        header = [column] * heading
        # An item of a list stays whole beside other columns: there are blocks for where it is too long for that.
        parts = [
            part
            for row, mine in zip(rows, texts)
            for line in mine[index].split("\n")
            for part in (
                [line] if index in unbroken or (heading and not isinstance(row[index], str)) else _pieces(line)
            )
        ]
        widths.append(
            max(cell_len(line) for line in [*header, *(line for mine in texts for line in mine[index].split("\n"))])
        )
        least.append(max(cell_len(part.rstrip()) for part in [*header, *parts]))
    room = None if width is None else width - 1 - 2 * (len(columns) - 1)
    while room is not None and sum(widths) > room:
        widest = max(range(len(widths)), key=lambda index: (widths[index] > least[index], widths[index]))
        if narrow and widths[widest] > least[widest]:
            widths[widest] -= 1
        elif narrow and not heading:
            break  # the terminal breaks what has no place to break
        else:
            return None
    found = []
    if heading:
        titles = "  ".join(_aligned(column, widths[index], index in right) for index, column in enumerate(columns))
        found.append(Text(f" {titles}".rstrip(), style="dim"))
    for row in texts:
        cells = [_wrapped(text, widths[index]) for index, text in enumerate(row)]
        for number in range(max(map(len, cells))):
            line = Text()
            for index, cell in enumerate(cells):
                part = cell[number] if number < len(cell) else ""
                style = "red" if row[index] in _ALARMING else ""
                line.append("  " if index else " ").append(_aligned(part, widths[index], index in right), style=style)
            line.rstrip()
            found.append(line)
    return found


def _joined(items: Sequence[str], narrow: bool) -> str:
    """Items with a comma between them, but not before a remark in brackets."""
    space = "\n" if narrow else " "
    return f",{space}".join(items).replace(f",{space}(", f"{space}(")


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    for index, row in enumerate(rows):
        if index:
            say("")
        facts = [[column, cell] for column, cell in zip(columns, row) if cell]
        table(["", ""], facts, whole=(0,), heading=False)


_ALARMING = ("DAMAGED", "unreadable")
# After a space, though not within [64, 32]; after / and _; after a dot that is not in a number.
_BREAK = re.compile(r"(?<= )(?!(?<=\d, )\d)|(?<=[/_])|(?<=\D\.)|(?<=\.)(?=\D)")


def _pieces(line: str) -> list[str]:
    return _BREAK.split(line)


def _wrapped(text: str, width: int) -> list[str]:
    from rich.cells import cell_len

    lines = []
    for line in text.split("\n"):
        taken = ""
        for piece in _pieces(line):
            if taken and cell_len((taken + piece).rstrip()) > width:
                lines.append(taken.rstrip())
                taken = ""
            taken += piece
        lines.append(taken.rstrip())
    return lines


def _aligned(text: str, width: int, right: bool) -> str:
    from rich.cells import cell_len

    space = " " * (width - cell_len(text))
    return space + text if right else text + space


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
