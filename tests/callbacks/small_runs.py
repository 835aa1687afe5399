"""A small model with dropout and BatchNorm, runs of it, and its whole state as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer, seed_everything

BATCHES = 4


class Net(Module):
    def __init__(self, optimizer: Callable[[Module], Any] | None = None) -> None:
        super().__init__()
        self.backbone = paddle.nn.Sequential(paddle.nn.Linear(4, 6), paddle.nn.BatchNorm1D(6), paddle.nn.ReLU())
        self.dropout = paddle.nn.Dropout(0.2)
        self.head = paddle.nn.Linear(6, 2)
        self._optimizer = optimizer

    def forward(self, x: Any) -> Any:
        return self.head(self.dropout(self.backbone(x)))

    def loss(self, batch: Any) -> Any:
        x, y = batch
        return paddle.nn.functional.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        if self._optimizer is not None:
            return self._optimizer(self)
        return paddle.optimizer.AdamW(0.05, parameters=self.parameters())


def batches(count: int = BATCHES, seed: int = 0) -> list[Any]:
    numbers = np.random.RandomState(seed)
    return [
        (paddle.to_tensor(numbers.randn(8, 4).astype("float32")), paddle.to_tensor(numbers.randint(0, 2, [8])))
        for _ in range(count)
    ]


def net(optimizer: Callable[[Module], Any] | None = None, kind: type[Net] = Net) -> Net:
    """Always the same initial weights."""
    seed_everything(3)
    return kind(optimizer)


def trainer(root: Path, callbacks: Iterable[Callback] = (), **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "seed": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(default_root_dir=root, callbacks=list(callbacks), **{**defaults, **settings})


def whole_state(run: Trainer) -> dict[str, Any]:
    """Weights, optimizer state, learning rates and the next random number; call it right after the run."""
    from paddlelite_trainer.optimizers import optimizer_state

    state: dict[str, Any] = {f"weight {name}": value.numpy() for name, value in run.model.state_dict().items()}
    for index, optimizer in enumerate(run.optimizers):
        tensors, rest = optimizer_state(optimizer, run.parameter_names)
        state.update({f"optimizer {index} {name}": tensor.numpy() for name, tensor in tensors.items()})
        state[f"learning rate {index}"] = optimizer.get_lr()
        state[f"parameters {index}"] = rest["parameters"]
    state["steps"] = run.global_step
    state["random"] = float(paddle.rand([1]).item())
    return state


def weights(module: Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if not np.array_equal(one.get(key), other.get(key)))
