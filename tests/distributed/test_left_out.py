"""Parameters that a step leaves out on two ranks: found out after the backward, with the bits that a search has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fake_gpu
import pytest
from forked import launch

SCRIPT = Path(__file__).with_name("left_out.py")
CASES = [
    "none",
    "both, of every rank, always",
    "one, of rank 1, now and then",
    "one, of every rank, now and then",
    "another one of each rank",
    "late",
]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(180)]


def on_the_cpu(root: Path) -> None:
    launch(SCRIPT, str(root), log_dir=root / "log")


def on_fake_accelerators(root: Path) -> None:
    launch(SCRIPT, str(root), log_dir=root / "log", environment=fake_gpu.environment())


@pytest.fixture(
    scope="module",
    params=[on_the_cpu, pytest.param(on_fake_accelerators, marks=[pytest.mark.fake_gpu, pytest.mark.soak])],
)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("left_out")
    request.param(root)
    logs = "".join(path.read_text()[-3000:] for path in sorted((root / "log/0").iterdir()))
    files = [root / f"rank{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), logs
    return [{**json.loads(file.read_text()), "log": logs} for file in files]


@pytest.mark.parametrize("case", CASES)
def test_each_step_has_the_gradients_of_a_search(ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first == second
    assert first["found out"] == first["searched for"]
    assert first["windows, found out"] == first["windows, searched for"]


def test_what_is_unfrozen_during_a_fit_is_averaged_too(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["thawed"] for rank in ranks)
    assert first == second
    assert first["found out"] == first["searched for"] == first["expected"]


def test_a_module_is_fitted_again_and_used_by_hand_after_its_trainer_is_gone(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["again"] == ranks[1]["again"]


def test_what_is_left_out_though_it_is_said_not_to_be_is_named(ranks: list[dict[str, Any]]) -> None:
    words = "right.weight, right.bias: no gradient came in this step, and with find_unused_parameters=False other ranks"
    assert ranks[1]["refused"].startswith(words)
    assert "refused" not in ranks[0] and f"Rank 1 on {os.uname().nodename} failed first" in ranks[0]["log"]
