"""ThroughputMonitor: what it counts, and that waiting for data is told from working."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.callbacks import ThroughputMonitor
from paddlelite_trainer.errors import ConfigurationError


class Slow:
    """Batches that take long to come."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        for batch in make_batches(6, batch_size=5):
            time.sleep(self.seconds)
            yield batch


def measured(loader: Any, **settings: Any) -> dict[str, float]:
    trainer = quiet_trainer(callbacks=[ThroughputMonitor()], **settings)
    trainer.fit(Classifier(), loader)
    return trainer.history[-1]


def test_samples_are_batches_times_their_size() -> None:
    record = measured(make_batches(6, batch_size=5))
    assert record["samples_per_second"] == pytest.approx(5 * record["batches_per_second"])
    assert 0.0 <= record["data_wait_share"] <= 1.0


def test_waiting_for_a_slow_loader_is_told() -> None:
    assert measured(Slow(0.05))["data_wait_share"] > measured(make_batches(6))["data_wait_share"]


def test_the_samples_of_a_batch_may_be_counted_in_ones_own_way() -> None:
    trainer = quiet_trainer(callbacks=[ThroughputMonitor(batch_size_fn=lambda batch: 100)])
    trainer.fit(Classifier(), make_batches(3))
    record = trainer.history[-1]
    assert record["samples_per_second"] == pytest.approx(100 * record["batches_per_second"])


def test_an_interval_that_is_no_number_of_steps_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="every_n_steps"):
        ThroughputMonitor(every_n_steps=0)
