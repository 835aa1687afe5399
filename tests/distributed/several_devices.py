"""What each of several ranks runs on fake accelerators: collectives, and fits of the Trainer that are cut and resumed.

forked.launch(Path("several_devices.py"), ROOT, "ddp", ..., log_dir=..., environment=fake_gpu.environment());
each rank writes ROOT/rank<N>.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import paddle
import paddle.distributed as dist
from paddle.nn import functional as F

from paddlelite_trainer import Callback, Module, Strategy, Trainer
from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint, StochasticWeightAveraging
from paddlelite_trainer.checkpoint import open_checkpoint
from paddlelite_trainer.errors import TrainerError

BATCHES, STEPS = 8, 6  # of an epoch on each rank, of a run


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return BATCHES * dist.get_world_size() * 4

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(4).astype("float32"), np.int64(index % 3)


class Net(Module):
    """Tied, frozen and, where it is asked for, unused parameters beside a BatchNorm and dropout."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        paddle.seed(11)
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(4, 8), paddle.nn.BatchNorm1D(8), paddle.nn.Dropout(0.2), paddle.nn.Linear(8, 3)
        )
        self.frozen = paddle.nn.Linear(4, 4)
        self.frozen.weight.stop_gradient = True
        self.tied = paddle.nn.Linear(4, 4)
        self.tied.weight = self.net_in = paddle.nn.Linear(4, 4).weight
        self.unused = paddle.nn.Linear(5, 5) if unused else None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        x = self.frozen(self.tied(x)) + x @ self.net_in
        if self.unused is not None and (self.global_rank + batch_idx) % 3 == 0:  # another batch on each rank, or none
            x = x + self.unused.bias.sum() if batch_idx > 3 else x
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        rate = paddle.optimizer.lr.CosineAnnealingDecay(0.01, 20)
        groups = [
            {"params": self.net.parameters()},
            {"params": [*self.frozen.parameters(), *self.tied.parameters()], "learning_rate": 0.5},
        ]
        if self.unused is not None:
            groups.append({"params": self.unused.parameters(), "weight_decay": 0.1})
        return paddle.optimizer.AdamW(rate, parameters=groups)


class Counter(Callback):
    """Collectives and bytes of each batch, by the fake accelerator's own counters."""

    def __init__(self) -> None:
        self.of_batches: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.before = fake_gpu.collectives(), fake_gpu.bytes_sent()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        calls, sent = self.before
        self.of_batches.append((fake_gpu.collectives() - calls, fake_gpu.bytes_sent() - sent))


def digest(tensors: Any) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def collectives() -> dict[str, Any]:
    rank, world = dist.get_rank(), dist.get_world_size()
    before = fake_gpu.collectives(), fake_gpu.bytes_sent()
    total = paddle.full([300_000], rank + 1, "float32")  # more than a piece of shared memory
    dist.all_reduce(total)
    half = paddle.full([5], 0.1 * (rank + 1), "float16")
    dist.all_reduce(half)
    counted = fake_gpu.collectives() - before[0], fake_gpu.bytes_sent() - before[1]
    gathered: list[Any] = []
    dist.all_gather(gathered, paddle.to_tensor([rank]))
    told = paddle.to_tensor([10 * rank])
    dist.broadcast(told, world - 1)
    scattered = paddle.zeros([2])
    dist.reduce_scatter(scattered, [paddle.full([2], float(target + rank)) for target in range(world)])
    objects: list[Any] = []
    dist.all_gather_object(objects, {"rank": rank})
    if rank == 0:
        dist.send(paddle.arange(400_000).astype("float32"), 1)
    elif rank == 1:
        received = paddle.zeros([400_000])
        dist.recv(received, 0)
        assert float(received[-1].item()) == 399_999
    return {
        "sum": sorted({float(value) for value in total.numpy()}),
        "half": float(half.astype("float32").numpy()[0]),
        "counted": counted,
        "gathered": [int(one.numpy()[0]) for one in gathered],
        "told": int(told.numpy()[0]),
        "scattered": scattered.numpy().tolist(),
        "objects": objects,
        "device": paddle.device.get_device(),
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated and clipped": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "16-mixed": {"precision": "16-mixed", "gradient_clip_val": 0.1},
    "averaged": {"averages": "ema"},
    "averaged in the end": {"averages": "swa", "limit_train_batches": 2},
    "unused": {"unused": True, "find_unused_parameters": True, "gradient_clip_val": 0.1},
}

AVERAGED = ["averaged", "averaged in the end"]
# Stage 1 Paddle does as stage 2; stage 3 cuts the weights, and rounds a norm over slices in another order.
ONLY = {"sharding_stage1": ["plain"], "sharding_stage3": ["plain", "accumulated and clipped", "16-mixed", *AVERAGED]}


