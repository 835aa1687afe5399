"""What Paddle says at every start and nobody needs does not reach people; what a run says of itself is said once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from paddlelite_trainer.machine import paddle_internals

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
from paddlelite_trainer import Trainer
from models import Classifier, make_batches
trainer = Trainer(max_epochs=1, devices={devices}, accelerator="cpu", default_root_dir=sys.argv[1])
trainer.fit(Classifier(), make_batches(4))
print("rank", trainer.global_rank, "is done")
"""
NOISE = re.compile(r".*(?:ccache|LAUNCH INFO|Modified FLAGS|FLAGS\(name|tcp_store|tcp_utils|reducer\.cc).*")


def started(tmp_path: Path, devices: int) -> str:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), devices=devices))
    quiet = {"GLOG_minloglevel", "GLOG_v", "PYTHONWARNINGS"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    command = [sys.executable, str(script), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_one_process_starts_without_noise(tmp_path: Path) -> None:
    said = started(tmp_path, 1)
    assert "rank 0 is done" in said
    assert NOISE.findall(said) == []


@pytest.mark.distributed
@pytest.mark.timeout(180)
def test_several_processes_start_without_noise_and_rank_0_alone_keeps_the_log(tmp_path: Path) -> None:
    said = started(tmp_path, 2)
    assert "rank 0 is done" in said
    assert NOISE.findall(said) == []
    ranks = [path.read_text() for path in sorted((tmp_path / "runs/launch_logs").glob("workerlog.*"))]
    assert len(ranks) == 2
    assert [NOISE.findall(text) for text in ranks] == [[], []]
    log = (tmp_path / "runs/version_0/train.log").read_text()
    assert [log.count(words) for words in ("----", "device      cpu, 2 processes", "Epoch 1/1", "Finished 1/1")] == [
        1
    ] * 4


def test_other_words_on_standard_error_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    with paddle_internals.without_modified_flags():
        print("before", file=sys.stderr)
        sys.stderr.write(f"{'=' * 23} Modified FLAGS detected {'=' * 23}\nFLAGS(name='x')\n{'=' * 71}\n")
        print("after", file=sys.stderr)
    assert capsys.readouterr().err == "before\nafter\n"
    with pytest.raises(ValueError, match="mine"), paddle_internals.without_modified_flags():
        print("told", file=sys.stderr)
        raise ValueError("mine")
    assert capsys.readouterr().err == "told\n"


def test_who_asks_for_paddle_s_own_log_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paddle_internals.log_errors_only()
    monkeypatch.setenv("GLOG_minloglevel", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not paddle_internals.log_errors_only()
