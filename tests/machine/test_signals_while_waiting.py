"""SIGTERM while a run waits for data: what is done is saved at once, and the resumed run is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = """
import os, sys, threading, time, traceback
sys.path.insert(0, sys.argv[1])
import numpy as np, paddle
from models import Classifier, make_batches, quiet_trainer, weights_of
from paddlelite_trainer.callbacks import ModelCheckpoint
root, workers, sleeps, out = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "sleeps", sys.argv[5]

class Slow(paddle.io.Dataset):
    def __len__(self): return 24
    def __getitem__(self, index):
        noise = np.random.randn(4).astype("float32")
        if sleeps and index == 13:
            time.sleep(600)
        return noise, np.int64(index % 3)

def tell_of_the_wait():
    looks = 0  # workers are ahead, so that one of them sleeps does not mean that the run waits for it
    while looks < 20:
        frame = sys._current_frames()[threading.main_thread().ident]
        functions = {found.f_code.co_name for found, _ in traceback.walk_stack(frame)}
        looks = looks + 1 if functions & {"receive", "__getitem__"} else 0
        time.sleep(0.05)
    print("WAITING", flush=True)

if sleeps:
    threading.Thread(target=tell_of_the_wait, daemon=True).start()
loader = paddle.io.DataLoader(Slow(), batch_size=4, num_workers=workers)
settings = eval(f"dict({sys.argv[7]})")
settings |= dict(max_epochs=2, seed=3, enable_checkpointing=True, callbacks=[ModelCheckpoint()], default_root_dir=root)
trainer = quiet_trainer(**settings)
module = Classifier()
if sys.argv[6] == "training":
    trainer.fit(module, loader, ckpt_path="last")
else:
    trainer.fit(module, make_batches(3), loader, ckpt_path="last")
np.savez(out, step=trainer.global_step, drawn=np.random.rand(), **weights_of(module))
"""


def run(root: Path, workers: int, sleeps: bool, out: Path, where: str, settings: str) -> subprocess.Popen[str]:
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, here, str(root), str(workers)]
    command += ["sleeps" if sleeps else "quick", str(out), where, settings]
    environment = {**os.environ, "PYTHONPATH": str(Path(here).parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("workers", "where"),
    [
        pytest.param(0, "training", marks=pytest.mark.soak),
        (2, "training"),
        pytest.param(2, "validation", marks=pytest.mark.soak),
    ],
)
def test_a_wait_for_data_does_not_keep_a_preempted_run_from_saving(tmp_path: Path, workers: int, where: str) -> None:
    preempt_and_resume(tmp_path, workers, where)


def preempt_and_resume(tmp_path: Path, workers: int, where: str, settings: str = "") -> None:
    """`settings` are the Trainer's, as they are written in a call."""
    whole = run(tmp_path / "whole", workers, False, tmp_path / "whole.npz", where, settings)
    assert whole.wait(timeout=120) == 0

    waiting = run(tmp_path / "run", workers, True, tmp_path / "none.npz", where, settings)
    assert waiting.stdout is not None
    for line in waiting.stdout:
        if line.startswith("WAITING"):
            break
    waiting.send_signal(signal.SIGTERM)
    try:
        assert waiting.wait(timeout=60) == 75  # the sample would have taken ten minutes
    finally:
        waiting.kill()
    resumed = run(tmp_path / "run", workers, False, tmp_path / "resumed.npz", where, settings)
    assert resumed.wait(timeout=120) == 0
    one, other = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "resumed.npz")
    assert _same(one, other)


def _same(one: Any, other: Any) -> bool:
    return set(one.files) == set(other.files) and all(np.array_equal(one[name], other[name]) for name in one.files)


def test_a_script_that_imports_ipython_and_its_kernel_is_no_notebook() -> None:
    script = """
import sys
try:
    import IPython, ipykernel
except ImportError:  # what it looks like where they are
    import types
    sys.modules["IPython"] = sys.modules["ipykernel"] = module = types.ModuleType("IPython")
    module.get_ipython = lambda: None
from paddlelite_trainer.machine.signals import in_notebook
print(in_notebook())
sys.modules["IPython"].get_ipython = lambda: object()
print(in_notebook())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
