"""The networks and the data of the fixed runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.io import DataLoader, Dataset, IterableDataset

from paddlelite_trainer import DataModule, Module

SAMPLES, BATCH = 22, 4  # six batches an epoch, the last one of two
FEATURES, CLASSES = 4, 3


class Points(Dataset):  # type: ignore[misc]
    """Points with labels; a random number of each of the three libraries moves them where `augment` is true."""

    def __init__(self, count: int = SAMPLES, augment: bool = True, seed: int = 5) -> None:
        generator = np.random.RandomState(seed)
        self.x = generator.normal(size=(count, FEATURES)).astype("float32")
        self.y = np.abs(self.x.sum(1) * 2).astype("int64") % CLASSES
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        if self.augment:
            x = x + np.float32(0.1 * random.random()) + np.random.normal(0, 0.1, FEATURES).astype("float32")
            x = x + 0.1 * paddle.rand([FEATURES]).numpy()
        return x, self.y[index]


class Stream(IterableDataset):  # type: ignore[misc]
    """The same points in order, and no length."""

    def __init__(self, augment: bool = True) -> None:
        super().__init__()
        self.points = Points(augment=augment)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.points)):
            yield self.points[index]


def loader(dataset: Any = None, **options: Any) -> DataLoader:
    """Shuffled batches for training."""
    return DataLoader(Points() if dataset is None else dataset, **{"batch_size": BATCH, "shuffle": True, **options})


def held_out(count: int = 9, seed: int = 6) -> DataLoader:
    """Batches for validation, always the same."""
    return DataLoader(Points(count, augment=False, seed=seed), batch_size=BATCH)


class Net(Module):
    """Linear layers, batch norm and dropout; logs numbers of all kinds.

    `configure` makes what `configure_optimizers` returns.
    """

    def __init__(self, configure: Callable[[Any], Any] | None = None, dropout: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="configure")
        self.backbone = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1D(8), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(8, CLASSES)
        self.configure = configure or adamw

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x))

    def loss(self, batch: Any) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("worst", loss, on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Adversaries(Net):
    """Two optimizers that the step itself moves, each with a schedule."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__(_two_optimizers)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for index, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            loss = self.loss(batch)
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.5, "norm")
            if index == 0 or batch_idx % 2:
                optimizer.step()
                optimizer.clear_grad()
            self.untoggle_optimizer(optimizer)
            self.log(f"loss_{index}", loss, on_step=True, on_epoch=True)
        for scheduler in self.lr_schedulers():
            scheduler.step()


class AccumulatesByHand(Net):
    """Manual optimization that steps every third batch."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.manual_backward(loss / 3)
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().clear_grad()
        self.log("loss", loss, on_step=True, on_epoch=True)


class GivenScores(Net):
    """`score` of each validation is given: better, worse, best, worse, ..."""

    SCORES = (0.5, 0.4, 0.8, 0.7, 0.6, 0.6)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", self.SCORES[self.current_epoch % len(self.SCORES)])


class CountingData(DataModule):
    """A DataModule that changes batches on their way and counts its epochs."""

    def __init__(self) -> None:
        self.epochs = 0

    def setup(self, stage: str) -> None:
        self.points = Points()

    def train_dataloader(self) -> Any:
        self.epochs += 1
        return loader(self.points)

    def val_dataloader(self) -> Any:
        return held_out()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * (1 + 0.1 * self.epochs), batch[1]]

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


def adamw(net: Net) -> Any:
    return paddle.optimizer.AdamW(0.02, parameters=net.parameters(), weight_decay=0.05)


def momentum(net: Net) -> Any:
    return paddle.optimizer.Momentum(0.1, parameters=net.parameters())


def scheduled(make: Callable[[], Any], **config: Any) -> Callable[[Net], Any]:
    """An optimizer whose rate is the schedule that `make` returns; `config` is what Lightning calls its config."""

    def configure(net: Net) -> Any:
        schedule = make()
        optimizer = paddle.optimizer.AdamW(schedule, parameters=net.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **config}}

    return configure


def _two_optimizers(net: Net) -> Any:
    lr = paddle.optimizer.lr
    return [
        paddle.optimizer.Adam(lr.StepDecay(0.01, 5), parameters=net.backbone.parameters()),
        paddle.optimizer.Momentum(lr.ExponentialDecay(0.05, 0.97), parameters=net.head.parameters()),
    ]
