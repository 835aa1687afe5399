"""fast_dev_run runs the user's code as a real run does, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Callback
from paddlelite_trainer.callbacks import EarlyStopping
from paddlelite_trainer.errors import CheckpointError, ConfigurationError, ConfigurationTypeError

USES: dict[str, Callable[[Any], Any]] = {
    "log_metrics": lambda logger: logger.log_metrics({"a": 1.0}, 1),
    "log_hyperparams": lambda logger: logger.log_hyperparams({"a": 1.0}),
    "the writer": lambda logger: logger.experiment.add_scalar("a", 1.0, 1),
    "a figure within a with": lambda logger: logger.experiment.begin().__enter__().add(figure=1),
    "a method of its own": lambda logger: logger.log_table("t", [[1]]),
    "save": lambda logger: logger.save(),
    "its name": lambda logger: (logger.name + logger.version, logger.log_dir),
}


@pytest.mark.parametrize("hook", ["on_fit_start", "training_step", "on_train_epoch_end", "on_validation_end"])
@pytest.mark.parametrize("use", USES)
def test_a_step_or_hook_that_uses_the_logger_runs(tmp_path: Path, use: str, hook: str) -> None:
    def called(self: Any, *arguments: Any) -> Any:
        USES[use](self.logger)
        assert len(self.trainer.loggers) == 2
        return getattr(Classifier, hook)(self, *arguments)

    module = type("Logs", (Classifier,), {hook: called})()
    trainer = quiet_trainer(logger=True, fast_dev_run=True, default_root_dir=tmp_path)
    trainer.fit(module, make_batches(3), make_batches(2))
    assert trainer.global_step == 1
    assert list(tmp_path.iterdir()) == []


def test_without_loggers_there_is_none_and_a_wrong_one_is_refused_as_ever() -> None:
    assert quiet_trainer(logger=False, fast_dev_run=True).logger is None
    with pytest.raises(ConfigurationTypeError, match="takes True, False, a Logger"):
        quiet_trainer(logger=3, fast_dev_run=True)


@pytest.mark.parametrize("how", ["finished", "stopped early", "within an epoch"])
def test_last_of_a_run_that_is_there_is_rehearsed_on_its_weights(tmp_path: Path, how: str) -> None:
    class Fails(Classifier):
        fails = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.fails and self.trainer.global_step == 4:
                raise RuntimeError("planned")
            return super().training_step(batch, batch_idx)

    first = Fails()
    first.fails = how == "within an epoch"
    stops = EarlyStopping("val_loss", patience=0, min_delta=100.0)
    settings = {"default_root_dir": tmp_path, "enable_checkpointing": True, "max_epochs": 4}
    callbacks = [stops] if how == "stopped early" else []
    try:
        quiet_trainer(callbacks=callbacks, **settings).fit(first, make_batches(3), make_batches(2))
    except RuntimeError:
        assert first.fails
    before = sorted(tmp_path.rglob("*"))
    steps = []

    class Counts(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if not steps and how != "within an epoch":
                assert same_weights(weights_of(self), weights_of(first))
            steps.append(batch_idx)
            return super().training_step(batch, batch_idx)

    stops = EarlyStopping("val_loss", patience=0, min_delta=100.0)
    rehearsal = quiet_trainer(**{**settings, "fast_dev_run": True}, callbacks=[stops] if callbacks else [])
    rehearsal.fit(Counts(), make_batches(3), make_batches(2), ckpt_path="last")
    assert steps == [0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_asked_for_is_not_written_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Asks(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            assert trainer.save_checkpoint("within") is None

    trainer = quiet_trainer(fast_dev_run=True, default_root_dir=tmp_path, callbacks=[Asks()])
    trainer.fit(Classifier(), make_batches(3))
    assert trainer.save_checkpoint("now", weights_only=True) is None
    told = capsys.readouterr().out
    assert "fast_dev_run: the checkpoint 'within' is not written" in told
    assert "fast_dev_run: the checkpoint 'now' is not written" in told
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError, match="name of a pin"):  # as in a real run
        trainer.save_checkpoint("a/b")


def test_a_checkpoint_asked_for_where_nothing_is_written_is_an_error(tmp_path: Path) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path)
    trainer.fit(Classifier(), make_batches(3))
    with pytest.raises(CheckpointError, match="needs a run directory"):
        trainer.save_checkpoint("now")
