"""What a run has told: warnings and errors in its train.log, how fast its epochs went, the tables of its profile."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from ...reporting.train_log import TRAIN_LOG

PROFILE = "profile.txt"
_MOST_BYTES = 4 << 20  # from the end of a file
_MOST_WARNINGS = 100
_LINES_SHOWN = 60

_WARNING = re.compile(r"^(?:note +)?WARNING: (.*)", re.M)
_FRAMES = re.compile(r"^Traceback \(most recent call last\):\n(?:[ ].*\n|\n)*^\S.*", re.M)
_EPOCH = re.compile(r"^Epoch (\d+)(?:/\d+)? +\d+ batches +(?:([\d.]+) s\b|((?:\d+:)?\d+:\d+)\b)", re.M)
_PACE = re.compile(r"^epoch (\d+)(?:/\d+)?  (?:step|batch) (\d+)/(\d+)  .*?ips ([\d.e+-]+)/s  wait (\d+) %", re.M)


def log_of(run: Path) -> dict[str, Any]:
    """`warnings` as [text, how often], `error` (the last traceback), `tail`, `epochs` and `pace`, and `problems`."""
    text, problems = _end_of(run / TRAIN_LOG)
    found = Counter(match[1].strip() for match in _WARNING.finditer(text))
    errors = _FRAMES.findall(text)
    epochs = {int(epoch): float(seconds or _seconds(clock)) for epoch, seconds, clock in _EPOCH.findall(text)}
    pace = {
        int(epoch) - 1 + int(done) / max(int(total), 1): (float(samples), int(wait) / 100)
        for epoch, done, total, samples, wait in _PACE.findall(text)
    }
    return {
        "warnings": [[warning, times] for warning, times in found.items()][:_MOST_WARNINGS],
        "error": errors[-1][-6000:] if errors else None,
        "tail": "\n".join(line[:400] for line in text.splitlines()[-_LINES_SHOWN:]),
        "epochs": sorted(epochs.items()),
        "pace": [[place, samples, wait] for place, (samples, wait) in sorted(pace.items())],
        "problems": problems,
    }


def _seconds(clock: str) -> int:
    """Of 1:02:03."""
    return sum(int(part) * 60**place for place, part in enumerate(reversed(clock.split(":"))))


def profiles_of(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Tables of profile.txt, the newest last: {"heading", "rows": [[part, seconds, share, calls]], "notes"}."""
    text, problems = _end_of(run / PROFILE)
    tables: list[dict[str, Any]] = []
    for line in text.splitlines():
        if line.startswith("Where the "):
            tables.append({"heading": line, "rows": [], "notes": []})
        elif tables and line and not line.startswith("part "):
            row = re.match(r"^(.+?)  +([\d.]+)  +([\d.]+)%(?:  +(\d+))?", line)
            if row is None:
                tables[-1]["notes"].append(line)
            elif row[1] != "all":
                tables[-1]["rows"].append([row[1], float(row[2]), float(row[3]), int(row[4] or 0)])
    return tables[-3:], problems


def _end_of(path: Path) -> tuple[str, list[str]]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MOST_BYTES))
            content = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return "", []
    except OSError as error:
        return "", [f"{path.name} cannot be read: {error}"]
    too_long = [f"{path.name}: only its last {_MOST_BYTES >> 20} MB were read"] if size > _MOST_BYTES else []
    return content.decode("utf-8", errors="replace"), too_long
