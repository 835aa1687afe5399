"""self.log in the last hooks of a stage: the value is kept, where it would be had it been logged a hook earlier."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches

from paddlelite_trainer import Callback, CSVLogger, Module, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError

pytestmark = pytest.mark.timeout(60)

BATCHES = 3
VALUE = 0.625  # survives every way of writing it


class Logs(Callback):
    """Logs `late` in one hook, as the callback's or the module's own; `value` may be a function of the epoch."""

    def __init__(self, hook: str, value: Any = VALUE, **options: Any) -> None:
        self.value, self.options = value, options
        setattr(self, hook, self.log)

    def log(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            value = self.value(trainer.current_epoch) if callable(self.value) else self.value
            module.log("late", value, **self.options)


def parts(whose: str, hook: str, value: Any = VALUE, **options: Any) -> tuple[Module, list[Callback]]:
    """A module, and callbacks, of which one logs `late` in the hook."""
    module, logs = Classifier(), Logs(hook, value, **options)
    if whose == "callback":
        return module, [logs]
    object.__setattr__(module, hook, lambda: logs.log(module.trainer, module))
    return module, []


def trainer_at(root: Path, callbacks: list[Callback], **settings: Any) -> Trainer:
    options: dict[str, Any] = {
        "default_root_dir": root,
        "run_name": "run",
        "max_epochs": 2,
        "logger": CSVLogger(),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": callbacks,
        **settings,
    }
    return Trainer(**options)


def fit(root: Path, whose: str, hook: str, value: Any = VALUE, *more: Callback, **settings: Any) -> Trainer:
    module, callbacks = parts(whose, hook, value)
    trainer = trainer_at(root, [*callbacks, *more], **settings)
    trainer.fit(module, make_batches(BATCHES), make_batches(1, seed=1))
    return trainer


def logged(root: Path) -> list[tuple[int, float]]:
    """(step, value) of every cell of `late` in the CSV log."""
    with (root / "run" / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row["late"])) for row in csv.DictReader(file) if row.get("late")]


WHOSE = ("module", "callback")
OF_A_VALIDATION = ("on_validation_epoch_end", "on_validation_end")
OF_A_FIT = ("on_train_epoch_end", "on_train_end", "on_fit_end")
STAGES = {"validate": "validation", "test": "test"}
AT_A_STAGES_END = [(stage, f"on_{word}_{end}") for stage, word in STAGES.items() for end in ("epoch_end", "end")]


# -- in a fit ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("hook", [*OF_A_VALIDATION, *OF_A_FIT])
def test_what_is_logged_in_a_fits_last_hooks_is_in_callback_metrics(hook: str, whose: str, tmp_path: Path) -> None:
    assert fit(tmp_path, whose, hook).callback_metrics.get("late") == VALUE


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_what_is_logged_when_training_is_over_is_in_the_log_at_its_last_step(
    hook: str, whose: str, tmp_path: Path
) -> None:
    fit(tmp_path, whose, hook)
    assert logged(tmp_path) == [(2 * BATCHES, VALUE)]


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("hook", [*OF_A_VALIDATION, "on_train_epoch_end"])
def test_what_is_logged_at_an_epochs_or_validations_end_is_in_the_log_each_time(
    hook: str, whose: str, tmp_path: Path
) -> None:
    fit(tmp_path, whose, hook, lambda epoch: epoch + VALUE)
    assert logged(tmp_path) == [(BATCHES, VALUE), (2 * BATCHES, 1 + VALUE)]


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("hook", [*OF_A_VALIDATION, "on_train_epoch_end"])
def test_what_is_logged_at_an_epochs_or_validations_end_is_in_the_history(
    hook: str, whose: str, tmp_path: Path
) -> None:
    trainer = fit(tmp_path, whose, hook, lambda epoch: epoch + VALUE)
    assert [record.get("late") for record in trainer.history] == [VALUE, 1 + VALUE]


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("hook", OF_A_VALIDATION)
def test_what_is_logged_at_a_validations_end_is_a_metric_of_the_checkpoint_after_it(
    hook: str, whose: str, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(monitor="late", save_top_k=-1)
    trainer = fit(tmp_path, whose, hook, lambda epoch: epoch + VALUE, keep, enable_checkpointing=True)
    assert [entry.metrics.get("late") for entry in trainer.checkpoints.entries()] == [VALUE, 1 + VALUE]
    assert keep.best_model_score == VALUE


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("hook", OF_A_VALIDATION)
def test_early_stopping_may_monitor_what_is_logged_at_a_validations_end(hook: str, whose: str, tmp_path: Path) -> None:
    trainer = fit(tmp_path, whose, hook, VALUE, EarlyStopping("late", patience=2), max_epochs=6)
    assert trainer.current_epoch == 3


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_end", "on_fit_end"])
def test_a_tensor_logged_in_a_last_hook_is_read_before_the_fit_returns(hook: str, tmp_path: Path) -> None:
    trainer = fit(tmp_path, "module", hook, lambda epoch: paddle.to_tensor(VALUE))
    assert trainer.callback_metrics.get("late") == VALUE


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_several_values_of_one_name_in_a_last_hook_are_reduced_as_in_every_other(hook: str, tmp_path: Path) -> None:
    trainer = trainer_at(tmp_path, [Logs(hook, 1.0), Logs(hook, 2.0)])
    trainer.fit(Classifier(), make_batches(BATCHES))
    assert trainer.callback_metrics.get("late") == 1.5
    assert logged(tmp_path) == [(2 * BATCHES, 1.5)]


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_what_training_has_logged_stays_beside_what_a_last_hook_logs(hook: str, tmp_path: Path) -> None:
    class Epochs(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

    def of_training(root: Path, *callbacks: Callback) -> tuple[Any, list[Any], list[str]]:
        trainer = trainer_at(root, list(callbacks))
        trainer.fit(Epochs(), make_batches(BATCHES), make_batches(1))
        with (root / "run" / "metrics.csv").open() as file:
            cells = [row["train_loss"] for row in csv.DictReader(file) if row["train_loss"]]
        return trainer.callback_metrics["train_loss"], trainer.history, cells

    assert of_training(tmp_path / "with", Logs(hook)) == of_training(tmp_path / "without")


def test_logger_false_keeps_a_value_of_a_last_hook_out_of_the_log_and_not_out_of_callback_metrics(
    tmp_path: Path,
) -> None:
    trainer = trainer_at(tmp_path, [Logs("on_train_end", logger=False)])
    trainer.fit(Classifier(), make_batches(BATCHES), make_batches(1))
    assert trainer.callback_metrics.get("late") == VALUE
    assert logged(tmp_path) == []


# -- in a validate or test of its own ----------------------------------------------------------------------------------
@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize(("stage", "hook"), AT_A_STAGES_END)
def test_what_is_logged_in_a_stages_last_hooks_is_in_what_it_returns(
    stage: str, hook: str, whose: str, tmp_path: Path
) -> None:
    module, callbacks = parts(whose, hook)
    (result,) = getattr(trainer_at(tmp_path, callbacks), stage)(module, make_batches(2), verbose=False)
    assert result.get("late") == VALUE


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize(("stage", "hook"), AT_A_STAGES_END)
def test_what_is_logged_in_a_stages_last_hooks_is_in_callback_metrics(
    stage: str, hook: str, whose: str, tmp_path: Path
) -> None:
    module, callbacks = parts(whose, hook)
    trainer = trainer_at(tmp_path, callbacks)
    getattr(trainer, stage)(module, make_batches(2), verbose=False)
    assert trainer.callback_metrics.get("late") == VALUE


@pytest.mark.parametrize(("stage", "hook"), AT_A_STAGES_END)
def test_of_several_loaders_the_results_of_each_have_what_a_last_hook_logs(
    stage: str, hook: str, tmp_path: Path
) -> None:
    class Loaders(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().test_step(batch, batch_idx)

    trainer = trainer_at(tmp_path, [Logs(hook)])
    loaders = [paddle.io.DataLoader(Pairs(), batch_size=2), paddle.io.DataLoader(Pairs(), batch_size=4)]
    results = getattr(trainer, stage)(Loaders(), loaders, verbose=False)
    assert [result.get("late") for result in results] == [VALUE, VALUE]


class Pairs(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return paddle.full([4], float(index)).numpy(), index % 3


@pytest.mark.parametrize(("stage", "hook"), AT_A_STAGES_END)
def test_after_a_fit_what_a_stages_last_hook_logs_reaches_the_runs_log_too(
    stage: str, hook: str, tmp_path: Path
) -> None:
    trainer = trainer_at(tmp_path, [])
    module = Classifier()
    trainer.fit(module, make_batches(BATCHES))
    object.__setattr__(module, hook, lambda: module.log("late", VALUE))
    getattr(trainer, stage)(module, make_batches(2), verbose=False)
    assert logged(tmp_path) == [(2 * BATCHES, VALUE)]


# -- where nothing can be logged ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("hook", "whose"), list(itertools.product(("on_fit_start", "on_predict_end", "teardown"), WHOSE))
)
def test_where_no_metric_can_be_kept_the_call_is_refused_by_the_metrics_name(
    hook: str, whose: str, tmp_path: Path
) -> None:
    module = Classifier()
    logs = Callback()
    if whose == "callback":
        setattr(logs, hook, lambda trainer, module, *stage: module.log("late", VALUE))
    else:
        object.__setattr__(module, hook, lambda *stage: module.log("late", VALUE))
    trainer = trainer_at(tmp_path, [logs])
    with pytest.raises(ConfigurationError, match="'late'"):
        if hook == "on_predict_end":
            trainer.predict(module, make_batches(1))
        else:
            trainer.fit(module, make_batches(BATCHES))
