"""Several optimizers, stepped by hand, on two ranks: each manual_backward averages the gradients that it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import launch_each

SCRIPT = Path(__file__).with_name("manual_steps.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(180)]


def test_two_optimizers_by_hand_learn_on_two_ranks_what_one_process_learns(tmp_path: Path) -> None:
    jobs = [(ranks, [str(tmp_path), str(8 // ranks)]) for ranks in (1, 2)]  # each batch of 8 in two halves
    done = launch_each(SCRIPT, *jobs, log_dir=tmp_path / "log")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = ["rank0-of-1", "rank0-of-2", "rank1-of-2"]
    alone, *both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    assert both[0] == both[1]
    assert both[0]["steps"] == alone["steps"] == 2 * 2 * 4
    assert both[0]["values"] == pytest.approx(alone["values"], rel=1e-4, abs=1e-6)
