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
from forked import launch_each

SCRIPT = Path(__file__).with_name("two_ranks.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(180)]


def found(*jobs: list[str], log_dir: Path) -> list[list[dict[str, Any]]]:
    """What each rank has found in jobs one after another, of the script's arguments each."""
    for _, out, *_ in jobs:
        Path(out).mkdir()
    done = launch_each(SCRIPT, *((2, arguments) for arguments in jobs), log_dir=log_dir)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [[json.loads(Path(out, f"rank{rank}.json").read_text()) for rank in range(2)] for _, out, *_ in jobs]


def launch(root: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    command += ["--log_dir", str(out / "log"), str(SCRIPT), str(root), str(out), "-1", *flags]
    environment = {**os.environ, "GLOG_minloglevel": "2"}
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)


def test_both_ranks_learn_the_same_from_different_samples_and_resume_exactly(tmp_path: Path) -> None:
    remote = f"remote=file://{tmp_path}/remote"
    whole, first, resumed, elsewhere = found(
        [f"{tmp_path}/whole", f"{tmp_path}/a", "-1"],
        [f"{tmp_path}/halved", f"{tmp_path}/b", "4", remote],
        [f"{tmp_path}/halved", f"{tmp_path}/c", "-1"],
        [f"{tmp_path}/an empty machine", f"{tmp_path}/d", "-1", remote],
        log_dir=tmp_path / "log",
    )
    assert whole[0]["learned"] == whole[1]["learned"]
    # A step's own value is each rank's; what belongs to an epoch is taken over both.
    assert [record["train_loss_epoch"] for record in whole[0]["history"]] == [
        record["train_loss_epoch"] for record in whole[1]["history"]
    ]
    # 3 epochs of 48 samples, each once an epoch over both ranks
    assert Counter(whole[0]["seen"] + whole[1]["seen"]) == Counter(dict.fromkeys(range(48), 3))

    assert first[0]["step"] == 4  # within the second epoch
    assert elsewhere == resumed
    for rank in (0, 1):
        for part in ("everything", "random", "step"):
            assert resumed[rank][part] == whole[rank][part], (rank, part)
        assert first[rank]["seen"] + resumed[rank]["seen"] == whole[rank]["seen"]
    assert resumed[0]["history"] == whole[0]["history"]


def test_a_plateau_schedule_by_steps_keeps_one_rate_on_all_ranks(tmp_path: Path) -> None:
    (ranks,) = found([f"{tmp_path}/run", f"{tmp_path}/out", "-1", "plateau"], log_dir=tmp_path / "log")
    assert ranks[0]["learning_rate"] == ranks[1]["learning_rate"] < 0.01
    assert ranks[0]["learned"] == ranks[1]["learned"]


@pytest.mark.soak
def test_a_window_that_is_set_within_an_epoch_keeps_one_model_on_all_ranks(tmp_path: Path) -> None:
    (ranks,) = found([f"{tmp_path}/run", f"{tmp_path}/out", "-1", "set-window"], log_dir=tmp_path / "log")
    assert ranks[0]["learned"] == ranks[1]["learned"]
    assert [rank["step"] for rank in ranks] == [3 + 2 + 2] * 2  # of 6 batches an epoch


@pytest.mark.parametrize(
    ("flag", "words"),
    [pytest.param("fail-hook", "the hook fails", marks=pytest.mark.soak), ("fail-rank-1", "rank 1 fails")],
)
def test_the_failure_of_one_rank_ends_all_and_is_named_on_the_terminal(tmp_path: Path, flag: str, words: str) -> None:
    done = launch(tmp_path / "run", tmp_path / "out", flag)
    assert done.returncode != 0
    assert not list((tmp_path / "out").glob("rank*.json"))
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
