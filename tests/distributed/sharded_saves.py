"""Jobs of two ranks on fake accelerators, whose optimizer is sharded: copied to a remote, killed in a save, weighed.

python sharded_saves.py ROOT ["kept cut"], in fake_gpu's environment; ROOT/found.json has what was found
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from forked import job
from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3

from paddlelite_trainer import Callback, InitFrom, Module, Strategy, Trainer
from paddlelite_trainer.callbacks import (
    ExponentialMovingAverage,
    GradientNormWatch,
    ModelCheckpoint,
    RemoteCopy,
)
from paddlelite_trainer.checkpoint import FileSystem, open_checkpoint
from paddlelite_trainer.errors import ConfigurationError

STEPS, CUT = 7, 4
SECONDS = 60
WIDTH, DEPTH = 256, 24  # of the network that is weighed: a weight has 2**18 bytes


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 2 * 4 * 5

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(8).astype("float32")


class Net(Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        paddle.seed(11)
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(8, width),
            paddle.nn.BatchNorm1D(width),
            paddle.nn.Dropout(0.2),
            *(paddle.nn.Linear(width, width) for _ in range(depth)),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.net(batch).pow(2).mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch).pow(2).mean())

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


class DiesInItsPart(Callback):
    """The rank is killed when it has written half of a piece of its part of the checkpoint of step CUT."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != CUT:
            return
        part = f"part{trainer.global_rank:05d}"
        its_own: set[int] = set()
        create, write = FileSystem.create, FileSystem.write

        def noted(self: FileSystem, path: Path) -> int:
            descriptor = create(self, path)
            its_own.update({descriptor} if part in path.name else ())
            return descriptor

        def dies(self: FileSystem, descriptor: int, data: Any) -> None:
            half = memoryview(data).cast("B")
            write(self, descriptor, half[: len(half) // 2])
            if descriptor in its_own:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, descriptor, half[len(half) // 2 :])

        FileSystem.create = noted
        FileSystem.write = dies


class Weighs(Callback):
    """The most bytes that were asked for at once, from a batch's end to the next: of the host's memory by Paddle and by
    NumPy, and of the device's, beyond what was there."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            core, self.rank = paddle.base.core, trainer.global_rank
            core.host_memory_stat_reset_peak_value("Allocated", 0)
            core.device_memory_stat_reset_peak_value("Allocated", self.rank)
            self.before = self.peaks()
            tracemalloc.start()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            host, device = (now - before for now, before in zip(self.peaks(), self.before))
            self.host, self.device = host + tracemalloc.get_traced_memory()[1], device
            tracemalloc.stop()

    def peaks(self) -> tuple[int, int]:
        core = paddle.base.core
        return (
            core.host_memory_stat_peak_value("Allocated", 0),
            core.device_memory_stat_peak_value("Allocated", self.rank),
        )


class CountsWhole(Callback):
    """How many parameters that are cut are whole at once, from the fit's start to its end."""

    most = 0

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self.gather, self.module = group_sharded_stage3._allgather_buffer, module
        group_sharded_stage3._allgather_buffer = self.counted

    def counted(self, *given: Any, **named: Any) -> Any:
        flow = self.gather(*given, **named)
        cut = [one for one in self.module.parameters() if hasattr(one, "fw_storage")]
        self.most = max(self.most, sum(one._is_initialized() for one in cut))
        return flow

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        group_sharded_stage3._allgather_buffer = self.gather


KEPT_CUT = "sharding_stage3, kept cut"


def fit(
    root: Path, max_steps: int, *more: Callback, width: int = 16, depth: int = 2, strategy: str = "sharding_stage2"
) -> tuple[Trainer, Module]:
    name, _, keep_cut = strategy.partition(", ")
    trainer = Trainer(
        max_steps=max_steps,
        strategy=Strategy(name, segment_size=1000 if width > 16 else 100, keep_cut=bool(keep_cut)),
        default_root_dir=root,
        callbacks=[*more, ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, monitor="step")],
        seed=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=1,
    )
    module = Net(width, depth)
    training = paddle.io.DataLoader(Numbers(), batch_size=4, shuffle=True)
    validation = paddle.io.DataLoader(Numbers(), batch_size=8)  # 5 batches, of which rank 0 has one more
    trainer.fit(module, training, None if width > 16 else validation, ckpt_path="last")
    return trainer, module


def tensors_of(trainer: Trainer, module: Module) -> tuple[list[Any], list[Any]]:
    by_name = trainer.optimizers[0]._accumulators.values()
    return list(module.state_dict().values()), [one for found in by_name for one in found.values()]


def trains(
    out: Path, root: Path, max_steps: int, remote: Path | None, dying: int | None, strategy: str, rank: int
) -> None:
    more: list[Callback] = [RemoteCopy(f"file://{remote}")] if remote is not None else []
    more += [DiesInItsPart()] if dying == rank else []
    more += [ExponentialMovingAverage(0.9)] if strategy.startswith("sharding_stage3") else []
    trainer, module = fit(root, max_steps, *more, strategy=strategy)
    weights, moments = tensors_of(trainer, module)
    digest = hashlib.sha256(b"".join(one.numpy().tobytes() for one in [*weights, *moments])).hexdigest()
    (out / f"rank{rank}").write_text(json.dumps([digest, trainer.global_step, trainer.history]))


def learned(out: Path, root: Path, max_steps: int, strategy: str, rank: int) -> None:
    """The weights alone, which all strategies have alike, and how many were whole at once where they are kept cut."""
    count = CountsWhole()
    _, module = fit(root, max_steps, *([count] if strategy == KEPT_CUT else []), strategy=strategy)
    weights = hashlib.sha256(b"".join(one.numpy().tobytes() for one in module.state_dict().values()))
    (out / f"rank{rank}").write_text(json.dumps([weights.hexdigest(), count.most]))


def weighs(out: Path, root: Path, strategy: str, rank: int) -> None:
    scale = Weighs()
    trainer, module = fit(root, 3, scale, width=WIDTH, depth=DEPTH, strategy=strategy)
    weights, moments = (sum(one.size * 4 for one in found) for found in tensors_of(trainer, module))
    (out / f"rank{rank}").write_text(json.dumps([scale.host, scale.device, weights, moments]))


def watches(out: Path, root: Path, strategy: str, rank: int) -> None:
    watch, told = GradientNormWatch(every_n_steps=1, per_layer=True), ""
    try:
        trainer, _ = fit(root, 3, watch, strategy=strategy)
    except ConfigurationError as error:
        told = str(error)
    norms = {} if told else {name: value for name, value in trainer.callback_metrics.items() if "grad_norm" in name}
    (out / f"rank{rank}").write_text(json.dumps([told, norms]))


def both(out: Path, work: Any) -> list[Any]:
    out.mkdir(parents=True)
    job(out, 2, partial(work, out), SECONDS)
    return [json.loads((out / f"rank{rank}").read_text()) for rank in range(2)]


def goes_on_from_a_loop(out: Path, root: Path, strategy: str, rank: int) -> None:
    """Weights and moments of a loop by hand, which each rank has made alike, are taken over into a fit."""
    given, data = Net(16, 2), paddle.to_tensor(np.random.RandomState(3).randn(4, 8).astype("float32"))
    optimizer = given.configure_optimizers()
    for _ in range(3):
        given.net(data).pow(2).mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    place = root / f"rank{rank}"
    paddle.save(given.state_dict(), str(place / "given.pdparams"))
    paddle.save(optimizer.state_dict(), str(place / "given.pdopt"))
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=3,
        strategy=Strategy(strategy, segment_size=100),
        default_root_dir=root,
        seed=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[ModelCheckpoint(every_n_train_steps=1)],
    )
    module = Net(16, 2)
    init = InitFrom(place / "given", training_state=True)
    trainer.fit(module, paddle.io.DataLoader(Numbers(), batch_size=4), init_from=init)
    digest = hashlib.sha256(b"".join(one.numpy().tobytes() for one in module.state_dict().values()))
    (out / f"rank{rank}").write_text(json.dumps([digest.hexdigest(), trainer.global_step]))


def saved(root: Path) -> dict[str, str]:
    """{checkpoint: its weights' and its optimizer's digest, every file of it verified}."""
    found = {}
    for path in sorted((root / "version_0/checkpoints").iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            opened = open_checkpoint(path)
            files = [opened.tensors(file) for file in sorted(opened.files) if file.endswith((".pdparams", ".pdopt"))]
            arrays = [tensors[name] for tensors in files for name in sorted(tensors)]
            found[path.name] = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    return found


def kept_cut(root: Path) -> dict[str, Any]:
    """Checkpoints of slices: the same as whole ones, gone on from under any strategy, one killed in its midst."""

    def run(name: str, place: Path, max_steps: int, strategy: str, dying: int | None = None) -> list[Any]:
        return both(root / "jobs" / name, lambda out, rank: trains(out, place, max_steps, None, dying, strategy, rank))

    def weights(name: str, place: Path, max_steps: int, strategy: str) -> list[Any]:
        return both(root / "jobs" / name, lambda out, rank: learned(out, place, max_steps, strategy, rank))

    found: dict[str, Any] = {"whole": run("gathered", root / "gathered", STEPS, "sharding_stage3")}
    found["saved whole"] = saved(root / "gathered")
    found["cut"] = run("cut", root / "cut", STEPS, KEPT_CUT)
    found["saved cut"] = saved(root / "cut")
    newest = (root / "cut/version_0/latest").resolve()
    found["files"] = sorted(path.name for path in newest.iterdir() if path.name.startswith("model"))
    try:
        run("cut, killed", root / "cut killed", STEPS, KEPT_CUT, dying=1)
    except RuntimeError as error:
        found["dies"] = str(error)
    found["saved before the kill"] = saved(root / "cut killed")
    found["again"] = run("cut, again", root / "cut killed", STEPS, KEPT_CUT)
    found["saved again"] = saved(root / "cut killed")
    for strategy in ("ddp", "sharding_stage2", "sharding_stage3"):
        found[f"from a loop, {strategy}"] = both(
            root / "jobs" / f"loop {strategy}",
            lambda out, rank: goes_on_from_a_loop(out, root / f"loop {strategy}", strategy, rank),  # noqa: B023
        )
    found["weights"] = weights("weights", root / "weights", STEPS, KEPT_CUT)
    for one, other in (
        ("ddp", KEPT_CUT),
        (KEPT_CUT, "ddp"),
        (KEPT_CUT, "sharding_stage2"),
        ("sharding_stage3", KEPT_CUT),
    ):
        place = root / f"{one} to {other}"
        weights(f"{place.name}, first", place, CUT, one)
        found[place.name] = weights(f"{place.name}, then", place, STEPS, other)
    return found


def main(root: Path) -> None:
    def run(name: str, place: Path, max_steps: int, remote: Path | None = None, dying: int | None = None) -> list[Any]:
        strategy = "sharding_stage2"
        return both(
            root / "jobs" / name, lambda out, rank: trains(out, place, max_steps, remote, dying, strategy, rank)
        )

    if sys.argv[2:] == ["kept cut"]:
        (root / "found.json").write_text(json.dumps(kept_cut(root)))
        return
    found: dict[str, Any] = {"whole": run("whole", root / "whole", STEPS), "saved": saved(root / "whole")}
    remote = root / "remote"
    run("before the machine is lost", root / "lost", CUT, remote)
    shutil.rmtree(root / "lost")
    found["from the remote"] = run("on an empty machine", root / "empty", STEPS, remote)
    found["saved from the remote"] = saved(root / "empty")
    for rank in (0, 1):
        place = root / f"killed {rank}"
        try:
            run(f"killed {rank}", place, STEPS, dying=rank)
        except RuntimeError as error:
            found[f"rank {rank} dies"] = str(error)
        found[f"after the kill of rank {rank}"] = saved(place)
        found[f"latest after the kill of rank {rank}"] = (place / "version_0/latest").resolve().name
        found[f"again after rank {rank}"] = run(f"again {rank}", place, STEPS)
        found[f"saved again after rank {rank}"] = saved(place)
    for strategy in ("ddp", "sharding_stage2", "sharding_stage3", KEPT_CUT):
        found[f"weight of {strategy}"] = both(
            root / "jobs" / strategy,
            lambda out, rank: weighs(out, root / strategy, strategy, rank),  # noqa: B023
        )
        place = root / f"norms of {strategy}"
        found[place.name] = both(root / "jobs" / place.name, lambda out, rank: watches(out, place, strategy, rank))  # noqa: B023
    (root / "found.json").write_text(json.dumps(found))


main(Path(sys.argv[1]))
