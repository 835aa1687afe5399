"""What each rank runs: fits whose epochs end within an accumulation window, and the weights that they end with.

python open_windows.py OUT BATCH_SIZE, alone or under python -m paddle.distributed.launch --nproc_per_node 2
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from paddlelite_trainer import Callback, Module, Trainer

SAMPLES = 40  # 5 batches of an epoch, which windows of 2 or 3 do not divide


def sample(index: int) -> Any:
    return np.random.RandomState(index).randn(4).astype("float32")


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return sample(index)


class Stream(paddle.io.IterableDataset):  # type: ignore[misc]
    """Without a length; each rank reads its own share."""

    def __iter__(self) -> Iterator[Any]:
        return map(sample, range(dist.get_rank(), SAMPLES, dist.get_world_size()))


class Net(Module):
    """`used_in` are the batches whose loss uses the second layer; None: all, (): all of rank 1 alone."""

    def __init__(self, used_in: tuple[int, ...] | None) -> None:
        super().__init__()
        paddle.seed(3)
        self.first, self.second, self.used_in = paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 4), used_in
        self.never = paddle.nn.Linear(2, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = self.first(batch)
        if self.used_in is None or batch_idx in self.used_in or (self.used_in == () and self.global_rank == 1):
            x = self.second(x)
        return (x - 1).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Momentum(0.1, parameters=self.parameters(), weight_decay=0.1)


class EndsEpoch(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> int:
        return -1 if batch_idx == self.at else 0


def fit(data: Any, batch_size: int, used_in: tuple[int, ...] | None = None, **settings: Any) -> dict[str, Any]:
    for part in ("progress_bar", "model_summary", "checkpointing"):
        settings[f"enable_{part}"] = False
    trainer = Trainer(max_epochs=2, accelerator="cpu", seed=5, logger=False, **settings)
    module = Net(used_in)
    trainer.fit(module, paddle.io.DataLoader(data, batch_size=batch_size))
    values = [value for parameter in module.parameters() for value in parameter.numpy().reshape(-1).tolist()]
    return {"values": values, "steps": trainer.global_step}


def main(out: Path, batch_size: int) -> None:
    two, three = {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 3}
    found = {
        "a hook ends it": fit(Numbers(), batch_size, callbacks=[EndsEpoch(3)], **two),
        "a hook ends it, clipped": fit(Numbers(), batch_size, callbacks=[EndsEpoch(4)], gradient_clip_val=0.5, **three),
        "data without a length": fit(Stream(), batch_size, **three),
        "a limit": fit(Numbers(), batch_size, limit_train_batches=4, **three),
        "used before the last of a window": fit(Numbers(), batch_size, (0, 3), **two),
        "used before a hook ends it": fit(Numbers(), batch_size, (2,), callbacks=[EndsEpoch(4)], **three),
        "used on one rank": fit(Numbers(), batch_size, (), callbacks=[EndsEpoch(4)], **three),
    }
    (out / f"rank{dist.get_rank()}-of-{dist.get_world_size()}.json").write_text(json.dumps(found))


main(Path(sys.argv[1]), int(sys.argv[2]))
