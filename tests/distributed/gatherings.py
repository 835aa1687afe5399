"""What two ranks gather, and what one of them does alone; each in a job of its own.

python gatherings.py ROOT; ROOT/found.json has what each rank found, or how the job ended
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from forked import job

from paddlelite_trainer import Callback, Module, Trainer

DATA = np.random.RandomState(3).randn(16, 4).astype("float32")


class Gathers(Callback):
    def __init__(self, case: str) -> None:
        self.case, self.found = case, None

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        rank = trainer.global_rank
        if self.case == "a tag on rank 1 alone":
            if rank == 1:
                trainer.save_checkpoint("mine")
            return
        gathered = module.all_gather(given(self.case, rank))
        self.found = paddle.utils.map_structure(lambda one: one.tolist(), gathered)


def given(case: str, rank: int) -> Any:
    long = {f"a long name {number}": rank for number in range(9)}
    return {
        "turned, a column, nothing": [
            (paddle.arange(4).reshape([2, 2]) + rank).T,
            (paddle.arange(4).reshape([2, 2]) + rank)[:, 1],
            paddle.zeros([0, 3]),
        ],
        "arrays": [np.full(2, rank, "int32"), np.float64(rank), rank, rank + 0.5],
        "other lengths": [paddle.zeros([2 + rank])],
        "other types": [paddle.zeros([2], "int64" if rank else "float32")],
        "other names": {f"of {rank}": paddle.zeros([2])},
        "another at a long dict's end": {**long, "last": rank or 0.5},
    }[case]


def fit(out: Path, case: str, rank: int) -> None:
    module = Module.of(paddle.nn.Linear(4, 2), loss="mse", optimizer="sgd", learning_rate=0.1)
    trainer = Trainer(max_epochs=1, callbacks=[Gathers(case)], default_root_dir=out, enable_progress_bar=False)
    trainer.fit(module, (DATA, DATA[:, :2]), batch_size=8)
    (out / f"rank{rank}").write_text(json.dumps(trainer.callbacks[0].found))


def main(root: Path) -> None:
    found: dict[str, Any] = {}
    cases = ["turned, a column, nothing", "arrays", "other lengths", "other types", "other names"]
    for case in [*cases, "another at a long dict's end", "a tag on rank 1 alone"]:
        out = root / case
        out.mkdir()
        try:
            job(out, 2, lambda rank: fit(out, case, rank), 60)  # noqa: B023
            found[case] = [json.loads((out / f"rank{rank}").read_text()) for rank in range(2)]
        except RuntimeError as error:
            found[case] = str(error)
    (root / "found.json").write_text(json.dumps(found))


main(Path(sys.argv[1]))
