"""What each of two ranks runs: fits whose evaluations must not depend on the rank, and data that do not divide evenly.

python -m paddle.distributed.launch --nproc_per_node 2 evaluations.py OUT
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.io import DataLoader, DistributedBatchSampler

from paddlelite_trainer import Callback, Module, Trainer, rank_zero_only
from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint

OUT, RANK = Path(*sys.argv[1:2]), int(os.environ.get("PADDLE_TRAINER_ID", "0"))
SAMPLES = 5


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __init__(self, count: int = 24) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(4).astype("float32") + index / 10, np.int64(index)


class Net(Module):
    """With BatchNorm, whose statistics are of the samples that a rank has seen."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        paddle.seed(7)
        self.net = paddle.nn.Sequential(paddle.nn.Linear(4, 6), paddle.nn.BatchNorm1D(6), paddle.nn.Linear(6, 1))
        self.table = paddle.nn.Embedding(24, 4, sparse=sparse)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, index = batch
        return self.net(x + self.table(index)).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.net(batch[0]).pow(2).mean())

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.01, parameters=self.parameters())


class Statistics(Callback):
    """BatchNorm's means before and after each validation."""

    def __init__(self) -> None:
        self.unchanged: list[bool] = []

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.before = module.net[1]._mean.numpy().copy()

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.unchanged.append(bool((module.net[1]._mean.numpy() == self.before).all()))


def make_trainer(name: str, *callbacks: Callback, **settings: Any) -> Trainer:
    keep = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, monitor="score")
    return Trainer(
        **{"max_epochs": 3, **settings},
        callbacks=[*([keep] if settings.get("enable_checkpointing", True) else []), *callbacks],
        default_root_dir=OUT / "runs",
        run_name=name,
        seed=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(trainer: Trainer, module: Module, batch_size: int = 4, **options: Any) -> Module:
    train = DataLoader(Numbers(), batch_size=batch_size, shuffle=True)
    trainer.fit(module, train, DataLoader(Numbers(), batch_size=5), **options)
    return module


# -- the cases ---------------------------------------------------------------------------------------------------------
def averaging() -> Any:
    """The history of a run with averaged weights, and of runs that were stopped after some steps and gone on with."""
    whole = make_trainer("whole", ExponentialMovingAverage(decay=0.5))
    fit(whole, Net())
    histories = [whole.history]
    for steps in (2, 4, 7):
        fit(make_trainer(f"after {steps}", ExponentialMovingAverage(decay=0.5), max_steps=steps), Net())
        again = make_trainer(f"after {steps}", ExponentialMovingAverage(decay=0.5))
        fit(again, Net(), ckpt_path="last")
        histories.append(again.history)
    return histories


def recorded(*callbacks: Callback) -> Any:
    """The newest recorded score, the score of the weights that were saved then, and whether training noticed."""
    name = f"recorded {len(callbacks)}"
    watch = Statistics()
    trainer = make_trainer(name, *callbacks, watch)
    fit(trainer, Net())
    own = trainer.model.net[1]._mean.numpy().tolist()
    of_saved = trainer.validate(Net(), DataLoader(Numbers(), batch_size=5), ckpt_path="last", verbose=False)
    assert trainer.run_dir is not None
    return {
        "recorded": trainer.history[-1]["score"],
        "of the saved": of_saved[0]["score"],
        "own": own,
        "unchanged": watch.unchanged,
        "path": str(trainer.run_dir),
    }


class Counts(Module):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("mean", batch.mean())

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {"of": (batch, "rank")}


class Values(paddle.io.Dataset):  # type: ignore[misc]
    def __init__(self, count: int = SAMPLES) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return np.full([], index + 1, "float32")


def padded(count: int = SAMPLES, batch_size: int = 2, **options: Any) -> Any:
    """What an evaluation makes of samples that a DistributedBatchSampler repeats, so that ranks have as many."""

    def loader() -> Any:
        values = Values(count)
        return DataLoader(values, batch_sampler=DistributedBatchSampler(values, batch_size, **options))

    trainer = make_trainer("padded", logger=False, enable_checkpointing=False)
    module = Counts()
    predicted = trainer.predict(module, loader())
    none = trainer.predict(module, loader(), return_predictions=False)
    return {
        "validate": trainer.validate(module, loader(), verbose=False)[0]["mean"],
        "test": trainer.test(module, loader(), verbose=False)[0]["mean"],
        "predict": [value for one in predicted for value in one["of"][0].numpy().ravel().tolist()],
        "kinds": sorted({type(one["of"][0]).__name__ for one in predicted}),
        "none": none,
    }


def divided() -> Any:
    """A plain loader, whose batches are divided, and two loaders."""
    trainer = make_trainer("divided", logger=False, enable_checkpointing=False)
    one = trainer.predict(Counts(), DataLoader(Values(), batch_size=2))
    two = trainer.predict(Counts(), [DataLoader(Values(), batch_size=2), DataLoader(Values(1), batch_size=1)])
    return [
        [value for batch in batches for value in batch["of"][0].numpy().ravel().tolist()] for batches in (one, *two)
    ]


def sparse(batch_size: int = 4, **settings: Any) -> Any:
    """Whether weights end as with dense gradients, and as rank 0's."""
    weights = []
    for is_sparse in (False, True):
        module = Net(sparse=is_sparse)
        trainer = make_trainer("sparse", logger=False, enable_checkpointing=False, max_epochs=1, **settings)
        fit(trainer, module, batch_size)
        weights.append(module.table.weight.numpy())
    other = trainer.ranks.broadcast_object(weights[1])
    return [bool(np.allclose(*weights, atol=1e-6)), bool((weights[1] == other).all())]


def gathering() -> Any:
    """What a step gathers, and what rank_zero_only lets pass."""
    found: list[Any] = []

    class Gathers(Counts):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            mine = {"x": paddle.full([2], RANK), "loss": (paddle.to_tensor(RANK + 0.5), 2 * RANK), "name": "n"}
            all_of_them = self.all_gather(mine)
            found.append(
                [
                    all_of_them["x"].tolist(),
                    all_of_them["loss"][0].tolist(),
                    all_of_them["loss"][1].tolist(),
                    all_of_them["name"],
                ]
            )

    trainer = make_trainer("gathering", logger=False, enable_checkpointing=False, limit_val_batches=1)
    trainer.validate(Gathers(), DataLoader(Values(), batch_size=2), verbose=False)
    return [*found, rank_zero_only(lambda: "done")()]


CASES: dict[str, Callable[[], Any]] = {
    "averaging": averaging,
    "recorded": recorded,
    "recorded of averages": lambda: recorded(ExponentialMovingAverage(decay=0.5)),
    "padded": padded,
    "padded and shuffled": lambda: padded(shuffle=True),
    "padded, the tail dropped": lambda: padded(drop_last=True),
    "fewer samples than ranks": lambda: padded(1),
    "divided": divided,
    "gathering": gathering,
    "sparse": sparse,
    "sparse, ranks of unequal batches": lambda: sparse(5),
    "sparse, accumulating": lambda: sparse(accumulate_grad_batches=2),
    "sparse, clipped": lambda: sparse(gradient_clip_val=0.1),
}


if __name__ == "__main__":
    paddle.set_device("cpu")
    with (OUT / f"rank{RANK}.jsonl").open("w") as file:
        for name in sys.argv[2:] or CASES:
            try:
                found = CASES[name]()
            except Exception as error:
                traceback.print_exc()
                found = f"{type(error).__name__}: {error}"
            print(json.dumps([name, found]), file=file, flush=True)  # what comes before a hang is known
