"""ModelCheckpoint: which checkpoints a run keeps, under which names, after whatever happened."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import paddle
import pytest
from scripted import Scripted, by_epoch, fit, pins

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError

NAN = math.nan


def scores(values: list[float], name: str = "val_loss") -> Scripted:
    return Scripted({name: by_epoch(values)})


# -- what is kept ------------------------------------------------------------------------------------------------------
def test_by_default_the_latest_is_saved_at_every_epoch_and_nothing_is_called_best(tmp_path: Path) -> None:
    trainer = fit(tmp_path, scores([3.0, 1.0, 2.0]))
    assert pins(trainer) == {"latest": [12]}
    assert trainer.checkpoint_callback.best_model_path == ""


def test_top_k_are_the_best_in_order_and_latest_is_the_newest_whatever_top_k_thinks(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=2)
    trainer = fit(tmp_path, scores([3.0, 1.0, 2.0, 9.0]), checkpoint, max_epochs=4)
    assert pins(trainer) == {"latest": [16], "best": [8, 12], "best_val_loss": [8, 12]}
    assert {8, 12, 16} == {entry.step for entry in trainer.checkpoints.entries()}


def test_mode_max_keeps_the_largest(tmp_path: Path) -> None:
    trainer = fit(tmp_path, scores([0.5, 0.9, 0.7], "val_acc"), ModelCheckpoint(monitor="val_acc", mode="max"))
    assert pins(trainer)["best"] == [8]


@pytest.mark.parametrize(("monitor", "mode", "kept"), [("step", "max", [12, 8]), ("epoch", "min", [4, 8])])
def test_checkpoints_can_be_ranked_by_their_epoch_or_step(
    tmp_path: Path, monitor: str, mode: Any, kept: list[int]
) -> None:
    def run(epochs: int) -> Trainer:
        checkpoint = ModelCheckpoint(monitor=monitor, mode=mode, save_top_k=2, filename="at-{epoch}-{step}")
        return fit(tmp_path, Scripted(), checkpoint, max_epochs=epochs, ckpt_path="last")

    run(1)
    trainer = run(3)
    assert pins(trainer)["best"] == pins(trainer)[f"best_{monitor}"] == kept
    best = trainer.checkpoint_callback
    assert best.best_model_score == kept[0] // (4 if monitor == "epoch" else 1)
    assert best.kth_value == kept[-1] // (4 if monitor == "epoch" else 1)
    assert list(best.best_k_models.values()) == [step // (4 if monitor == "epoch" else 1) for step in kept]
    assert best.current_score == (3.0 if monitor == "epoch" else 12.0)
    assert len([name for name in pins(trainer) if name.startswith("at-")]) == 2


def test_ties_keep_the_earlier_checkpoint(tmp_path: Path) -> None:
    trainer = fit(tmp_path, scores([2.0, 1.0, 1.0]), ModelCheckpoint(monitor="val_loss"))
    assert pins(trainer)["best"] == [8]


@pytest.mark.parametrize(
    "values", [[NAN, 1.0, 2.0], [2.0, NAN, 1.0], [1.0, 2.0, NAN], [NAN, NAN, NAN], [-math.inf, 1.0, 2.0]]
)
def test_nan_and_infinity_are_never_best(tmp_path: Path, values: list[float]) -> None:
    trainer = fit(tmp_path, scores(values), ModelCheckpoint(monitor="val_loss", save_top_k=3))
    finite = [value for value in values if math.isfinite(value)]
    expected = [4 * (values.index(value) + 1) for value in sorted(finite)]
    assert expected == pins(trainer).get("best", [])
    assert pins(trainer)["latest"] == [12]


def test_weights_that_are_not_finite_push_out_no_finite_ones(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            if trainer.current_epoch >= 2:
                module.net.weight.set_value(paddle.full([1, 1], NAN))

    trainer = fit(tmp_path, scores([4.0, 3.0, 2.0, 1.0]), [Poison(), ModelCheckpoint(monitor="val_loss")], max_epochs=4)
    assert pins(trainer)["best"] == [8]
    assert pins(trainer)["latest"] == [16, 8]


def test_every_checkpoint_is_kept_under_its_own_name_with_top_k_minus_one(tmp_path: Path) -> None:
    trainer = fit(tmp_path, scores([2.0, NAN, 1.0]), ModelCheckpoint(monitor="val_loss", save_top_k=-1))
    held = pins(trainer)
    assert held["best"] == [12, 4]
    assert {pin: steps for pin, steps in held.items() if pin.startswith("epoch=")} == {
        "epoch=1-step=4": [4],
        "epoch=2-step=8": [8],
        "epoch=3-step=12": [12],
    }


def test_top_k_zero_keeps_only_the_latest(tmp_path: Path) -> None:
    trainer = fit(tmp_path, scores([2.0, 1.0, 3.0]), ModelCheckpoint(monitor="val_loss", save_top_k=0))
    assert pins(trainer) == {"latest": [12]}


def test_best_belongs_to_the_first_monitor_in_the_list(tmp_path: Path) -> None:
    module = Scripted({"val_loss": by_epoch([3.0, 2.0, 1.0]), "val/acc": by_epoch([0.9, 0.1, 0.2])})
    first, second = ModelCheckpoint(monitor="val/acc", mode="max"), ModelCheckpoint(monitor="val_loss")
    trainer = fit(tmp_path, module, [ModelCheckpoint(), first, second])
    assert pins(trainer) == {"latest": [12], "best": [4], "best_val_acc": [4], "best_val_loss": [12]}


def test_two_of_the_same_monitor_rank_apart(tmp_path: Path) -> None:
    callbacks = [ModelCheckpoint(monitor="val_loss", save_top_k=2), ModelCheckpoint(monitor="val_loss", mode="max")]
    trainer = fit(tmp_path, scores([3.0, 1.0, 2.0]), callbacks)
    assert pins(trainer)["best_val_loss"] == [8, 12]
    assert pins(trainer)["best_val_loss_2"] == [4]


def test_keep_last_n_keeps_the_newest_n(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Scripted(), ModelCheckpoint(keep_last_n=2), max_epochs=4)
    assert pins(trainer) == {"latest": [16], "recent": [16, 12]}


def test_archives_stay_for_good(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Scripted(), ModelCheckpoint(archive_every_n_epochs=2), max_epochs=5)
    assert pins(trainer) == {"latest": [20], "epoch_2": [8], "epoch_4": [16]}


def test_an_archive_outlives_a_file_name_of_the_same_form(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(
        monitor="val_loss", filename="epoch_{epoch}", auto_insert_metric_name=False, archive_every_n_epochs=2
    )
    trainer = fit(tmp_path, scores([5.0, 4.0, 3.0]), checkpoint)
    assert pins(trainer) == {"latest": [12], "best": [12], "best_val_loss": [12], "epoch_2": [8], "epoch_3": [12]}


def test_the_state_before_a_learning_rate_drop_is_kept_with_the_old_rate(tmp_path: Path) -> None:
    def optimizer(module: Any) -> Any:
        return paddle.optimizer.SGD(paddle.optimizer.lr.StepDecay(0.1, 2), parameters=module.parameters())

    trainer = fit(tmp_path, Scripted(optimizers=optimizer), ModelCheckpoint(save_before_lr_drop=True), max_epochs=3)
    held = pins(trainer)
    assert (held["latest"], held["before-lr-drop-epoch_2"]) == ([12], [8])
    (entry,) = trainer.checkpoints.by_pin("before-lr-drop-epoch_2")
    (scheduler,) = trainer.checkpoints.read(entry).state("trainer.json")["lr_schedulers"]
    assert scheduler["now"]["last_lr"] == 0.1


STEP_SCHEDULES: dict[str, Callable[[], dict[str, Any]]] = {
    "step": lambda: {"scheduler": paddle.optimizer.lr.StepDecay(0.1, 3)},
    "every second step": lambda: {"scheduler": paddle.optimizer.lr.MultiStepDecay(0.1, [1, 4]), "frequency": 3},
    "piecewise under a warmup": lambda: {
        "scheduler": paddle.optimizer.lr.LinearWarmup(
            paddle.optimizer.lr.PiecewiseDecay([1, 4, 7], [0.1, 0.05, 0.02, 0.01]), 2, 0.01, 0.1
        )
    },
    "plateau": lambda: {
        "scheduler": paddle.optimizer.lr.ReduceOnPlateau(0.1, mode="max", patience=0, cooldown=2),
        "monitor": "train_loss",
    },
    "plateau of a validation within the epoch": lambda: {
        "scheduler": paddle.optimizer.lr.ReduceOnPlateau(0.1, patience=0),
        "monitor": "val_loss",
        "frequency": 2,
    },
}


class Rates(Callback):
    """The rate that each optimizer step is made with, and at what step it is lower than before."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.rates[trainer.global_step] = float(optimizer.get_lr())

    def drops(self) -> list[int]:
        steps = sorted(self.rates)
        return [step for before, step in itertools.pairwise(steps) if self.rates[step] < self.rates[before]]


