"""ckpt_path="best" and "last" after a fit mean that fit's own checkpoints, and never another run's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, same_weights, weights_of

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import CheckpointError, ConfigurationError

pytestmark = pytest.mark.timeout(60)


def trainer_at(root: Path, **settings: Any) -> Trainer:
    options: dict[str, Any] = {
        "default_root_dir": root,
        "max_epochs": 1,
        "logger": False,
        "seed": 3,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**options, **settings})


def fitted(root: Path, ckpt_path: str | None = None, **settings: Any) -> tuple[Trainer, Classifier]:
    trainer, module = trainer_at(root, **settings), Classifier(lr=0.05)
    trainer.fit(module, make_batches(3), make_batches(1, seed=1), ckpt_path=ckpt_path)
    return trainer, module


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with a latest and a best checkpoint, and its weights."""
    root = tmp_path_factory.mktemp("other")
    trainer, module = fitted(root, max_epochs=2, callbacks=[ModelCheckpoint(monitor="val_loss")])
    assert trainer.run_dir is not None
    return trainer.run_dir, weights_of(module)


@pytest.fixture
def other_run(a_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """Puts a run of another trainer below `tmp_path`; its weights."""
    shutil.copytree(a_run[0], tmp_path / "version_0", symlinks=True)
    return a_run[1]


def evaluate(trainer: Trainer, stage: str, model: Classifier | None, **options: Any) -> list[Any]:
    if stage != "predict":
        options["verbose"] = False
    result: list[Any] = getattr(trainer, stage)(model, make_batches(1), **options)
    return result


def assert_says_that_nothing_was_saved(error: BaseException, root: Path) -> None:
    said = str(error).replace(str(root), "").lower()  # the directory has a test's name
    assert "fit" in said and "saved" in said and ("nothing" in said or "no checkpoint" in said), error


STAGES = ("validate", "test", "predict")
WORDS = ("best", "last")


# -- a fit that saved nothing ------------------------------------------------------------------------------------------
SAVES_NOTHING: dict[str, Callable[[], dict[str, Any]]] = {
    "no checkpoints, no logger": lambda: {"enable_checkpointing": False},
    "no checkpoints, a logger": lambda: {"enable_checkpointing": False, "logger": True},
    "no checkpoints, the other run's name": lambda: {"enable_checkpointing": False, "run_name": "version_0"},
    "fast_dev_run": lambda: {"fast_dev_run": True},
    "fast_dev_run of the other run's name": lambda: {"fast_dev_run": True, "run_name": "version_0"},
    "a ModelCheckpoint that keeps nothing": lambda: {"callbacks": [ModelCheckpoint(save_top_k=0, save_last=False)]},
}


@pytest.mark.parametrize(
    ("stage", "word"), [("validate", "last"), ("test", "best"), ("test", "last"), ("predict", "best")]
)
@pytest.mark.parametrize("settings", SAVES_NOTHING.values(), ids=SAVES_NOTHING)
def test_after_a_fit_that_saved_nothing_its_checkpoints_cannot_be_asked_for_and_the_weights_stay(
    settings: Callable[[], dict[str, Any]], stage: str, word: str, tmp_path: Path, other_run: dict[str, Any]
) -> None:
    trainer, module = fitted(tmp_path, **settings())
    before = weights_of(module)
    assert not same_weights(before, other_run)
    with pytest.raises(CheckpointError) as raised:
        evaluate(trainer, stage, module, ckpt_path=word)
    assert_says_that_nothing_was_saved(raised.value, tmp_path)
    assert same_weights(weights_of(module), before)
    assert trainer.ckpt_path is None


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("settings", SAVES_NOTHING.values(), ids=SAVES_NOTHING)
def test_it_is_the_same_where_no_model_is_passed_and_no_other_run_is_there(
    settings: Callable[[], dict[str, Any]], word: str, tmp_path: Path
) -> None:
    trainer, module = fitted(tmp_path, **settings())
    before = weights_of(module)
    with pytest.raises(CheckpointError) as raised:
        evaluate(trainer, "test", None, ckpt_path=word)
    assert_says_that_nothing_was_saved(raised.value, tmp_path)
    assert same_weights(weights_of(module), before)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("where", ["configure_optimizers", "on_train_batch_start"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_fit_that_failed_before_it_saved_has_nothing_saved_either(
    checkpointing: bool, where: str, word: str, tmp_path: Path, other_run: dict[str, Any]
) -> None:
    def fails(*arguments: Any) -> None:
        raise ValueError("no such thing")

    module = Classifier()
    object.__setattr__(module, where, fails)
    trainer = trainer_at(tmp_path, enable_checkpointing=checkpointing)
    with pytest.raises(ValueError, match="no such thing"):
        trainer.fit(module, make_batches(3))
    before = weights_of(module)
    with pytest.raises(CheckpointError) as raised:
        evaluate(trainer, "test", module, ckpt_path=word)
    assert_says_that_nothing_was_saved(raised.value, tmp_path)
    assert same_weights(weights_of(module), before)


@pytest.mark.parametrize("word", WORDS)
def test_of_two_fits_of_a_trainer_the_second_counts(word: str, tmp_path: Path, other_run: dict[str, Any]) -> None:
    trainer, module = fitted(tmp_path, callbacks=[ModelCheckpoint(monitor="val_loss")])
    first = weights_of(module)

    def fails(*arguments: Any) -> None:
        raise ValueError("no such thing")

    object.__setattr__(module, "on_train_batch_start", fails)
    with pytest.raises(ValueError, match="no such thing"):
        trainer.fit(module, make_batches(3))
    with pytest.raises(CheckpointError) as raised:
        evaluate(trainer, "test", module, ckpt_path=word)
    assert_says_that_nothing_was_saved(raised.value, tmp_path)
    assert same_weights(weights_of(module), first)


def test_after_a_fit_that_saved_nothing_a_path_still_says_which_checkpoint_is_meant(
    tmp_path: Path, other_run: dict[str, Any]
) -> None:
    trainer, module = fitted(tmp_path, enable_checkpointing=False)
    evaluate(trainer, "test", module, ckpt_path=str(tmp_path / "version_0" / "latest"))
    assert same_weights(weights_of(module), other_run)


def test_a_fit_may_go_on_with_the_newest_run_after_one_that_saved_nothing(
    tmp_path: Path, other_run: dict[str, Any]
) -> None:
    """`fit(ckpt_path="last")` is how a job starts and restarts: it names the run that is to go on."""
    trainer, module = fitted(tmp_path, enable_checkpointing=False, max_epochs=2)
    trainer.fit(module, make_batches(3), ckpt_path="last")
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)
    assert same_weights(weights_of(module), other_run)


# -- a fit that saved --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("word", WORDS)
def test_a_trainers_own_checkpoint_is_taken_although_a_newer_run_has_some(
    word: str, stage: str, tmp_path: Path
) -> None:
    trainer, module = fitted(tmp_path, callbacks=[ModelCheckpoint(monitor="val_loss")])
    mine = weights_of(module)
    fitted(tmp_path, max_epochs=3, callbacks=[ModelCheckpoint(monitor="val_loss")])
    other = Classifier()
    evaluate(trainer, stage, other, ckpt_path=word)
    assert same_weights(weights_of(other), mine)
    assert trainer.ckpt_path is not None and "version_0" in trainer.ckpt_path.parts


@pytest.mark.parametrize("word", WORDS)
def test_a_run_that_was_over_when_it_was_started_again_has_its_earlier_checkpoints(word: str, tmp_path: Path) -> None:
    def start(root: Path, **settings: Any) -> tuple[Trainer, Classifier]:
        return fitted(root, "last", callbacks=[ModelCheckpoint(monitor="val_loss")], **settings)

    _, first = start(tmp_path, run_name="mine", max_epochs=2)
    fitted(tmp_path, max_epochs=3)
    trainer, again = start(tmp_path, run_name="mine", max_epochs=2)
    evaluate(trainer, "test", again, ckpt_path=word)
    assert same_weights(weights_of(again), weights_of(first))


@pytest.mark.parametrize("word", WORDS)
def test_a_resumed_run_that_died_before_it_saved_anew_has_its_earlier_checkpoints(word: str, tmp_path: Path) -> None:
    class Dies(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            raise ValueError("no such thing")

    _, first = fitted(tmp_path, callbacks=[ModelCheckpoint(monitor="val_loss")])
    trainer = trainer_at(tmp_path, max_epochs=2, callbacks=[Dies(), ModelCheckpoint(monitor="val_loss")])
    module = Classifier(lr=0.05)
    with pytest.raises(ValueError, match="no such thing"):
        trainer.fit(module, make_batches(3), make_batches(1, seed=1), ckpt_path="last")
    evaluate(trainer, "test", module, ckpt_path=word)
    assert same_weights(weights_of(module), weights_of(first))


def test_best_without_a_monitor_says_that_nothing_was_monitored(tmp_path: Path, other_run: dict[str, Any]) -> None:
    trainer, module = fitted(tmp_path)
    before = weights_of(module)
    with pytest.raises((ConfigurationError, CheckpointError), match="nothing was monitored"):
        evaluate(trainer, "test", module, ckpt_path="best")
    assert same_weights(weights_of(module), before)


# -- a trainer that has not fitted -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stage", "settings"),
    [*((stage, {}) for stage in STAGES), ("test", {"enable_checkpointing": False}), ("test", {"fast_dev_run": True})],
    ids=str,
)
@pytest.mark.parametrize("word", WORDS)
def test_a_trainer_that_has_not_fitted_takes_the_newest_run(
    word: str, stage: str, settings: dict[str, Any], tmp_path: Path, other_run: dict[str, Any]
) -> None:
    module = Classifier()
    evaluate(trainer_at(tmp_path, **settings), stage, module, ckpt_path=word)
    assert same_weights(weights_of(module), other_run)


def test_a_trainer_that_has_only_evaluated_has_not_fitted(tmp_path: Path, other_run: dict[str, Any]) -> None:
    trainer, module = trainer_at(tmp_path), Classifier()
    for _ in range(2):
        evaluate(trainer, "test", module)
    evaluate(trainer, "test", module, ckpt_path="last")
    assert same_weights(weights_of(module), other_run)
