"""Checkpoints of a run of two ranks: rank 0 writes them, every rank may read them, and what fails is told to all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import launch

SCRIPT = Path(__file__).with_name("checkpoints_of_a_run.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

Told = Callable[[str], Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What both ranks have found in a case, once it is known that they agree."""
    out = tmp_path_factory.mktemp("checkpoints")
    launch(SCRIPT, str(out), log_dir=out / "log", timeout=90)
    files = [out / f"rank{rank}.jsonl" for rank in (0, 1)]
    ranks = [dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {} for file in files]

    def of_case(name: str) -> Any:
        first, second = (rank.get(name, "never came to its end") for rank in ranks)
        assert first == second
        return first

    return of_case


READ = {
    "best": "step-000000008",
    "score": 1.0,
    "best k": ["step-000000008", "step-000000012"],
    "kth": "step-000000012",
    "last": "step-000000016",
    "current score": 4.0,
    "entries": [8, 12, 16],
    "pins": {
        "best_score": ["step-000000008", "step-000000012"],
        "best": ["step-000000008", "step-000000012"],
        "latest": ["step-000000016"],
    },
}


@pytest.mark.parametrize("when", ["in the last hook", "afterwards"])
def test_every_rank_reads_the_same_checkpoints_from_the_last_hooks_on(told: Told, when: str) -> None:
    assert told("reading")[when] == READ


def test_every_rank_gets_the_best_weights_back(told: Told) -> None:
    assert told("restoring") == {"best": True, "already over": True}


def test_a_guest_has_the_same_weights_on_every_rank_while_the_fit_saves(told: Told) -> None:
    found = told("evaluating")["found"]
    assert len(found) == 7 and all(isinstance(digest, str) for digest in found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("the last save fails, warn", {"told": "nothing", "step": 16, "entries": [8, 12]}),
        ("a save on the way fails, warn", {"told": "nothing", "step": 12, "entries": [4]}),
        ("all saves fail, warn", {"told": "nothing", "step": 6, "entries": []}),
        ("a save within an epoch fails for good, warn", {"told": "nothing", "step": 6, "entries": [4, 5]}),
        ("a save within an epoch fails once, warn", {"told": "nothing", "step": 6, "entries": [4, 6]}),
        ("saves fail beside EarlyStopping, warn", {"told": "nothing", "step": 12}),
    ],
)
def test_all_ranks_train_on_where_a_save_in_the_background_fails_and_a_warning_is_asked_for(
    told: Told, name: str, expected: dict[str, Any]
) -> None:
    assert told(name) == expected


@pytest.mark.parametrize(
    ("name", "error", "step"),
    [
        ("the last save fails, raise", "CheckpointSaveError: no room left", 16),
        ("a save on the way fails, raise", "CheckpointSaveError: no room left", 12),
        ("on_save_point raises", "CheckpointSaveError: this callback will not have it", 1),
    ],
)
def test_what_fails_while_rank_zero_decides_or_writes_is_raised_on_every_rank(
    told: Told, name: str, error: str, step: int
) -> None:
    found = told(name)
    assert (found["told"], found["step"]) == (error, step)


# -- tags --------------------------------------------------------------------------------------------------------------
TAKEN = "ConfigurationError: the tag 'mine' is taken, by {}. Choose another, or pass replace=True."


def test_a_tag_after_fit_is_refused_or_taken_on_every_rank(told: Told) -> None:
    found = told("tags")
    assert found["taken"] == TAKEN.format("step-000000002")
    assert found["locked"].startswith("RunLockedError: ")
    assert "is in use by" in found["locked"]
    assert found["paths"] == ["step-000000004-r1", "step-000000004-r2"]


def test_a_tag_within_a_fit_is_refused_on_every_rank(told: Told) -> None:
    assert told("tags within a fit") == {"told": ["nothing", TAKEN.format("step-000000001")], "step": 4}


def test_a_tag_whose_writing_fails_is_an_error_or_none_on_every_rank(told: Told) -> None:
    assert told("a tag fails, raise") == {"told": "CheckpointSaveError: no room left", "paths": []}
    assert told("a tag fails, warn") == {"told": "nothing", "paths": [None]}
