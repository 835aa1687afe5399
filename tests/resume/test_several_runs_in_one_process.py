"""Folds and sweeps: "last" without a run's name is never the end of another Trainer's run of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Trainer
from paddlelite_trainer.errors import ConfigurationError


def trainer_in(root: Path, **settings: Any) -> Trainer:
    return quiet_trainer(**{"default_root_dir": root, "enable_checkpointing": True, "max_epochs": 2, **settings})


def fit(trainer: Trainer, seed: int = 0) -> Classifier:
    module = Classifier()
    trainer.fit(module, make_batches(3, seed=seed), ckpt_path="last")
    return module


def test_a_second_fold_does_not_take_the_first_one_s_end_for_its_own(tmp_path: Path) -> None:
    fit(trainer_in(tmp_path))
    module = Classifier()
    before = weights_of(module)
    with pytest.raises(ConfigurationError, match=r"another Trainer of this process.*run_name.*ckpt_path='.*version_0'"):
        trainer_in(tmp_path).fit(module, make_batches(3, seed=1), ckpt_path="last")
    assert same_weights(before, weights_of(module))
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]


def test_one_that_was_stopped_is_at_its_end_too(tmp_path: Path) -> None:
    class Stops(Classifier):
        def on_train_epoch_end(self) -> None:
            self.trainer.stop("enough")

    trainer_in(tmp_path, max_epochs=9).fit(Stops(), make_batches(3), ckpt_path="last")
    with pytest.raises(ConfigurationError, match="another Trainer of this process"):
        fit(trainer_in(tmp_path, max_epochs=9))


def test_named_folds_are_runs_of_their_own_and_can_be_started_again(tmp_path: Path) -> None:
    folds = [weights_of(fit(trainer_in(tmp_path, run_name=f"fold_{k}"), seed=k)) for k in range(2)]
    assert not same_weights(*folds)
    assert same_weights(folds[1], weights_of(fit(trainer_in(tmp_path, run_name="fold_1"), seed=1)))


def test_what_is_not_at_its_end_goes_on_and_so_does_a_run_that_is_pointed_at(tmp_path: Path) -> None:
    fit(trainer_in(tmp_path))
    longer = trainer_in(tmp_path, max_epochs=3)  # in a notebook: the same cell with more epochs
    fit(longer)
    assert longer.current_epoch == 3
    trainer_in(tmp_path, max_epochs=3).fit(Classifier(), make_batches(3), ckpt_path=tmp_path / "version_0")


def test_the_same_trainer_and_a_run_of_another_process_are_over_as_ever(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    fit(trainer)
    fit(trainer)
    as_if_started_again()
    fit(trainer_in(tmp_path))
