"""Draws docs/report.png anew: four real runs, one of them killed twice, as `paddlelite report` shows them.

python tests/house/report_picture.py     needs chromium, scikit-learn and pillow; half a minute
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PICTURE = ROOT / "docs" / "report.png"
RUNS = {
    "small-steps": (0.001, None),
    "baseline": (0.003, None),
    "large-steps": (0.03, None),
    "killed": (0.01, (300, 620)),
}


def train(name: str, rate: float, die_at: int) -> None:
    """One run on the digits, which ends by SIGKILL at a step where that is above 0; called in a process of its own."""
    import paddle
    from sklearn.datasets import load_digits

    from paddlelite_trainer import Callback, Module, Trainer
    from paddlelite_trainer.callbacks import LRMonitor, ModelCheckpoint, ThroughputMonitor

    found = load_digits()
    images, labels = (found.data / 16).astype("float32"), found.target.astype("int64")

    class Digits(Module):
        def __init__(self, learning_rate: float = 0.001) -> None:
            super().__init__()
            self.save_hyperparameters()
            layers = [paddle.nn.Linear(64, 48), paddle.nn.ReLU(), paddle.nn.Dropout(0.2), paddle.nn.Linear(48, 10)]
            self.net = paddle.nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = paddle.nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            time.sleep(0.002)  # as if it were work
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            output = self(batch[0])
            self.log("val_loss", paddle.nn.functional.cross_entropy(output, batch[1]))
            self.log("val_acc", paddle.metric.accuracy(output, batch[1].reshape([-1, 1])))

        def configure_optimizers(self) -> Any:
            schedule = paddle.optimizer.lr.CosineAnnealingDecay(self.hparams.learning_rate, 25)
            return paddle.optimizer.AdamW(schedule, parameters=self.parameters())

    class Dies(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def loader(first: int, last: int, shuffle: bool) -> Any:
        data = paddle.io.TensorDataset([paddle.to_tensor(images[first:last]), paddle.to_tensor(labels[first:last])])
        return paddle.io.DataLoader(data, batch_size=32, shuffle=shuffle)

    callbacks = [ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=3), LRMonitor(), ThroughputMonitor(), Dies()]
    trainer = Trainer(
        max_epochs=25, run_name=name, callbacks=callbacks, log_every_n_steps=10, seed=1, profiler="simple"
    )
    trainer.fit(Digits(rate), loader(0, 1300, True), loader(1300, 1797, False), ckpt_path="last")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, (rate, kills) in RUNS.items():
            for die_at in (*(kills or ()), 0):
                command = [sys.executable, __file__, name, str(rate), str(die_at)]
                subprocess.run(
                    command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300, check=False
                )
        subprocess.run(
            [sys.executable, "-m", "paddlelite_trainer.cli", "report", "runs"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=True,
        )
        browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
        picture = Path(folder) / "report.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
        command = [
            browser,
            *options,
            "--window-size=1280,905",
            f"--screenshot={picture}",
            f"file://{folder}/report.html",
        ]
        subprocess.run(command, timeout=120, check=True)
        from PIL import Image

        Image.open(picture).convert("RGB").quantize(64).save(PICTURE, optimize=True)
        print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        train(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
