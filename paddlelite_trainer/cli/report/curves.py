"""Curves out of metrics.csv: every name's values by step, thinned for the eye, with what is not finite kept apart."""

from __future__ import annotations

import csv
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

METRICS = "metrics.csv"
_MOST_BAD_SHOWN = 200


@dataclass
class Table:
    """What stands in a metrics.csv: name -> (steps, values), in the order of its rows."""

    values: dict[str, tuple[array[float], array[float]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_metrics(path: Path) -> Table:
    """Read it as far as it can be read; what cannot is a problem that is told."""
    table = Table()
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            _read_rows(file, table)
    except FileNotFoundError:
        pass
    except (OSError, csv.Error) as error:
        table.problems.append(f"{path.name} cannot be read to its end: {error}")
    return table


def _read_rows(file: TextIO, table: Table) -> None:
    whole = _WholeLines(file)
    rows = csv.reader(whole)
    names = next(rows, [])
    if not names:
        return
    if "step" not in names:
        table.problems.append(f"{METRICS} has no column step, and no curves are drawn: {', '.join(names)[:200]}")
        return
    at, wrong, twice = names.index("step"), Counter[str](), [name for name in set(names) if names.count(name) > 1]
    if twice:
        table.problems.append(f"{METRICS} has columns of one name, which are one curve: {', '.join(sorted(twice))}")
    columns = [table.values.setdefault(name, (array("d"), array("d"))) for name in names]
    for row in rows:
        try:
            step = float(row[at])
        except (IndexError, ValueError):
            wrong["rows without a step"] += bool(row)
            continue
        for cell, (steps, values) in zip(row, columns):
            if cell:
                try:
                    values.append(float(cell))
                except ValueError:
                    wrong["cells that are no number"] += 1
                    continue
                steps.append(step)
        wrong["rows with more cells than columns"] += len(row) > len(names)
    del table.values["step"]
    table.problems.extend(f"{METRICS}: {number} {what}, left out" for what, number in wrong.items() if number)
    if whole.torn:
        table.problems.append(f"{METRICS}: the last line has no end and is left out")


class _WholeLines:
    """The lines of a file but for a last one without its end, which may be half of a number."""

    def __init__(self, file: Iterable[str]) -> None:
        self._file = file
        self.torn = False

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            if line.endswith("\n"):
                yield line
            else:
                self.torn = True


def curve_of(steps: Any, values: Any, most: int) -> dict[str, Any]:
    """A curve as the page draws it: `x`, `y`; where `most` are fewer, means of `per` values, between `lo` and `hi`.

    `bad` are [step, "nan"] of the first values that are not finite, `bad_count` how many there are. Between two points
    of `y` that a value without a number parts there is None, so that no line hides it.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    finite = np.isfinite(y) & np.isfinite(x)
    bad = [[number(step), _word(value)] for step, value in zip(x[~finite], y[~finite])][:_MOST_BAD_SHOWN]
    curve: dict[str, Any] = {"count": len(y), "bad": bad, "bad_count": int((~finite).sum())}
    if len(y) <= most:
        gaps = [value if is_finite else None for value, is_finite in zip(_short(y), finite)]
        return {**curve, "x": _short(x), "y": gaps, "per": 1}
    per = math.ceil(len(y) / most)
    starts = np.arange(0, len(y), per)
    counts = np.add.reduceat(finite.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(finite, y, 0.0), starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / counts
    parts = {
        "x": np.add.reduceat(x, starts) / np.diff(np.append(starts, len(y))),
        "y": mean,
        "lo": np.minimum.reduceat(np.where(finite, y, np.inf), starts),
        "hi": np.maximum.reduceat(np.where(finite, y, -np.inf), starts),
    }
    thinned = {key: [value if math.isfinite(value) else None for value in _short(part)] for key, part in parts.items()}
    return {**curve, **thinned, "per": per}


def _short(numbers: Any) -> list[float]:
    return [number(value) for value in numbers.tolist()]


def number(value: float) -> float:
    """With as many digits as an eye can use: steps are whole, and stay so."""
    value = float(value)
    if not math.isfinite(value):
        return value
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")


def _word(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf" if value < 0 else str(value)
