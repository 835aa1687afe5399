"""A paddle.io.DataLoader in a hand-written loop, and the same loader given to fit; and how fast a position is reached.

python benchmarks/loader.py [--rounds 7] [--samples 6400] [--json]
"""

from __future__ import annotations

import time
from typing import Any

from pairs import arguments, report, rounds, table

import numpy as np  # isort: skip
import paddle
from workload import bare, fit, hand_loop

from paddlelite_trainer.data.source import BatchSource


class Samples(paddle.io.Dataset):  # type: ignore[misc]
    """Sixty-four numbers and a label; `augment` adds noise, as augmentation does."""

    def __init__(self, count: int, augment: bool) -> None:
        self.x = np.random.RandomState(0).randn(count, 64).astype("float32")
        self.y = np.random.RandomState(1).randint(0, 10, count)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        if self.augment:
            for _ in range(8):
                x = x + np.random.randn(64).astype("float32") * 0.01
        return x, self.y[index]


def loader(samples: int, workers: int, augment: bool) -> Any:
    return paddle.io.DataLoader(Samples(samples, augment), batch_size=32, shuffle=True, num_workers=workers)


def seconds_to_batch(start: int) -> float:
    data = paddle.io.TensorDataset([paddle.arange(20_000)])
    source = BatchSource(paddle.io.DataLoader(data, batch_size=2, shuffle=True), stage="train", seed=0)
    started = time.perf_counter()
    next(iter(source.epoch(0, start)))
    return time.perf_counter() - started


def main() -> None:
    given = arguments(__doc__, rounds=7, samples=6400).parse_args()
    results = []
    for workers, augment, goal in ((0, False, "<= 0.90x"), (2, True, "<= 1.00x")):
        data = loader(given.samples, workers, augment)
        costs = rounds(
            {"hand": lambda data=data: hand_loop(data), "fit": lambda data=data: fit(data, **bare())}, given.rounds
        )
        title = f"a training step on a DataLoader with {workers} workers{', augmentation' if augment else ''}"
        results.append(table(title, costs, "hand", {"fit": goal}, "us"))
    costs = {"first batch": [], "batch 9,000": []}
    for _ in range(given.rounds):
        costs["first batch"].append(seconds_to_batch(0) * 1e3)
        costs["batch 9,000"].append(seconds_to_batch(9000) * 1e3)
    results.append(table("reaching a batch of 10,000", costs, "first batch", {"batch 9,000": "<= +50 ms"}, "ms"))
    report(results, as_json=given.json)


if __name__ == "__main__":
    main()
