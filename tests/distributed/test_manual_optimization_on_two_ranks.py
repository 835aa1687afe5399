"""Several optimizers, stepped by hand, on two ranks: each manual_backward averages the gradients that it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("manual_steps.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(180)]


def run(tmp_path: Path, ranks: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(tmp_path), str(8 // ranks)]
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", str(tmp_path / "log")]
    if ranks > 1:
        command[3:3] = launcher
    environment = {**os.environ, "GLOG_minloglevel": "2", "PYTHONPATH": str(SCRIPT.parent.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((tmp_path / f"rank{rank}-of-{ranks}.json").read_text()) for rank in range(ranks)]


def test_two_optimizers_by_hand_learn_on_two_ranks_what_one_process_learns(tmp_path: Path) -> None:
    (alone,) = run(tmp_path, 1)
    both = run(tmp_path, 2)  # each batch of 8 in two halves
    assert both[0] == both[1]
    assert both[0]["steps"] == alone["steps"] == 2 * 2 * 4
    assert both[0]["values"] == pytest.approx(alone["values"], rel=1e-4, abs=1e-6)