def drops_by_step(root: Path, schedule: str, **settings: Any) -> tuple[Trainer, Rates]:
    def optimizer(module: Any) -> Any:
        config = {"interval": "step", **STEP_SCHEDULES[schedule]()}
        adam = paddle.optimizer.Adam(config["scheduler"], parameters=module.parameters())
        return {"optimizer": adam, "lr_scheduler": config}

    module = Scripted({"val_loss": lambda step: 1.0 + step}, optimizers=optimizer)
    rates = Rates()
    callbacks = [rates, ModelCheckpoint(save_before_lr_drop=True)]
    return fit(root, module, callbacks, val_check_interval=2, **settings), rates


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_the_state_before_every_drop_of_a_schedule_by_steps_is_kept_with_the_old_rate(
    tmp_path: Path, schedule: str, accumulate: int
) -> None:
    trainer, rates = drops_by_step(tmp_path, schedule, accumulate_grad_batches=accumulate, max_epochs=4)
    assert rates.drops(), "the schedule must drop, else this shows nothing"
    kept = {name: steps for name, steps in pins(trainer).items() if name.startswith("before-lr-drop")}
    last = trainer.global_step  # a drop behind the last step is one too, and no step shows it
    assert {f"before-lr-drop-step_{step}": [step] for step in rates.drops()} == {
        name: steps for name, steps in kept.items() if steps != [last]
    }
    for name in kept:
        (entry,) = trainer.checkpoints.by_pin(name)
        (scheduler,) = trainer.checkpoints.read(entry).state("trainer.json")["lr_schedulers"]
        assert scheduler["now"]["last_lr"] == rates.rates[entry.step - 1]


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_a_run_resumed_from_just_before_a_drop_equals_the_uninterrupted_one(tmp_path: Path, schedule: str) -> None:
    whole, rates = drops_by_step(tmp_path / "whole", schedule, max_epochs=4)
    for step in rates.drops():
        shutil.copytree(tmp_path / "whole", tmp_path / f"from {step}", symlinks=True)
        path = f"before-lr-drop-step_{step}"
        again, rates_again = drops_by_step(tmp_path / f"from {step}", schedule, max_epochs=4, ckpt_path=path)
        assert rates_again.rates == {at: rate for at, rate in rates.rates.items() if at >= step}
        for name, value in whole.model.state_dict().items():
            assert value.numpy().tobytes() == again.model.state_dict()[name].numpy().tobytes()


