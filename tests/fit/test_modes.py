"""Modes: a layer that the user has put into eval mode stays there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback
from paddlelite_trainer.callbacks import ModelCheckpoint


class WithNorm(Classifier):
    """A classifier behind a BatchNorm; `frozen_from` is the epoch from which that is in eval mode."""

    def __init__(self, frozen_from: int | None = None) -> None:
        super().__init__()
        self.norm = paddle.nn.BatchNorm1D(4)
        self.frozen_from = frozen_from
        if frozen_from == 0:
            self.norm.eval()

    def on_train_epoch_start(self) -> None:
        if self.frozen_from is not None and self.current_epoch >= self.frozen_from:
            self.norm.eval()

    def forward(self, x: Any) -> Any:
        return super().forward(self.norm(x))


def mean_of(module: WithNorm) -> list[float]:
    return module.state_dict()["norm._mean"].tolist()


@pytest.mark.parametrize("loaders", [1, 2], ids=["one loader", "two loaders"])
def test_a_sublayer_in_eval_mode_stays_there_through_fit_and_validation(loaders: int) -> None:
    module = WithNorm()
    module.norm.eval()
    before = mean_of(module)
    val: Any = make_batches(2) if loaders == 1 else [make_batches(2), make_batches(1)]
    if loaders == 2:
        module.validation_step = lambda batch, batch_idx, dataloader_idx=0: None  # type: ignore[assignment]
    quiet_trainer(max_epochs=2, num_sanity_val_steps=1).fit(module, make_batches(4), val)
    assert not module.norm.training and module.training
    assert mean_of(module) == before


def test_a_module_evaluated_by_hand_before_is_trained_in_training_mode() -> None:
    module = WithNorm()
    module.eval()
    before = mean_of(module)
    quiet_trainer(max_epochs=1).fit(module, make_batches(4))
    assert module.training and module.norm.training
    assert mean_of(module) != before


@pytest.mark.parametrize("dies_at", [6, 8, 9], ids=["within the epoch", "at the epoch's end", "after it"])
def test_a_mode_set_at_an_epoch_s_start_is_there_after_a_resume(tmp_path: Path, dies_at: int) -> None:
    class Die(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == dies_at:
                raise RuntimeError("planned")

    def fit(name: str, module: WithNorm, *callbacks: Callback) -> list[float]:
        settings = {"default_root_dir": tmp_path, "run_name": name, "enable_checkpointing": True, "seed": 3}
        watching = [ModelCheckpoint(every_n_train_steps=1), *callbacks]
        quiet_trainer(max_epochs=3, callbacks=watching, **settings).fit(module, make_batches(4), ckpt_path="last")
        return mean_of(module)

    paddle.seed(1)
    start = WithNorm(1).state_dict()
    start = {name: value.clone() for name, value in start.items()}

    def fresh() -> WithNorm:
        module = WithNorm(1)
        module.set_state_dict(start)
        return module

    undisturbed = fit("whole", fresh())
    with pytest.raises(RuntimeError, match="planned"):
        fit("cut", fresh(), Die())
    resumed = fresh()
    assert fit("cut", resumed) == undisturbed
    assert not resumed.norm.training
