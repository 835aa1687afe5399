"""Shares of the training data that are not equally long: all ranks end an epoch together, and say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forked import launch

SCRIPT = Path(__file__).with_name("shares_of_data.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """{case: what each rank has found}."""
    out = tmp_path_factory.mktemp("shares")
    launch(SCRIPT, str(out), log_dir=out / "log", timeout=90)
    files = [out / f"rank{rank}.jsonl" for rank in (0, 1)]
    ranks = [dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {} for file in files]
    return {name: [rank.get(name, "never came to its end") for rank in ranks] for name in {**ranks[0], **ranks[1]}}


@pytest.mark.parametrize(
    ("case", "batches", "steps", "said"),
    [
        ("equal", 6, 6, 0),
        ("rank 1 is shorter", 4, 4, 1),
        ("rank 0 is shorter", 4, 4, 1),
        ("accumulating", 6, 4, 1),
    ],
)
def test_an_epoch_ends_on_all_ranks_where_the_first_share_does(
    found: dict[str, list[Any]], case: str, batches: int, steps: int, said: int
) -> None:
    first, second = found[case]
    assert first[:2] == second[:2] == [batches, steps]
    assert first[2] == second[2], "the weights differ"
    assert (first[3], second[3]) == (said, 0)


def test_lengths_that_differ_are_refused_on_all_ranks(found: dict[str, list[Any]]) -> None:
    first, second = found["of known lengths"]
    assert first == second
    assert "batches of training data an epoch" in first and "give every rank as many" in first


def test_a_share_that_cannot_be_read_is_told_to_all_ranks(found: dict[str, list[Any]]) -> None:
    first, second = found["one fails"]
    assert first == second == "ValueError: a bad record"
