"""Every logger by what is in its store afterwards, read by its own library; docs/logging.md has the table.

The whole table: `pytest -m soak tests/reporting/test_stores.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stores
from stores import NAMES, READERS, Curves

DOCS = Path(__file__).resolve().parents[2] / "docs" / "logging.md"
pytestmark = pytest.mark.timeout(600)


def told(found: dict[str, Curves], test_loss: bool = False) -> str:
    """A cell of the table: how many runs, which steps of each curve, how often."""
    if not found:
        return "nothing"
    steps: dict[str, list[int]] = {}
    for curves in found.values():
        for name, points in curves.items():
            steps.setdefault(name, []).extend(step for step, _ in points)
    once = {name: sorted(set(of)) for name, of in steps.items()}
    doubled = sorted(name for name, of in steps.items() if len(of) > len(once[name]) and name != "epoch")
    assert once["train_loss"] == once["lr"] == [step for step in once["epoch"] if step in once["lr"]], once
    assert once["val_loss"] == [step for step in once["train_loss"] if step % 3 == 0], once
    first, last = once["train_loss"][0], once["train_loss"][-1]
    gaps = sorted(set(range(first, last + 1)) - set(once["train_loss"]))
    runs = f"{len(found)} run{'s' if len(found) > 1 else ''}"
    how = (
        f"steps {first}-{last}" + (f" without {gaps}" if gaps else "") + (f", {doubled} twice" if doubled else " once")
    )
    return f"{runs}, {how}" + (f", test_loss at {once['test_loss'][0]}" if test_loss else "")


def cells(root: Path, **options: Any) -> list[str]:
    return [told(READERS[name](root), **options) for name in NAMES]


def documented(row: str) -> list[str]:
    (line,) = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


@pytest.mark.parametrize("names", [("csv", "tensorboard", "visualdl"), pytest.param(NAMES, marks=pytest.mark.soak)])
def test_a_run_killed_and_resumed_is_one_run_without_a_gap_and_with_no_point_twice(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    stores.run(tmp_path, "8", ",".join(names), returncode=-9)
    assert max(stores.in_csv(tmp_path)["mine"]["train_loss"])[0] in (6, 7, 8)  # the checkpoint is of step 6
    printed = stores.run(tmp_path, "0", ",".join(names))
    assert "loaded: []" in printed  # a library is, once a run is logged with it
    expected = stores.in_csv(tmp_path)["mine"]
    for name in names[1:]:
        ((_, curves),) = READERS[name](tmp_path).items()
        assert set(curves) == set(expected), name
        for curve in ("train_loss", "val_loss", "lr"):
            # VisualDL and TensorBoard keep float32.
            assert curves[curve] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected[curve]], name
        assert [step for step, _ in curves["epoch"]] == list(range(1, 13)), name
    row = dict(zip(NAMES, documented("killed at step 8, resumed from 6")))
    assert [told(READERS[name](tmp_path)) for name in names] == [row[name] for name in names]


@pytest.mark.soak
def test_the_table_a_fresh_run_and_an_evaluation_after_it(tmp_path: Path) -> None:
    stores.run(tmp_path, "0")
    assert cells(tmp_path) == documented("fresh")
    other = tmp_path / "other"
    other.mkdir()
    stores.run(other, "0", ",".join(NAMES), "test")
    assert cells(other, test_loss=True) == documented("`test` after `fit`")


@pytest.mark.soak
def test_the_table_a_run_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    stores.run(tmp_path, "2", returncode=-9)
    stores.run(tmp_path, "0")
    assert cells(tmp_path) == documented("killed at step 2, before the first checkpoint, started again")


@pytest.mark.soak
@pytest.mark.distributed
def test_the_table_two_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    command += ["--log_dir", str(tmp_path / "launched"), stores.__file__, str(tmp_path), "0"]
    environment = stores.environment()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # Each rank takes every other of the three batches of an epoch, so there are two steps in one.
    assert [told_of_two_ranks(READERS[name](tmp_path)) for name in NAMES] == documented("two ranks")


def told_of_two_ranks(found: dict[str, Curves]) -> str:
    ((_, curves),) = found.items()
    steps = [step for step, _ in curves["train_loss"]]
    assert steps == list(range(1, 9)) and [step for step, _ in curves["val_loss"]] == [2, 4, 6, 8]
    return f"1 run, steps {steps[0]}-{steps[-1]} once"


@pytest.mark.soak
def test_the_table_services_that_are_down(tmp_path: Path) -> None:
    printed = stores.run(tmp_path, "0", ",".join(NAMES), "", "down")
    assert "Finished 4/4 epochs, 12 steps" in printed
    for name in ("wandb", "mlflow", "swanlab"):
        assert printed.count(f"what is logged is kept in {tmp_path}/runs/mine/{name}.jsonl") == 1
        assert READERS[name](tmp_path) == {}
        assert (tmp_path / "runs" / "mine" / f"{name}.jsonl").read_text().count("train_loss") == 12
    stores.run(tmp_path, "0")  # they are back; the run is over, and what they lack is sent
    assert cells(tmp_path) == documented("service down, then opened again")
