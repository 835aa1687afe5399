"""When a Trainer seeds, and that what a fit imports draws nothing from its random numbers."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import Module, Tuner, seed_everything


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = paddle.nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return paddle.nn.functional.cross_entropy(self.layer(x), y)

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


def test_a_module_made_after_a_trainer_with_a_seed_has_the_same_weights_each_time() -> None:
    made = []
    for before in (1, 2):
        seed_everything(before)
        quiet_trainer(seed=3)
        made.append((weights_of(Net()), random.random(), np.random.rand()))
    assert same_weights(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]


def test_a_trainer_without_a_seed_seeds_nothing_when_it_is_made() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist()
    quiet_trainer()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_the_numbers_of_a_fit_do_not_depend_on_when_the_module_was_made() -> None:
    def drawn(module_first: bool) -> list[float]:
        numbers: list[float] = []

        class Draws(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                numbers.extend((random.random(), float(np.random.rand()), paddle.rand([1]).item()))
                return super().training_step(batch, batch_idx)

        if module_first:
            module = Draws()
            trainer = quiet_trainer(seed=3)
        else:
            trainer = quiet_trainer(seed=3)
            module = Draws()
        trainer.fit(module, make_batches(2))
        return numbers

    assert drawn(True) == drawn(False)


def test_a_tuner_leaves_random_states_as_they_are_though_its_trainer_has_a_seed() -> None:
    trainer = quiet_trainer(seed=3)
    random.seed(5)
    before = random.getstate()
    Tuner(trainer).lr_find(Classifier(), make_batches(4), num_training=4)
    assert random.getstate() == before


TWO_FITS = """
import random, sys
import paddle
from models import Classifier, make_batches
from paddlelite_trainer import Trainer
from paddlelite_trainer.callbacks import ModelSummary, ProgressBar

class Draws(Classifier):
    def training_step(self, batch, batch_idx):
        drawn.append(random.random())
        return super().training_step(batch, batch_idx)

fits = []
for _ in range(2):
    drawn = []
    trainer = Trainer(max_epochs=2, seed=3, logger=False, enable_checkpointing=False, accelerator="cpu",
                      callbacks=[ProgressBar(), ModelSummary()])
    trainer.fit(Draws(), make_batches(3), make_batches(1))
    trainer.validate(dataloaders=make_batches(1))
    fits.append(drawn + [random.random()])
assert "rich.console" in sys.modules
assert fits[0] == fits[1], fits
"""


def test_what_a_fit_imports_at_its_first_use_draws_nothing_from_the_fits_numbers(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    paths = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]; import conftest\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + TWO_FITS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
