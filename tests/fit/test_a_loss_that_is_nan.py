"""A loss that is NaN is said once, at no cost to a batch."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.callbacks import ModelCheckpoint, NonFiniteGuard

TOLD = "is not finite"


class TurnsNaN(Classifier):
    def __init__(self, at: int = 3, logs: bool = True) -> None:
        super().__init__()
        self.at, self.logs = at, logs

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch) * (float("nan") if self.global_step == self.at else 1.0)
        if self.logs:
            self.log("train_loss", loss, on_epoch=True)
        return loss


class ByHand(Classifier):
    """Its step returns nothing, so that only the weights tell what the loss did to them."""

    def __init__(self, at: int = 3) -> None:
        super().__init__()
        self.automatic_optimization, self.at = False, at

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch) * (float("nan") if self.global_step == self.at else 1.0))
        optimizer.step()
        optimizer.clear_grad()


def told(module: Any, **settings: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(**settings).fit(module, make_batches(10), make_batches(1))
    return [str(one.message) for one in caught if TOLD in str(one.message)]


def test_a_nan_loss_is_told_once_with_the_step_and_what_helps() -> None:
    (message,) = told(TurnsNaN(), max_epochs=3, log_every_n_steps=2)
    assert "at or before step 4" in message
    assert "detect_anomaly=True" in message
    assert "NonFiniteGuard" in message


def test_a_nan_loss_is_told_at_the_epochs_end_where_no_step_is_logged() -> None:
    (message,) = told(TurnsNaN(), max_epochs=3, log_every_n_steps=1000)
    assert "at or before step 10" in message


def test_a_nan_loss_that_nobody_logs_is_told_at_the_epochs_end() -> None:
    (message,) = told(TurnsNaN(logs=False), max_epochs=3)
    assert "the loss is not finite, at or before step 10" in message


def test_a_nan_loss_that_nobody_logs_is_told_at_a_save_point(tmp_path: Path) -> None:
    saves = ModelCheckpoint(every_n_train_steps=5)
    kept: dict[str, Any] = {"enable_checkpointing": True, "callbacks": [saves], "default_root_dir": tmp_path}
    (message,) = told(TurnsNaN(logs=False), **kept)
    assert "at or before step 5" in message


def test_weights_that_a_manual_step_made_nan_are_told_at_the_epochs_end() -> None:
    (message,) = told(ByHand(), max_epochs=3)
    assert "a weight is not finite, at or before step 10" in message


def test_weights_that_a_manual_step_made_nan_are_told_at_a_save_point(tmp_path: Path) -> None:
    saves = ModelCheckpoint(every_n_train_steps=5)
    kept: dict[str, Any] = {"enable_checkpointing": True, "callbacks": [saves], "default_root_dir": tmp_path}
    (message,) = told(ByHand(), **kept)
    assert "at or before step 5" in message


def test_finite_losses_are_not_told() -> None:
    assert told(TurnsNaN(at=-1), max_epochs=2, log_every_n_steps=2) == []
    assert told(ByHand(at=-1), max_epochs=2) == []


def test_a_nan_that_a_guard_skips_is_not_told_again() -> None:
    assert told(TurnsNaN(), max_epochs=2, callbacks=[NonFiniteGuard("skip")]) == []


def test_each_fit_tells_of_its_own() -> None:
    assert len(told(TurnsNaN())) == 1
    assert len(told(TurnsNaN())) == 1


@pytest.mark.parametrize("logs", [True, False])
def test_looking_for_nan_costs_no_copy_to_the_host_a_step(logs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def copies_of(count: int) -> int:
        before = len(copies)
        quiet_trainer(log_every_n_steps=1000).fit(TurnsNaN(at=-1, logs=logs), make_batches(count))
        return len(copies) - before

    copies: list[str] = []
    for name in ("numpy", "item", "__float__", "tolist", "__bool__"):
        original = getattr(paddle.Tensor, name)

        def copy(*arguments: Any, original: Any = original, name: str = name) -> Any:
            if "paddlelite_trainer" in sys._getframe(1).f_code.co_filename:
                copies.append(name)
            return original(*arguments)

        monkeypatch.setattr(paddle.Tensor, name, copy)
    assert copies_of(40) == copies_of(5)
