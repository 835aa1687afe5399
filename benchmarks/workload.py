"""The job that all contenders do: an MLP 64-128-10 on batches of 32, Adam."""

from __future__ import annotations

import time
from typing import Any

import paddle

from paddlelite_trainer import Callback, Module, Trainer

F = paddle.nn.functional


def make_batches(count: int) -> list[list[Any]]:
    return [[paddle.randn([32, 64]), paddle.randint(0, 10, [32])] for _ in range(count)]


class MLP(Module):
    """`logged` names are logged each step."""

    def __init__(self, logged: int = 0) -> None:
        super().__init__()
        self.names = [f"loss_{index}" for index in range(logged)]
        self.net = paddle.nn.Sequential(paddle.nn.Linear(64, 128), paddle.nn.ReLU(), paddle.nn.Linear(128, 10))

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        for name in self.names:
            self.log(name, loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Adam(1e-3, parameters=self.parameters())


def hand_loop(loader: Any) -> float:
    """Microseconds a step of the loop one would write; the second epoch is timed."""
    model = MLP()
    optimizer = model.configure_optimizers()
    steps = 0
    for _ in range(2):
        started, steps = time.perf_counter(), 0
        for batch in loader:
            x, y = batch
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            steps += 1
    return (time.perf_counter() - started) / steps * 1e6


EPOCHS = 3  # of the last only the start


class SecondEpoch(Callback):
    """Times the second epoch, from its start to the third one's: with its validation, its logs and its checkpoint."""

    microseconds = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        now = time.perf_counter()
        if trainer.current_epoch == 1:
            self.started = now
        elif trainer.current_epoch == 2:
            self.microseconds = (now - self.started) / trainer.num_training_batches * 1e6
            if trainer.max_epochs == EPOCHS:
                trainer.stop()


def bare(**settings: Any) -> dict[str, Any]:
    """Settings of a Trainer that does nothing but train."""
    nothing = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return {"max_epochs": EPOCHS, **nothing, **settings}


def fit(loader: Any, logged: int = 0, callbacks: tuple[Callback, ...] = (), val: Any = None, **settings: Any) -> float:
    """Microseconds a step of Trainer.fit; the second epoch is timed."""
    clock = SecondEpoch()
    trainer = Trainer(callbacks=[clock, *callbacks], **settings)
    trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
    trainer.fit(MLP(logged), loader, val)
    return clock.microseconds
