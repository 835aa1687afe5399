"""A step with Trainer(compile=True), with recompute, and as it is, for networks of several shapes; and memory.

python benchmarks/compiling.py [--rounds 7] [--steps 40] [--json]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pairs import arguments, report, rounds, table

import numpy as np  # isort: skip
import paddle

from paddlelite_trainer import Callback, Module, Trainer

nn = paddle.nn
WARM_UP = 3
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "compile=True": {"compile": True},
    "recompute": {"recompute": ["blocks.*"]},
}


class Net(Module):
    """Blocks in a row, and a head."""

    def __init__(self, blocks: list[Any], head: Any) -> None:
        super().__init__()
        self.blocks, self.head = nn.LayerList(blocks), head

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Adam(1e-4, parameters=self.parameters())


def narrow() -> Net:
    return Net([nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))], nn.Linear(64, 10))


def deep() -> Net:
    return Net([nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(24)], nn.Linear(64, 10))


def wide() -> Net:
    return Net([nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(4)], nn.Linear(1024, 10))


def convolutions() -> Net:
    def block(before: int, after: int) -> Any:
        return nn.Sequential(nn.Conv2D(before, after, 3, padding=1), nn.BatchNorm2D(after), nn.ReLU())

    head = nn.Sequential(nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, 10))
    return Net([block(3, 16), *(block(16, 16) for _ in range(5))], head)


def transformer() -> Net:
    encoder = [nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1) for _ in range(4)]
    return Net(encoder, nn.Sequential(nn.Flatten(), nn.Linear(64 * 32, 10)))


SHAPES: dict[str, tuple[Callable[[], Net], list[int]]] = {
    "MLP 64-128-10, batches of 32": (narrow, [32, 64]),
    "24 small layers with LayerNorm, batches of 32": (deep, [32, 64]),
    "4 layers of 1024, batches of 64": (wide, [64, 1024]),
    "6 convolutions on [16, 3, 32, 32]": (convolutions, [16, 3, 32, 32]),
    "4 transformer layers on [16, 32, 64]": (transformer, [16, 32, 64]),
}


class Clock(Callback):
    """Microseconds a step, after the first few, and the peak of Paddle's host memory over what it began with."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.times.append(time.perf_counter())

    @property
    def cost(self) -> float:
        times = self.times[WARM_UP:]
        return (times[-1] - times[0]) / (len(times) - 1) * 1e6


def step(make: Callable[[], Net], batches: list[Any], way: dict[str, Any]) -> float:
    """One fit; its microseconds a step."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        callbacks=clock,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **way,
    )
    trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
    trainer.fit(make(), batches)
    return clock.cost


def peak(make: Callable[[], Net], batch: Any, way: dict[str, Any]) -> str:
    """Megabytes of Tensors at most, over those before the forward; what a backward needs of the forward."""
    memory = paddle.base.core
    if not hasattr(memory, "host_memory_stat_peak_value"):
        return "unknown"
    kept: list[int] = []

    class Looks(Net):
        def on_before_backward(self, loss: Any) -> None:
            kept.append(memory.host_memory_stat_current_value("Allocated", 0))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            kept.append(memory.host_memory_stat_current_value("Allocated", 0))

    made = make()
    step(lambda: Looks(list(made.blocks), made.head), [batch] * (WARM_UP + 2), way)
    return f"{(kept[-1] - kept[-2]) / 1e6:,.1f} MB"


def main() -> None:
    parser = arguments(__doc__, rounds=7, steps=40)
    given = parser.parse_args()
    results, notes = [], []
    for title, (make, shape) in SHAPES.items():
        numbers = np.random.RandomState(0)
        x = paddle.to_tensor(numbers.randn(*shape).astype("float32"))
        batches = [(x, paddle.to_tensor(numbers.randint(0, 10, shape[0])))] * (given.steps + WARM_UP)
        contenders = {name: partial(step, make, batches, way) for name, way in WAYS.items()}
        results.append(table(title, rounds(contenders, given.rounds), "as it is", {}, "us a step"))
        kept = ", ".join(f"{name} {peak(make, batches[0], way)}" for name, way in WAYS.items())
        notes.append(f"kept for the backward, {title}: {kept}")
    report(results, as_json=given.json)
    if not given.json:
        print(*notes, sep="\n")


if __name__ == "__main__":
    main()
