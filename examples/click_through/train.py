"""Click-through rate: rows streamed from files, sparse embeddings with clipping, AUC over the whole validation set."""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlelite_trainer import DataModule, Module, Trainer, seed_everything
from paddlelite_trainer.callbacks import ModelCheckpoint, PlotCurves

# isort: split
# After the package, which leaves out paddle's notice of ccache.
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.io import DataLoader, IterableDataset

USERS, ITEMS, HOURS = 300, 100, 24
FILES, ROWS = 12, 4000


def write_files(folder: Path) -> list[Path]:
    """Twelve .csv.gz files of user, item, hour, clicked, drawn from tastes that nobody is told of."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.RandomState(0)
    users, items = draw.normal(size=(USERS, 4)), draw.normal(size=(ITEMS, 4))
    popular, hourly = draw.normal(size=ITEMS), 0.5 * np.sin(np.arange(HOURS) * 2 * np.pi / 24)
    paths = []
    for number in range(FILES):
        user, item, hour = (draw.randint(0, high, ROWS) for high in (USERS, ITEMS, HOURS))
        chance = 1 / (1 + np.exp(1.5 - 1.2 * (users[user] * items[item]).sum(1) - popular[item] - hourly[hour]))
        rows = np.stack([user, item, hour, draw.rand(ROWS) < chance], axis=1)
        path = folder / f"part_{number:02d}.csv.gz"
        with gzip.open(path, "wt") as file:
            np.savetxt(file, rows, fmt="%d", delimiter=",")
        paths.append(path)
    return paths


class Stream(IterableDataset):
    """Rows of files, one file after the other; it remembers where it is, so that a resumed run does not read again."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.file = self.row = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for file_number in range(self.file, len(self.paths)):
            self.file = file_number
            with gzip.open(self.paths[file_number], "rt") as file:
                rows = np.loadtxt(file, dtype="int64", delimiter=",", ndmin=2)
            for row in rows[self.row :]:
                self.row += 1
                yield row
            self.row = 0
        self.file = 0

    def state_dict(self) -> dict[str, int]:
        return {"file": self.file, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.file, self.row = state["file"], state["row"]


class Clicks(DataModule):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def setup(self, stage: str) -> None:
        self.paths = write_files(self.folder)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(self.paths[:-2]), batch_size=256)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Stream(self.paths[-2:]), batch_size=1000)


class ClickThrough(Module):
    """A factorization machine: a weight of each value, and the product of each two values' vectors."""

    def __init__(self, width: int = 8, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        values = USERS + ITEMS + HOURS
        normal = paddle.ParamAttr(initializer=paddle.nn.initializer.Normal(std=0.1))
        # sparse: a step's gradient has the rows that were looked up, not all of them.
        self.vectors = paddle.nn.Embedding(values, width, sparse=True, weight_attr=normal)
        self.weights = paddle.nn.Embedding(values, 1, sparse=True, weight_attr=normal)
        self.bias = self.create_parameter([1], is_bias=True)
        self.register_buffer("offsets", paddle.to_tensor([0, USERS, USERS + ITEMS]))
        self.auc = paddle.metric.Auc()

    def forward(self, values: paddle.Tensor) -> paddle.Tensor:
        """Logits [batch] of user, item and hour [batch, 3]."""
        values = values + self.offsets
        vectors = self.vectors(values)
        products = (vectors.sum(axis=1).square() - vectors.square().sum(axis=1)).sum(axis=1) / 2
        return self.weights(values).sum(axis=[1, 2]) + products + self.bias

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        loss = F.binary_cross_entropy_with_logits(self(batch[:, :3]), batch[:, 3].astype("float32"))
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits, clicked = self(batch[:, :3]), batch[:, 3:]
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, clicked[:, 0].astype("float32")))
        chance = F.sigmoid(logits)
        self.auc.update(paddle.stack([1 - chance, chance], axis=1), clicked)
        self.log("val_auc", self.auc, prog_bar=True)  # one number, from all rows

    def configure_optimizers(self) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.Adam(self.hparams.learning_rate, parameters=self.parameters(), lazy_mode=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--max-epochs", type=int, default=5)
    parser.add_argument("--root", type=Path, default=Path("runs/click_through"))
    options = parser.parse_args()

    seed_everything(1)
    data = Clicks(options.root / "data")
    trainer = Trainer(
        max_epochs=options.max_epochs,
        gradient_clip_val=5.0,
        default_root_dir=options.root,
        callbacks=[ModelCheckpoint(monitor="val_auc", mode="max"), PlotCurves()],
    )
    trainer.fit(ClickThrough(), datamodule=data, ckpt_path="last")
    (result,) = trainer.validate(datamodule=data, ckpt_path="best")
    print(f"result  val_auc  {result['val_auc']:.4f}")


if __name__ == "__main__":
    main()
