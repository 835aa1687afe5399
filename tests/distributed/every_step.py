"""What each rank runs: one undisturbed run, and a run that goes on from each of its steps; which end with other bits.

forked.launch(Path("every_step.py"), ROOT, STRATEGY, PRECISION, log_dir=..., ranks=2)           on the CPU; and on
simulated devices with environment=fake_gpu.environment(). "sharding_stage3:cut" is it with keep_cut.

Rank 0 prints `<strategy> <ranks> <precision> <device> <steps tried> <steps identical> <what it was in the end>`.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.nn import functional as F

from paddlelite_trainer import Module, Strategy, Trainer
from paddlelite_trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint
from paddlelite_trainer.checkpoint import open_checkpoint

STEPS, EPOCH = 9, 4  # in all, in an epoch on each rank


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return EPOCH * 4 * int(dist.get_world_size())

    def __getitem__(self, index: int) -> Any:
        return np.random.RandomState(index).randn(4).astype("float32"), np.int64(index % 3)


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        paddle.seed(11)
        self.net = paddle.nn.Sequential(
            paddle.nn.Linear(4, 16), paddle.nn.BatchNorm1D(16), paddle.nn.Dropout(0.2), paddle.nn.Linear(16, 3)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        rate = paddle.optimizer.lr.CosineAnnealingDecay(0.01, 20)
        return paddle.optimizer.AdamW(rate, parameters=self.parameters())


def fit(root: Path, strategy: str, precision: str, ckpt_path: Any) -> tuple[Any, ...]:
    """Everything that the run ended with."""
    name, _, cut = strategy.partition(":")
    trainer = Trainer(
        max_steps=STEPS,
        strategy=Strategy(name, segment_size=20, keep_cut=bool(cut)),
        precision=precision,
        gradient_clip_val=0.5,
        default_root_dir=root,
        callbacks=[
            ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, monitor="step"),
            ExponentialMovingAverage(0.9),
        ],
        seed=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
    )
    module = Net()
    loader = paddle.io.DataLoader(Numbers(), batch_size=4, shuffle=True)
    trainer.fit(module, loader, paddle.io.DataLoader(Numbers(), batch_size=7), ckpt_path=ckpt_path)
    saved = open_checkpoint(Path(trainer.run_dir, "latest"))
    arrays = [one.numpy() for one in module.state_dict().values()]
    for file in ("optimizer.pdopt", "ema.pdparams"):
        arrays += [array for _, array in sorted(saved.tensors(file).items())]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()
    return digest, repr(trainer.history), trainer.precision.effective, str(trainer.strategy)


def all_come() -> None:
    if dist.get_world_size() > 1:
        dist.all_gather_object([], None)


def main(root: Path, strategy: str, precision: str) -> None:
    if precision.startswith("bf16"):  # Paddle 3 knows by name which devices can
        amp = sys.modules[paddle.amp.auto_cast.__module__]
        vars(amp)["_is_custom_device_bfloat16_supported"] = lambda: True
    whole = fit(root / "whole", strategy, precision, None)
    names = sorted(path.name for path in (root / "whole/version_0/checkpoints").glob("step-*"))
    same = tried = 0
    for name in names:
        place = root / name
        if dist.get_rank() == 0:
            shutil.copytree(root / "whole", place, symlinks=True)
        all_come()  # until it is there
        resumed = fit(place, strategy, precision, place / "version_0/checkpoints" / name)
        tried, same = tried + 1, same + (resumed == whole)
        all_come()  # until all have read it
        if dist.get_rank() == 0:
            shutil.rmtree(place)
    if dist.get_rank() == 0:
        device = paddle.device.get_device().partition(":")[0]
        print("EVERY STEP", strategy, dist.get_world_size(), precision, device, tried, same, *whole[2:], flush=True)


main(Path(sys.argv[1]), *sys.argv[2:])
