"""Contrastive pretraining: MoCo with a momentum encoder and a queue, judged by a linear classifier on its features."""

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
from paddle.io import DataLoader, Dataset, TensorDataset
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

QUEUE = 512


class TwoViews(Dataset):
    """Two random views [1, 8, 8] of each digit: moved by a pixel, brighter or darker, with a hole and noise."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._view(self.images[index]), self._view(self.images[index])

    @staticmethod
    def _view(image: np.ndarray) -> np.ndarray:
        down, right, top, left = np.random.randint((-1, -1, 0, 0), (2, 2, 7, 7))  # seeded for each batch by the trainer
        view = np.roll(image, (down, right), (1, 2)) * np.random.uniform(0.7, 1.2)
        view[:, top : top + 2, left : left + 2] = 0
        return (view + np.random.normal(0, 0.05, view.shape)).astype("float32")


def encoder(width: int) -> paddle.nn.Layer:
    return paddle.nn.Sequential(
        paddle.nn.Conv2D(1, width, 3, padding=1),
        paddle.nn.ReLU(),
        paddle.nn.Conv2D(width, 2 * width, 3, stride=2, padding=1),
        paddle.nn.ReLU(),
        paddle.nn.Flatten(),
        paddle.nn.Linear(32 * width, 64),
    )


class MoCo(Module):
    """arXiv 1911.05722, algorithm 1. Keys' encoder, queue and its place are saved and resumed as any weights are."""

    def __init__(
        self, width: int = 16, momentum: float = 0.99, temperature: float = 0.2, learning_rate: float = 2e-3
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.queries, self.keys = encoder(width), encoder(width)
        self.keys.set_state_dict(self.queries.state_dict())
        for parameter in self.keys.parameters():
            parameter.stop_gradient = True
        self.register_buffer("queue", F.normalize(paddle.randn([QUEUE, 64])))
        self.register_buffer("place", paddle.zeros([1], dtype="int64"))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Features [batch, 64] of images [batch, 1, 8, 8]."""
        return F.normalize(self.queries(images))

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        first, second = batch
        queries = self(first)
        with paddle.no_grad():
            momentum = self.hparams.momentum
            for slow, fast in zip(self.keys.parameters(), self.queries.parameters(), strict=True):
                slow.set_value(momentum * slow + (1 - momentum) * fast)
            keys = F.normalize(self.keys(second))
        positive = (queries * keys).sum(axis=1, keepdim=True)
        scores = paddle.concat([positive, queries @ self.queue.t()], axis=1) / self.hparams.temperature
        loss = F.cross_entropy(scores, paddle.zeros([len(scores)], dtype="int64"))
        self.enqueue(keys)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    @paddle.no_grad()
    def enqueue(self, keys: paddle.Tensor) -> None:
        """The oldest keys make room; a buffer is written in place, so that it stays the one that is saved."""
        places = (paddle.arange(len(keys)) + self.place) % QUEUE
        self.queue.set_value(paddle.scatter(self.queue, places, keys))
        self.place.set_value((self.place + len(keys)) % QUEUE)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The share of labels that a linear classifier on the features gets right, learned on half of the digits."""
        images, labels = batch
        features, labels = self(images).numpy(), labels.numpy().ravel()
        half = len(labels) // 2
        linear = LogisticRegression(max_iter=300).fit(features[:half], labels[:half])
        self.log("val_acc", float(linear.score(features[half:], labels[half:])), prog_bar=True)

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(self.hparams.learning_rate, parameters=self.queries.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--root", type=Path, default=Path("runs/contrastive"))
    options = parser.parse_args()

    seed_everything(1)
    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype("float32")
    train_batches = DataLoader(TwoViews(images), batch_size=64, shuffle=True, drop_last=True)
    labelled = TensorDataset([paddle.to_tensor(images), paddle.to_tensor(digits.target)])
    val_batches = DataLoader(labelled, batch_size=len(images))
    trainer = Trainer(
        max_epochs=options.max_epochs,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=5,
        default_root_dir=options.root,
        log_every_n_steps=20,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max"), PlotCurves()],
    )
    trainer.fit(MoCo(), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.validate(ckpt_path="best", dataloaders=val_batches)
    print(f"result  val_acc  {result['val_acc']:.4f}")


if __name__ == "__main__":
    main()
