"""EarlyStopping: when a run ends, what a second start does, and which weights are left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import as_if_started_again
from paddlelite_trainer.callbacks.early_stopping import EarlyStoppingReason
from scripted import Scripted, by_epoch, fit

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from paddlelite_trainer.errors import CheckpointSaveError, ConfigurationError, ConfigurationTypeError

NAN = math.nan


def stopped_after(tmp_path: Path, values: list[float], stopping: EarlyStopping, **settings: Any) -> int:
    """Completed epochs of a fit whose val_loss is values[e] after epoch e."""
    trainer = fit(tmp_path, Scripted({"val_loss": by_epoch(values)}), stopping, max_epochs=len(values), **settings)
    return trainer.current_epoch


# -- when --------------------------------------------------------------------------------------------------------------
def test_the_run_ends_when_patience_is_over(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    assert stopped_after(tmp_path, [3.0, 2.0, 2.5, 2.0, 1.0, 1.0], stopping) == 4
    assert (stopping.wait_count, stopping.best_score, stopping.stopped_epoch) == (2, 2.0, 3)
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert stopping.stopping_reason_message == "val_loss has not improved in 2 evaluations, the best was 2"


def test_an_improvement_starts_the_count_again(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    assert stopped_after(tmp_path, [3.0, 4.0, 2.0, 4.0, 1.0, 4.0], stopping) == 6
    assert (stopping.wait_count, stopping.stopping_reason) == (1, EarlyStoppingReason.NOT_STOPPED)


def test_improvements_of_min_delta_or_less_do_not_count(tmp_path: Path) -> None:
    assert (
        stopped_after(tmp_path, [1.0, 0.95, 0.9, 0.8, 0.7], EarlyStopping("val_loss", patience=2, min_delta=0.1)) == 3
    )


def test_mode_max_waits_for_larger_values(tmp_path: Path) -> None:
    assert stopped_after(tmp_path, [0.1, 0.3, 0.2, 0.1, 0.9], EarlyStopping("val_loss", mode="max", patience=2)) == 4


def test_a_number_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=9)
    assert stopped_after(tmp_path, [1.0, NAN, 1.0], stopping) == 2
    assert stopping.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC
    assert stopping.stopping_reason_message == "val_loss is nan"


def test_without_check_finite_nan_is_no_improvement(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=2, check_finite=False)
    assert stopped_after(tmp_path, [NAN, 1.0, NAN, NAN, 0.0], stopping) == 4
    assert stopping.best_score == 1.0


def test_thresholds_end_the_run_at_once(tmp_path: Path) -> None:
    reached = EarlyStopping("val_loss", stopping_threshold=2.5)
    assert stopped_after(tmp_path, [3.0, 2.0, 1.0], reached) == 2
    assert reached.stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD
    diverged = EarlyStopping("val_loss", divergence_threshold=5.0)
    assert stopped_after(tmp_path, [3.0, 8.0, 1.0], diverged) == 2
    assert diverged.stopping_reason is EarlyStoppingReason.DIVERGENCE_THRESHOLD


def test_patience_over_before_min_epochs_does_not_doom_a_run_that_recovers(tmp_path: Path) -> None:
    values = [1.0, 2.0, 2.0, 2.0, 0.5, 0.4, 0.3]
    stopping = EarlyStopping("val_loss", patience=2)
    assert stopped_after(tmp_path, values, stopping, min_epochs=5) == 7
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    assert stopping.stopping_reason_message is None


def test_a_run_that_does_not_recover_ends_with_min_epochs(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    assert stopped_after(tmp_path, [1.0] + [2.0] * 8, stopping, min_epochs=5) == 5
    assert (stopping.stopped_epoch, stopping.wait_count) == (4, 4)


def test_start_from_epoch_leaves_the_first_epochs_out(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=1, start_from_epoch=3)
    assert stopped_after(tmp_path, [0.1, 0.2, 0.3, 5.0, 4.0, 6.0, 1.0], stopping) == 6


def test_each_validation_is_evaluated_once(tmp_path: Path) -> None:
    module = Scripted({"val_loss": lambda step: -1.0 if step < 5 else 1.0})
    stopping = EarlyStopping("val_loss", patience=3)
    trainer = fit(tmp_path, module, stopping, max_epochs=9, val_check_interval=0.5, min_epochs=0)
    # Validations after steps 2, 4, 6, 8, 10, ...: the first is the best, 4, 6 and 8 do not improve.
    assert (trainer.global_step, stopping.wait_count) == (8, 3)


def test_epochs_without_a_validation_are_not_counted(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    assert stopped_after(tmp_path, [1.0] * 12, stopping, check_val_every_n_epoch=3) == 9


def test_sanity_validation_is_not_evaluated(tmp_path: Path) -> None:
    module = Scripted({"val_loss": lambda step: 0.0 if step == 0 else 9.0 - step})
    stopping = EarlyStopping("val_loss", patience=1)
    trainer = fit(tmp_path, module, stopping, num_sanity_val_steps=2)
    assert (trainer.current_epoch, stopping.best_score) == (3, -3.0)


def test_a_metric_of_training_is_evaluated_at_each_epochs_end(tmp_path: Path) -> None:
    def log(trainer: Trainer, module: Any, *_: Any) -> None:
        module.log("flat", 1.0, on_step=False, on_epoch=True)

    stopping = EarlyStopping("flat", patience=2)
    trainer = fit(
        tmp_path, Scripted({"val_loss": float}), [LambdaCallback(on_train_batch_end=log), stopping], max_epochs=9
    )
    assert (trainer.current_epoch, stopping.wait_count) == (3, 2)


def test_a_metric_of_training_steps_is_evaluated_once_an_epoch_beside_validations(tmp_path: Path) -> None:
    counted = EarlyStopping("train_loss", patience=99, min_delta=1e9)
    fit(tmp_path, Scripted({"val_loss": float}), counted, max_epochs=3, val_check_interval=0.5)
    assert counted.wait_count == 2  # the first is the best so far


def test_check_on_train_epoch_end_moves_the_evaluation(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Look(Callback):
        comes_last_at_epoch_end = True  # as EarlyStopping, which is before it in the list

        def on_validation_end(self, trainer: Trainer, module: Any) -> None:
            seen.append(("validation", stopping.wait_count))

        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            seen.append(("epoch", stopping.wait_count))

    stopping = EarlyStopping("val_loss", patience=9, check_on_train_epoch_end=True)
    fit(tmp_path, Scripted({"val_loss": by_epoch([1.0, 2.0])}), [stopping, Look()], max_epochs=2)
    assert seen == [("validation", 0), ("epoch", 0), ("validation", 0), ("epoch", 1)]


def test_a_second_fit_with_the_same_callback_starts_afresh(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=1)
    assert stopped_after(tmp_path, [1.0, 2.0, 3.0], stopping) == 2
    assert stopped_after(tmp_path, [3.0, 2.0, 1.0], stopping) == 3


# -- started again -----------------------------------------------------------------------------------------------------
def test_a_stopped_run_says_so_and_trains_no_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    stopped_after(tmp_path, values, EarlyStopping("val_loss", patience=2))
    again = EarlyStopping("val_loss", patience=2)
    capsys.readouterr()
    trainer = fit(tmp_path, Scripted({"val_loss": by_epoch(values)}), again, max_epochs=5, ckpt_path="last")
    assert (trainer.current_epoch, trainer.global_step) == (3, 12)
    assert "already stopped after 3 epochs: val_loss has not improved in 2 evaluations" in capsys.readouterr().out
    assert again.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert str(again.stopping_reason_message).startswith("val_loss has not improved")


def test_more_patience_than_the_saved_one_goes_on_and_the_difference_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    stopped_after(tmp_path, values, EarlyStopping("val_loss", patience=2))
    again = EarlyStopping("val_loss", patience=4)
    capsys.readouterr()
    trainer = fit(tmp_path, Scripted({"val_loss": by_epoch(values)}), again, max_epochs=6, ckpt_path="last")
    assert (trainer.current_epoch, again.wait_count, again.patience) == (5, 4, 4)
    assert capsys.readouterr().out.count("patience was 2, now 4, which counts") == 1


def test_a_run_resumed_at_every_epoch_stops_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    values = [3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 0.1]
    assert stopped_after(tmp_path / "whole", values, EarlyStopping("val_loss", patience=3)) == 7
    for epoch in range(1, 8):
        stopping = EarlyStopping("val_loss", patience=3)
        trainer = fit(
            tmp_path / "parts", Scripted({"val_loss": by_epoch(values)}), stopping, max_epochs=epoch, ckpt_path="last"
        )
    assert (trainer.current_epoch, stopping.wait_count, stopping.stopped_epoch) == (7, 3, 6)


# -- the best weights --------------------------------------------------------------------------------------------------
def weights(trainer: Trainer) -> list[Any]:
    return [parameter.numpy().copy() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("background", [False, True])
def test_restore_best_weights_leaves_those_of_the_best_score(tmp_path: Path, background: bool) -> None:
    after_epoch: list[Any] = []
    remember = LambdaCallback(on_train_epoch_end=lambda trainer, module: after_epoch.append(weights(trainer)))
    stopping = EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    module = Scripted({"val_loss": by_epoch([3.0, 1.0, 2.0, 2.0, 0.0])})
    trainer = fit(tmp_path, module, [stopping, remember], max_epochs=5, async_checkpoint=background)
    assert trainer.current_epoch == 4
    for best, now in zip(after_epoch[1], weights(trainer)):
        np.testing.assert_array_equal(best, now)


def test_restore_best_weights_survives_a_resume(tmp_path: Path) -> None:
    after_epoch: list[Any] = []
    remember = LambdaCallback(on_train_epoch_end=lambda trainer, module: after_epoch.append(weights(trainer)))
    values = [3.0, 1.0, 2.0, 2.0]
    for last in (3, 4):
        stopping = EarlyStopping("val_loss", patience=9, restore_best_weights=True)
        callbacks = [stopping, remember, ModelCheckpoint()]
        trainer = fit(tmp_path, Scripted({"val_loss": by_epoch(values)}), callbacks, max_epochs=last, ckpt_path="last")
    np.testing.assert_array_equal(after_epoch[1][0], weights(trainer)[0])


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0, 2.0, 2.0]])
def test_a_run_that_is_over_has_its_best_weights_when_it_is_started_again(tmp_path: Path, values: list[float]) -> None:
    def run(module: Scripted) -> list[float]:
        as_if_started_again()
        stopping = EarlyStopping("val_loss", patience=3, restore_best_weights=True)
        fit(tmp_path, module, [stopping, ModelCheckpoint()], max_epochs=len(values), ckpt_path="last")
        return module.net.weight.numpy().tolist()

    first = Scripted({"val_loss": by_epoch(values)})
    best = run(first)
    assert run(Scripted({"val_loss": by_epoch(values)})) == best


def test_restore_best_weights_needs_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="reads them from a checkpoint: leave enable_checkpointing on"):
        fit(tmp_path, Scripted(), EarlyStopping("val_loss", restore_best_weights=True), enable_checkpointing=False)


# -- errors ------------------------------------------------------------------------------------------------------------
def test_a_monitor_that_was_not_logged_names_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"EarlyStopping monitors 'val_lss', which was not logged\. "
        r"Did you mean 'val_loss'\? Logged: train_loss, val_loss",
    ):
        fit(tmp_path, Scripted({"val_loss": float}), EarlyStopping("val_lss"))


def test_a_monitor_that_was_not_logged_only_warns_without_strict(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'nothing', which was not logged"):
        trainer = fit(tmp_path, Scripted({"val_loss": float}), EarlyStopping("nothing", strict=False))
    assert trainer.current_epoch == 3


def test_log_rank_zero_only_changes_nothing_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"EarlyStopping\(log_rank_zero_only=True\) has no effect"):
        EarlyStopping("val_loss", log_rank_zero_only=True)


def test_arguments_that_make_no_sense_are_refused_at_construction() -> None:
    with pytest.raises(ConfigurationError, match=r"'max', got 'maxx'\. Did you mean 'max'\?"):
        EarlyStopping("val_loss", mode="maxx")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"patience=\.\.\.\) must be an integer >= 0, got -1"):
        EarlyStopping("val_loss", patience=-1)
    with pytest.raises(ConfigurationTypeError, match="is the name of a logged metric, got None"):
        EarlyStopping(None)  # type: ignore[arg-type]


# -- a warm-up ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on_train_epoch_end", [None, True, False])
def test_best_score_and_restored_weights_are_of_one_epoch_and_not_of_the_warm_up(
    tmp_path: Path, on_train_epoch_end: bool | None
) -> None:
    stopping = EarlyStopping(
        "val_loss",
        patience=9,
        start_from_epoch=1,
        restore_best_weights=True,
        check_on_train_epoch_end=on_train_epoch_end,
    )
    weights = []

    class Remembers(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            weights.append(module.net.weight.numpy().tolist())

    module = Scripted({"val_loss": by_epoch([0.1, 5.0, 4.0, 3.0, 6.0, 7.0])})
    fit(tmp_path, module, [stopping, Remembers(), ModelCheckpoint()], max_epochs=6)
    assert stopping.best_score == 3.0
    assert module.net.weight.numpy().tolist() == weights[3]


def test_an_improvement_below_min_delta_is_neither_the_best_score_nor_restored(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=9, min_delta=0.5, restore_best_weights=True)
    weights = []

    class Remembers(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            weights.append(module.net.weight.numpy().tolist())

    module = Scripted({"val_loss": by_epoch([3.0, 2.8, 4.0])})
    fit(tmp_path, module, [stopping, Remembers(), ModelCheckpoint()], max_epochs=3)
    assert stopping.best_score == 3.0
    assert module.net.weight.numpy().tolist() == weights[0]


def test_a_background_save_that_fails_before_the_best_is_chosen_is_told_where_a_warning_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class SecondSaveFails(Callback):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            store, self.saves = trainer.checkpoint_store, 0
            store._commit, self.commit = self.fail_once, store._commit

        def fail_once(self, *what: Any) -> None:
            self.saves += 1
            if self.saves == 2:
                raise CheckpointSaveError("no room left")
            self.commit(*what)

    stopping = EarlyStopping("val_loss", patience=9, restore_best_weights=True)
    callbacks = [stopping, SecondSaveFails(), ModelCheckpoint()]
    settings: dict[str, Any] = {"async_checkpoint": True, "on_save_error": "warn", "max_epochs": 4}
    trainer = fit(tmp_path, Scripted({"val_loss": by_epoch([3.0, 1.0, 2.0, 4.0])}), callbacks, **settings)
    assert trainer.current_epoch == 4
    assert "WARNING: a checkpoint was not written" in capsys.readouterr().out
    assert [entry.epoch for entry in trainer.checkpoints.by_pin("early-stopping-best")] == [3]


def test_with_several_loaders_the_error_says_the_names_that_they_have(tmp_path: Path) -> None:
    class Loader:
        def __iter__(self) -> Any:
            return iter([paddle.ones([2, 1])])

    class Several(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("v", 1.0)

    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        callbacks=[EarlyStopping("v")],
        default_root_dir=tmp_path,
    )
    with pytest.raises(
        ConfigurationError, match=r"'v', and with several loaders.*v/dataloader_idx_0, v/dataloader_idx_1"
    ):
        trainer.fit(Several(), [paddle.ones([2, 1])] * 2, [Loader(), Loader()])
