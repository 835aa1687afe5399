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


# -- another Trainer on the module that is being trained ---------------------------------------------------------------
STAGES = ("validate", "test", "predict")


class Life(Callback):
    def __init__(self) -> None:
        self.life: list[str] = []

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self.life.append(f"setup {stage}")

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self.life.append(type(exception).__name__)

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        self.life.append(f"teardown {stage}")


class Given(Life):
    pass


class Lived(Classifier):
    """Remembers its life, and gives a callback of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.life: list[str] = []
        self.given: list[Given] = []

    def prepare_data(self) -> None:
        self.life.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.life.append(f"setup {stage}")

    def teardown(self, stage: str) -> None:
        self.life.append(f"teardown {stage}")

    def configure_callbacks(self) -> list[Given]:
        self.life.append("configure_callbacks")
        self.given = [Given()]
        return self.given

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)


FIT_LIFE = ["configure_callbacks", "prepare_data", "setup fit", "teardown fit"]


@pytest.mark.parametrize("stage", STAGES)
def test_another_trainer_leaves_the_life_of_the_fits_module_alone_and_gives_its_own_callbacks_theirs(
    stage: str,
) -> None:
    own, module = Life(), Lived()

    def evaluate(_: Trainer) -> None:
        getattr(quiet_trainer(callbacks=[own]), stage)(module, make_batches(1))

    quiet_trainer(max_epochs=1, callbacks=[Watch(evaluate)]).fit(module, make_batches(4))
    assert module.life == FIT_LIFE
    assert module.given[0].life == ["setup fit", "teardown fit"]
    assert own.life == [f"setup {stage}", f"teardown {stage}"]


def test_another_trainer_sets_up_the_data_that_it_brings() -> None:
    data, module = Data(), Lived()
    watch = Watch(lambda _: quiet_trainer().validate(module, datamodule=data, verbose=False))
    quiet_trainer(max_epochs=1, callbacks=[watch]).fit(module, make_batches(4))
    assert data.life == ["setup validate", "teardown validate"]
    assert module.life == FIT_LIFE


def test_a_guest_of_a_guest_leaves_the_fits_module_alone() -> None:
    module = Lived()

    class Asks(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.trainer.validate(module, make_batches(1), verbose=False)

    watch = Watch(lambda trainer: trainer.validate(Asks(), make_batches(1), verbose=False))
    quiet_trainer(max_epochs=1, callbacks=[watch]).fit(module, make_batches(4))
    assert module.life == FIT_LIFE


def test_another_trainer_that_has_the_module_to_itself_sets_it_up() -> None:
    module, own = Lived(), Life()
    quiet_trainer(callbacks=[own]).validate(module, make_batches(1), verbose=False)
    assert module.life == ["configure_callbacks", "prepare_data", "setup validate", "teardown validate"]
    assert own.life == ["setup validate", "teardown validate"]
