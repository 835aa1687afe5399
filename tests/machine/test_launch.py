"""When several devices are asked for: which processes may start themselves again, and what the others are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAKES_A_TRAINER = """
from paddlelite_trainer import Trainer

def test_it():
    Trainer(accelerator="cpu", devices=2, default_root_dir={root!r})

class TestIt(__import__("unittest").TestCase):
    def test_it(self):
        test_it()
"""


@pytest.mark.parametrize("runner", [["pytest", "-q", "-p", "no:cacheprovider"], ["unittest"]])
def test_a_test_is_not_started_again_as_a_script(tmp_path: Path, runner: list[str]) -> None:
    file = tmp_path / "test_devices.py"
    file.write_text(MAKES_A_TRAINER.format(root=str(tmp_path)), encoding="utf-8")
    command = [sys.executable, "-m", *runner, file.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert "Trainer(devices=2) starts the script again in 2 processes" in said
    assert f"runs {runner[0]}" in said
    assert "Use devices=1" in said and "python -m paddle.distributed.launch --nproc_per_node 2 train.py" in said
    assert not (tmp_path / "launch_logs").exists()
