"""Two processes copy to one URL: the second notices; one that was killed blocks nobody, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import batches, differing, net, trainer, whole_state

from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy
from paddlelite_trainer.checkpoint import Remote
from paddlelite_trainer.checkpoint.remote.lease import LEASE_FILE

SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[4:]
import conftest
from small_runs import batches, net, trainer
from paddlelite_trainer import Callback
from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy

class Waits(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 6:
            print("READY", flush=True)
            sys.stdin.readline()

more = [Waits()] if sys.argv[3] == "waits" else []
run = trainer(Path(sys.argv[1]), [ModelCheckpoint(), RemoteCopy(sys.argv[2]), *more], max_epochs=3)
run.fit(net(), batches(), ckpt_path="last")
"""


def started(root: Path, url: str, what: str) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    paths = [str(here.parents[1]), str(here.parent), str(here)]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(root), url, what, *paths]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until_ready(run: subprocess.Popen[str]) -> str:
    assert run.stdout is not None
    said = ""
    for line in run.stdout:
        said += line
        if line.startswith("READY"):
            return said
    raise AssertionError(f"it ended: {said}")


def train(root: Path, copy: RemoteCopy | None, epochs: int) -> Any:
    run = trainer(root, [ModelCheckpoint(), *([copy] if copy else [])], max_epochs=epochs)
    run.fit(net(), batches(), ckpt_path="last")
    return run


def has_lease(url: str) -> bool:
    return LEASE_FILE in Remote(url).objects.contents()


def test_a_killed_writer_blocks_nobody_and_a_living_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/remote"
    expected = whole_state(train(tmp_path / "whole", None, 3))
    first = started(tmp_path / "run", url, "waits")
    try:
        until_ready(first)
        # The same run on another machine, while the first is alive: it copies nothing, and says who does.
        monkeypatch.setattr("paddlelite_trainer.checkpoint.remote.lease._this_process", lambda: ("other", "b", "1"))
        second = RemoteCopy(url, final_wait_seconds=0.2)
        capsys.readouterr()
        run = train(tmp_path / "second", second, 3)
        out = capsys.readouterr().out
        assert f"Perhaps somebody else copies to {url}: process {first.pid} on " in out
        assert run.global_step == 12 and second.not_copied == ["step-000000012"]
        assert differing(whole_state(run), expected) == []
        monkeypatch.undo()
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait(30)
    assert has_lease(url), "it died with the lease"
    again = started(tmp_path / "run", url, "goes on")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and "Perhaps somebody" not in said and "WARNING" not in said
    assert Remote(url).checkpoints()[0].entry_name == "step-000000012"
    assert not has_lease(url)
    third = train(tmp_path / "third", RemoteCopy(url), 3)  # over already, so that it draws nothing
    assert set(differing(whole_state(third), expected)) <= {"random"}
