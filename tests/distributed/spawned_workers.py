"""What each of two ranks runs: the same fit with no workers, forked ones and spawned ones; and the weights of each.

python -m paddle.distributed.launch --nproc_per_node 2 spawned_workers.py OUT
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Module, Trainer

WAYS: dict[str, tuple[int, str]] = {"here": (0, "auto"), "fork": (2, "fork"), "spawn": (2, "spawn")}


class Noisy(paddle.io.Dataset):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        x = np.random.RandomState(index).normal(size=4) + np.random.normal(0, 0.1, 4)
        return x.astype("float32"), x.sum(keepdims=True).astype("float32")


class Line(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return ((self.net(batch[0]) - batch[1]) ** 2).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.Adam(0.05, parameters=self.parameters())


def fit(way: str, out: Path, **settings: Any) -> str:
    workers, context = WAYS[way]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        seed=1, multiprocessing_context=context, default_root_dir=out / "runs", run_name=way, **quiet, **settings
    )
    module = Line()
    loader = paddle.io.DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers)
    trainer.fit(module, loader, ckpt_path="last")
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in module.parameters())).hexdigest()


def main(out: Path) -> None:
    found = {}
    for way in WAYS:
        fit(way, out, max_steps=8)  # six batches an epoch on each rank: two into the second
        found[way] = fit(way, out, max_epochs=3)
    rank = paddle.distributed.get_rank()
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
