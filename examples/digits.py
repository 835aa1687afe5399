"""Trains a small network on real handwritten digits; run it again and it goes on, or says that it has finished."""

from __future__ import annotations

import argparse
import zlib  # noqa: F401  before paddle: 2.6 brings its own, with which reading .gz files then crashes
from pathlib import Path
from typing import Any

from paddlelite_trainer import Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import EarlyStopping, LRMonitor, ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, TensorDataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(Module):
    """Tells which digit an image of 8 x 8 pixels shows."""

    def __init__(self, channels: int = 16, learning_rate: float = 3e-3, horizon: int = 30) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = paddle.nn.Sequential(
            paddle.nn.Conv2D(1, channels, 3, padding=1),
            paddle.nn.ReLU(),
            paddle.nn.Conv2D(channels, 2 * channels, 3, padding=1),
            paddle.nn.ReLU(),
            paddle.nn.MaxPool2D(2),
            paddle.nn.Flatten(),
            paddle.nn.Dropout(0.4),
            paddle.nn.Linear(2 * channels * 16, 10),
        )

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Scores [batch, 10] of images [batch, 1, 8, 8]."""
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        return self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Any) -> paddle.Tensor:
        images, labels = batch
        scores = self(images)
        right = (scores.argmax(axis=1) == labels.flatten()).astype("float32")
        self.log(f"{stage}_loss", F.cross_entropy(scores, labels), prog_bar=True)
        self.log(f"{stage}_acc", right.mean(), prog_bar=True)
        return scores

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        # The trainer finds the schedule inside the optimizer and steps it after every epoch.
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(self.hparams.learning_rate, T_max=self.hparams.horizon)
        return paddle.optimizer.AdamW(schedule, parameters=self.parameters(), weight_decay=0.01)


def digit_loaders(batch_size: int = 32) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training, validation and test batches of scikit-learn's 1,797 digits: 60, 20 and 20 % of them."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype("float32") / 16.0
    labels = labels.reshape(-1, 1).astype("int64")
    train_x, rest_x, train_y, rest_y = train_test_split(images, labels, train_size=0.6, stratify=labels, random_state=0)
    val_x, test_x, val_y, test_y = train_test_split(rest_x, rest_y, test_size=0.5, stratify=rest_y, random_state=0)

    def loader(x: Any, y: Any, size: int, shuffle: bool) -> DataLoader:
        dataset = TensorDataset([paddle.to_tensor(x), paddle.to_tensor(y)])
        return DataLoader(dataset, batch_size=size, shuffle=shuffle)

    return (
        loader(train_x, train_y, batch_size, True),
        loader(val_x, val_y, 120, False),
        loader(test_x, test_y, 120, False),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=30, help="epochs to train for at most")
    parser.add_argument("--root", type=Path, default=Path("runs/digits"), help="directory that the runs are kept in")
    options = parser.parse_args()

    seed_everything(1)  # before the module, whose first weights are drawn from it
    train_batches, val_batches, test_batches = digit_loaders()
    trainer = Trainer(
        max_epochs=options.max_epochs,
        default_root_dir=options.root,
        log_every_n_steps=10,
        callbacks=[
            ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=3),
            EarlyStopping(monitor="val_acc", mode="max", patience=10),
            LRMonitor(),
            PlotCurves(),
        ],
    )
    trainer.fit(Digits(horizon=options.max_epochs), train_batches, val_batches, ckpt_path="last")
    (result,) = trainer.test(ckpt_path="best", dataloaders=test_batches)

    print(f"test accuracy  {result['test_acc']:.2%}")
    print(f"best weights   {trainer.run_dir / 'best.pdparams'}")
    print(f"curves         {trainer.run_dir / 'curves.png'}")
    print(f"TensorBoard    tensorboard --logdir {options.root}  (pip install tensorboard)")


if __name__ == "__main__":
    main()
