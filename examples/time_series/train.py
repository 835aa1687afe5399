"""Time series: next hours of a load curve, the scaler in the checkpoint, forecasts written to a file."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from paddlelite_trainer import DataModule, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, Dataset

PAST, AHEAD = 72, 24  # hours


def load_curve(hours: int = 24 * 7 * 30) -> np.ndarray:
    """Megawatts [hours]: days, weeks, slow weather and noise, drawn from a fixed seed."""
    draw = np.random.RandomState(7)
    time = np.arange(hours)
    weather = np.convolve(draw.normal(size=hours + 200), np.ones(201) / 201**0.5, "valid")
    week = 1.0 - 0.25 * ((time // 24) % 7 >= 5)
    day = 1.0 + 0.35 * np.sin(2 * np.pi * (time - 7) / 24) + 0.15 * np.sin(4 * np.pi * (time - 3) / 24)
    return (3000 * week * day + 180 * weather + 60 * draw.normal(size=hours)).astype("float32")


class Windows(Dataset):
    """Pairs (past [72], ahead [24]) of neighbouring hours."""

    def __init__(self, curve: np.ndarray, first: int, end: int, stride: int = 1) -> None:
        self.curve = curve
        self.starts = range(first, end - PAST - AHEAD + 1, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = self.starts[index]
        return self.curve[start : start + PAST], self.curve[start + PAST : start + PAST + AHEAD]


class LoadCurve(DataModule):
    """Train, validation and test data in their order of time, so that nothing of the future is learned from."""

    def setup(self, stage: str) -> None:
        curve = load_curve()
        train_end, val_end = int(0.7 * len(curve)), int(0.85 * len(curve))
        self.train_hours = curve[:train_end]
        self.train_windows = Windows(curve, 0, train_end)
        self.val_windows = Windows(curve, train_end, val_end, stride=6)
        self.test_windows = Windows(curve, val_end, len(curve), stride=AHEAD)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_windows, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_windows, batch_size=128)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_windows, batch_size=128)

    predict_dataloader = test_dataloader


class Forecaster(Module):
    """Takes and gives megawatts; mean and deviation are buffers, so every checkpoint has them."""

    def __init__(self, width: int = 96, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.register_buffer("mean", paddle.zeros([1]))
        self.register_buffer("deviation", paddle.ones([1]))
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(PAST, width), paddle.nn.GELU(), paddle.nn.Dropout(0.1), paddle.nn.Linear(width, AHEAD)
        )

    def on_fit_start(self) -> None:
        """The scaler of the training hours; a run that goes on has it from its checkpoint, to the last bit."""
        if self.trainer.global_step == 0:
            hours = self.trainer.datamodule.train_hours
            self.mean.set_value(np.array([hours.mean()], "float32"))
            self.deviation.set_value(np.array([hours.std()], "float32"))

    def forward(self, past: paddle.Tensor) -> paddle.Tensor:
        """Megawatts [batch, 24] of the hours after those of `past` [batch, 72]."""
        scaled = (past - self.mean) / self.deviation
        return (scaled[:, -AHEAD:] + self.net(scaled)) * self.deviation + self.mean

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        past, ahead = batch
        loss = F.smooth_l1_loss(self(past) / self.deviation, ahead / self.deviation)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mae", F.l1_loss(self(batch[0]), batch[1]), prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        past, ahead = batch
        self.log("test_mae", F.l1_loss(self(past), ahead))
        self.log("test_mae_of_the_day_before", F.l1_loss(past[:, -AHEAD:], ahead))

    def predict_step(self, batch: Any, batch_idx: int) -> np.ndarray:
        return self(batch[0]).numpy()

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.Adam(self.hparams.learning_rate, parameters=self.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--root", type=Path, default=Path("runs/time_series"))
    options = parser.parse_args()

    seed_everything(1)
    data = LoadCurve()
    trainer = Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=options.root,
        log_every_n_steps=20,
        callbacks=[ModelCheckpoint(monitor="val_mae"), EarlyStopping(monitor="val_mae", patience=5), PlotCurves()],
    )
    trainer.fit(Forecaster(), datamodule=data, ckpt_path="last")
    (result,) = trainer.test(datamodule=data, ckpt_path="best")
    forecasts = np.concatenate(trainer.predict(datamodule=data, ckpt_path="best"))
    with open(trainer.run_dir / "forecasts.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["window", *(f"hour_{hour}" for hour in range(1, AHEAD + 1))])
        writer.writerows([window, *(f"{value:.1f}" for value in row)] for window, row in enumerate(forecasts))
    print(f"forecasts  {trainer.run_dir / 'forecasts.csv'}")
    print(f"result  test_mae_of_the_day_before  {result['test_mae_of_the_day_before']:.1f}")
    print(f"result  test_mae  {result['test_mae']:.1f}")


if __name__ == "__main__":
    main()
