"""What a run keeps depends on what it measured and saved, and where it ends on its arguments, not on interruptions."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint

SCORES = [5, 4, 3, 3.5, 2, 2.5, 2.6, 2.7, 2.8, 2.9, 3, 3.1, 1, 1, 3, *[1] * 20]


class Scored(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", float(SCORES[self.trainer.global_step]))


class Interrupts(Callback):
    """Raises, or is sent a SIGTERM, the first time that a hook finds the run at a step."""

    def __init__(self, hook: str, step: int, how: str) -> None:
        self.hook, self.step, self.how = hook, step, how

    def reach(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            self.hook = ""
            if self.how == "exception":
                raise RuntimeError("planned")
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        self.reach("batch start", trainer)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.reach("batch end", trainer)

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        self.reach("validation start", trainer)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self.reach("validation end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self.reach("epoch end", trainer)


def ended(root: Path, lives: list[Interrupts], make: Callable[[], list[Callback]], **settings: Any) -> dict[str, Any]:
    """Where a run ends that lives several times: its weights, place and names."""
    for interrupts in [*lives, None]:
        as_if_started_again()
        module = Scored()
        given = [*([interrupts] if interrupts else []), *make()]
        trainer = quiet_trainer(
            callbacks=given, enable_checkpointing=True, default_root_dir=root, run_name="run", seed=3, **settings
        )
        try:
            trainer.fit(module, make_batches(7), make_batches(2), ckpt_path="last")
        except (RuntimeError, SystemExit):
            continue
    entries = trainer.checkpoints.entries()
    return {
        "place": (trainer.global_step, trainer.current_epoch),
        "history": trainer.history,
        "weights": np.concatenate([parameter.numpy().ravel() for parameter in module.parameters()]).tobytes(),
        "names": sorted((pin, entry.step) for entry in entries for pin in entry.pins),
    }


KEPT: dict[str, dict[str, Any]] = {
    "the best, by steps": {"monitor": "val", "every_n_train_steps": 5},
    "the best three, by steps": {"monitor": "val", "every_n_train_steps": 5, "save_top_k": 3},
    "the last three": {"monitor": "val", "every_n_train_steps": 3, "keep_last_n": 3},
    "all, under a name": {"every_n_train_steps": 2, "save_top_k": -1, "filename": "kept-{step}"},
}


@pytest.mark.parametrize("kept", KEPT)
def test_what_is_kept_is_the_same_wherever_the_run_was_interrupted(kept: str, tmp_path: Path) -> None:
    def make() -> list[Callback]:
        return [ModelCheckpoint(save_on_exception=True, **KEPT[kept])]

    settings: dict[str, Any] = {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None}
    whole = ended(tmp_path / "whole", [], make, **settings)
    places = [("batch start", 4, "exception"), ("batch start", 8, "exception"), ("batch end", 16, "signal")]
    places += [("batch start", 16, "signal"), ("validation end", 12, "signal"), ("batch start", 18, "exception")]
    for number, place in enumerate(places):
        cut = ended(tmp_path / str(number), [Interrupts(*place)], make, **settings)
        assert cut == whole, place


STOPS: dict[str, tuple[dict[str, Any], list[tuple[str, int, str]]]] = {
    "a signal in the validation that a stop waits for": (
        {"val_check_interval": 1, "min_steps": 7},
        [("validation start", 7, "signal")],
    ),
    "an exception in the epoch's end after the decision": ({"min_epochs": 2}, [("epoch end", 14, "exception")]),
    "a signal in the last hooks": ({"val_check_interval": 1}, [("validation end", 6, "signal")]),
    "two": ({}, [("batch start", 9, "exception"), ("epoch end", 14, "exception")]),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_decision_to_stop_outlives_what_comes_between(name: str, tmp_path: Path) -> None:
    settings, places = STOPS[name]

    def make() -> list[Callback]:
        stopping = EarlyStopping("val", patience=2 if "val_check_interval" in settings else 1)
        stopping.restore_best_weights = True
        return [stopping, ModelCheckpoint(save_on_exception=True)]

    whole = ended(tmp_path / "whole", [], make, max_epochs=6, **settings)
    lives = [Interrupts(*place) for place in places]
    assert ended(tmp_path / "cut", lives, make, max_epochs=6, **settings) == whole
    assert all(interrupts.hook == "" for interrupts in lives)


def test_an_epoch_s_end_that_raised_comes_again_although_max_steps_is_reached(tmp_path: Path) -> None:
    seen: list[int] = []

    class Sees(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
            seen.append(trainer.current_epoch)

    def make() -> list[Callback]:
        return [Sees(), ModelCheckpoint(save_on_exception=True)]

    whole = ended(tmp_path / "whole", [], make, max_epochs=6, max_steps=14)
    cut = ended(tmp_path / "cut", [Interrupts("epoch end", 14, "exception")], make, max_epochs=6, max_steps=14)
    assert cut == whole
    assert whole["place"] == (14, 2)
    assert seen == [0, 1, 0, 1]
