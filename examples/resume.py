"""Kills a run with SIGKILL in mid-epoch, starts it again, and compares what comes out with an undisturbed run."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import paddle
from digits import Digits, digit_loaders

EPOCHS = 4
KILL_IN_EPOCH, KILL_AFTER_BATCH = 2, 17  # both from 0; an epoch has 34 batches


class PowerCut(Callback):
    """Ends the process as the kernel or a power cut would: no exception, no clean-up, no last words."""

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (KILL_IN_EPOCH, KILL_AFTER_BATCH):
            os.kill(os.getpid(), signal.SIGKILL)


def train(root: Path, *more: Callback) -> None:
    """What a training script does; it does not know whether it starts or goes on."""
    seed_everything(1)
    train_batches, val_batches, _ = digit_loaders()
    trainer = Trainer(
        max_epochs=EPOCHS,
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(every_n_train_steps=10), *more],
    )
    trainer.fit(Digits(horizon=EPOCHS), train_batches, val_batches, ckpt_path="last")


def fingerprint(run_dir: Path) -> str:
    """sha256 over every weight and all of the optimizer's state, as plain paddle.load reads them."""
    digest = hashlib.sha256()
    for name in ("latest.pdparams", "latest.pdopt"):
        add_to(digest, paddle.load(str(run_dir / name), return_numpy=True))
    return digest.hexdigest()


def add_to(digest: Any, state: Any) -> None:
    """Feed nested state to the digest, in an order that does not depend on how it was written."""
    if isinstance(state, dict):
        for key in sorted(state):
            digest.update(key.encode())
            add_to(digest, state[key])
    else:
        digest.update(state.tobytes() if hasattr(state, "tobytes") else repr(state).encode())


def run(title: str, *arguments: str) -> int:
    """Run this file in a process of its own; returns its exit code."""
    print(f"\n--- {title}", flush=True)
    return subprocess.run([sys.executable, __file__, *arguments]).returncode


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder, "undisturbed"), Path(folder, "killed")
        assert run("a run that nobody disturbs", str(undisturbed)) == 0
        code = run(f"the same, killed in epoch {KILL_IN_EPOCH + 1}", str(killed), "--power-cut")
        assert code == -signal.SIGKILL, code
        assert run("the killed command again", str(killed)) == 0
        expected, found = fingerprint(undisturbed / "version_0"), fingerprint(killed / "version_0")
    print("\nsha256 over weights and optimizer after the last epoch")
    print(f"  undisturbed         {expected}")
    print(f"  killed and resumed  {found}")
    if expected != found:
        sys.exit("the two runs differ")
    print("The resumed run is the same run.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]), *([PowerCut()] if "--power-cut" in sys.argv else []))
    else:
        main()
