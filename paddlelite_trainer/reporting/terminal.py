"""Words, tables, sizes and ages for people who read a terminal or a log file."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

Write = Callable[[str], object]


def print_line(*values: Any, **options: Any) -> None:
    """print() that no training ends by: what the output cannot show is escaped, and one that is gone is done without.

    Where standard output is a closed pipe or a full disk, one line on standard error says so.
    """
    stream = options.get("file") or sys.stdout
    try:
        print(*(_showable(str(value), stream) for value in values), **options)
    except (OSError, ValueError) as error:  # a closed file is a ValueError
        if stream is not sys.stdout:
            return
        with contextlib.suppress(OSError, ValueError):
            print(f"standard output cannot be written ({error}); the run goes on without it", file=sys.stderr)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # or its buffer would fail at the very end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _showable(text: str, stream: Any) -> str:
    """The text with escapes for characters that the stream's encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if getattr(stream, "errors", None) not in (None, "strict"):
        return text
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def say(text: str, style: str | None = None, write: Write | None = None) -> None:
    """Print text as it is, in colour where there is a terminal."""
    from rich.text import Text

    _print(Text(_printable(text), style=style or ""), write, soft_wrap=True)


def facts(lines: Sequence[tuple[str, str]]) -> str:
    """Names and what is said of them, as text in two columns; by hand, as no fit needs rich to begin."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


_ENDLESS = 10_000
Cell = str | Sequence[str]
"""One text, or a list of which each item gets a line of its own where the table is too wide for the terminal."""


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    right: Sequence[int] = (),
    heading: bool = True,
    write: Write | None = None,
) -> None:
    """Print rows below `columns`; those whose index is in `right` are aligned right.

    Where it is too wide for the terminal, the items of lists get a line each; where it still is, each row becomes a
    block of lines, in which long names break only after `/`, `.` and `_`. Into a pipe a row is one line.
    """
    rows, screen = list(rows), console()
    for separator in (", ", ",\n"):
        whole = _rich_table(columns, rows, right, heading, separator)
        if screen.measure(whole, options=screen.options.update(max_width=_ENDLESS)).maximum <= screen.width:
            return _print(whole, write)
    if not heading:
        return _print(whole, write)
    for index, row in enumerate(rows):
        if index:
            say("", write=write)
        facts = [[column, cell] for column, cell in zip(columns, row) if cell]
        table(["", ""], facts, heading=False, write=write)
    return None


def _rich_table(
    columns: Sequence[str], rows: Iterable[Sequence[Cell]], right: Sequence[int], heading: bool, separator: str
) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=heading, pad_edge=True, header_style="dim")
    for index, column in enumerate(columns):
        # Of facts without a heading the first column is their names.
        table.add_column(column, justify="right" if index in right else "left", no_wrap=heading or index == 0)
    for row in rows:
        table.add_row(*(_text(cell if isinstance(cell, str) else _joined(cell, separator)) for cell in row))
    return table


def _joined(items: Sequence[str], separator: str) -> str:
    """Items with a comma between them, but not before a remark in brackets."""
    return separator.join(items).replace(f"{separator}(", f"{separator[1:]}(")


def _text(content: str) -> Any:
    from rich.text import Text

    class Names(Text):
        """Text whose words rich may break after a slash, a dot or an underscore, though not in a number."""

        def wrap(self, console: Any, width: int, **options: Any) -> Any:
            pieces = Text("\n").join(Text(_broken(line, width), style=self.style) for line in self.plain.split("\n"))
            return pieces.wrap(console, width, **options)

    return Names(_printable(content), style="red" if content in _ALARMING else "")


_ALARMING = ("DAMAGED", "unreadable")
# After a space, though not within [64, 32]; after / and _; after a dot that is not in a number.
_BREAK = re.compile(r"(?<= )(?!(?<=\d, )\d)|(?<=[/_])|(?<=\D\.)|(?<=\.)(?=\D)")


def _broken(line: str, width: int) -> str:
    """The line with line breaks where it may have some and needs them."""
    from rich.cells import cell_len

    lines = [""]
    for piece in _BREAK.split(line):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _print(what: Any, write: Write | None = None, **options: Any) -> None:
    screen = console(prints=False)
    with screen.capture() as captured:
        screen.print(what, **options)
    # Not printed by rich: it pads every line of a table with spaces, and ends the program where a pipe is closed.
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    (write or sys.stdout.write)(_showable(text, sys.stdout))


def _printable(text: str) -> str:
    """A name out of a file must not steer the terminal: what is no character is shown as its escape."""
    return "".join(char if char.isprintable() or char == "\n" else f"{char!a}"[1:-1] for char in text)


@contextlib.contextmanager
def imports_without_a_draw() -> Iterator[None]:
    """For imports in the middle of a fit: rich draws from python's generator as it is imported the first time."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


class _Unflushed:
    """Standard output as rich looks at it; what waits there, on a full disk or for a reader that left, is not sent."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        pass


def console(*, prints: bool = True) -> Any:
    """A rich Console on the present stdout, or one that only looks at it."""
    with imports_without_a_draw():
        from rich.console import Console

    # Into a pipe or a file a row is one line, however long.
    is_gone = getattr(sys.stdout, "closed", True)  # rich cannot do with a closed file
    file: Any = io.StringIO() if is_gone else None if prints else _Unflushed(sys.stdout)
    # In a notebook it is text that is printed: rich would display an empty output beside it.
    width = None if is_terminal() else _ENDLESS
    return Console(highlight=False, width=width, file=file, force_jupyter=False)


def is_terminal() -> bool:
    """Whether standard output is one; a closed file is none."""
    try:
        return sys.stdout.isatty()
    except (ValueError, AttributeError):  # closed, or None
        return False


def from_here(path: str | os.PathLike[str]) -> str:
    """The path as one types it: relative where it lies below the present directory."""
    try:
        return os.fspath(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere; or the present directory is gone
        return os.fspath(path)


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
