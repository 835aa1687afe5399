"""val_check_interval as a time: validations by training time, also where a run goes on; the clock is a made one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.fit import stopping


class Clock:
    """Each batch takes ten seconds, each validation three."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


class Slow(Classifier):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.validated: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.now += 10
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.clock.now += 3
        super().validation_step(batch, batch_idx)

    def on_validation_end(self) -> None:
        self.validated.append(self.trainer.progress.total_batches)


def fitted(clock: Clock, interval: Any, **settings: Any) -> list[int]:
    module = Slow(clock)
    trainer = quiet_trainer(val_check_interval=interval, **{"max_epochs": 3, **settings})
    trainer.fit(module, make_batches(4), make_batches(1), ckpt_path="last" if "default_root_dir" in settings else None)
    return module.validated


@pytest.mark.parametrize("interval", [timedelta(seconds=25), "00:00:00:25", {"seconds": 25}])
def test_a_validation_comes_once_so_much_time_has_gone_since_the_last(clock: Clock, interval: Any) -> None:
    # Batches end at 10, 20, 30 seconds; a validation ends at 33, so the next is due from 58 on: after the sixth.
    assert fitted(clock, interval) == [3, 6, 9, 12]
    assert fitted(clock, interval, check_val_every_n_epoch=None) == [3, 6, 9, 12]


def test_an_interval_that_does_not_come_is_no_validation(clock: Clock) -> None:
    assert fitted(clock, timedelta(hours=1)) == []


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_resumed_run_counts_on_from_its_last_validation(clock: Clock, tmp_path: Path, cut: int) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    before = fitted(clock, timedelta(seconds=25), max_steps=cut, **settings)
    clock.now += 5000  # while the process is gone
    as_if_started_again()
    assert before + fitted(clock, timedelta(seconds=25), **settings) == [3, 6, 9, 12]


def test_a_rehearsal_validates_as_ever(clock: Clock) -> None:
    module = Slow(clock)
    trainer = quiet_trainer(val_check_interval=timedelta(hours=1), fast_dev_run=True)
    trainer.fit(module, make_batches(4), make_batches(1))
    assert len(module.validated) == 1


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"val_check_interval": timedelta()}, ConfigurationError, r"val_check_interval.*longer than 0 s"),
        ({"val_check_interval": "5 minutes"}, ConfigurationError, r"val_check_interval.*'DD:HH:MM:SS'"),
        ({"val_check_interval": {"minuts": 5}}, ConfigurationError, r"val_check_interval.*timedelta"),
        ({"val_check_interval": [5]}, ConfigurationTypeError, r"val_check_interval.*or a time"),
        (
            {"val_check_interval": "00:00:05:00", "check_val_every_n_epoch": 2},
            ConfigurationError,
            "check_val_every_n_epoch=2.*val_check_interval.*time",
        ),
    ],
)
def test_a_wrong_interval_is_one_clear_error(settings: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        quiet_trainer(**settings)
