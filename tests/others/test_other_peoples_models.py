"""Models of PaddleClas, PaddleSeg and PaddleNLP, unchanged: killed and resumed to the same bits; their checkpoints."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.others, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PACKAGES = ("paddleclas", "paddleseg", "paddlenlp")
STEPS = 10


@pytest.mark.parametrize("package", PACKAGES)
def test_a_killed_run_ends_with_the_bits_of_the_undisturbed_one(package: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert f"ended  step {STEPS}" in train(package, whole)
    train(package, killed, "--kill-at-step", "5", ends_by=-signal.SIGKILL)
    assert latest(killed).resolve().name == "step-000000004"
    again = train(package, killed)
    assert "Resumed from" in again and f"ended  step {STEPS}" in again
    assert bits(whole) == bits(killed)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_checkpoint_of_the_package_s_own_making_is_taken_over_whole(package: str, tmp_path: Path) -> None:
    said = train(package, tmp_path, "--take-over")
    step, same, weights = begins(said)
    assert (step, same) == (0, weights) and weights > 30
    assert f"ended  step {STEPS}" in said


def test_paddleclas_s_optimizer_and_epochs_are_gone_on_with(tmp_path: Path) -> None:
    said = train("paddleclas", tmp_path, "--take-over", "--training-state")
    step, same, weights = begins(said)
    assert (step, same) == (12, weights)  # 2 epochs of 6 batches
    assert "ended  step 22" in said


def train(package: str, root: Path, *arguments: str, ends_by: int = 0) -> str:
    """What train.py says, run by the interpreter of the package's own environment."""
    python = ROOT / f".venv-{package}/bin/python"
    if not python.exists():
        pytest.skip(f"needs {python.parent.parent.name}, which .ci/matrix others makes")
    command = [str(python), str(ROOT / "tests/others/train.py"), package, "--root", str(root), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == ends_by, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout + ended.stderr


def begins(said: str) -> tuple[int, int, int]:
    """At which step it began, and how many weights were those of the package's checkpoint, of how many."""
    ((step, same, weights),) = re.findall(r"^began +step (\d+) epoch \d+ same (\d+) of (\d+)$", said, re.MULTILINE)
    return int(step), int(same), int(weights)


def latest(root: Path) -> Path:
    return root / "version_0/latest"


def bits(root: Path) -> dict[str, str]:
    """{file of the latest checkpoint: sha256} of all that training goes on from."""
    files = json.loads((latest(root) / "manifest.json").read_text())["files"]
    found = {name: entry["sha256"] for name, entry in files.items() if name != "trainer.json"}
    assert {"model.pdparams"} < set(found)
    return found
