"""Manual optimization: a step of the optimizer that the user has kept counts as one of self.optimizers()."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback
from paddlelite_trainer.callbacks import ModelCheckpoint


class Raw(Classifier):
    def __init__(self, way: str = "raw") -> None:
        super().__init__()
        self.automatic_optimization = False
        self.way = way
        self.steps = 0

    def configure_optimizers(self) -> Any:
        self.own = paddle.optimizer.Adam(0.05, parameters=self.parameters())
        return self.own

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        assert self.steps <= 50, "nobody ends this run"
        loss = self.loss(batch)
        optimizer = self.own if self.way != "wrapped" else self.optimizers()
        loss.backward()
        if self.way == "minimize":
            optimizer.minimize(loss)  # takes the gradients that are there
        else:
            optimizer.step()
        optimizer.clear_grad()


def test_they_count_for_max_steps() -> None:
    module = Raw()
    trainer = quiet_trainer(max_epochs=-1, max_steps=5)
    trainer.fit(module, make_batches(3))
    assert (module.steps, trainer.global_step) == (5, 5)


def test_they_train_as_those_of_self_optimizers_do_and_call_the_same_hooks() -> None:
    seen: list[str] = []

    class Hears(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            seen.append(type(optimizer).__name__)

    ends = []
    for way in ("raw", "minimize", "wrapped"):
        module = Raw(way)
        quiet_trainer(max_epochs=2, callbacks=[Hears()]).fit(module, make_batches(3))
        ends.append(weights_of(module))
    assert same_weights(ends[0], ends[2]) and same_weights(ends[1], ends[2])
    assert seen == ["Adam"] * 18


def test_checkpoints_come_by_them_and_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("planned")

    undisturbed = Raw()
    quiet_trainer(max_epochs=2).fit(undisturbed, make_batches(3))
    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path, "run_name": "run", "max_epochs": 2}
    with pytest.raises(RuntimeError, match="planned"):
        quiet_trainer(callbacks=[Fails(), ModelCheckpoint(every_n_train_steps=1)], **settings).fit(
            Raw(), make_batches(3)
        )
    resumed = Raw()
    trainer = quiet_trainer(**settings)
    trainer.fit(resumed, make_batches(3), ckpt_path="last")
    assert trainer.global_step == 6
    assert resumed.steps == 2
    assert same_weights(weights_of(undisturbed), weights_of(resumed))


def test_the_optimizer_is_the_user_s_again_after_fit() -> None:
    module = Raw()
    trainer = quiet_trainer()
    trainer.fit(module, make_batches(3))
    assert "step" not in vars(module.own)
    module.loss(make_batches(1)[0]).backward()
    module.own.step()
    assert trainer.global_step == 3
