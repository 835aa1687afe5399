"""An evaluation within a fit, with a module or data of its own: the fit's callbacks and logs are left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, DataModule, Logger, Trainer


class Notes(Logger):
    """Remembers what it is told, and when it is finalized."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.told.append("log")

    def finalize(self, outcome: str) -> None:
        self.told.append(f"finalize {outcome}")


class Watch(Callback):
    """Evaluates once in the second batch, and remembers how it was set up and torn down itself."""

    def __init__(self, evaluate: Callable[[Trainer], Any]) -> None:
        self.evaluate = evaluate
        self.life: list[str] = []

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self.life.append(f"setup {stage}")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            self.evaluate(trainer)

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        self.life.append(f"teardown {stage}")


class Data(DataModule):
    def __init__(self) -> None:
        self.life: list[str] = []

    def setup(self, stage: str) -> None:
        self.life.append(f"setup {stage}")

    def val_dataloader(self) -> Any:
        return make_batches(1)

    def teardown(self, stage: str) -> None:
        self.life.append(f"teardown {stage}")


class Other(Classifier):
    """Built in setup, as a module of its own may be."""

    def setup(self, stage: str) -> None:
        self.was_set_up = stage


def with_a_module(trainer: Trainer) -> None:
    other = Other()
    assert trainer.validate(other, make_batches(1), verbose=False)[0]
    assert other.was_set_up == "validate"


def with_a_datamodule(trainer: Trainer) -> None:
    data = Data()
    assert trainer.validate(datamodule=data, verbose=False)[0]
    assert data.life == ["setup validate", "teardown validate"]


def with_the_fits_own(trainer: Trainer) -> None:
    assert trainer.validate(dataloaders=make_batches(1), verbose=False)[0]


@pytest.mark.parametrize("evaluate", [with_a_module, with_a_datamodule, with_the_fits_own])
def test_callbacks_and_logs_of_the_fit_are_neither_set_up_nor_ended_by_a_guest(
    evaluate: Callable[[Trainer], None], tmp_path: Path
) -> None:
    notes, watch = Notes(), Watch(evaluate)
    quiet_trainer(max_epochs=1, log_every_n_steps=1, logger=notes, callbacks=[watch], default_root_dir=tmp_path).fit(
        Classifier(), make_batches(4)
    )
    assert watch.life == ["setup fit", "teardown fit"]
    assert [told for told in notes.told if told != "log"] == ["finalize finished"]
    assert notes.told[-1] == "finalize finished"


def test_a_guests_own_module_is_brought_to_the_precision_of_the_trainer() -> None:
    seen: list[Any] = []

    class Looks(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.dtype)

    watch = Watch(lambda trainer: trainer.validate(Looks(), make_batches(1), verbose=False))
    quiet_trainer(max_epochs=1, precision="64-true", callbacks=[watch]).fit(Classifier(), make_batches(4))
    assert seen == [paddle.float64]
