"""Runs that another number of ranks goes on with, from each of their steps, and a table of what came of it.

python tests/distributed/shape_changes.py [--every N] [--quick | --strategies] [--out DIRECTORY]

"the same step": SGD, and accumulate_grad_batches=4/W, so that a step sees the same samples with any W: the weights must
be those of the unchanged run but for the last digits. "all that counts": AdamW, BatchNorm, dropout, an average of the
weights, validations, metrics of Paddle's; 13 batches, so that shares are not equal: a step sees W batches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from forked import job

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint

SAME, ALL = "the same step", "all that counts"
SAMPLES = {SAME: 48, ALL: 26}
EPOCHS, BATCH_SIZE, WINDOW = 2, 2, 4
GIVE_UP_AFTER_SECONDS = 300.0


class Shape(NamedTuple):
    """How many ranks train, and by which strategy."""

    ranks: int
    strategy: str = "auto"

    def __str__(self) -> str:
        return str(self.ranks) if self.strategy == "auto" else f"{self.ranks} {self.strategy}"


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        numbers = np.random.RandomState(index).randn(4) + np.random.randn() * 0.01  # the second is of the batch's seed
        return numbers.astype("float32"), np.int64(index % 3), np.int64(index)


class Net(Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        paddle.seed(7)
        self.kind = kind
        lively = [paddle.nn.BatchNorm1D(8), paddle.nn.Dropout(0.2)] if kind == ALL else []
        self.net = paddle.nn.Sequential(paddle.nn.Linear(4, 8), *lively, paddle.nn.Tanh(), paddle.nn.Linear(8, 3))
        self.accuracy = paddle.metric.Accuracy()
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, index = batch
        self.seen.append((self.current_epoch, index.tolist()))
        scores = self.net(x)
        loss = paddle.nn.functional.cross_entropy(scores, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("samples", float(len(index)), on_step=False, on_epoch=True, reduce_fx="sum")
        self.accuracy.update(self.accuracy.compute(scores, y.reshape([-1, 1])))
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", paddle.nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        if self.kind == SAME:
            return paddle.optimizer.Momentum(0.05, parameters=self.parameters())
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


def fit(kind: str, shape: Shape, ckpt_path: Path | None, run: Path | None) -> tuple[Trainer, Net]:
    """A fit from a checkpoint on, or from the start; with `run` every step of it is saved there."""
    module = Net(kind)
    callbacks: list[Any] = [ExponentialMovingAverage(0.9)] if kind == ALL else []
    if run is not None:
        callbacks.append(ModelCheckpoint(every_n_train_steps=1, save_top_k=-1))
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        strategy=shape.strategy,
        accumulate_grad_batches=WINDOW // shape.ranks if kind == SAME else 1,
        val_check_interval=0.5,
        default_root_dir=run.parent if run is not None else tempfile.gettempdir(),
        run_name=run.name if run is not None else None,
        enable_checkpointing=run is not None,
        logger=False,
        seed=5,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = paddle.io.DataLoader(Numbers(SAMPLES[kind]), batch_size=BATCH_SIZE, shuffle=True)
    trainer.fit(module, loader, paddle.io.DataLoader(Numbers(10), batch_size=3), ckpt_path=ckpt_path)
    return trainer, module


def how_it_ended(trainer: Trainer, module: Net) -> dict[str, Any]:
    state = {name: value.numpy().ravel().tolist() for name, value in module.state_dict().items()}
    return {"state": state, "history": trainer.history, "seen": module.seen, "step": trainer.global_step}


def train(kind: str, shape: Shape, out: Path, rank: int) -> None:
    """The unchanged run, all of whose steps are kept."""
    ended = how_it_ended(*fit(kind, shape, None, out / "run"))
    (out / f"rank{rank}.json").write_text(json.dumps(ended))


def go_on(kind: str, shape: Shape, checkpoints: Sequence[Path], out: Path, rank: int) -> None:
    """From each checkpoint to the end, in one process after the other."""
    with (out / f"rank{rank}.jsonl").open("w") as file:
        for checkpoint in checkpoints:
            print(json.dumps(how_it_ended(*fit(kind, shape, checkpoint, None))), file=file, flush=True)


def run_all(out: Path, kind: str, pairs: Sequence[tuple[Shape, Shape]], every: int) -> list[dict[str, Any]]:
    """A row for each pair (from, to): what was found from every so manieth step."""
    unchanged = {}
    for shape in {before: None for before, _ in pairs}:
        there = out / f"from{shape}"
        job(there, shape.ranks, partial(train, kind, shape, there), GIVE_UP_AFTER_SECONDS)
        unchanged[shape] = [json.loads((there / f"rank{one}.json").read_text()) for one in range(shape.ranks)]
    rows = []
    for before, after in pairs:
        kept = sorted((out / f"from{before}/run/checkpoints").glob("step-*"))
        chosen = kept[every - 1 :: every]
        there = out / f"from{before}to{after}"
        job(there, after.ranks, partial(go_on, kind, after, chosen, there), GIVE_UP_AFTER_SECONDS)
        lines = [(there / f"rank{one}.jsonl").read_text().splitlines() for one in range(after.ranks)]
        ends = [[json.loads(line) for line in of_all] for of_all in zip(*lines)]
        rows.append(row(kind, before, after, unchanged[before], [int(path.name[5:14]) for path in chosen], ends))
    return rows


def row(
    kind: str,
    before: Shape,
    after: Shape,
    unchanged: list[dict[str, Any]],
    steps: list[int],
    ends: list[list[dict[str, Any]]],
) -> dict[str, Any]:
    whole, same_number = in_order(unchanged), before.ranks == after.ranks
    once, distances, bits, sums = 0, [], 0, 0
    for step, end in zip(steps, ends):
        batches = step * (
            WINDOW if kind == SAME else before.ranks
        )  # of all ranks, but for what goes round at an epoch's end
        once += is_whole(whole[:batches], in_order(end), whole)
        distances.append(distance(unchanged[0]["state"], end[0]["state"]))
        bits += all(one["state"] == other["state"] for one, other in zip(unchanged, end)) if same_number else 0
        sums += are_the_same_sums(kind, unchanged[0]["history"], end[0]["history"])
    return {
        "kind": kind,
        "from": str(before),
        "to": str(after),
        "steps": len(steps),
        "each sample once": once,
        "same sums": sums,
        "same bits": bits if same_number else None,
        "distance": max(distances),
    }


def in_order(ranks: Sequence[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    """All ranks' batches as they were dealt."""
    return [(epoch, indices) for turn in zip(*(one["seen"] for one in ranks)) for epoch, indices in turn]


