"""Honest timing on a noisy machine: contenders run in turn, each is compared with its neighbour of the same round."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Contender = Callable[[], float]
"""Runs once and returns its cost, in microseconds a step or another unit."""


def rounds(contenders: Mapping[str, Contender], count: int) -> dict[str, list[float]]:
    """Run all contenders in turn, `count` times; the first round is a warm-up and not counted.

    Each round begins with another one, so that none always follows the same neighbour.
    """
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    turns = list(contenders.items())
    for number in range(count + 1):
        first = number % len(turns)
        for name, contender in turns[first:] + turns[:first]:
            gc.collect()
            cost = contender()
            if number:
                costs[name].append(cost)
    return costs


def table(
    title: str, costs: Mapping[str, list[float]], against: str, goals: Mapping[str, str], unit: str
) -> dict[str, Any]:
    """Medians, spread, difference and ratio to `against`, round by round; of differences the middle half too."""
    rows = {}
    for name, own in costs.items():
        differences = [one - other for one, other in zip(own, costs[against])]
        ratios = [one / other for one, other in zip(own, costs[against])]
        quartiles = statistics.quantiles(differences, n=4) if len(own) > 1 else [differences[0]] * 3
        rows[name] = {
            "median": statistics.median(own),
            "least": min(own),
            "most": max(own),
            "over": statistics.median(differences),
            "middle_half": [quartiles[0], quartiles[2]],
            "ratio": statistics.median(ratios),
            "goal": goals.get(name, ""),
        }
    return {"title": title, "unit": unit, "against": against, "rounds": len(costs[against]), "rows": rows}


def machine() -> str:
    import numpy
    import paddle

    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Paddle {paddle.__version__}, NumPy {numpy.__version__}, load {os.getloadavg()[0]:.1f}"
    )


def report(results: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"machine": machine(), "results": results}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    console.print(machine())
    for result in results:
        shown = Table(title=f"{result['title']} ({result['unit']}, medians of {result['rounds']} interleaved rounds)")
        for column in ("", "median", "least", "most", f"over {result['against']}", "middle half", "ratio", "goal"):
            shown.add_column(column, justify="left" if column in ("", "goal") else "right")
        for name, row in result["rows"].items():
            numbers = [f"{row[key]:,.1f}" for key in ("median", "least", "most")]
            low, high = row["middle_half"]
            over = [f"{row['over']:+,.1f}", f"{low:+,.0f} to {high:+,.0f}"]
            shown.add_row(name, *numbers, *over, f"{row['ratio']:.3f}" if row["ratio"] < 100 else "", row["goal"])
        console.print(shown)


def arguments(description: str | None, **defaults: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=at_least_one, default=value, help=f"default {value}")
    return parser


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
