"""A net, its data and the loop that a careful Paddle user would write by hand; tests of fit compare with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle.optimizer import SGD, Adam, AdamW, Momentum, lr

from paddlelite_trainer import Callback, Module, Trainer, seed_everything
from paddlelite_trainer.optimizers import parameters_of

BATCHES = 5


Configure = Callable[["Net"], Any]


Weights = dict[str, np.ndarray]


class Net(Module):
    """No dropout and no BatchNorm: a hand-written loop needs no seeds to draw the same numbers."""

    def __init__(self, configure: Configure | None = None) -> None:
        super().__init__()
        self.first = paddle.nn.Linear(4, 8)
        self.second = paddle.nn.Linear(8, 3)
        self._configure = configure or (lambda module: Adam(0.01, parameters=module.parameters()))

    def forward(self, x: Any) -> Any:
        return self.second(paddle.tanh(self.first(x)))

    def loss(self, batch: Any) -> Any:
        return paddle.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self._configure(self)


def net(configure: Configure | None = None, kind: type[Net] = Net) -> Net:
    seed_everything(11)
    return kind(configure)


def batches(count: int = BATCHES, seed: int = 0) -> list[Any]:
    numbers = np.random.RandomState(seed)
    return [
        (paddle.to_tensor(numbers.randn(6, 4).astype("float32")), paddle.to_tensor(numbers.randint(0, 3, [6])))
        for _ in range(count)
    ]


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        self.rates.append(optimizer.get_lr())


def trainer(callbacks: Any = (), **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "seed": 11,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def weights(module: Module) -> Weights:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def differing(one: Any, other: Any) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if not np.array_equal(one.get(name), other.get(name)))


def by_hand(
    module: Net,
    optimizer: Any,
    *,
    epochs: int = 3,
    count: int = BATCHES,
    window: int = 1,
    clip: Callable[[list[Any]], Any] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[float]:
    """The loop that a careful Paddle user would write; returns the learning rate of every step."""
    rates: list[float] = []
    module.train()
    for epoch in range(epochs):
        for index, batch in enumerate(batches(count)):
            length = min(window, count - index // window * window)
            loss = module.loss(batch)
            (loss if window == 1 else loss / length).backward()
            if (index + 1) % window == 0 or index + 1 == count:
                if clip is not None:
                    clip([parameter for parameter in parameters_of(optimizer) if parameter.grad is not None])
                rates.append(optimizer.get_lr())
                optimizer.step()
                optimizer.clear_grad(set_to_zero=False)
                after_step(len(rates))
        after_epoch(epoch + 1)
    return rates


OPTIMIZERS: dict[str, Configure] = {
    "SGD": lambda m: SGD(0.1, parameters=m.parameters()),
    "Momentum": lambda m: Momentum(0.1, parameters=m.parameters(), use_nesterov=True, weight_decay=1e-3),
    "Adam": lambda m: Adam(0.01, parameters=m.parameters()),
    "AdamW": lambda m: AdamW(0.01, parameters=m.parameters(), weight_decay=0.1),
    "Adamax": lambda m: paddle.optimizer.Adamax(0.01, parameters=m.parameters()),
    "Adagrad": lambda m: paddle.optimizer.Adagrad(0.1, parameters=m.parameters()),
    "Adadelta": lambda m: paddle.optimizer.Adadelta(0.1, parameters=m.parameters()),
    "RMSProp": lambda m: paddle.optimizer.RMSProp(0.01, parameters=m.parameters(), centered=True),
    "Lamb": lambda m: paddle.optimizer.Lamb(0.01, parameters=m.parameters()),
}


def grouped(m: Net) -> Any:
    return AdamW(
        0.02,
        parameters=[
            {"params": m.first.parameters(), "learning_rate": 0.1, "weight_decay": 0.5},
            {"params": m.second.parameters()},
        ],
    )


def scheduled(make: Callable[[], Any], **options: Any) -> Configure:
    def configure(m: Net) -> Any:
        schedule = make()
        return {
            "optimizer": Momentum(schedule, parameters=m.parameters()),
            "lr_scheduler": {"scheduler": schedule, **options},
        }

    return configure


def step_decay() -> Any:
    return lr.StepDecay(0.1, 1, 0.5)
