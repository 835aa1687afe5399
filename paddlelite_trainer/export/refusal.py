"""Which line of the user's code Paddle's translator stumbled over, found in the words of its error."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import paddle

from ..reporting.terminal import from_here

_FRAME = re.compile(r'^ *File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)', re.MULTILINE)
_HERE = re.compile(r"^(?P<code>[^\n]+)\n[ \t]*~+ <--- HERE", re.MULTILINE)
_NOT_THE_USER_S = (str(Path(paddle.__file__).parent), str(Path(__file__).parents[1]))


def why_not_traced(error: Exception) -> str:
    """Where and why, in a few lines: the file, the line and its code where Paddle tells them, and Paddle's reason."""
    text = str(error)
    if isinstance(error, OSError) and "could not get source code" in text:
        return (
            "Paddle translates the source of forward, and there is none: the class was made by exec, `python -c` or "
            "at a prompt. Put it into a file, or into a notebook's cell"
        )
    if "requires" in text and "arguments, but not found" in text:
        return f"Paddle takes the first argument of forward for the object only where it is called self. {text}"
    place = _place_in(text) or _place_in_traceback(error)
    reason, kind = _reason(text), type(error).__name__
    return f"{place}{reason}" if kind in reason else f"{place}{reason} ({kind})"


def _place_in(text: str) -> str:
    found = ""
    for frame in _FRAME.finditer(text):
        if frame["file"].startswith(_NOT_THE_USER_S) or "/site-packages/" in frame["file"]:
            continue
        rest = text[frame.end() : _next_frame(text, frame.end())]
        here = _HERE.search(rest)
        code = here["code"].strip() if here else rest.strip().splitlines()[0].strip() if rest.strip() else ""
        found = _told(frame["file"], int(frame["line"]), frame["function"], code)
    return found


def _next_frame(text: str, start: int) -> int:
    following = _FRAME.search(text, start)
    return following.start() if following else len(text)


def _place_in_traceback(error: Exception) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_THE_USER_S)
        and "site-packages" not in frame.filename
        and frame.name in ("forward",)
    ]
    return _told(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name, frames[-1].line or "") if frames else ""


def _told(file: str, line: int, function: str, code: str) -> str:
    return f"{from_here(file)}:{line}, in {function}:\n    {code}\n"


def _reason(text: str) -> str:
    """The last paragraph of Paddle's error that says something, in one line."""
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    said = [part for part in paragraphs if part and "File " not in part and "<--- HERE" not in part]
    reason = said[-1] if said else re.sub(r"\s+", " ", text).strip()
    reason = reason.partition(" Suggestions: ")[0]  # on static graphs, which the user has not asked for
    return reason if len(reason) <= 400 else reason[:397] + "..."
