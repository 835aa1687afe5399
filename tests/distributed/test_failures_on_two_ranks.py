"""One of two ranks fails: both end, nothing is left, every rank's last words name it, and the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_gpu
import paddle
import pytest

SCRIPT = Path(__file__).with_name("failures.py")
UNDISTURBED, ALONE = "nobody fails", "0 calls a barrier in a hook"
RAISED, DIED = "ValueError: a cosmic ray", "its process "
LATE = "it has not come to the backward of a step within 3 s (Trainer(rank_timeout=...), to be raised"
STEP, HOOK, DATASET, VALIDATION = "Net.training_step (", "Fails.on_train_batch_end (", "Numbers.__getitem__ (", "Net.v"
LEFT = "it left by sys.exit(4) in the midst of a run"
# {case: (what is said of the reason, and of the place)}
ALWAYS = {
    "1 raises in the step": (RAISED, STEP),
    "0 is killed in the step": (DIED, ""),
    "1 hangs in the dataset": (LATE, DATASET),
    "0 raises in a share of the data": (RAISED, "Share.__iter__ ("),
    "1 leaves by sys.exit in the step": (LEFT, STEP),
}
SELDOM = {
    "0 raises in a hook": (RAISED, HOOK),
    "1 raises in validation": (RAISED, VALIDATION),
    "1 raises in a loader's worker": (RAISED, ""),
    "0 raises in the hook of a save": ("TakesTwo: flood and fire", "Fails.on_save_checkpoint ("),
    "0 leaves by sys.exit in a hook": (LEFT, HOOK),
    "0 full disk in a save": ("OSError: [Errno 28] No space left on device", "full_disk ("),
    "0 raises in the step": (RAISED, STEP),
    "1 raises in a hook": (RAISED, HOOK),
    "1 raises in the dataset": (RAISED, DATASET),
    "0 raises in the dataset": (RAISED, DATASET),
    "0 raises in a loader's worker": (RAISED, ""),
    "1 is killed in a loader's worker": ("DataError: train_dataloader: worker 0", ""),
    "0 raises in validation": (RAISED, VALIDATION),
    "1 raises in the hook before backward": (RAISED, "Net.on_before_backward ("),
    "0 raises in the hook before backward": (RAISED, "Net.on_before_backward ("),
    "1 raises in the hook at an epoch's end": (RAISED, "Fails.on_train_epoch_end ("),
    "1 raises in a step whose error is caught": (RAISED, STEP),
    "1 is killed in the step": (DIED, ""),
    "1 is killed in the hook before backward": (DIED, ""),
    "0 is killed in the hook before backward": (DIED, ""),
    "1 is killed in validation": (DIED, ""),
    "0 leaves by os._exit in a hook": (DIED, ""),
    "1 leaves by os._exit in the step": (DIED, ""),
    "1 crashes in validation": (DIED, ""),
    "1 runs out of memory in the step": ("MemoryError: Unable to allocate 42 TiB", STEP),
    "0 hangs in the hook at an epoch's end": ("it has not come to a gathering within", "Fails.on_train_epoch_end ("),
    "1 hangs in a loader's worker": (LATE, "WorkerPool."),
    "1 hangs in validation": ("it has not come to a gathering within", VALIDATION),
}
EARLY, ALL_EARLY = "1 leaves by sys.exit(0) in the step", "* leaves by sys.exit(0) in the step"
ON_ACCELERATORS = {
    "1 leaves by sys.exit in the step": (LEFT, STEP),
    "0 leaves by sys.exit in a hook": (LEFT, HOOK),
}
SLOW = [
    "0 takes longer in the hook at an epoch's end",
    "1 takes longer in validation",
    "1 takes longer in the dataset",
    "0 takes longer in a hook",
    "1 takes longer in the hook before backward",
    "0 takes longer in the time before its Trainer",
]
LONGER_THAN_GLOO_WAITS = "45"
pytestmark = [pytest.mark.distributed]


def run(out: Path, *cases: str, seconds: float, **variables: str) -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "GLOG_minloglevel": "2", "TAKES_SECONDS": LONGER_THAN_GLOO_WAITS, **variables}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(out), UNDISTURBED, *cases]
    subprocess.run(command, capture_output=True, timeout=seconds, env=environment, check=False)
    return dict(map(json.loads, (out / "results.jsonl").read_text().splitlines()))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    cases = list(ALWAYS)
    return run(
        tmp_path_factory.mktemp("failures"),
        cases[0],
        f"{cases[0]}, again",
        *cases[1:],
        ALONE,
        EARLY,
        ALL_EARLY,
        seconds=110,
    )


@pytest.fixture(scope="module")
def jobs_on_accelerators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    cases, out = [*ON_ACCELERATORS, EARLY, ALL_EARLY], tmp_path_factory.mktemp("on_accelerators")
    return run(out, *cases, seconds=250, **fake_gpu.environment())


@pytest.fixture(scope="module")
def more_jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return run(
        tmp_path_factory.mktemp("failures"),
        *(f"{case}{more}" for case in SELDOM for more in ("", ", again")),
        seconds=600,
    )


@pytest.fixture(scope="module")
def slow_jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("slow"), *SLOW, seconds=400)


def check(jobs: dict[str, dict[str, Any]], case: str, reason: str, place: str) -> None:
    job, failed = jobs[case], int(case[0])
    assert "never ended" not in job["codes"] and 0 not in job["codes"]
    assert job["orphans"] == 0
    if reason == DIED:
        assert job["codes"][failed] in (-signal.SIGKILL, -signal.SIGSEGV, 3)
    for rank in (0, 1):
        if rank == failed and job["codes"][rank] in (-signal.SIGKILL, -signal.SIGSEGV, 3):
            continue  # it could say nothing
        last = job["logs"][rank].strip().splitlines()[-3:]
        words = "\n".join(last)
        assert f"Rank {failed} on {socket.gethostname()} failed first: {reason}" in words, job["logs"][rank][-3000:]
        assert place in words
        assert last[-1] == f"  its log: {job['log paths'][failed]}"


def check_end(jobs: dict[str, dict[str, Any]], case: str) -> None:
    job, undisturbed = jobs[case], jobs[UNDISTURBED]
    assert job["codes"] == [0, 0], job["logs"]
    for rank in (0, 1):
        for part in ("weights", "step"):
            assert job["ends"][rank][part] == undisturbed["ends"][rank][part]
    assert job["ends"][0]["history"] == undisturbed["ends"][0]["history"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", ALWAYS)
def test_the_failure_of_a_rank_ends_the_job_and_is_named_by_all(case: str, jobs: dict[str, dict[str, Any]]) -> None:
    check(jobs, case, *ALWAYS[case])


@pytest.mark.timeout(120)
def test_the_same_command_goes_on_after_a_failure_with_the_same_bits(jobs: dict[str, dict[str, Any]]) -> None:
    check_end(jobs, "1 raises in the step, again")


@pytest.mark.timeout(120)
def test_a_rank_that_hangs_is_shown_with_its_stack(jobs: dict[str, dict[str, Any]]) -> None:
    for log in jobs["1 hangs in the dataset"]["logs"]:
        stack = log[log.rindex("Rank 1 was here:") : log.rindex("Rank 1 on ")]
        assert "in __getitem__" in stack and "time.sleep(1000)" in stack


@pytest.mark.timeout(120)
def test_a_rank_that_waits_says_for_whom_and_where_it_is(jobs: dict[str, dict[str, Any]]) -> None:
    log = jobs["1 hangs in the dataset"]["logs"][0]
    assert re.search(
        r"^Rank 0 has waited for rank 1 for \d s at the backward of a step; it is in Numbers\.__g", log, re.M
    )


@pytest.mark.timeout(120)
def test_a_call_that_one_rank_makes_alone_is_told_to_both(jobs: dict[str, dict[str, Any]]) -> None:
    job = jobs[ALONE]
    assert (job["codes"], job["orphans"]) == ([1, 1], 0)
    for log in job["logs"]:
        assert "the ranks are not in the same place: rank 0 is at a barrier, rank 1 at a gathering." in log


def check_exits(jobs: dict[str, dict[str, Any]]) -> None:
    assert jobs[EARLY]["codes"] in ([1, 0], [76, 0]) and jobs[EARLY]["orphans"] == 0
    assert "Rank 1 on" in jobs[EARLY]["logs"][0] and "it left by sys.exit(0) in the m" in jobs[EARLY]["logs"][0]
    assert not any("failed first" in log for log in jobs[ALL_EARLY]["logs"])


@pytest.mark.timeout(120)
def test_an_exit_with_0_in_the_midst_of_a_run_fails_those_who_stay(jobs: dict[str, dict[str, Any]]) -> None:
    check_exits(jobs)
    assert jobs[ALL_EARLY]["codes"] == [0, 0]


ON_FAKES = [
    pytest.mark.fake_gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a CUDA build of Paddle 2.6 takes no custom device"),
]


@pytest.mark.parametrize("case", [pytest.param(case, marks=ON_FAKES) for case in ON_ACCELERATORS])
def test_a_rank_that_leaves_by_sys_exit_is_named_on_accelerators(
    case: str, jobs_on_accelerators: dict[str, dict[str, Any]]
) -> None:
    check(jobs_on_accelerators, case, *ON_ACCELERATORS[case])


@pytest.mark.fake_gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a CUDA build of Paddle 2.6 takes no custom device")
def test_an_exit_with_0_is_seen_on_accelerators(jobs_on_accelerators: dict[str, dict[str, Any]]) -> None:
    check_exits(jobs_on_accelerators)
    # Of codes nothing is asked: a process that leaves a forward so may crash where Paddle ends, after all was told.
    assert "never ended" not in jobs_on_accelerators[ALL_EARLY]["codes"]


@pytest.mark.soak
@pytest.mark.timeout(700)
@pytest.mark.parametrize("case", SELDOM)
def test_any_failure_of_a_rank_ends_the_job(case: str, more_jobs: dict[str, dict[str, Any]]) -> None:
    check(more_jobs, case, *SELDOM[case])
    check_end(more_jobs, f"{case}, again")


@pytest.mark.soak
@pytest.mark.timeout(500)
@pytest.mark.parametrize("case", SLOW)
def test_a_rank_that_works_alone_for_longer_than_gloo_waits_changes_nothing(
    case: str, slow_jobs: dict[str, dict[str, Any]]
) -> None:
    check_end(slow_jobs, case)