def is_whole(before: list[Any], after: list[Any], whole: list[Any]) -> bool:
    """Whether what was read before and after a change is each epoch in order, and then at most what goes round."""
    for epoch in range(EPOCHS):
        expected = [indices for one, indices in whole if one == epoch]
        samples = len({index for indices in expected for index in indices})
        expected = expected[: -(-samples // BATCH_SIZE)]
        read = [indices for one, indices in [*before, *after] if one == epoch]
        if read[: len(expected)] != expected or len(read) >= len(expected) + 4:
            return False
    return True


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float(np.max(np.abs(np.array(one[name]) - np.array(other[name])))) for name in one)


def are_the_same_sums(kind: str, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether an epoch's sums are those of the unchanged run, as far as its steps were the same."""
    if kind == SAME:
        names = ("samples", "loss_epoch", "accuracy", "val_loss")
        return all(np.isclose(a[name], b[name], rtol=1e-4, atol=1e-6) for a, b in zip(one, other) for name in names)
    return all(SAMPLES[kind] <= record["samples"] < SAMPLES[kind] + 4 * BATCH_SIZE for record in other)


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'run':<16} {'from':>17} {'to':>17}  steps  each sample once  sums kept  same bits  weights differ by"]
    for one in rows:
        bits = "-" if one["same bits"] is None else f"{one['same bits']}/{one['steps']}"
        steps = one["steps"]
        lines.append(
            f"{one['kind']:<16} {one['from']:>17} {one['to']:>17} {steps:>6} {one['each sample once']:>14}/{steps:<2}"
            f"{one['same sums']:>8}/{steps:<2}{bits:>10}  {one['distance']:.1e}"
        )
    return "\n".join(lines)


ONE, TWO, FOUR = Shape(1), Shape(2), Shape(4)
QUICK = {SAME: [(FOUR, TWO)], ALL: [(TWO, ONE), (TWO, FOUR), (TWO, TWO)]}
STRATEGIES = [
    (Shape(2, "ddp"), Shape(2, "sharding_stage2")),
    (Shape(2, "ddp"), Shape(4, "sharding_stage2")),
    (Shape(4, "sharding_stage2"), Shape(2, "ddp")),
    (Shape(4, "sharding_stage2"), Shape(2, "sharding_stage1")),
    (Shape(2, "sharding_stage1"), Shape(2, "sharding_stage2")),
    (Shape(2, "sharding_stage1"), ONE),
    (ONE, Shape(2, "sharding_stage2")),
]
"""On fake accelerators: Paddle shards on no CPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="steps between the checkpoints that are tried")
    parser.add_argument("--quick", action="store_true", help="a few of the pairs, from a few steps")
    parser.add_argument("--out", type=Path, help="where runs and logs are kept")
    parser.add_argument("--strategies", action="store_true", help="between strategies, on fake accelerators")
    given = parser.parse_args()
    if given.strategies and "FAKE_GPU_COUNT" not in os.environ:
        sys.path.append(str(Path(__file__).parents[1]))
        import fake_gpu  # which knows pytest

        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], fake_gpu.environment(FAKE_GPU_COUNT="4"))
    out = given.out or Path(tempfile.mkdtemp())
    rows: list[dict[str, Any]] = []
    for kind in (SAME, ALL):
        pairs = [(one, other) for one in (ONE, TWO, FOUR) for other in (ONE, TWO, FOUR)]
        pairs = STRATEGIES if given.strategies else QUICK[kind] if given.quick else pairs
        rows += run_all(out / kind.replace(" ", "-"), kind, pairs, 5 if given.quick else given.every)
    if given.out is None:
        shutil.rmtree(out)
    else:
        (out / "rows.json").write_text(json.dumps(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
