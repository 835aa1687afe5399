"""F4: from any step, a resumed run ends where the uninterrupted run ends, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from variants import VARIANTS

HARNESS = Path(__file__).with_name("harness.py")


def results(work: Path, variants: list[str], *options: str) -> list[dict[str, object]]:
    command = [sys.executable, str(HARNESS), "--work", str(work), *options, *variants]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(variants), done.stderr[-3000:]
    return lines


def check(lines: list[dict[str, object]]) -> None:
    for line in lines:
        assert line["problems"] == [], json.dumps(line, indent=2)
        assert int(str(line["tried"])) >= 2


def test_a_run_resumed_from_some_steps_of_each_kind_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    share = ["plain", "accumulate 4", "workers 2", "two optimizers", "validation in the middle of windows"]
    check(results(tmp_path, share, "--every", "20"))
    share = [
        "iterable, own state",
        "iterable, read again",
        "own batch sampler",
        "reload_dataloaders_every_n_epochs",
        "LBFGS",
    ]
    check(results(tmp_path, share, "--every", "25"))


def test_a_run_resumed_by_a_new_interpreter_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    check(results(tmp_path, ["plain"], "--every", "29", "--fresh"))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumed_from_every_step_equals_the_uninterrupted_one(variant: str, tmp_path: Path) -> None:
    check(results(tmp_path, [variant]))
