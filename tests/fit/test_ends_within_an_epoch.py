"""A fit that a limit or a request ends within an epoch: the epoch has its end, and what was saved is from before it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, CSVLogger
from paddlelite_trainer.callbacks import EarlyStopping


class Logs(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("count", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        return loss

    def on_train_epoch_end(self) -> None:
        self.order.append(f"epoch end after {self.global_step}")
        self.log("at_end", self.trainer.callback_metrics["count"] * 10)

    def on_train_end(self) -> None:
        self.order.append("train end")


class StopsAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


def settings_of(how: str) -> dict[str, Any]:
    if how == "max_steps":
        return {"max_steps": 6, "max_epochs": 3}
    return {"callbacks": [StopsAt(6)], "max_epochs": 3}


@pytest.mark.parametrize("how", ["max_steps", "should_stop"])
def test_the_epoch_s_end_and_its_values_come(tmp_path: Path, how: str) -> None:
    module = Logs()
    trainer = quiet_trainer(**settings_of(how), logger=CSVLogger(), default_root_dir=tmp_path)
    trainer.fit(module, make_batches(4), make_batches(1))
    assert module.order == ["epoch end after 4", "epoch end after 6", "train end"]
    assert trainer.callback_metrics["count"] == 2.0
    assert trainer.callback_metrics["at_end"] == 20.0
    assert [(record["epoch"], record["step"], record["count"]) for record in trainer.history] == [(0, 4, 4), (1, 6, 2)]
    header, *rows = (tmp_path / "version_0" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    last = dict(zip(header.split(","), rows[-1].split(",")))
    assert (last["step"], last["count"], last["at_end"]) == ("6", "2", "20")
    assert trainer.current_epoch == 1


@pytest.mark.parametrize("how", ["max_steps", "should_stop"])
def test_the_run_goes_on_as_if_that_end_had_not_been(tmp_path: Path, how: str) -> None:
    def fit(root: str, **settings: Any) -> tuple[Any, Any]:
        as_if_started_again()
        stops = EarlyStopping(monitor="count", mode="max", patience=5)
        given = [*settings.pop("callbacks", []), stops]
        written = {"logger": CSVLogger(), "enable_checkpointing": True, "default_root_dir": tmp_path / root}
        trainer, module = quiet_trainer(callbacks=given, **written, **settings), Logs()
        trainer.fit(module, make_batches(4), make_batches(1), ckpt_path="last", override=("stop",))
        return trainer, module

    fit("cut", **settings_of(how))
    resumed, module = fit("cut", max_epochs=3)
    whole, expected = fit("whole", max_epochs=3)
    assert same_weights(weights_of(module), weights_of(expected))
    assert resumed.history == whole.history
    assert resumed.early_stopping_callback.state_dict() == whole.early_stopping_callback.state_dict()
    logs = [(trainer.run_dir / "metrics.csv").read_text(encoding="utf-8") for trainer in (resumed, whole)]
    assert logs[0] == logs[1]


def test_a_checkpoint_that_is_asked_for_after_that_end_goes_on_without_it(tmp_path: Path) -> None:
    def fit(**settings: Any) -> Any:
        as_if_started_again()
        trainer = quiet_trainer(enable_checkpointing=True, default_root_dir=tmp_path, **settings)
        ckpt_path = "mine" if (tmp_path / "version_0").exists() else None
        trainer.fit(Logs(), make_batches(4), ckpt_path=ckpt_path)
        return trainer

    fit(max_steps=6, max_epochs=3).save_checkpoint("mine")
    records = [(record["epoch"], record["step"], record["count"]) for record in fit(max_epochs=3).history]
    assert records == [(0, 4, 4), (1, 8, 4), (2, 12, 4)]


def test_a_stop_by_a_limit_is_not_told_as_a_stop_by_a_callback_that_looks_at_the_epoch_s_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stops = EarlyStopping(monitor="count", mode="min", patience=1)
    trainer = quiet_trainer(callbacks=[stops], max_steps=6, max_epochs=3)
    trainer.fit(Logs(), make_batches(4))
    assert "Stopped at epoch 1, step 6: max_steps=6 reached" in capsys.readouterr().out


def test_a_limit_at_an_epoch_s_end_ends_it_once() -> None:
    module = Logs()
    quiet_trainer(max_steps=8, max_epochs=3).fit(module, make_batches(4))
    assert module.order == ["epoch end after 4", "epoch end after 8", "train end"]


@pytest.mark.parametrize("how", ["max_steps", "should_stop"])
def test_the_same_command_again_has_the_same_values_and_rows(tmp_path: Path, how: str) -> None:
    def run() -> tuple[Any, ...]:
        as_if_started_again()
        settings = {**settings_of(how), "enable_checkpointing": True, "default_root_dir": tmp_path, "run_name": "run"}
        trainer = quiet_trainer(**settings, logger=CSVLogger())
        trainer.fit(Logs(), make_batches(4), make_batches(1), ckpt_path="last")
        rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8")
        return rows, trainer.history, sorted(trainer.callback_metrics.items()), trainer.global_step

    first = run()
    assert run() == first
    assert run() == first


class EndsEpochs(Callback):
    def __init__(self, at: int) -> None:
        self.at = at
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.at else None

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.validated.append(trainer.global_step)


@pytest.mark.parametrize(
    ("settings", "at", "expected"),
    [
        ({}, 4, [4, 8]),
        ({"accumulate_grad_batches": 3}, 4, [2, 4]),
        ({"check_val_every_n_epoch": 2}, 4, [8]),
        ({"val_check_interval": 3}, 4, [3, 7]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 6}, 4, [6]),
        ({}, 0, []),
    ],
)
def test_an_epoch_that_a_hook_ends_is_validated_at_its_end(
    settings: dict[str, Any], at: int, expected: list[int]
) -> None:
    ends = EndsEpochs(at)
    quiet_trainer(max_epochs=2, callbacks=[ends], **settings).fit(Classifier(), make_batches(6), make_batches(1))
    assert ends.validated == expected


def test_an_epoch_that_a_hook_ends_is_validated_where_the_data_have_no_length() -> None:
    class Endless:
        def __iter__(self) -> Any:
            while True:
                yield make_batches(1)[0]

    ends = EndsEpochs(2)
    quiet_trainer(max_epochs=2, callbacks=[ends]).fit(Classifier(), Endless(), make_batches(1))
    assert ends.validated == [2, 4]


def test_a_validation_of_such_an_epoch_that_a_signal_cut_off_is_made_up_for_once(tmp_path: Path) -> None:
    class Preempted(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    kept: dict[str, Any] = {"default_root_dir": tmp_path, "enable_checkpointing": True, "max_epochs": 2, "seed": 1}
    with pytest.raises(SystemExit):
        quiet_trainer(callbacks=[EndsEpochs(2)], **kept).fit(Preempted(), make_batches(6), make_batches(3))
    ends = EndsEpochs(2)
    quiet_trainer(callbacks=[ends], **kept).fit(Classifier(), make_batches(6), make_batches(3), ckpt_path="last")
    assert ends.validated == [2, 4]
