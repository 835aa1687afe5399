"""Trainer.save_checkpoint: tags of the user's own, which nothing takes away and which take nothing away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError


class AtStep(Callback):
    def __init__(self, at: dict[int, Callable[[Trainer], Any]]) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.at:
            self.at[trainer.global_step](trainer)


def run(root: Path, at: dict[int, Callable[[Trainer], Any]] | None = None, **settings: Any) -> Trainer:
    callbacks = [ModelCheckpoint(monitor="val_loss", save_top_k=2), AtStep(at or {})]
    settings = {"max_epochs": 3, "enable_checkpointing": True, **settings}
    trainer = quiet_trainer(callbacks=callbacks, default_root_dir=root, **settings)
    trainer.fit(Classifier(), make_batches(4), make_batches(1))
    return trainer


def steps(trainer: Trainer, pin: str) -> list[int]:
    return [entry.step for entry in trainer.checkpoints.by_pin(pin)]


def test_a_tag_that_can_be_no_name_is_refused_where_it_is_given_and_the_run_goes_on(tmp_path: Path) -> None:
    refused: list[str] = []

    def bad(trainer: Trainer) -> None:
        with pytest.raises(ConfigurationError) as raised:
            trainer.save_checkpoint(tag="val/best")
        refused.append(str(raised.value))

    trainer = run(tmp_path, {6: bad})
    assert "'val/best'" in refused[0]
    assert trainer.current_epoch == 3
    assert trainer.save_checkpoint("fine") is not None


@pytest.mark.parametrize(
    "tag",
    ["latest", "best", "best_val_loss", "epoch_4", "recent", "last", "12", "metrics.csv", "run.json", "imported-best"],
)
def test_a_name_that_the_run_uses_itself_is_refused_and_nothing_is_lost(tmp_path: Path, tag: str) -> None:
    trainer = run(tmp_path)
    before = trainer.checkpoints.pins()
    with pytest.raises(ConfigurationError):
        trainer.save_checkpoint(tag)
    assert trainer.checkpoints.pins() == before


def test_a_tag_stays_with_its_checkpoint_unless_it_is_to_move(tmp_path: Path) -> None:
    taken: list[str] = []

    def again(trainer: Trainer) -> None:
        with pytest.raises(ConfigurationError) as raised:
            trainer.save_checkpoint("mine")
        taken.append(str(raised.value))

    trainer = run(tmp_path, {2: lambda trainer: trainer.save_checkpoint("mine"), 6: again})
    assert steps(trainer, "mine") == [2]
    assert "the tag 'mine' is taken, by step-000000002" in taken[0]
    assert trainer.save_checkpoint("mine", replace=True) is not None
    assert steps(trainer, "mine") == [12]


def test_the_same_command_run_again_tags_the_finished_run_again(tmp_path: Path) -> None:
    for ckpt_path in (None, "last"):
        trainer = run(tmp_path) if ckpt_path is None else resumed(tmp_path)
        assert trainer.save_checkpoint("final") is not None
    assert steps(trainer, "final") == [12]


def resumed(root: Path) -> Trainer:
    as_if_started_again()
    trainer = quiet_trainer(
        callbacks=[ModelCheckpoint(monitor="val_loss", save_top_k=2)],
        default_root_dir=root,
        max_epochs=3,
        enable_checkpointing=True,
    )
    trainer.fit(Classifier(), make_batches(4), make_batches(1), ckpt_path="last")
    return trainer


def test_weights_only_is_kept_to_within_fit_too(tmp_path: Path) -> None:
    at = {
        6: lambda trainer: trainer.save_checkpoint("light", weights_only=True),
        10: lambda trainer: (trainer.save_checkpoint("light too", weights_only=True), trainer.save_checkpoint("full")),
    }
    trainer = run(tmp_path, at)
    files = {tag: trainer.checkpoints.read(trainer.checkpoints.first_of_pin(tag)).files for tag in ("light", "full")}
    assert "optimizer.pdopt" not in files["light"]
    assert "optimizer.pdopt" in files["full"]
    assert steps(trainer, "light too") == steps(trainer, "full") == [10]
