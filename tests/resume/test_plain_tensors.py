"""A Tensor that is neither parameter nor buffer: what training changes of it is in the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.checkpoint import open_checkpoint


class Keeps(Classifier):
    """Has Tensors of its own, and its loss depends on one that `change` says how to change."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.scale = paddle.ones([1])
        self.table = paddle.arange(4)
        self.net.inner = paddle.ones([2])
        if change == "not persistable":
            self.register_buffer("scale", paddle.ones([1]), persistable=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.change in ("replaced", "not persistable"):
            self.scale = self.scale * 0.5
        elif self.change == "attached":
            self.scale = (self.scale * loss.reshape([1])).detach() * 1.0
        elif self.change == "in place":
            self.scale.scale_(0.5)
        elif self.change == "of a layer within":
            self.net.inner = self.net.inner * 0.5
        elif self.change == "another shape":
            self.scale = paddle.concat([self.scale, paddle.ones([1])])
        return loss * self.scale.sum() * self.net.inner.mean()


CHANGES = ["replaced", "not persistable", "attached", "in place", "of a layer within", "another shape"]


class FailsBeforeBatch(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("planned")


class FailsBeforeStep(Callback):
    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("planned")


def trainer_in(root: Path, *callbacks: Callback) -> Trainer:
    return quiet_trainer(
        default_root_dir=root, run_name="run", enable_checkpointing=True, max_epochs=2, callbacks=[*callbacks]
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fails", [FailsBeforeBatch, FailsBeforeStep])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, change: str, fails: Any) -> None:
    undisturbed = Keeps(change)
    trainer_in(tmp_path / "a").fit(undisturbed, make_batches(3))
    saves = (
        ModelCheckpoint(every_n_train_steps=1) if fails is FailsBeforeBatch else ModelCheckpoint(save_on_exception=True)
    )
    with pytest.raises(RuntimeError, match="planned"):
        trainer_in(tmp_path / "b", saves, fails()).fit(Keeps(change), make_batches(3))
    resumed = Keeps(change)
    trainer = trainer_in(tmp_path / "b")
    trainer.fit(resumed, make_batches(3), ckpt_path="last")
    assert same_weights(weights_of(undisturbed), weights_of(resumed))
    for mine, other in ((resumed.scale, undisturbed.scale), (resumed.net.inner, undisturbed.net.inner)):
        assert np.array_equal(mine.numpy(), other.numpy())


def test_what_stays_as_it_is_made_is_not_stored(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    trainer.fit(Keeps("replaced"), make_batches(2))
    assert list(open_checkpoint(tmp_path / "run/latest").state("rng-rank00000.json")["plain_tensors"]) == ["scale"]
