"""Small modules and data that tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.run import identity

F = paddle.nn.functional


def make_batches(count: int = 6, batch_size: int = 8, seed: int = 0) -> list[list[Any]]:
    """Batches of [batch, 4] floats and labels in 0..2, the same in every process."""
    numbers = np.random.RandomState(seed)
    return [
        [
            paddle.to_tensor(numbers.randn(batch_size, 4).astype("float32")),
            paddle.to_tensor(numbers.randint(0, 3, batch_size)),
        ]
        for _ in range(count)
    ]


class Classifier(Module):
    """A two-layer net whose initial weights are always the same."""

    def __init__(self, hidden: int = 8, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        numbers = np.random.RandomState(7)
        self.net = paddle.nn.Sequential(paddle.nn.Linear(4, hidden), paddle.nn.ReLU(), paddle.nn.Linear(hidden, 3))
        for parameter in self.parameters():
            parameter.set_value(numbers.randn(*parameter.shape).astype("float32") * 0.3)

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def loss(self, batch: Any) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Momentum(self.hparams.lr, parameters=self.parameters())


def quiet_trainer(**settings: Any) -> Trainer:
    """A Trainer that writes nothing and prints little, unless told otherwise."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    if not {"max_epochs", "max_steps", "max_time", "fast_dev_run"} & settings.keys():
        quiet["max_epochs"] = 1
    return Trainer(**{**quiet, **settings})


def as_if_started_again() -> None:
    """Forget what a process that is started again does not know: which runs its Trainers have begun."""
    identity._MAKERS.clear()


def weights_of(layer: Any) -> dict[str, Any]:
    return {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}


def same_weights(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
