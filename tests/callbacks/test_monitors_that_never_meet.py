"""A monitored metric that no decision can ever see is told, once, with what to do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, batches

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint

SCORES = {"val": lambda step: 1.0 / (step + 1)}


def told(root: Path, callback: Callback, count: int = 13, **settings: Any) -> list[str]:
    """What is warned of in a fit with this callback."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=root, callbacks=[callback], **{**quiet, "max_epochs": 3, **settings})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Scripted(SCORES), batches(count), batches(1))
    return [text for text in (str(one.message) for one in caught) if "'val'" in text]


NEVER = {
    "every 9 steps of 13": (ModelCheckpoint, {"every_n_train_steps": 9}, {}, "at step 9 and 'val' came at step 13"),
    "at epochs' ends only": (
        ModelCheckpoint,
        {"save_on_train_epoch_end": True},
        {"val_check_interval": 5},
        "at step 13 and 'val' came at step 10",
    ),
}


@pytest.mark.parametrize("case", NEVER)
def test_saves_that_never_fall_on_a_score_are_told_once(tmp_path: Path, case: str) -> None:
    kind, arguments, settings, expected = NEVER[case]
    (text,) = told(tmp_path, kind(monitor="val", **arguments), **settings)
    assert "keeps no best so far" in text
    assert expected in text
    assert "To keep the best, " in text


MEETING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "each epoch": ({}, {}),
    "a divisor": ({"every_n_train_steps": 13}, {}),
    "a multiple": ({"every_n_train_steps": 26}, {}),
    "after each validation": ({}, {"val_check_interval": 5}),
    "every second epoch": ({"every_n_epochs": 2}, {}),
    "validation every second epoch": ({}, {"check_val_every_n_epoch": 2}),
    "no best wanted": ({"every_n_train_steps": 9, "save_top_k": 0}, {}),
}


@pytest.mark.parametrize("case", MEETING)
def test_nothing_is_told_where_saves_meet_scores(tmp_path: Path, case: str) -> None:
    arguments, settings = MEETING[case]
    assert told(tmp_path, ModelCheckpoint(monitor="val", **arguments), **settings) == []


def test_nothing_is_told_of_a_score_that_came_before_a_resume(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for epochs in (2, 3):
        trainer = Trainer(
            default_root_dir=tmp_path,
            run_name="run",
            max_epochs=epochs,
            check_val_every_n_epoch=2,
            callbacks=[ModelCheckpoint(monitor="val")],
            **quiet,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.fit(Scripted(SCORES), batches(4), batches(1), ckpt_path="last")


@pytest.mark.parametrize("kind", [ModelCheckpoint, EarlyStopping])
@pytest.mark.parametrize(
    "settings",
    [{"max_steps": 5, "max_epochs": -1}, {"check_val_every_n_epoch": 10, "max_epochs": 2}],
    ids=["max_steps before a validation", "an interval longer than the run"],
)
def test_a_metric_that_never_came_is_told_at_the_fit_s_end(
    tmp_path: Path, kind: type[Callback], settings: dict[str, Any]
) -> None:
    (text,) = told(tmp_path, kind(monitor="val"), **settings)  # type: ignore[call-arg]
    assert f"{kind.__name__} monitors 'val', which never came" in text
    assert "no validation has run" in text
