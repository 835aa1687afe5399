"""A run that another number of ranks goes on with, within an epoch: each sample once, in order, and it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import paddle
import pytest

SCRIPT = Path(__file__).with_name("shape_changes.py")
pytestmark = [pytest.mark.distributed]


def rows(out: Path, *options: str, seconds: float) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout)
    return json.loads((out / "rows.json").read_text())  # type: ignore[no-any-return]


def check(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["steps"] > 0
        assert row["each sample once"] == row["same sums"] == row["steps"], row
        if row["from"] == row["to"]:
            assert (row["same bits"], row["distance"]) == (row["steps"], 0.0), row
        elif row["kind"] == "the same step":
            assert row["distance"] < 1e-6, row


@pytest.mark.timeout(120)
def test_another_number_of_ranks_goes_on_within_an_epoch_with_each_sample_once(tmp_path: Path) -> None:
    check(rows(tmp_path, "--quick", seconds=110))
    told = " ".join((tmp_path / "all-that-counts/from2to4/log0").read_text().split())
    assert "number of processes: saved 2, now 4. What is left of epoch 0 is dealt out anew, in the same order." in told
    assert "An epoch has 4 batches on each, where it had 7" in told
    assert (
        "A step sees 2 times as many samples, and nothing is scaled for you: batch_size=1 from the next epoch" in told
    )
    assert "recipes multiply the learning rate by 2, of Adam and its kin by 1.41." in told
    told = " ".join((tmp_path / "the-same-step/from4to2/log0").read_text().split())
    assert "A step sees as many samples as before." in told


@pytest.mark.soak
@pytest.mark.timeout(700)
def test_any_number_of_ranks_goes_on_from_any_step_of_any_other(tmp_path: Path) -> None:
    check(rows(tmp_path, seconds=650))


@pytest.mark.soak
@pytest.mark.fake_gpu
@pytest.mark.timeout(700)
@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 2.6 shards on no custom device")
def test_any_strategy_goes_on_from_any_step_of_any_other(tmp_path: Path) -> None:
    found = rows(tmp_path, "--strategies", "--every", "3", seconds=650)
    check(found)
    for row in found:
        if row["from"][0] == row["to"][0]:  # as many ranks: the strategy changes no bit
            assert row["same bits"] == row["steps"], row
