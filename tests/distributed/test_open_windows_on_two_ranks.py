"""An epoch that ends within an accumulation window steps on the mean over ranks, as at every other window's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forked import launch_each

SCRIPT = Path(__file__).with_name("open_windows.py")
STEPS = {
    "a hook ends it": 4,
    "a hook ends it, clipped": 4,
    "data without a length": 4,
    "a limit": 4,
    "used before the last of a window": 6,
    "used before a hook ends it": 4,
}
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one process with batches of 8, then of two ranks with the halves."""
    out = tmp_path_factory.mktemp("open_windows")
    jobs = [(ranks, [str(out), str(8 // ranks)]) for ranks in (1, 2)]
    done = launch_each(SCRIPT, *jobs, log_dir=out / "log")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = ["rank0-of-1", "rank0-of-2", "rank1-of-2"]
    return [json.loads((out / f"{name}.json").read_text()) for name in names]


@pytest.mark.parametrize("case", STEPS)
def test_two_ranks_learn_what_one_process_learns(found: list[dict[str, Any]], case: str) -> None:
    alone, *both = (one[case] for one in found)
    assert both[0] == both[1]
    assert both[0]["steps"] == alone["steps"] == STEPS[case]
    assert both[0]["values"] == pytest.approx(alone["values"], rel=1e-4, abs=1e-6)


def test_what_one_rank_alone_has_used_moves_on_both(found: list[dict[str, Any]]) -> None:
    _, *both = (one["used on one rank"] for one in found)
    assert both[0] == both[1]
    second = slice(4 * 4 + 4, 2 * (4 * 4 + 4))
    assert both[0]["values"][second] != found[0]["used on one rank"]["values"][second]  # where nothing has used it
