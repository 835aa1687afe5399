"""What each process of two nodes runs: a fit that goes on with its run, and what it knew of its place.

python -m paddle.distributed.launch --master HOST:PORT --nnodes 2 --rank N --nproc_per_node 1 two_nodes.py ROOT [WORD]
WORD: "wait" holds the job within its second epoch
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import paddle

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint

ROOT, WORDS = Path(sys.argv[1]), sys.argv[2:]
HOLDS_AT = 5  # steps, of 9


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        paddle.seed(3)
        self.net = paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.Dropout(0.2), paddle.nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if "wait" in WORDS and self.global_step >= HOLDS_AT:
            (ROOT / f"holds{self.global_rank}.new").write_text(str(os.getpid()))
            (ROOT / f"holds{self.global_rank}.new").replace(ROOT / f"holds{self.global_rank}")
            time.sleep(600)
        return self.net(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


trainer = Trainer(
    max_epochs=3,
    callbacks=[ModelCheckpoint(every_n_train_steps=1)],
    default_root_dir=ROOT,
    run_name="run",
    num_nodes=2,
    seed=1,
    enable_progress_bar=False,
    enable_model_summary=False,
)
numbers = [paddle.full([4, 4], float(index)) / 7 for index in range(6)]
module = Net()
trainer.fit(module, numbers, ckpt_path="last")
state = b"".join(parameter.numpy().tobytes() for parameter in module.parameters())
(ROOT / f"rank{trainer.global_rank}.json").write_text(
    json.dumps(
        {
            "weights": hashlib.sha256(state).hexdigest(),
            "step": trainer.global_step,
            "place": [trainer.num_nodes, trainer.node_rank, trainer.local_rank, trainer.world_size],
        }
    )
)
