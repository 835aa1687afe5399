"""What each of several ranks runs on fake accelerators: collectives, and fits of the Trainer that are cut and resumed.

fake_gpu.launch(Path("several_devices.py"), ROOT, log_dir=..., ranks=2); each rank writes ROOT/rank<N>.json
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

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint

BATCHES, STEPS, ACCUMULATE = 8, 8, 2  # of an epoch on each rank, of a run


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return BATCHES * dist.get_world_size() * 4

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(4).astype("float32"), np.int64(index % 3)


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        paddle.seed(11)
        self.net = paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.Dropout(0.2), paddle.nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


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


def fit(root: Path, max_steps: int, precision: str) -> dict[str, Any]:
    counter = Counter()
    trainer = Trainer(
        max_steps=max_steps,
        precision=precision,
        accumulate_grad_batches=ACCUMULATE,
        default_root_dir=root,
        callbacks=[counter, ModelCheckpoint(every_n_train_steps=1)],
        seed=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    module = Net()
    trainer.fit(module, paddle.io.DataLoader(Numbers(), batch_size=4, shuffle=True), ckpt_path="last")
    moments = [moment for by_name in trainer.optimizers[0]._accumulators.values() for moment in by_name.values()]
    return {
        "digest": digest([*module.parameters(), *moments]),
        "history": trainer.history,
        "of_batches": counter.of_batches,
        "strategy": getattr(trainer, "strategy", None),
    }


def main(root: Path) -> None:
    dist.init_parallel_env()
    found: dict[str, Any] = {"collectives": collectives()}
    for precision in ("32-true", "16-mixed"):
        found[precision] = {"whole": fit(root / precision / "whole", STEPS, precision)}
        fit(root / precision / "halved", STEPS // 2 + 1, precision)  # within the second epoch
        found[precision]["resumed"] = fit(root / precision / "halved", STEPS, precision)
    found["parameters"] = sum(int(parameter.size) for parameter in Net().parameters())
    (root / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))


main(Path(sys.argv[1]))
