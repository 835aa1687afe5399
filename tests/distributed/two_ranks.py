"""What each of two ranks runs: a fit with BatchNorm and dropout, and a record of how it ended.

python -m paddle.distributed.launch --nproc_per_node 2 two_ranks.py ROOT OUT MAX_STEPS
    [fail-hook | fail-rank-1 | plateau | set-window | remote=URL]
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy
from paddlelite_trainer.machine.rng import random_states


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        numbers = np.random.RandomState(index)
        return numbers.randn(4).astype("float32") + np.random.randn() * 0.01, np.int64(index % 3), np.int64(index)


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(4, 8), paddle.nn.BatchNorm1D(8), paddle.nn.Dropout(0.2), paddle.nn.Linear(8, 3)
        )
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, index = batch
        self.seen += index.tolist()
        if "fail-rank-1" in sys.argv and self.global_rank == 1 and self.global_step == 2:
            raise RuntimeError("rank 1 fails")
        loss = paddle.nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", paddle.nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        if "plateau" in sys.argv:  # each rank's loss is another
            schedule = paddle.optimizer.lr.ReduceOnPlateau(0.01, patience=1)
            optimizer = paddle.optimizer.AdamW(schedule, parameters=self.parameters())
            config = {"scheduler": schedule, "interval": "step", "monitor": "train_loss"}
            return {"optimizer": optimizer, "lr_scheduler": config}
        return paddle.optimizer.AdamW(0.01, parameters=self.parameters())


class FailsInItsHook(Callback):
    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        raise ValueError("the hook fails")


class SetsTheWindow(Callback):
    """From 2 to 3 within the first epoch."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and trainer.current_epoch == 0:
            trainer.accumulate_grad_batches = 3


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


root, out, max_steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
paddle.seed(11)
module = Net()
callbacks: list[Callback] = [ModelCheckpoint(every_n_train_steps=1, monitor="val_loss")]
if "fail-hook" in sys.argv:
    callbacks.append(FailsInItsHook())
if "set-window" in sys.argv:
    callbacks.append(SetsTheWindow())
callbacks += [RemoteCopy(flag.partition("=")[2]) for flag in sys.argv if flag.startswith("remote=")]
trainer = Trainer(
    max_epochs=3,
    max_steps=max_steps,
    default_root_dir=root,
    callbacks=callbacks,
    accumulate_grad_batches=2,
    seed=5,
    enable_progress_bar=False,
)
loader = paddle.io.DataLoader(Numbers(), batch_size=4, shuffle=True)
trainer.fit(module, loader, paddle.io.DataLoader(Numbers(), batch_size=7), ckpt_path="last")
optimizer = trainer.optimizers[0]
moments = [tensor.numpy() for by_name in optimizer._accumulators.values() for tensor in by_name.values()]
(out / f"rank{trainer.global_rank}.json").write_text(
    json.dumps(
        {
            "learned": digest(*(parameter.numpy() for parameter in module.parameters() if not parameter.stop_gradient)),
            "everything": digest(*(tensor.numpy() for tensor in module.state_dict().values()), *moments),
            "random": digest(np.frombuffer(repr(random_states()).encode(), np.uint8)),
            "history": trainer.history,
            "seen": module.seen,
            "step": trainer.global_step,
            "learning_rate": float(optimizer.get_lr()),
        }
    )
)
