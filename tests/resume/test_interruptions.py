"""Exceptions, signals and kills at any moment: the run that goes on ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("interruptions.py")


def interruptions(what: str, work: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), what, "--work", str(work), "--count", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    for line in lines:
        assert line["problem"] == "", json.dumps(line, indent=2)
    return lines


def check_signals(lines: list[dict[str, Any]]) -> None:
    codes = {"SIGTERM": 75, "SIGINT": 130}
    for line in lines:
        assert line["orphans"] == [], line
        if line["phase"] == "start":  # before fit: nobody is there to catch it
            continue
        if line["twice"]:
            assert line["code"] in (0, codes[line["signal"]], {"SIGTERM": -15, "SIGINT": -2}[line["signal"]]), line
        else:
            assert line["code"] in (0, codes[line["signal"]]), line  # 0: it was faster than the signal
            assert line["lost"] == 0, line


def test_an_exception_in_user_code_leaves_fit_unchanged_and_the_last_save_point_is_saved(tmp_path: Path) -> None:
    assert len(interruptions("crashes", tmp_path / "work", 4)) > 7


def test_a_signal_saves_and_says_by_the_exit_code_to_run_again(tmp_path: Path) -> None:
    check_signals(interruptions("signals", tmp_path, 2))


@pytest.mark.soak
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    (line,) = interruptions("storm", tmp_path / "work", 4)
    assert sum(line["cycles"].values()) == 4


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_every_place_that_can_raise(tmp_path: Path) -> None:
    assert len(interruptions("crashes", tmp_path / "work", 10**6)) > 150


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(3))
def test_signals_at_many_moments(tmp_path: Path, seed: int) -> None:
    check_signals(interruptions("signals", tmp_path, 20, seed + 1))


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(3))
def test_fifty_kills(tmp_path: Path, seed: int) -> None:
    interruptions("storm", tmp_path / "work", 50, seed + 1)
