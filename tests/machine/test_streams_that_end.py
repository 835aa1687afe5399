"""`| head`, closed streams, Ctrl-Z and `fg`, a fit in a thread: each run ends as the undisturbed one, step by step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, sys, threading, time
from pathlib import Path
from models import Classifier, make_batches, weights_of
from paddlelite_trainer import Callback, Trainer

out, what = Path(sys.argv[1]), sys.argv[2]
steps = []

class Prints(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        steps.append(trainer.global_step)
        if what != "all closed":
            print("a line of the user's", trainer.global_step, flush=True)
        if trainer.global_step == 3:
            (out / "ready").touch()
            while what == "head" and not (out / "gone").exists():
                time.sleep(0.01)
            if what == "ctrl-z":  # ours alone: the group is this process
                import os, signal
                os.kill(0, signal.SIGTSTP)

def go():
    module = Classifier()
    settings = dict(default_root_dir=out, run_name="run", seed=3, callbacks=[Prints()], log_every_n_steps=1)
    trainer = Trainer(max_epochs=2, **settings)
    trainer.fit(module, make_batches(4))
    drawn = hashlib.sha256(b"".join(value.tobytes() for _, value in sorted(weights_of(module).items())))
    rows = (out / "run" / "metrics.csv").read_text().count("\\n")
    (out / "end").write_text(f"{steps} {rows} rows {drawn.hexdigest()}")

if what == "thread":
    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
else:
    go()
"""


def started(out: Path, what: str, shell: str = "", **streams: object) -> subprocess.Popen[bytes]:
    """`shell` is what a shell makes of the streams, as `<&- >&-`."""
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SCRIPT, str(out), what]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.Popen(command, env=environment, preexec_fn=os.setpgrp, **streams)  # type: ignore[call-overload,no-any-return]


def wait_for(path: Path, run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert run.poll() is None and time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="streams and signals of POSIX")
def test_runs_whose_streams_end_or_which_are_stopped_end_as_the_undisturbed_one(tmp_path: Path) -> None:
    """They run side by side, as most of their time goes into starting."""
    null = subprocess.DEVNULL
    ours, theirs = os.pipe()
    runs = {
        "undisturbed": started(tmp_path / "undisturbed", "undisturbed", stdout=null, stderr=null),
        "head": started(tmp_path / "head", "head", stdin=null, stdout=theirs, stderr=null),
        "all closed": started(tmp_path / "all closed", "all closed", "<&- >&- 2>&-"),
        "no output": started(tmp_path / "no output", "no output", ">&-", stdin=null, stderr=null),
        "ctrl-z": started(tmp_path / "ctrl-z", "ctrl-z", stdin=null, stdout=null, stderr=null),
        "thread": started(tmp_path / "thread", "thread", stdin=null, stdout=null, stderr=null),
    }
    os.close(theirs)
    try:
        wait_for(tmp_path / "head" / "ready", runs["head"])
        os.close(ours)  # as head does when it has its lines
        (tmp_path / "head" / "gone").touch()
        number, status = os.waitpid(runs["ctrl-z"].pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTSTP
        os.killpg(number, signal.SIGCONT)
        codes = {name: run.wait(100) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.kill()
    assert codes == dict.fromkeys(runs, 0)
    ends = {name: (tmp_path / name / "end").read_text() for name in runs}
    assert ends["undisturbed"].startswith("[1, 2, 3, 4, 5, 6, 7, 8] ")
    assert ends == dict.fromkeys(runs, ends["undisturbed"])
