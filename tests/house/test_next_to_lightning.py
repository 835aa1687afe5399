"""What the README's table says of Lightning, shown where LIGHTNING_PYTHON names an interpreter that has it.

    python3 -m venv /tmp/lightning && /tmp/lightning/bin/pip install lightning
    LIGHTNING_PYTHON=/tmp/lightning/bin/python python -m pytest tests/house/test_next_to_lightning.py

What it says of this package is shown by other tests: test_architecture.py, test_examples.py, test_errors_users_meet.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

LIGHTNING_PYTHON = os.environ.get("LIGHTNING_PYTHON")
pytestmark = pytest.mark.skipif(LIGHTNING_PYTHON is None, reason="LIGHTNING_PYTHON names no interpreter with Lightning")


@pytest.fixture(scope="module")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("lightning_side.py")
    ran = subprocess.run(
        [str(LIGHTNING_PYTHON), str(script)],
        cwd=tmp_path_factory.mktemp("lightning"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


def test_a_run_of_lightning_resumed_in_mid_epoch_is_another_run(lightning: dict[str, Any]) -> None:
    assert lightning["resume"] == {"same batches": False, "same weights": False}


def test_a_misspelt_hook_is_ignored_by_lightning(lightning: dict[str, Any]) -> None:
    assert lightning["misspelt hook"] == "nothing"


def test_a_misspelt_monitor_is_an_error_of_lightning(lightning: dict[str, Any]) -> None:
    assert lightning["wrong monitor"] == "RuntimeError"


def test_a_hostile_checkpoint_is_refused_by_lightning(lightning: dict[str, Any]) -> None:
    assert lightning["hostile checkpoint runs"] is False


def test_a_batch_of_lightning_passes_28_frames_and_hundreds_of_calls(lightning: dict[str, Any]) -> None:
    assert lightning["cost"]["frames"] >= 25
    assert lightning["cost"]["calls"] >= 400
