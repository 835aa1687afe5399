"""What happens to the terminal must not happen to the run: a lost connection, a closed standard input, a stop."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from models import Classifier, make_batches
from paddlelite_trainer import Callback, Trainer

out, what = Path(sys.argv[1]), sys.argv[2]

class Acts(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        print("a line of the user's", trainer.global_step, flush=True)
        if trainer.global_step == 3:
            (out / "ready").touch()
            if what == "hang up":
                while not (out / "gone").exists():
                    time.sleep(0.01)
            if what == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)  # SIGTSTP is ignored where no shell is there to continue

trainer = Trainer(max_epochs=2, default_root_dir=out, run_name="run", logger=False, callbacks=[Acts()])
trainer.fit(Classifier(), make_batches(4))
(out / "end").write_text(f"{trainer.global_step} {signal.getsignal(signal.SIGHUP) is signal.SIG_DFL}")
"""


def started(out: Path, what: str, **streams: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SCRIPT, str(out), what]
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)  # type: ignore[call-overload,no-any-return]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP is of POSIX")
def test_a_run_whose_terminal_is_gone_goes_on_to_its_end(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    run = started(
        tmp_path,
        "hang up",
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    wait_for(tmp_path / "ready")
    os.close(ours)  # the kernel sends SIGHUP, and every write to the terminal fails from now on
    (tmp_path / "gone").touch()
    assert run.wait(60) == 0
    assert (tmp_path / "end").read_text() == "8 True"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP is of POSIX")
def test_a_run_that_is_stopped_and_continued_goes_on_without_a_standard_input(tmp_path: Path) -> None:
    run = started(tmp_path, "stop", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "ready")
    status = Path(f"/proc/{run.pid}/stat")
    deadline = time.monotonic() + 60
    while status.read_text().rsplit(")", 1)[1].split()[0] != "T" and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGCONT)
    assert run.wait(60) == 0
    assert (tmp_path / "end").read_text() == "8 True"
