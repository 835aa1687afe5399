"""Runs a recipe of examples/ as people do, to its end or until it is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS_AT_MOST = 280


class Recipe(NamedTuple):
    """A folder of examples/, what its run must reach, and after how many checkpoints, of which run, it is killed."""

    folder: str
    metric: str
    least: float | None = None
    most: float | None = None
    killed_after: int = 2
    killed_in: str = "version_0"

    def is_reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def run(recipe: Recipe, root: Path) -> str:
    """What the recipe says until it ends by itself."""
    ended = subprocess.run(_command(recipe, root), capture_output=True, text=True, timeout=SECONDS_AT_MOST, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout


def kill(recipe: Recipe, root: Path) -> None:
    """Start it and end it by SIGKILL, workers included, once it has committed `killed_after` checkpoints."""
    process = subprocess.Popen(
        _command(recipe, root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    seen: set[str] = set()
    deadline = time.monotonic() + SECONDS_AT_MOST
    try:
        while len(seen) < recipe.killed_after and time.monotonic() < deadline:
            assert process.poll() is None, f"{recipe.folder} ended before it was killed: it saw {sorted(seen)}"
            seen |= {str(path) for path in root.glob(f"{recipe.killed_in}/checkpoints/step-*")}
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(seen) >= recipe.killed_after, f"{recipe.folder} had {len(seen)} checkpoints in {SECONDS_AT_MOST} s"


def result_of(said: str, metric: str) -> float:
    """The number of the line `result  <metric>  <number>`."""
    (found,) = re.findall(rf"^result +{re.escape(metric)} +(\S+)$", said, re.MULTILINE)
    return float(found)


def bits_of(root: Path) -> dict[str, dict[str, str]]:
    """{run directory: {file of its latest checkpoint: sha256}}, of all that training goes on from."""
    found = {}
    for latest in sorted(root.glob("**/latest")):
        files = json.loads((latest / "manifest.json").read_text())["files"]
        hashes = {name: entry["sha256"] for name, entry in files.items() if name != "trainer.json"}
        found[str(latest.parent.relative_to(root))] = hashes
    return found


def _command(recipe: Recipe, root: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / recipe.folder / "train.py"), "--root", str(root)]
