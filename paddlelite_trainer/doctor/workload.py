"""What the checks train: a small network, batches, the loop written by hand, and a Trainer that does nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle

from .. import Callback, Module, Trainer
from ..machine.precision import Precision

F = paddle.nn.functional
SCALER = {"init_loss_scaling": 256.0}


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    """Samples of so many floats, and a label."""

    def __init__(self, count: int, width: int = 64) -> None:
        self.count, self.width = count, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(self.width).astype("float32"), np.int64(index % 10)


class Network(Module):
    def __init__(self, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        layers = [paddle.nn.Linear(width, 128), paddle.nn.LayerNorm(128), paddle.nn.GELU()]
        layers += [paddle.nn.Dropout(dropout)] if dropout else []
        self.net = paddle.nn.Sequential(*layers, paddle.nn.Linear(128, 10))
        numbers = np.random.RandomState(7)
        for parameter in self.parameters():  # the same in every process
            parameter.set_value(numbers.randn(*parameter.shape).astype("float32") * 0.1)

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(1e-3, parameters=self.parameters())


def batches(count: int, size: int = 32, width: int = 64) -> list[Any]:
    """On the current device."""
    numbers = np.random.RandomState(3)
    return [
        [
            paddle.to_tensor(numbers.randn(size, width).astype("float32")),
            paddle.to_tensor(numbers.randint(0, 10, size).astype("int64")),
        ]
        for _ in range(count)
    ]


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    nothing = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "seed": 5,
    }
    made = Trainer(callbacks=list(callbacks), **{**nothing, **settings})
    vars(made)["print"] = lambda *_, **__: None
    return made


def bits(module: Any) -> str:
    """A digest of all that a module's state_dict holds."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.astype("float32").numpy()).tobytes())
    return digest.hexdigest()


class EachStep(Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(bits(module))


def by_hand(given: Sequence[Any], precision: str) -> list[str]:
    """The weights after each step of the loop that one would write with Paddle's own AMP."""
    network = Network()
    if precision == "64-true":
        network.to(dtype="float64")
    optimizer = network.configure_optimizers()
    half = "float16" if precision.startswith("16") else "bfloat16"
    level = "O1" if precision.endswith("mixed") else "O2"
    autocast: Callable[[], Any] = contextlib.nullcontext
    if precision not in ("32-true", "64-true"):
        if level == "O2":
            network, optimizer = paddle.amp.decorate(network, optimizer, level="O2", dtype=half, master_weight=True)

        def autocast() -> Any:
            return paddle.amp.auto_cast(level=level, dtype=half)

    scaler = paddle.amp.GradScaler(**SCALER) if half == "float16" and precision[:2] == "16" else None
    seen = []
    for x, y in given:
        with autocast():
            loss = F.cross_entropy(network(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.clear_grad()
        seen.append(bits(network))
    return seen


def why_not(precision: str) -> str | None:
    """Why this device does not compute in a precision; None: it does."""
    return Precision(precision).note


def microseconds_by_hand(loader: Any, epochs: int = 2) -> float:
    """Of a step of the loop by hand; the last epoch counts."""
    network = Network()
    optimizer = network.configure_optimizers()
    steps = 0
    began = time.perf_counter()
    for _ in range(epochs):
        paddle.device.synchronize() if paddle.get_device() != "cpu" else None
        began, steps = time.perf_counter(), 0
        for x, y in loader:
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            steps += 1
    _wait()
    return (time.perf_counter() - began) / steps * 1e6


class LastEpoch(Callback):
    """The time of the last epoch."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        _wait()
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        _wait()
        self.seconds = time.perf_counter() - self.began


def microseconds_by_trainer(loader: Any, epochs: int = 2, module: Module | None = None, **settings: Any) -> float:
    clock = LastEpoch()
    made = trainer(clock, max_epochs=epochs, **settings)
    made.fit(module or Network(), loader)
    return clock.seconds / made.num_training_batches * 1e6


def _wait() -> None:
    device = paddle.get_device()
    if device != "cpu":
        paddle.device.synchronize(device)
