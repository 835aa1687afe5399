"""A paddle.io.DataLoader in a hand-written loop, and the same loader given to fit; and how fast a position is reached.

python benchmarks/loader.py [--rounds 7] [--samples 6400] [--json]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from pairs import arguments, report, rounds, table

import numpy as np  # isort: skip
import paddle
from workload import bare, fit, hand_loop

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint


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


class Numbers(Module):
    """The least that trains, so that what a resumed fit takes is the way to its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = paddle.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.scale(batch[0].astype("float32").unsqueeze(1)).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(1e-9, parameters=self.parameters())


class FirstBatch(Callback):
    """When the fit's first batch is there."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.came, self.batch_idx = time.perf_counter(), batch_idx
        trainer.stop()


def numbers_loader() -> Any:
    """10,000 batches."""
    data = paddle.io.TensorDataset([paddle.arange(20_000)])
    return paddle.io.DataLoader(data, batch_size=2, shuffle=True)


def checkpoint_at(batch: int, root: Path) -> Path:
    """A checkpoint of a run that has trained so many batches of its first epoch."""
    nothing = {**bare(), "enable_checkpointing": True, "max_epochs": -1}
    saving = ModelCheckpoint(every_n_train_steps=batch)
    trainer = Trainer(**nothing, seed=0, max_steps=batch, default_root_dir=root / str(batch), callbacks=[saving])
    trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
    trainer.fit(Numbers(), numbers_loader())
    return Path(trainer.run_dir) / "latest"


def seconds_to_batch(batch: int, checkpoint: Path) -> float:
    """From the call of a fit that resumes to the batch that it goes on with."""
    first = FirstBatch()
    trainer = Trainer(**bare(), callbacks=[first])
    trainer.print = lambda *_, **__: None  # type: ignore[method-assign]
    started = time.perf_counter()
    trainer.fit(Numbers(), numbers_loader(), ckpt_path=checkpoint)
    assert first.batch_idx == batch
    return first.came - started


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
    with tempfile.TemporaryDirectory() as root:
        early, late = (checkpoint_at(batch, Path(root)) for batch in (1, 9000))
        costs = rounds(
            {
                "batch 1": lambda: seconds_to_batch(1, early) * 1e3,
                "batch 9,000": lambda: seconds_to_batch(9000, late) * 1e3,
            },
            given.rounds,
        )
    title = "a resumed fit reaches its batch of 10,000"
    results.append(table(title, costs, "batch 1", {"batch 9,000": "<= +50 ms"}, "ms"))
    report(results, as_json=given.json)


if __name__ == "__main__":
    main()
