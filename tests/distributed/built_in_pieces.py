"""Modules that are built in configure_model, on two fake accelerators whose weights are cut: memory, bits, resuming.

python built_in_pieces.py ROOT, in fake_gpu's environment; ROOT/found.json has what was found
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from forked import job

from paddlelite_trainer import Callback, InitFrom, Module, Strategy, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint

WIDTH, DEPTH = 256, 16  # of the network that is weighed: a weight has 2**18 bytes
STEPS, CUT = 5, 2
MEMORY: dict[str, int] = {}


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 2 * 4 * 5

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(8).astype("float32")


def halved(layer: Any) -> None:
    """What users give to `apply`: it reads what it writes."""
    if isinstance(layer, paddle.nn.Linear):
        layer.weight.set_value(layer.weight * 0.5)


class Net(Module):
    """Whole in __init__, or built in configure_model; there ranks draw other numbers, of which rank 0's count."""

    def __init__(self, builds: bool, width: int = 16, depth: int = 2, fails: str = "") -> None:
        super().__init__()
        self.width, self.depth, self.fails = width, depth, fails
        if not builds:
            self.make(seed=11)

    def configure_model(self) -> None:
        if hasattr(self, "net"):
            return
        rank = self.trainer.global_rank
        MEMORY["before"] = in_use(rank)
        paddle.base.core.device_memory_stat_reset_peak_value("Allocated", rank)
        self.make(seed=11 + rank)

    def make(self, seed: int) -> None:
        paddle.seed(seed)
        width = self.width
        self.first = paddle.nn.Linear(8, width)
        paddle.nn.initializer.Constant(0.25)(self.first.weight)  # before the next layer is made
        self.scale = self.create_parameter([width], default_initializer=paddle.nn.initializer.Constant(1.5))
        self.net = paddle.nn.Sequential(
            paddle.nn.BatchNorm1D(width),
            paddle.nn.Dropout(0.2),
            *(paddle.nn.Linear(width, width) for _ in range(self.depth)),
        )
        self.net.apply(halved)
        paddle.nn.initializer.Constant(0.125)(self.net[-2].weight)  # after the next layer was made
        if self.fails == "LSTM":
            self.recurrent = paddle.nn.LSTM(width, 12)
        if self.fails == "deepcopy":
            self.target = copy.deepcopy(self.net)
        if self.fails == "copy_":
            self.net[-1].weight.copy_(self.net[3].weight, True)
        if self.fails == "set_value":
            self.net[-1].weight.set_value(self.net[3].weight)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.net(self.first(batch) * self.scale).pow(2).mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(self.first(batch) * self.scale).pow(2).mean())

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


def in_use(rank: int) -> int:
    return int(paddle.base.core.device_memory_stat_current_value("Allocated", rank))


class Freezes(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        module.first.bias.stop_gradient = trainer.global_step > 0


class Weighs(Callback):
    """The most bytes of the device from configure_model on, until the fit starts, until the first step, to the end."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.peak("built", trainer)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            paddle.base.core.device_memory_stat_reset_peak_value("Allocated", trainer.global_rank)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.peak("trained", trainer)
        paddle.base.core.device_memory_stat_reset_peak_value("Allocated", trainer.global_rank)

    def peak(self, name: str, trainer: Any) -> None:
        peak = paddle.base.core.device_memory_stat_peak_value("Allocated", trainer.global_rank)
        MEMORY[name] = int(peak) - MEMORY.get("before", 0)


def fitted(module: Module, root: Path, max_steps: int, *more: Callback, init_from: Any = None) -> Trainer:
    trainer = Trainer(
        max_steps=max_steps,
        strategy=Strategy("sharding_stage3", segment_size=100, keep_cut=True),
        default_root_dir=root,
        callbacks=[*more, ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, monitor="step")],
        seed=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
    )
    training = paddle.io.DataLoader(Numbers(), batch_size=4, shuffle=True)
    validation = paddle.io.DataLoader(Numbers(), batch_size=8)
    trainer.fit(module, training, validation, ckpt_path=None if init_from else "last", init_from=init_from)
    return trainer


def digest(module: Module) -> str:
    weights = [value.numpy().tobytes() for _, value in sorted(module.state_dict().items())]
    return hashlib.sha256(b"".join(weights)).hexdigest()


def learned(out: Path, root: Path, max_steps: int, builds: bool, rank: int, init_from: Any = None) -> None:
    module = Net(builds)
    trainer = fitted(module, root, max_steps, init_from=init_from)
    (scores,) = trainer.validate(module, paddle.io.DataLoader(Numbers(), batch_size=8), verbose=False)
    (out / f"rank{rank}").write_text(json.dumps([digest(module), scores["val_loss"], trainer.global_step]))


def takes(out: Path, root: Path, builds: bool, rank: int) -> None:
    """Weights of a file that each rank has."""
    given = root / f"given{rank}.pdparams"
    whole = Net(False)
    paddle.save(whole.state_dict(), str(given))
    learned(out, root, 1, builds, rank, init_from=InitFrom(given))


def weighs(out: Path, root: Path, rank: int) -> None:
    module = Net(True, WIDTH, DEPTH)
    fitted(module, root, 2, Weighs())
    peak = paddle.base.core.device_memory_stat_peak_value("Allocated", rank)
    MEMORY["ended"] = int(peak) - MEMORY["before"]
    MEMORY["whole"] = sum(one.size * 4 for one in module.parameters())
    (out / f"rank{rank}").write_text(json.dumps(MEMORY))


def fails(out: Path, root: Path, rank: int) -> None:
    told = {}
    for how in ("LSTM", "deepcopy", "copy_", "set_value", "freezes"):
        try:
            fitted(Net(True, depth=4, fails=how), root / f"{how}{rank}", 2, *([Freezes()] if how == "freezes" else []))
        except Exception as error:
            told[how] = [type(error).__name__, str(error), *getattr(error, "__notes__", [])]
    (out / f"rank{rank}").write_text(json.dumps(told))


def both(out: Path, work: Any) -> list[Any]:
    out.mkdir(parents=True)
    job(out, 2, partial(work, out), 60)
    return [json.loads((out / f"rank{rank}").read_text()) for rank in range(2)]


def main(root: Path) -> None:
    found: dict[str, Any] = {}

    def run(name: str, work: Any, *given: Any) -> None:
        found[name] = both(root / "jobs" / name, lambda out, rank: work(out, root / name, *given, rank))

    run("whole", learned, STEPS, False)
    run("built", learned, STEPS, True)
    both(root / "jobs" / "first", lambda out, rank: learned(out, root / "resumed", CUT, True, rank))
    found["resumed"] = both(root / "jobs" / "then", lambda out, rank: learned(out, root / "resumed", STEPS, True, rank))
    (root / "taken").mkdir()
    found["taken"] = [
        both(root / "jobs" / f"taken {builds}", lambda out, rank: takes(out, root / "taken", builds, rank))  # noqa: B023
        for builds in (False, True)
    ]
    run("weighed", weighs)
    run("failed", fails)
    (root / "found.json").write_text(json.dumps(found, indent=1))


main(Path(sys.argv[1]))
