"""Arguments of callbacks that are misspelt or of a wrong type: one error of ours, with what was meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paddlelite_trainer import callbacks
from paddlelite_trainer.errors import ConfigurationTypeError, TrainerError

CLASSES = {name: getattr(callbacks, name) for name in callbacks.__all__ if isinstance(getattr(callbacks, name), type)}
MISSPELT = [
    ("BackboneFinetuning", "unfreeze_backbone_at_epochs", "unfreeze_backbone_at_epoch"),
    ("BasePredictionWriter", "write_intervall", "write_interval"),
    ("EarlyStopping", "patient", "patience"),
    ("ExponentialMovingAverage", "decays", "decay"),
    ("GradientAccumulationScheduler", "schedule", "scheduling"),
    ("GradientNormWatch", "every_n_step", "every_n_steps"),
    ("LRMonitor", "log_interval", "logging_interval"),
    ("LossSpikeWatch", "treshold", "threshold"),
    ("ModelCheckpoint", "moniter", "monitor"),
    ("ModelSummary", "maxdepth", "max_depth"),
    ("NonFiniteGuard", "actions", "action"),
    ("OnExceptionCheckpoint", "file_name", "filename"),
    ("PlotCurves", "file_name", "filename"),
    ("ProgressBar", "refresh_second", "refresh_seconds"),
    ("RemoteCopy", "urls", "url"),
    ("StochasticWeightAveraging", "swa_lr", "swa_lrs"),
    ("ThroughputMonitor", "every_n_step", "every_n_steps"),
    ("Timer", "durations", "duration"),
]


@pytest.mark.parametrize(("name", "misspelt", "meant"), MISSPELT)
def test_a_misspelt_argument_is_an_error_with_a_suggestion(name: str, misspelt: str, meant: str) -> None:
    with pytest.raises(ConfigurationTypeError) as error:
        CLASSES[name](**{misspelt: 1})
    assert str(error.value) == f"{name} has no argument {misspelt!r}. Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("ExponentialMovingAverage", {"decay": "0.9"}, "decay=...) must be a number, got '0.9'"),
        ("ExponentialMovingAverage", {"start_step": "3"}, "start_step=...) must be an int, got '3'"),
        (
            "ExponentialMovingAverage",
            {"update_every_n_steps": 1.5},
            "update_every_n_steps=...) must be an int",
        ),
        ("StochasticWeightAveraging", {"swa_lrs": "0.1"}, "swa_lrs=...) must be a number or a list, got '0.1'"),
        ("StochasticWeightAveraging", {"swa_lrs": 0.1, "swa_epoch_start": "5"}, "swa_epoch_start=...) must be"),
        ("StochasticWeightAveraging", {"swa_lrs": 0.1, "annealing_epochs": "5"}, "annealing_epochs=...) must be"),
        ("ProgressBar", {"refresh_seconds": "1"}, "refresh_seconds=...) must be a number, got '1'"),
        ("ProgressBar", {"every_seconds": "10"}, "every_seconds=...) must be a number or None, got '10'"),
        ("OnExceptionCheckpoint", {"dirpath": 3}, "dirpath=...) must be a str, a path or None, got 3"),
        ("OnExceptionCheckpoint", {"filename": 3}, "filename=...) must be a str, got 3"),
        ("ModelCheckpoint", {"dirpath": 3}, "dirpath=...) must be a str, a path or None, got 3"),
        ("ThroughputMonitor", {"batch_size_fn": 3}, "batch_size_fn=...) must be a function or None, got 3"),
        ("LossSpikeWatch", {"window": "5"}, "window=...) must be"),
        ("LossSpikeWatch", {"threshold": "5"}, "threshold=...) must be"),
        ("NonFiniteGuard", {"max_in_a_row": "5"}, "max_in_a_row=...) must be"),
        ("BackboneFinetuning", {"unfreeze_backbone_at_epoch": "5"}, "unfreeze_backbone_at_epoch=...) must be"),
        ("GradientNormWatch", {"every_n_steps": "5"}, "every_n_steps=...) must be"),
        ("EarlyStopping", {"monitor": "val_loss", "min_delta": "0.1"}, "min_delta=...) must be"),
        ("PlotCurves", {"filename": 3}, "filename=...) must be"),
    ],
)
def test_a_value_of_a_wrong_type_is_an_error_that_names_it(name: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainerError) as error:
        CLASSES[name](**arguments)
    assert str(error.value).startswith(f"{name}({told}")


@pytest.mark.parametrize("rates", [np.float32(0.5), np.array([0.5]), (0.5,), [0.5], 0.5])
def test_numbers_and_arrays_of_numpy_are_taken_where_numbers_and_lists_are(rates: Any) -> None:
    assert callbacks.StochasticWeightAveraging(rates).swa_lrs == [0.5]
    assert callbacks.ExponentialMovingAverage(np.float32(0.5), start_step=np.int64(3)).start_step == 3
