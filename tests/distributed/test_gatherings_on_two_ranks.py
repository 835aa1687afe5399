"""all_gather: what it takes, and what is refused on all ranks; and a tag that one rank alone asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("gatherings.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("gatherings")
    done = subprocess.run([sys.executable, "-W", "ignore", SCRIPT, root], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((root / "found.json").read_text())  # type: ignore[no-any-return]


def test_what_does_not_lie_in_one_piece_or_is_empty_is_gathered(found: dict[str, Any]) -> None:
    turned, column, nothing = [[[0, 2], [1, 3]], [[1, 3], [2, 4]]], [[1, 3], [2, 4]], [[], []]
    assert found["turned, a column, nothing"] == [[turned, column, nothing]] * 2


def test_arrays_and_numbers_are_gathered_as_tensors_are(found: dict[str, Any]) -> None:
    assert found["arrays"] == [[[[0, 0], [1, 1]], [0, 1], [0, 1], [0.5, 1.5]]] * 2


@pytest.mark.parametrize(
    ("case", "here", "there"),
    [
        ("other lengths", "(float32[2])", "(float32[3])"),
        ("other types", "(float32[2])", "(int64[2])"),
        ("other names", "{of 0: float32[2]}", "{of 1: float32[2]}"),
        ("another at a long dict's end", "{a long name", "{a long name"),
    ],
)
def test_data_of_another_form_are_one_error_on_both_ranks(
    found: dict[str, Any], case: str, here: str, there: str
) -> None:
    told = found[case]
    ends = told.partition("\n")[0]
    assert "ranks [] never ended" in ends and "0: 1" in ends and "1: 1" in ends, ends
    words = told[told.index("the ranks are not in the same place: rank 0 is at an all_gather of ") :]
    mine, _, theirs = words.partition(", rank 1 at an all_gather of ")
    assert here in mine and there in theirs.partition(". Every")[0]


def test_a_tag_that_one_rank_alone_asks_for_is_told(found: dict[str, Any]) -> None:
    assert "save_checkpoint('mine') was called on rank 1 and not on rank 0" in found["a tag on rank 1 alone"]
