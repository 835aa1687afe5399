"""What ends a run of two ranks: a request or a signal on either ends both, at the step at which it would end one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ends_of_a_run import BATCHES, MAX_EPOCHS, MINIMA, Case, cases
from forked import launch

SCRIPT = Path(__file__).with_name("ends_of_a_run.py")
PREEMPTED = 75
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


def expected(case: Case) -> tuple[int, int, int]:
    """(completed epochs, optimizer steps, exit code): what min_* hold back, what they do not, and what is withdrawn."""
    minima = MINIMA[case.minima]
    asked = case.early_stopping or case.timer_on is not None or "max_time" in case.settings
    last = MAX_EPOCHS * BATCHES
    for step in range(1, last + 1):
        acts = [act for at, act in case.acts if at == step]
        if "SIGTERM" in acts:
            return step // BATCHES, step, PREEMPTED
        if any(act.startswith("withdraw") for act in acts):
            asked = False
        asked = asked or "stop" in acts or "should_stop" in acts
        may_end = step // BATCHES >= minima.get("min_epochs", 0) and step >= minima.get("min_steps", 0)
        if step == case.settings.get("max_steps") or (asked and may_end):
            return step // BATCHES, step, 0
    return MAX_EPOCHS, last, 0


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """Of each rank: {case: how it ended}; a case is missing where a rank never came to its end."""
    out = tmp_path_factory.mktemp("ends")
    launch(SCRIPT, str(out), log_dir=out / "log", timeout=90)
    files = [out / f"rank{rank}.jsonl" for rank in (0, 1)]
    return [dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {} for file in files]


@pytest.mark.parametrize("name", cases())
def test_both_ranks_end_where_the_request_of_one_ends_a_run(name: str, ends: list[dict[str, dict[str, Any]]]) -> None:
    epoch, step, code = expected(cases()[name])
    assert [rank.get(name) for rank in ends] == [{"epoch": epoch, "step": step, "exit code": code}] * 2
