"""What is saved where a run ends or fails: at an epoch's end, between epochs, after weights were replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback, CSVLogger, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint, ProgressBar
from paddlelite_trainer.checkpoint import open_checkpoint
from paddlelite_trainer.errors import ConfigurationError


def trainer_in(root: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    as_if_started_again()
    return quiet_trainer(
        **{"default_root_dir": root, "run_name": "run", "enable_checkpointing": True, "max_epochs": 3, **settings},
        callbacks=[*callbacks],
    )


# -- time that runs out ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_a_run_whose_time_is_over_at_an_epoch_s_end_is_saved(tmp_path: Path, monkeypatch: Any, hook: str) -> None:
    now = [0.0]
    monkeypatch.setattr("paddlelite_trainer.fit.stopping.time.monotonic", lambda: now[0])

    def takes_long(self: Any, trainer: Any, module: Any, *more: Any) -> None:
        if trainer.current_epoch == 1 and (hook != "on_train_batch_end" or more[2] == 2):
            now[0] += 100.0

    slow = type("Slow", (Callback,), {hook: takes_long})()
    trainer = trainer_in(tmp_path, slow, ModelCheckpoint(every_n_epochs=5), max_epochs=9, max_time="00:00:01:00")
    trainer.fit(Classifier(), make_batches(3), make_batches(1))
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)
    assert open_checkpoint(tmp_path / "run/latest").entry.step == 6


# -- hooks between epochs ----------------------------------------------------------------------------------------------
class Counts(Callback):
    """How often its hook was called, over the whole run."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"calls": list(self.calls)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls = list(state_dict["calls"])


def counting(hook: str) -> Any:
    def count(self: Any, trainer: Any, module: Any) -> None:
        self.calls.append(trainer.current_epoch)

    return type(f"Counts_{hook}", (Counts,), {hook: count})()


class Fails(Callback):
    armed = True


def failing(hook: str, epoch: int) -> Any:
    def fail(self: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == epoch and type(self).armed:
            raise RuntimeError("planned")

    return type("FailsNow", (Fails,), {hook: fail})()


@pytest.mark.parametrize(
    ("hook", "epoch"), [("on_train_epoch_end", 1), ("on_train_epoch_start", 1), ("on_train_end", 3), ("on_fit_end", 3)]
)
def test_a_hook_that_failed_after_another_is_called_again_as_if_it_had_not_been(
    tmp_path: Path, hook: str, epoch: int
) -> None:
    undisturbed = counting(hook)
    trainer_in(tmp_path / "a", undisturbed).fit(Classifier(), make_batches(3))
    saves = ModelCheckpoint(save_on_exception=True, every_n_epochs=9, save_last=True)
    with pytest.raises(RuntimeError, match="planned"):
        trainer_in(tmp_path / "b", counting(hook), failing(hook, epoch), saves).fit(Classifier(), make_batches(3))
    resumed = counting(hook)
    trainer_in(tmp_path / "b", resumed).fit(Classifier(), make_batches(3), ckpt_path="last")
    assert resumed.calls == undisturbed.calls


# -- weights that were replaced ----------------------------------------------------------------------------------------
def test_after_weights_were_replaced_an_exception_saves_no_mixture(tmp_path: Path) -> None:
    class Replaces(Callback):
        def on_fit_end(self, trainer: Any, module: Any) -> None:
            trainer.load_weights_of(trainer.checkpoints.entries()[0])
            raise RuntimeError("planned")

    module = Classifier()
    saves = ModelCheckpoint(save_on_exception=True, every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(RuntimeError, match="planned"):
        trainer_in(tmp_path, Replaces(), saves).fit(module, make_batches(3))
    newest = open_checkpoint(tmp_path / "run/latest")
    assert newest.entry.step == 9
    saved = {name: value.copy() for name, value in newest.tensors("model.pdparams").items()}
    assert not same_weights(saved, weights_of(module))


def test_nothing_is_said_to_be_saved_where_nothing_was(tmp_path: Path, capsys: Any) -> None:
    class Keeps(ModelCheckpoint):
        def on_save_point(self, trainer: Any, module: Any, save_point: Any) -> Any:
            return None

    class Raises(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        trainer_in(tmp_path, Raises(), Keeps(save_on_exception=True)).fit(Classifier(), make_batches(3))
    assert "Saved what was before" not in capsys.readouterr().out


# -- what is logged after a save as of a mark --------------------------------------------------------------------------
def test_a_callback_that_comes_last_logs_after_a_drop_that_was_saved(tmp_path: Path) -> None:
    class Last(Callback):
        comes_last_at_epoch_end = True

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            module.log("last", float(trainer.current_epoch))

    class Drops(Classifier):
        def configure_optimizers(self) -> Any:
            schedule = paddle.optimizer.lr.ReduceOnPlateau(0.1, patience=0, factor=0.1)
            optimizer = paddle.optimizer.SGD(schedule, parameters=self.parameters())
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "flat"}}

        def on_train_epoch_end(self) -> None:
            self.log("flat", 1.0)

    trainer = trainer_in(tmp_path, Last(), ModelCheckpoint(save_before_lr_drop=True, every_n_epochs=9))
    trainer.fit(Drops(), make_batches(3))
    assert [record["last"] for record in trainer.history] == [0.0, 1.0, 2.0]


# -- refused before training -------------------------------------------------------------------------------------------
def test_a_save_point_hook_that_cannot_be_called_is_refused_before_training(tmp_path: Path) -> None:
    class Wrong(Callback):
        def on_save_point(self, trainer: Any) -> None:
            return None

    module = Classifier()
    before = weights_of(module)
    with pytest.raises(ConfigurationError, match=r"Wrong.on_save_point\(trainer.*\) .*cannot be called"):
        trainer_in(tmp_path, Wrong(), ProgressBar()).fit(module, make_batches(3))
    assert same_weights(before, weights_of(module))


# -- logs --------------------------------------------------------------------------------------------------------------
class Dropping(Classifier):
    def configure_optimizers(self) -> Any:
        schedule = paddle.optimizer.lr.PiecewiseDecay([2], [0.1, 0.001])
        optimizer = paddle.optimizer.SGD(schedule, parameters=self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class DiesAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise KeyError("planned")


def test_a_run_that_goes_on_from_before_a_drop_has_that_step_s_row(tmp_path: Path) -> None:
    def fit(root: Path, *callbacks: Callback) -> None:
        drops = ModelCheckpoint(save_before_lr_drop=True, every_n_epochs=9)
        settings = {"logger": CSVLogger(), "log_every_n_steps": 1, "max_epochs": 1}
        trainer = trainer_in(root, drops, *callbacks, **settings)
        trainer.fit(Dropping(), make_batches(6), ckpt_path="last")

    fit(tmp_path / "whole")
    with pytest.raises(KeyError, match="planned"):
        fit(tmp_path / "cut", DiesAt(4))
    fit(tmp_path / "cut")
    rows = [(tmp_path / root / "run/metrics.csv").read_text() for root in ("whole", "cut")]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) >= 7
