"""ThroughputMonitor: what it counts, and that waiting for data is told from working."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Logger
from paddlelite_trainer.callbacks import LambdaCallback, ModelCheckpoint, ThroughputMonitor
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


def test_checkpoints_are_neither_work_nor_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Loader(Slow):
        def __iter__(self) -> Iterator[Any]:
            for batch in make_batches(6):
                clock[0] += 3.0
                yield batch

    class Works(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 1.0
            return super().training_step(batch, batch_idx)

    def save(*_: Any) -> None:
        clock[0] += 100.0

    callbacks = [ThroughputMonitor(), ModelCheckpoint(every_n_train_steps=2), LambdaCallback(on_save_checkpoint=save)]
    trainer = quiet_trainer(callbacks=callbacks, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Works(), Loader(0.0))
    # The first batch warms up; before the third and the fifth there was a save; the sixth, read one ahead, was there
    # already. So five worked, and two were waited for.
    assert trainer.history[-1]["data_wait_share"] == pytest.approx(2 * 3 / (2 * 3 + 5 * 1))


def test_opening_a_later_epoch_is_waiting_and_what_callbacks_do_between_epochs_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Opens(Slow):
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Any]:
            clock[0] += 10.0
            yield from make_batches(2)

    class Works(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 1.0
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            clock[0] += 100.0

    trainer = quiet_trainer(callbacks=[ThroughputMonitor()], max_epochs=3)
    trainer.fit(Works(), Opens(0.0))
    assert [record["data_wait_share"] for record in trainer.history] == pytest.approx([0.0, 10 / 12, 10 / 12])


def test_where_gradients_accumulate_a_step_is_logged_once() -> None:
    steps: list[int | None] = []

    class Steps(Logger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if "samples_per_second" in metrics:
                steps.append(step)

    monitor = ThroughputMonitor(every_n_steps=2)
    trainer = quiet_trainer(callbacks=[monitor], accumulate_grad_batches=3, logger=[Steps()])
    trainer.fit(Classifier(), make_batches(18))
    assert steps == [2, 4, 6]


class Sleepy(paddle.io.Dataset):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return np.zeros(4, "float32"), np.int64(index % 3)


def test_workers_that_sleep_are_what_a_fit_waits_for() -> None:
    record = measured(paddle.io.DataLoader(Sleepy(), batch_size=5, num_workers=2))
    # Fifty milliseconds for each batch on two workers; a step takes one or two. A busy machine makes both slower.
    assert record["data_wait_share"] > 0.5
    assert record["samples_per_second"] < 1.5 * 2 / 0.01


def test_an_interval_that_is_no_number_of_steps_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="every_n_steps"):
        ThroughputMonitor(every_n_steps=0)
