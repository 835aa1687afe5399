"""What each rank runs: two optimizers in manual optimization, and the weights that they end with.

python manual_steps.py OUT BATCH_SIZE, alone or under python -m paddle.distributed.launch --nproc_per_node 2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Module, Trainer


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(4).astype("float32")


class Adversaries(Module):
    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        paddle.seed(3)
        self.maker, self.judge = paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        maker, judge = self.optimizers()
        self.toggle_optimizer(judge)
        loss = (self.judge(self.maker(batch).detach()) - self.judge(batch)).mean() + self.judge(batch).pow(2).mean()
        self.learn(loss, judge)
        self.toggle_optimizer(maker)
        self.learn(self.maker(batch).pow(2).mean() - self.judge(self.maker(batch)).mean(), maker)

    def learn(self, loss: Any, optimizer: Any) -> None:
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 0.5, "norm")
        optimizer.step()
        optimizer.clear_grad()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        layers = (self.maker, self.judge)
        return [paddle.optimizer.Momentum(0.1, parameters=layer.parameters()) for layer in layers]


trainer = Trainer(
    max_epochs=2,
    accelerator="cpu",
    seed=5,
    enable_progress_bar=False,
    enable_model_summary=False,
    logger=False,
    enable_checkpointing=False,
)
module = Adversaries()
trainer.fit(module, paddle.io.DataLoader(Numbers(), batch_size=int(sys.argv[2]), shuffle=False))
values = [value for parameter in module.parameters() for value in parameter.numpy().reshape(-1).tolist()]
found = {"values": values, "steps": trainer.global_step}
Path(sys.argv[1], f"rank{trainer.global_rank}-of-{trainer.world_size}.json").write_text(json.dumps(found))