# -- a score belongs to the weights that earned it ---------------------------------------------------------------------
def test_weights_saved_between_validations_are_not_judged_by_an_older_score(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="val_loss", every_n_train_steps=3, save_top_k=-1, filename="{step}")
    trainer = fit(tmp_path, scores([1.0, 2.0, 3.0]), checkpoint)
    # Steps 3, 6, 9 lie between validations (after 4, 8, 12); step 12 is an epoch's end.
    assert pins(trainer)["best"] == [12]


def test_an_epoch_without_validation_is_not_judged_by_the_one_before(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=5)
    trainer = fit(tmp_path, scores([9.0, 1.0, 9.0, 2.0, 9.0]), checkpoint, max_epochs=5, check_val_every_n_epoch=2)
    assert pins(trainer)["best"] == [8, 16]
    assert pins(trainer)["latest"] == [20]


def test_validations_within_an_epoch_are_saved_with_their_own_scores(tmp_path: Path) -> None:
    module = Scripted({"val_loss": lambda step: {2: 1.0, 4: 3.0, 6: 2.0, 8: 4.0}[step]})
    trainer = fit(
        tmp_path, module, ModelCheckpoint(monitor="val_loss", save_top_k=2), max_epochs=2, val_check_interval=0.5
    )
    assert pins(trainer)["best"] == [2, 6]


