"""Two processes on gloo: the same weights everywhere, each sample once, exact resume, and failures that do not hang."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(180)]


def launch(
    root: Path, out: Path, max_steps: int, *flags: str, processes: int = 2
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    out.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    command += ["--log_dir", str(out / "log"), str(SCRIPT), str(root), str(out), str(max_steps), *flags]
    environment = {**os.environ, "GLOG_minloglevel": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment)
    ranks = [
        json.loads((out / f"rank{rank}.json").read_text())
        for rank in range(processes)
        if (out / f"rank{rank}.json").exists()
    ]
    return done, ranks


def test_both_ranks_learn_the_same_from_different_samples_and_resume_exactly(tmp_path: Path) -> None:
    done, whole = launch(tmp_path / "whole", tmp_path / "a", -1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert whole[0]["learned"] == whole[1]["learned"]
    # A step's own value is each rank's; what belongs to an epoch is taken over both.
    assert [record["train_loss_epoch"] for record in whole[0]["history"]] == [
        record["train_loss_epoch"] for record in whole[1]["history"]
    ]
    # 3 epochs of 48 samples, each once an epoch over both ranks
    assert Counter(whole[0]["seen"] + whole[1]["seen"]) == Counter(dict.fromkeys(range(48), 3))

    remote = f"remote=file://{tmp_path}/remote"
    _, first = launch(tmp_path / "halved", tmp_path / "b", 4, remote)
    assert first[0]["step"] == 4  # within the second epoch
    done, resumed = launch(tmp_path / "halved", tmp_path / "c", -1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done, elsewhere = launch(tmp_path / "an empty machine", tmp_path / "d", -1, remote)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert elsewhere == resumed
    for rank in (0, 1):
        for part in ("everything", "random", "step"):
            assert resumed[rank][part] == whole[rank][part], (rank, part)
        assert first[rank]["seen"] + resumed[rank]["seen"] == whole[rank]["seen"]
    assert resumed[0]["history"] == whole[0]["history"]


def test_a_plateau_schedule_by_steps_keeps_one_rate_on_all_ranks(tmp_path: Path) -> None:
    done, ranks = launch(tmp_path / "run", tmp_path / "out", -1, "plateau")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert ranks[0]["learning_rate"] == ranks[1]["learning_rate"] < 0.01
    assert ranks[0]["learned"] == ranks[1]["learned"]


@pytest.mark.soak
def test_a_window_that_is_set_within_an_epoch_keeps_one_model_on_all_ranks(tmp_path: Path) -> None:
    done, ranks = launch(tmp_path / "run", tmp_path / "out", -1, "set-window")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert ranks[0]["learned"] == ranks[1]["learned"]
    assert [rank["step"] for rank in ranks] == [3 + 2 + 2] * 2  # of 6 batches an epoch


@pytest.mark.parametrize(
    ("flag", "words"),
    [pytest.param("fail-hook", "the hook fails", marks=pytest.mark.soak), ("fail-rank-1", "rank 1 fails")],
)
def test_the_failure_of_one_rank_ends_all_and_is_named_on_the_terminal(tmp_path: Path, flag: str, words: str) -> None:
    done, ranks = launch(tmp_path / "run", tmp_path / "out", -1, flag)
    assert done.returncode != 0
    assert ranks == []
    rank = 1 if flag == "fail-rank-1" else 0
    ours = [line for line in done.stdout.splitlines() if line]
    assert f"Rank {rank} on {socket.gethostname()} failed first: " in "\n".join(ours[-3:])
    assert words in "\n".join(ours[-3:])
    assert ours[-1] == f"  its log: {tmp_path}/out/log/workerlog.{rank}"


def test_a_script_that_asks_for_two_devices_runs_on_two_ranks(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(SCRIPT.parent.parent)!r})\n"
        "from models import Classifier, make_batches, quiet_trainer\n"
        f"trainer = quiet_trainer(accelerator='cpu', devices=2, default_root_dir={str(tmp_path / 'runs')!r})\n"
        "trainer.fit(Classifier(), make_batches(4))\n"
        f"file = open({str(tmp_path)!r} + f'/rank{{trainer.global_rank}}', 'w')\n"
        "file.write(f'{trainer.world_size} {trainer.global_step}')\n"
    )
    environment = {**os.environ, "GLOG_minloglevel": "2", "PYTHONPATH": str(SCRIPT.parent.parent.parent)}
    command = [sys.executable, "-W", "ignore", str(script), "--an-argument"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["2 2", "2 2"]
    assert not (tmp_path / "log").exists()
