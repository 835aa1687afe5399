"""ReduceOnPlateau waits for its metric, and counts each of its values once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import paddle
import pytest
from loops_by_hand import Net, batches, net, scheduled, trainer

from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError


class Counting(paddle.optimizer.lr.ReduceOnPlateau):
    """Remembers every value it is given; never lowers the rate."""

    def __init__(self) -> None:
        self.given: list[float] = []
        super().__init__(0.1, patience=100)

    def step(self, metrics: Any, epoch: Any = None) -> None:
        self.given.append(float(metrics))
        super().step(metrics, epoch)


class Scored(Net):
    """Logs the number of optimizer steps as `score` in validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", float(self.global_step))


def given(val_batches: int = 1, settings: dict[str, Any] | None = None, count: int = 4, **options: Any) -> list[float]:
    """What the schedule was given in a fit of three epochs."""
    made: list[Counting] = []

    def make() -> Counting:
        made.append(Counting())
        return made[-1]

    module = net(scheduled(make, **{"monitor": "score", **options}), kind=Scored)
    trainer(**(settings or {})).fit(module, batches(count), batches(val_batches) if val_batches else None)
    return made[0].given


WAITING: dict[str, tuple[dict[str, Any], dict[str, Any], list[float]]] = {
    "validation every second epoch": ({"check_val_every_n_epoch": 2, "max_epochs": 5}, {"interval": "epoch"}, [8, 16]),
    "validation across epochs": (
        {"check_val_every_n_epoch": None, "val_check_interval": 6, "max_epochs": 4},
        {"interval": "epoch"},
        [6, 12],
    ),
    "by steps": ({"max_epochs": 2}, {"interval": "step"}, [4, 8]),
    "by steps, every third": ({}, {"interval": "step", "frequency": 3}, [4, 8, 12]),
    "by steps, validation within the epoch": (
        {"val_check_interval": 2, "max_epochs": 2},
        {"interval": "step"},
        [2, 4, 6, 8],
    ),
    "more than its frequency": ({"val_check_interval": 2, "max_epochs": 2}, {"interval": "epoch"}, [4, 8]),
}


@pytest.mark.parametrize("case", WAITING)
def test_a_plateau_schedule_waits_and_counts_each_value_once(case: str) -> None:
    settings, options, expected = WAITING[case]
    assert given(settings=settings, **options) == expected


def test_equal_values_of_two_validations_count_twice() -> None:
    class Same(Scored):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", 1.0)

    made: list[Counting] = []
    module = net(scheduled(lambda: made.append(Counting()) or made[-1], interval="epoch", monitor="score"), kind=Same)
    trainer().fit(module, batches(), batches(1))
    assert made[0].given == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("val_batches", [0, 1])
def test_a_misspelt_monitor_is_an_error_when_everything_has_been_logged(interval: str, val_batches: int) -> None:
    with pytest.raises(ConfigurationError, match="ReduceOnPlateau watches 'scor', which was not logged"):
        given(val_batches=val_batches, monitor="scor", interval=interval)


def test_a_misspelt_monitor_is_an_error_when_the_first_validation_has_come_late() -> None:
    with pytest.raises(ConfigurationError, match=r"watches 'scor', which was not logged\. .*Did you mean 'score'"):
        given(monitor="scor", interval="epoch", settings={"check_val_every_n_epoch": 2})


def test_a_metric_that_never_came_is_told_at_the_fit_s_end() -> None:
    with pytest.warns(UserWarning, match="ReduceOnPlateau watches 'score', which never came: the fit ended at epoch 3"):
        assert given(interval="epoch", settings={"check_val_every_n_epoch": 9}) == []


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("steps", range(1, 12))
def test_a_resumed_run_gives_the_schedule_the_same_values(tmp_path: Path, interval: str, steps: int) -> None:
    made: list[Counting] = []

    def fit(**settings: Any) -> None:
        module = net(
            scheduled(lambda: made.append(Counting()) or made[-1], interval=interval, monitor="score"), kind=Scored
        )
        run = trainer(
            [ModelCheckpoint(every_n_train_steps=1)],
            enable_checkpointing=True,
            default_root_dir=tmp_path,
            run_name="run",
            check_val_every_n_epoch=None,
            val_check_interval=3,
            **settings,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.fit(module, batches(4), batches(1), ckpt_path="last")

    fit(max_steps=steps)
    fit()
    expected = given(
        interval=interval, settings={"check_val_every_n_epoch": None, "val_check_interval": 3, "max_epochs": 3}
    )
    assert made[-1].given == expected  # a schedule's attributes come with the checkpoint
