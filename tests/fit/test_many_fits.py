"""What one fit, evaluation or error leaves behind for the next: nothing but the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError, DataError


class Accuracy(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = paddle.metric.Accuracy()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.accuracy.update(self.accuracy.compute(self(x), y.unsqueeze(1)))
        self.log("val_acc", self.accuracy)


def test_a_paddle_metric_counts_each_evaluation_alone() -> None:
    module, batches = Accuracy(), make_batches(4)
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=2)
    seen = []

    class Watch(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            seen.append(int(module.accuracy.count[0]))

    trainer.callbacks.append(Watch())
    trainer.fit(module, make_batches(1), batches)
    for _ in range(2):
        trainer.validate(module, batches, verbose=False)
    assert seen == [2 * 8, 4 * 8, 4 * 8, 4 * 8, 4 * 8]


def test_validate_without_a_fit_needs_no_run_directory(tmp_path: Path) -> None:
    trainer = Trainer(default_root_dir=tmp_path, enable_progress_bar=False)
    assert "val_loss" in trainer.validate(Classifier(), make_batches(1), verbose=False)[0]
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_a_test_after_the_fit_reach_the_log(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Classifier(), make_batches(1))
    trainer.test(dataloaders=make_batches(1), verbose=False)
    assert "test_loss" in (tmp_path / "version_0/metrics.csv").read_text()


def test_the_second_fits_hooks_see_counters_at_zero() -> None:
    seen = []

    class Watch(Callback):
        def setup(self, trainer: Any, module: Any, stage: str) -> None:
            seen.append((trainer.current_epoch, dict(trainer.callback_metrics)))

    trainer = quiet_trainer(max_epochs=2, callbacks=[Watch()])
    for _ in range(2):
        trainer.fit(Classifier(), make_batches(1))
    assert seen == [(0, {}), (0, {})]


def test_a_modules_callbacks_end_with_it() -> None:
    class Counts(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.epochs += 1

    counts = Counts()

    class Brings(Classifier):
        def configure_callbacks(self) -> list[Callback]:
            return [counts]

    trainer = quiet_trainer()
    trainer.fit(Brings(), make_batches(1))
    trainer.fit(Classifier(), make_batches(1))
    assert counts.epochs == 1


def test_an_error_in_setup_is_told_and_torn_down() -> None:
    told = []

    class Fails(Callback):
        def setup(self, trainer: Any, module: Any, stage: str) -> None:
            raise KeyError("no data here")

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            told.append(repr(exception))

        def teardown(self, trainer: Any, module: Any, stage: str) -> None:
            told.append(stage)

    trainer = quiet_trainer(callbacks=[Fails()])
    with pytest.raises(KeyError):
        trainer.fit(Classifier(), make_batches(1))
    assert told == ["KeyError('no data here')", "fit"]
    assert trainer.state is None


def test_fast_dev_run_validates_whatever_the_interval() -> None:
    seen = []

    class Watch(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            seen.append(trainer.global_step)

    for interval in ({"val_check_interval": 100}, {"check_val_every_n_epoch": 5}):
        quiet_trainer(fast_dev_run=True, callbacks=[Watch()], **interval).fit(
            Classifier(), make_batches(3), make_batches(1)
        )
    assert seen == [1, 1]


def test_a_loader_that_yields_less_than_it_says_is_an_error() -> None:
    class Short:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Any:
            return iter(make_batches(3))

    with pytest.raises(DataError, match="said that an epoch has 5 batches and ended after 3"):
        quiet_trainer().fit(Classifier(), Short(), make_batches(1))


def test_steps_are_logged_where_a_batch_makes_several(tmp_path: Path) -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for _ in range(3):
                loss = self.loss(batch)
                self.manual_backward(loss)
                self.optimizers().step()
                self.optimizers().clear_grad()
            self.log("train_loss", loss)

    trainer = quiet_trainer(logger=None, log_every_n_steps=4, default_root_dir=tmp_path)
    trainer.fit(Manual(), make_batches(5))
    rows = (tmp_path / "version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3  # after steps 6, 9 and 12, the first past 4, 8 and at 12; 15 is before 16


def test_a_checkpoint_asked_for_in_the_last_hook_is_written(tmp_path: Path) -> None:
    class Last(Callback):
        def on_fit_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint("the-end")

    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint(), Last()], default_root_dir=tmp_path)
    trainer.fit(Classifier(), make_batches(1))
    assert (tmp_path / "version_0/the-end.pdparams").exists()


def test_what_toggle_optimizer_holds_back_is_not_saved_as_frozen(tmp_path: Path) -> None:
    class Toggles(Classifier):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [paddle.optimizer.SGD(0.1, parameters=layer.parameters()) for layer in (self.net[0], self.net[2])]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, _ = self.optimizers()
            self.toggle_optimizer(first)
            self.manual_backward(self.loss(batch))
            first.step()
            first.clear_grad()

    module = Toggles()
    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint()], default_root_dir=tmp_path)
    trainer.fit(module, make_batches(2))
    tree = trainer.checkpoints.read(trainer.checkpoints.entries()[-1]).state("trainer.json")
    assert tree["untrained"] == []


def test_lbfgs_on_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closure(Classifier):
        def configure_optimizers(self) -> Any:
            return paddle.optimizer.LBFGS(parameters=self.parameters())

    trainer = quiet_trainer()
    monkeypatch.setattr(trainer.ranks, "world_size", 2)
    monkeypatch.setattr(trainer.ranks, "broadcast_object", lambda value: value)
    monkeypatch.setattr(trainer.ranks, "on_rank_zero", lambda work: work())
    with pytest.raises(ConfigurationError, match="LBFGS runs on one process"):
        trainer.fit(Closure(), make_batches(1))
