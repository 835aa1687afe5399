"""What the commands print: tables for people, JSON for programs, and the exit codes."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from ..checkpoint.entry import Entry, parse_entry_name
from ..checkpoint.lookup import Row, State
from ..reporting.terminal import Cell, age, say, seconds_since, size

OK, PROBLEMS, USAGE, NOT_FOUND, IN_USE, FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


def done(arguments: argparse.Namespace, words: str, **record: Any) -> int:
    """Print what was done, and return OK."""
    if arguments.json:
        return print_json(record)
    say(words)
    return OK


def code_of(*states: State) -> int:
    """The exit code for checkpoints in these states."""
    return PROBLEMS if "damaged" in states else FAILED if "unreadable" in states else OK


def print_json(value: Any) -> int:
    """Print JSON, and return OK."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))
    return OK


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings "nan" and "inf"."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def row_json(row: Row) -> dict[str, Any]:
    """One checkpoint of `ls` and `verify`."""
    step, revision = parse_entry_name(row.name) or (None, None)
    record = (
        entry_json(row.entry)
        if row.entry
        else {"name": row.name, "path": row.path, "step": step, "revision": revision, "pins": row.pins}
    )
    return {"run": row.run, **record, "weights_only": row.weights_only, **state_json(row.state, row.problems)}


def state_json(state: State, problems: list[str]) -> dict[str, Any]:
    """Whether a checkpoint is sound."""
    verified = {"sound": True, "damaged": False}.get(state)
    return {"verified": verified, "unreadable": state == "unreadable", "problems": problems}


def cells_of(row: Row) -> list[Cell]:
    """One checkpoint's line in the table of `ls`."""
    verified = {"sound": "yes", "damaged": "DAMAGED", "unreadable": "unreadable", "unknown": "-"}[row.state]
    step, revision = parse_entry_name(row.name) or (row.name, 0)
    label = f"{step}-r{revision}" if revision else str(step)
    if row.entry is None:
        return [label, "?", "?", "?", row.pins or "?", verified, "?"]
    notes = [] if row.entry.healthy else ["(not finite)"]
    notes += ["(weights only)"] if row.weights_only else []
    since = age(seconds_since(row.entry.created))
    return [
        label,
        str(row.entry.epoch),
        [*metrics_of(row.entry.metrics), *notes],
        size(row.entry.nbytes),
        row.pins,
        verified,
        since,
    ]


def entry_json(entry: Entry) -> dict[str, Any]:
    """What every command says of a checkpoint."""
    return {
        "name": entry.name,
        "path": entry.path,
        "step": entry.step,
        "revision": entry.revision,
        "epoch": entry.epoch,
        "metrics": entry.metrics,
        "healthy": entry.healthy,
        "pins": entry.pins,
        "bytes": entry.nbytes,
        "created": entry.created,
    }


def metrics_of(metrics: dict[str, float]) -> list[str]:
    """A cell of metrics, one a line."""
    return [f"{name} {value:.4g}" for name, value in metrics.items()]


def short(value: Any) -> str:
    """A value in one cell."""
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def tensor_counts(tensors: list[Any] | None) -> list[str]:
    """How many tensors and elements a file holds."""
    if tensors is None:
        return ["", ""]
    return [str(len(tensors)), f"{sum(math.prod(shape) for _, _, shape, _, _ in tensors):,}"]
