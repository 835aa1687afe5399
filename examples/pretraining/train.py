"""Pretraining, then `init_from`: a forecaster learns from twenty buildings, then from ten days of a new one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import InitFrom, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import ConcatDataset, DataLoader, Dataset

PAST, AHEAD = 72, 24  # hours
DAY = 24


def load_curve(building: int, days: int) -> np.ndarray:
    """A building's load [hours], in units of its mean: days, week-ends, weather and noise of its own."""
    draw = np.random.RandomState(building)
    time = np.arange(days * DAY)
    weather = np.convolve(draw.normal(size=len(time) + 60), np.ones(61) / 61**0.5, "valid")
    day = 1.0 + draw.uniform(0.2, 0.5) * np.sin(2 * np.pi * (time - draw.uniform(5, 10)) / DAY)
    day += draw.uniform(0.0, 0.2) * np.sin(4 * np.pi * (time - draw.uniform(0, 6)) / DAY)
    week = 1.0 - draw.uniform(0.1, 0.4) * ((time // DAY) % 7 >= 5)
    return (week * day + 0.06 * weather + 0.03 * draw.normal(size=len(time))).astype("float32")


class Windows(Dataset):
    """Pairs (past [72], ahead [24]) of neighbouring hours."""

    def __init__(self, curve: np.ndarray, stride: int = 1) -> None:
        self.curve, self.stride = curve, stride

    def __len__(self) -> int:
        return (len(self.curve) - PAST - AHEAD) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * self.stride
        return self.curve[start : start + PAST], self.curve[start + PAST : start + PAST + AHEAD]


class Forecaster(Module):
    """An encoder that both tasks share, and a head that begins anew: it says another number of values in each."""

    def __init__(self, ahead: int, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = paddle.nn.Sequential(
            paddle.nn.Linear(PAST, 128),
            paddle.nn.GELU(),
            paddle.nn.Dropout(0.1),
            paddle.nn.Linear(128, 64),
            paddle.nn.GELU(),
        )
        self.head = paddle.nn.Linear(64, ahead)

    def forward(self, past: paddle.Tensor) -> paddle.Tensor:
        """The hours ahead [batch, ahead] of past hours [batch, 72]."""
        return self.head(self.encoder(past - 1.0)) + 1.0

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.smooth_l1_loss(self(batch[0]), batch[1][:, : self.hparams.ahead])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mae", F.l1_loss(self(batch[0]), batch[1][:, : self.hparams.ahead]), prog_bar=True)

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=self.parameters(), weight_decay=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--root", type=Path, default=Path("runs/pretraining"))
    options = parser.parse_args()

    seed_everything(1)
    others = ConcatDataset([Windows(load_curve(building, days=90), stride=3) for building in range(20)])
    trainer = Trainer(
        max_epochs=8, default_root_dir=options.root, run_name="twenty_buildings", callbacks=[ModelCheckpoint()]
    )
    trainer.fit(Forecaster(ahead=AHEAD), DataLoader(others, batch_size=128, shuffle=True), ckpt_path="last")
    pretrained = trainer.run_dir / "latest"

    curve = load_curve(building=1000, days=60)
    known, held_out = Windows(curve[: 10 * DAY]), Windows(curve[10 * DAY :])
    results = {}
    for name, start in (("scratch", None), ("pretrained", InitFrom(pretrained, strict=False))):
        seed_everything(2)
        trainer = Trainer(
            max_epochs=options.max_epochs,
            default_root_dir=options.root,
            run_name=name,
            log_every_n_steps=5,
            callbacks=[ModelCheckpoint(monitor="val_mae"), EarlyStopping(monitor="val_mae", patience=10), PlotCurves()],
        )
        train_batches = DataLoader(known, batch_size=29, shuffle=True)
        val_batches = DataLoader(held_out, batch_size=200)
        # strict=False: the head of 24 hours does not fit one of 12 and is left as it was drawn, which is told. A run
        # that resumes ignores init_from.
        trainer.fit(Forecaster(ahead=12), train_batches, val_batches, ckpt_path="last", init_from=start)
        (results[name],) = trainer.validate(ckpt_path="best", dataloaders=val_batches, verbose=False)
    for name, result in results.items():
        print(f"result  {name}_mae  {result['val_mae']:.4f}")


if __name__ == "__main__":
    main()
