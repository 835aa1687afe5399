"""OptunaPruning with the real optuna: what a study sees of a trial that is pruned, and of one that is resumed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from models import as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer import Module
from paddlelite_trainer.callbacks import OptunaPruning
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)
import models  # noqa: E402


class Scripted(models.Classifier):
    """Its score at each epoch is what the trial was given: `height` minus the epoch."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = height

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.height - self.current_epoch)


class Killed(BaseException):
    """As a kill: nothing is saved of it."""


def fit(trial: Any, module: Module, root: Path, epochs: int = 3, **settings: Any) -> Any:
    trainer = quiet_trainer(
        max_epochs=epochs,
        enable_checkpointing=True,
        default_root_dir=root,
        run_name="run",
        callbacks=[OptunaPruning(trial, "score")],
        **settings,
    )
    trainer.fit(module, make_batches(2), make_batches(1), ckpt_path="last")
    return trainer


def study_of(heights: list[float], tmp_path: Path) -> Any:
    def objective(trial: Any) -> float:
        root = tmp_path / str(trial.number)
        return float(fit(trial, Scripted(heights[trial.number]), root).callback_metrics["score"])

    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    study = optuna.create_study(pruner=pruner)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # optuna warns of what is reported twice
        warnings.filterwarnings("ignore", message=".*global mean|.*log_every_n_steps|.*ccache")
        study.optimize(objective, n_trials=len(heights))
    return study


def test_a_worse_trial_is_pruned_and_a_better_one_completes(tmp_path: Path) -> None:
    trials = study_of([5.0, 9.0, 4.0], tmp_path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert trials[0].intermediate_values == {0: 5.0, 1: 4.0, 2: 3.0}
    assert trials[1].intermediate_values == {0: 9.0} and trials[1].value == 9.0
    ended = json.loads((tmp_path / "1" / "run" / "run.json").read_text())
    assert "pruned by optuna at epoch 0: score 9" in str(ended)


class Frozen(optuna.trial.FixedTrial):  # type: ignore[misc]
    """A trial that keeps what it is told, and is pruned where it is told to be."""

    def __init__(self, number: int, pruned_from: int = 99) -> None:
        super().__init__({}, number=number)
        self.told: list[tuple[int, float]] = []
        self.pruned_from = pruned_from

    def report(self, value: float, step: int) -> None:
        self.told.append((step, value))

    def should_prune(self) -> bool:
        return bool(self.told) and self.told[-1][0] >= self.pruned_from


@pytest.mark.parametrize(("number", "told"), [(0, [2]), (1, [0, 1, 2])])
def test_a_resumed_run_tells_the_same_trial_nothing_twice_and_a_new_one_all(
    number: int, told: list[int], tmp_path: Path
) -> None:
    fit(Frozen(0), Scripted(5), tmp_path, epochs=2)
    as_if_started_again()
    trial = Frozen(number)
    fit(trial, Scripted(5), tmp_path, epochs=3)
    assert trial.told == [(epoch, 5.0 - epoch) for epoch in told]


def test_a_pruned_run_is_pruned_again_and_a_new_trial_decides_anew(tmp_path: Path) -> None:
    with pytest.raises(optuna.TrialPruned, match="pruned by optuna at epoch 1: score 4"):
        fit(Frozen(0, pruned_from=1), Scripted(5), tmp_path)
    as_if_started_again()
    with pytest.raises(optuna.TrialPruned, match="at epoch 1"):
        fit(Frozen(0, pruned_from=1), Scripted(5), tmp_path)
    as_if_started_again()
    new = Frozen(7, pruned_from=1)
    with pytest.raises(optuna.TrialPruned, match="at epoch 1"):
        fit(new, Scripted(5), tmp_path)
    assert new.told == [(0, 5.0), (1, 4.0)]


def test_what_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationTypeError, match=r"trial=...\) is what optuna gives the objective, got 3 \(int\)"):
        OptunaPruning(3, "score")
    with pytest.raises(ConfigurationTypeError, match=r"monitor=...\) must be a str, got None"):
        OptunaPruning(Frozen(0), None)  # type: ignore[arg-type]
    trainer = quiet_trainer(callbacks=[OptunaPruning(Frozen(0), "scor")])
    with pytest.raises(ConfigurationError, match=r"OptunaPruning monitors 'scor', which was not logged. Did you mean"):
        trainer.fit(Scripted(1), make_batches(1), make_batches(1))