def fit(root: Path, max_steps: int, *, unused: bool = False, averages: str = "", **settings: Any) -> dict[str, Any]:
    counter = Counter()
    callbacks: list[Callback] = [counter, ModelCheckpoint(every_n_train_steps=2)]
    callbacks += [ExponentialMovingAverage(0.9)] if averages == "ema" else []
    callbacks += [StochasticWeightAveraging(0.02, 1, evaluate_with_average=True)] if averages == "swa" else []
    trainer = Trainer(
        max_steps=max_steps,
        default_root_dir=root,
        callbacks=callbacks,
        seed=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        **settings,
    )
    module = Net(unused)
    loader = paddle.io.DataLoader(Numbers(), batch_size=4, shuffle=True)
    trainer.fit(module, loader, paddle.io.DataLoader(Numbers(), batch_size=4), ckpt_path="last")
    moments = [moment for by_name in trainer.optimizers[0]._accumulators.values() for moment in by_name.values()]
    newest = Path(trainer.run_dir, "latest")
    saved = open_checkpoint(newest).tensors("optimizer.pdopt")
    if averages != "swa":  # whose averages are the module's weights now, with which no run goes on
        trainer.save_checkpoint("afterwards", replace=True)
    afterwards = open_checkpoint(Path(trainer.run_dir, "afterwards" if averages != "swa" else "latest"))
    assert all(np.array_equal(array, saved[name]) for name, array in afterwards.tensors("optimizer.pdopt").items())
    kept = afterwards.tensors(f"{averages}.pdparams") if averages else {}
    learned = [parameter for parameter in module.parameters() if not parameter.stop_gradient]
    return {
        "learned": digest(learned),
        "everything": digest([*module.state_dict().values(), *moments]),
        "moments": sum(int(moment.size) for moment in moments),
        "saved": hashlib.sha256(b"".join(saved[name].tobytes() for name in sorted(saved))).hexdigest(),
        "averages": hashlib.sha256(b"".join(kept[name].tobytes() for name in sorted(kept))).hexdigest(),
        "files": sorted(path.name for path in newest.iterdir()),
        "model": digest(paddle.load(f"{newest}.pdparams").values()),
        "skipped": trainer.precision.state_dict().get("skipped_steps"),
        "norm": None if trainer.gradient_norm is None else float(trainer.gradient_norm.item()),
        "learned values": [value for parameter in learned for value in parameter.numpy().reshape(-1).tolist()],
        "weights": digest(module.state_dict().values()),
        "history": trainer.history,
        "of_batches": counter.of_batches,
        "strategy": str(trainer.strategy),
    }


def changes_of_shape(root: Path) -> dict[str, Any]:
    """A run that goes on under another strategy than it began with."""
    found = {}
    for number, (one, other) in enumerate([("ddp", "sharding_stage3"), ("sharding_stage3", "os_g"), ("os_g", "ddp")]):
        place = root / f"change {number}"
        fit(place, STEPS // 2, strategy=Strategy(one, segment_size=20) if one == "sharding_stage3" else one)
        other_one = Strategy(other, segment_size=20) if other == "sharding_stage3" else other
        found[f"{one} to {other}"] = fit(place, STEPS, strategy=other_one)
    return found


def refused(root: Path, strategy: str, **settings: Any) -> str:
    try:
        fit(root, 2, strategy=strategy, **settings)
    except TrainerError as error:
        return str(error)
    return "nothing was refused"


def main(root: Path, *strategies: str) -> None:
    dist.init_parallel_env()
    found: dict[str, Any] = {"collectives": collectives()}
    for name, settings in VARIANTS.items():
        for strategy in strategies:
            if name not in ONLY.get(strategy, VARIANTS):
                continue
            place, asked = root / name / strategy, {**settings, "strategy": Strategy(strategy, segment_size=20)}
            whole = fit(place / "whole", STEPS, **asked)
            fit(place / "halved", STEPS // 2 + 1, **asked)
            resumed = fit(place / "halved", STEPS, **asked)
            found[f"{name}, {strategy}"] = {"whole": whole, "resumed": resumed}
    if "sharding_stage3" in strategies:
        found["refused by 3"] = refused(root / "refused", "sharding_stage3", unused=True)
        found["shapes"] = changes_of_shape(root)
    found["refused"] = refused(root / "refused", "sharding_stage2", unused=True)
    found["parameters"] = sum(int(one.size) for one in Net().parameters() if not one.stop_gradient)
    (root / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))


main(Path(sys.argv[1]), *sys.argv[2:])
