"""Keyword spotting: spoken-like words in noise, log-mel spectrograms made on the device, SpecAugment, a small CNN."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.audio.features import LogMelSpectrogram
from paddle.io import DataLoader, Dataset

RATE, SECONDS = 8000, 0.8
# The first two formants (Hz) that each of a word's vowels has; male, female and child voices shift them all.
VOWELS = {"a": (750, 1200), "e": (500, 1800), "i": (300, 2250), "o": (480, 900), "u": (320, 750)}
WORDS = ("ai", "ia", "eo", "oe", "ua", "au", "iu", "ui")


def say(word: str, draw: np.random.RandomState) -> np.ndarray:
    """Samples [6400] of a word: a buzz whose formants glide from one vowel to the next, somewhere in noise."""
    length = int(RATE * draw.uniform(0.35, 0.55))
    voice, pitch = draw.uniform(0.85, 1.25), draw.uniform(90, 260)
    path = np.linspace(0, len(word) - 1, length)
    first, second = (np.interp(path, range(len(word)), [VOWELS[v][n] * voice for v in word]) for n in range(2))
    phase = 2 * np.pi * np.cumsum(pitch * np.linspace(1, draw.uniform(0.8, 1.2), length)) / RATE
    wave = np.zeros(length)
    for harmonic in range(1, int(RATE / 2 / pitch / 1.3)):
        frequency = harmonic * pitch
        loud = np.exp(-(((frequency - first) / 120) ** 2)) + 0.6 * np.exp(-(((frequency - second) / 160) ** 2))
        wave += loud * np.sin(harmonic * phase + draw.uniform(0, 2 * np.pi))
    sound = draw.normal(0, draw.uniform(0.05, 0.5), int(RATE * SECONDS))
    start = draw.randint(len(sound) - length)
    sound[start : start + length] += wave * np.hanning(length)
    return sound.astype("float32")


class Words(Dataset):
    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.RandomState(seed)
        self.labels = np.arange(count) % len(WORDS)
        self.sounds = [say(WORDS[label], draw) for label in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        sound = self.sounds[index]
        return np.roll(sound, np.random.randint(-800, 801)), self.labels[index]  # seeded for each batch by the trainer


class Spotter(Module):
    def __init__(self, mels: int = 40, width: int = 24, learning_rate: float = 4e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = LogMelSpectrogram(sr=RATE, n_fft=256, hop_length=128, n_mels=mels, f_min=50.0)
        layers: list[paddle.nn.Layer] = []
        for before, after in ((1, width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [
                paddle.nn.Conv2D(before, after, 3, stride=2, padding=1),
                paddle.nn.BatchNorm2D(after),
                paddle.nn.ReLU(),
            ]
        self.net = paddle.nn.Sequential(*layers, paddle.nn.AdaptiveAvgPool2D(1), paddle.nn.Flatten())
        self.head = paddle.nn.Linear(2 * width, len(WORDS))

    def forward(self, sounds: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 8] of samples [batch, 6400]."""
        return self.head(self.net(self.spectrograms(sounds)))

    def spectrograms(self, sounds: paddle.Tensor) -> paddle.Tensor:
        """[batch, 1, mels, frames], with mean 0 and deviation 1; in training with a band and a span left out."""
        mels = self.features(sounds)
        mels = (mels - mels.mean(axis=[1, 2], keepdim=True)) / mels.std(axis=[1, 2], keepdim=True)
        if self.training:  # SpecAugment, arXiv 1904.08779
            for axis, widest in ((1, 6), (2, 8)):
                start = paddle.randint(0, mels.shape[axis] - widest, [1]).item()
                inside = (paddle.arange(mels.shape[axis]) - start - widest / 2).abs() <= widest / 2
                mels = mels * (1 - inside.astype("float32").reshape([-1, 1] if axis == 1 else [1, -1]))
        return mels.unsqueeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", paddle.metric.accuracy(self(batch[0]), batch[1].unsqueeze(1)), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        schedule = paddle.optimizer.lr.OneCycleLR(self.hparams.learning_rate, self.trainer.estimated_stepping_batches)
        optimizer = paddle.optimizer.AdamW(schedule, parameters=self.parameters(), weight_decay=0.01)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=8)
    parser.add_argument("--root", type=Path, default=Path("runs/keyword_spotting"))
    options = parser.parse_args()

    seed_everything(1)
    train_batches = DataLoader(Words(1600, seed=0), batch_size=32, shuffle=True, drop_last=True)
    val_batches = DataLoader(Words(400, seed=1), batch_size=100)
    trainer = Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=options.root,
        log_every_n_steps=10,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max"), PlotCurves()],
    )
    trainer.fit(Spotter(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
    print(f"result  val_acc  {result['val_acc']:.4f}")


if __name__ == "__main__":
    main()