def test_a_score_restored_with_a_checkpoint_does_not_count_again(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="val_loss", every_n_train_steps=1, save_top_k=3)
    fit(tmp_path, scores([1.0, 1.0]), checkpoint, max_epochs=1)
    again = ModelCheckpoint(monitor="val_loss", every_n_train_steps=1, save_top_k=3)
    trainer = fit(tmp_path, scores([1.0, 1.0]), again, max_epochs=2, ckpt_path="last")
    assert pins(trainer)["best"] == [4, 8]


# -- when --------------------------------------------------------------------------------------------------------------
class Saves(Callback):
    """Remembers the steps at which checkpoints appear."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def look(self, trainer: Trainer) -> None:
        self.steps += [entry.step for entry in trainer.checkpoints.entries() if entry.step not in self.steps]

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.look(trainer)

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.look(trainer)


def saved_steps(tmp_path: Path, max_epochs: int, *checkpoints: ModelCheckpoint, **settings: Any) -> list[int]:
    saves = Saves()
    fit(
        tmp_path,
        settings.pop("module", Scripted({"val_loss": float})),
        [saves, *checkpoints],
        max_epochs=max_epochs,
        **settings,
    )
    return saves.steps


def test_every_n_train_steps_counts_optimizer_steps(tmp_path: Path) -> None:
    assert saved_steps(tmp_path, 2, ModelCheckpoint(every_n_train_steps=3)) == [3, 6, 8]  # 8: the run's end
    assert saved_steps(tmp_path, 2, ModelCheckpoint(every_n_train_steps=2), accumulate_grad_batches=2) == [2, 4]


class ThreeStepsABatch(Scripted):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for _ in range(3):
            self.manual_backward(self.net(batch).mean())
            self.optimizers().step()
            self.optimizers().clear_grad()


def test_every_n_train_steps_saves_where_a_batch_passes_a_multiple(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(every_n_train_steps=5, save_top_k=-1)
    trainer = fit(tmp_path, ThreeStepsABatch(), checkpoint, max_epochs=2)
    assert [entry.step for entry in trainer.checkpoints.entries()] == [6, 12, 15, 21, 24]


def test_a_resumed_run_saves_at_the_multiples_an_uninterrupted_one_does(tmp_path: Path) -> None:
    for max_steps in (9, -1):  # 9 lies between the multiples that batches pass
        checkpoint = ModelCheckpoint(every_n_train_steps=5, save_top_k=-1)
        trainer = fit(tmp_path, ThreeStepsABatch(), checkpoint, max_epochs=2, max_steps=max_steps, ckpt_path="last")
    assert [entry.step for entry in trainer.checkpoints.entries()] == [6, 9, 12, 15, 21, 24]


def test_every_n_epochs_saves_those_and_the_last(tmp_path: Path) -> None:
    assert saved_steps(tmp_path, 5, ModelCheckpoint(every_n_epochs=2)) == [8, 16, 20]


def test_a_schedule_is_dense_first_and_sparse_later(tmp_path: Path) -> None:
    schedule = ModelCheckpoint(every_n_epochs={0: 1, 0.3: 4})
    assert saved_steps(tmp_path, 10, schedule) == [4, 8, 12, 16, 32, 40]
    assert saved_steps(tmp_path, 5, ModelCheckpoint(every_n_epochs={0: 1, 2: 5})) == [4, 8, 20]


def test_a_share_of_max_epochs_needs_max_epochs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"0\.3 is a share of max_epochs, which is not set"):
        fit(tmp_path, Scripted(), ModelCheckpoint(every_n_epochs={0: 5, 0.3: 20}), max_epochs=-1, max_steps=4)


def test_save_on_train_epoch_end_chooses_between_epochs_and_validations(tmp_path: Path) -> None:
    assert saved_steps(tmp_path, 2, ModelCheckpoint(), val_check_interval=0.5) == [2, 4, 6, 8]
    assert saved_steps(tmp_path, 2, ModelCheckpoint(save_on_train_epoch_end=True), val_check_interval=0.5) == [4, 8]
    only_validated = ModelCheckpoint(save_on_train_epoch_end=False)
    assert saved_steps(tmp_path, 3, only_validated, check_val_every_n_epoch=2) == [8, 12]  # 12: the run's end


def test_train_time_interval_goes_on_counting_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            clock[0] += 10.0

    class DieAfterStep5(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 5:
                raise KeyboardInterrupt

    def timed() -> list[Callback]:
        seconds = timedelta(seconds=25)
        return [Tick(), ModelCheckpoint(train_time_interval=seconds), ModelCheckpoint(every_n_train_steps=5)]

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Scripted(), [*timed(), DieAfterStep5()])  # the clock saved at step 3, so 20 of 25 s have gone
    clock[0] += 1000.0  # between two processes no training time passes
    saves = Saves()
    fit(tmp_path, Scripted(), [saves, *timed()], max_epochs=2, ckpt_path="last")
    assert saves.steps == [5, 6, 8]


def test_the_default_saves_at_an_epochs_end_but_not_after_every_batch(tmp_path: Path) -> None:
    assert saved_steps(tmp_path, 2, ModelCheckpoint()) == [4, 8]


# -- names -------------------------------------------------------------------------------------------------------------
def test_filename_becomes_a_pin_of_each_checkpoint_kept_and_goes_with_it(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="val/loss", save_top_k=2, filename="{epoch:02d}-{val/loss:.2f}")
    trainer = fit(tmp_path, scores([3.0, 1.0, 2.0], "val/loss"), checkpoint)
    named = {pin for pin in pins(trainer) if pin.startswith("epoch")}
    assert {"epoch=02-val_loss=1.00", "epoch=03-val_loss=2.00"} == named
    assert (trainer.run_dir / "epoch=02-val_loss=1.00.pdparams").exists()


def test_filename_without_inserted_names(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="val_loss", filename="e{epoch}-{val_loss:.1f}", auto_insert_metric_name=False)
    trainer = fit(tmp_path, scores([3.0, 1.0, 2.0]), checkpoint)
    assert pins(trainer)["e2-1.0"] == [8]


def test_filename_without_a_monitor_names_the_newest(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Scripted(), ModelCheckpoint(filename="{epoch}"))
    assert pins(trainer) == {"latest": [12], "epoch=3": [12]}


def test_filename_with_a_metric_that_was_not_logged_names_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'val_los', which was not logged\. Did you mean 'val_loss'\?"):
        fit(tmp_path, scores([1.0] * 3), ModelCheckpoint(filename="{epoch}-{val_los:.2f}"))


@pytest.mark.parametrize("filename", ["latest", "best", "best_{val_loss}", "checkpoints", ""])
def test_filename_may_not_be_a_name_of_the_run_directory(filename: str) -> None:
    with pytest.raises(ConfigurationError, match="is a name the run directory uses itself"):
        ModelCheckpoint(filename=filename)


def test_filename_with_a_format_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"\{val_loss:d\} cannot show 0\.5"):
        ModelCheckpoint(filename="{val_loss:d}")


def test_dirpath_gets_links_to_the_run(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "here", monitor="val_loss", filename="{epoch}")
    trainer = fit(tmp_path, scores([3.0, 1.0, 2.0]), checkpoint)
    links = {path.name: path.resolve() for path in (tmp_path / "here").iterdir()}
    assert {"latest", "best", "best_val_loss", "epoch=2"} == {Path(name).stem for name in links}
    assert Path(checkpoint.best_model_path) == links["best"]
    assert str(trainer.run_dir / "checkpoints") == checkpoint.dirpath
    assert "weight" in str(list(paddle.load(str(tmp_path / "here/best.pdparams"))))


# -- across processes --------------------------------------------------------------------------------------------------
def test_best_survives_a_resume_and_a_moved_run_directory(tmp_path: Path) -> None:
    values = [3.0, 1.0, 2.0, 1.5, 9.0]
    fit(tmp_path / "old", scores(values), ModelCheckpoint(monitor="val_loss", save_top_k=2), max_epochs=3)
    shutil.move(tmp_path / "old", tmp_path / "new")
    checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=2)
    trainer = fit(tmp_path / "new", scores(values), checkpoint, max_epochs=5, ckpt_path="last")
    assert pins(trainer)["best"] == [8, 16]
    assert checkpoint.best_model_score == 1.0
    assert Path(checkpoint.best_model_path) == (trainer.run_dir / "best").resolve()


def test_what_can_be_read_after_a_fit(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=2)
    assert readable(checkpoint) == ("", None, {}, "", "", None, None)
    trainer = fit(tmp_path, scores([3.0, 1.0, 2.0]), checkpoint)
    folder = trainer.run_dir / "checkpoints"
    best, second = str(folder / "step-000000008"), str(folder / "step-000000012")
    assert (best, 1.0, {best: 1.0, second: 2.0}, second, second, 2.0, str(folder)) == readable(checkpoint)
    assert [best, second] == list(checkpoint.best_k_models)


def readable(checkpoint: ModelCheckpoint) -> tuple[Any, ...]:
    return (
        checkpoint.best_model_path,
        checkpoint.best_model_score,
        checkpoint.best_k_models,
        checkpoint.kth_best_model_path,
        checkpoint.last_model_path,
        checkpoint.current_score,
        checkpoint.dirpath,
    )


def test_weights_only_checkpoints_leave_latest_alone(tmp_path: Path) -> None:
    weights = ModelCheckpoint(monitor="val_loss", save_weights_only=True)
    trainer = fit(tmp_path, scores([1.0, 2.0, 3.0]), [weights, ModelCheckpoint(every_n_epochs=2)])
    assert (pins(trainer)["best"], pins(trainer)["latest"]) == ([4], [12])
    assert not (trainer.run_dir / "checkpoints/step-000000004/optimizer.pdopt").exists()
    assert (trainer.run_dir / "checkpoints/step-000000012/optimizer.pdopt").exists()


def test_background_saves_decide_as_synchronous_ones_do(tmp_path: Path) -> None:
    values = [3.0, 5.0, 1.0, 2.0, 4.0, 0.5]
    kept = []
    for background in (True, False):
        checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=3, keep_last_n=2)
        trainer = fit(tmp_path / str(background), scores(values), checkpoint, max_epochs=6, async_checkpoint=background)
        kept.append(pins(trainer))
    assert kept[0] == kept[1]
    assert kept[0]["best"] == [24, 12, 16]


# -- errors ------------------------------------------------------------------------------------------------------------
def test_a_monitor_that_was_not_logged_names_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"ModelCheckpoint monitors 'val_los', which was not logged\. "
        r"Did you mean 'val_loss'\? Logged: train_loss, val_loss",
    ):
        fit(tmp_path, scores([1.0] * 3), ModelCheckpoint(monitor="val_los"))


def test_a_monitor_of_a_validation_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    trainer = fit(
        tmp_path,
        scores([9.0, 1.0, 9.0, 2.0]),
        ModelCheckpoint(monitor="val_loss"),
        max_epochs=4,
        check_val_every_n_epoch=2,
    )
    assert pins(trainer)["best"] == [8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "maximum"}, r"got 'maximum'\. Did you mean 'max'"),
        ({"mode": "mx", "monitor": "a"}, r"'min' where a smaller a is better, or 'max', got 'mx'"),
        ({"save_top_k": 3}, r"save_top_k=3\) needs a monitor.*keep_last_n=3 to keep the newest 3"),
        ({"save_top_k": -2}, r"save_top_k=\.\.\.\) must be >= -1, got -2"),
        (
            {"every_n_epochs": 2, "every_n_train_steps": 5},
            "takes one of every_n_train_steps and every_n_epochs; for both use two",
        ),
        ({"train_time_interval": 0}, "must be longer than nothing"),
        ({"every_n_epochs": {0: 0}}, r"every_n_epochs=\.\.\.\) must be >= 1, got 0"),
        ({"every_n_epochs": {"a": 1}}, "a start is a number of epochs or a share"),
        ({"every_n_epochs": {0: 5, 1.5: 2}}, r"between 0 and 1, got 1\.5"),
        ({"filename": "at-{val_acc"}, "a brace is not closed"),
        ({"filename": "{epoch}", "auto_insert_metric_name": False}, "a bare number, which means a step"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelCheckpoint(**arguments)


def test_arguments_of_the_wrong_type_are_refused_at_construction() -> None:
    with pytest.raises(ConfigurationTypeError, match=r"every_n_train_steps=\.\.\.\) must be an integer, got 1\.5"):
        ModelCheckpoint(every_n_train_steps=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationTypeError, match="is the name of a logged metric, got 3"):
        ModelCheckpoint(monitor=3)  # type: ignore[arg-type]


def test_a_model_checkpoint_with_checkpointing_off_is_a_contradiction(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="together with enable_checkpointing=False"):
        Trainer(max_epochs=1, callbacks=[ModelCheckpoint()], enable_checkpointing=False)
