"""validate, test and predict called while a fit runs: the fit goes on as if nobody had asked.

Everything that a fit leaves is compared with that of the same fit without the call: `left_by` lists it.
"""

from __future__ import annotations

import csv
import functools
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import same_weights, weights_of

from paddlelite_trainer import Callback, CSVLogger, DataModule, Module, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError

F = paddle.nn.functional
pytestmark = pytest.mark.timeout(60)

BATCHES = 4  # of an epoch
EPOCHS = 4
PREEMPTED = 75


# -- a fit in which everything can be told apart -----------------------------------------------------------------------
class Samples(paddle.io.Dataset):  # type: ignore[misc]
    """[x of 4 numbers, score]; validation logs the mean score, so whoever makes the data says what is logged."""

    def __init__(self, count: int, score: float = 0.0, seed: int = 0) -> None:
        self.x = np.random.default_rng(seed).normal(size=(count, 4)).astype("float32")
        self.score = np.float32(score)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.score


FIT_SCORE, BETTER, WORSE = 1.0, 0.25, 8.0  # the smaller the better


def training_data() -> Any:
    return paddle.io.DataLoader(Samples(4 * BATCHES), batch_size=4, shuffle=True)


def validation_data(score: float = FIT_SCORE, seed: int = 1) -> Any:
    return paddle.io.DataLoader(Samples(6, score, seed), batch_size=3)


class Net(Module):
    """Dropout and BatchNorm, so that random numbers and modes matter, and a part that its user keeps in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = paddle.nn.Sequential(paddle.nn.Linear(4, 6), paddle.nn.BatchNorm1D(6), paddle.nn.Linear(6, 1))
        self.frozen = paddle.nn.BatchNorm1D(4)
        self.frozen.eval()
        numbers = np.random.RandomState(3)
        for parameter in (one for one in self.parameters() if not one.stop_gradient):
            parameter.set_value(numbers.randn(*parameter.shape).astype("float32") * 0.3)
        self.within_step: Callable[[], Any] | None = None

    def loss(self, x: Any) -> Any:
        return (self.body(self.frozen(x)) - 1.0).pow(2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = F.dropout(batch[0], 0.3, training=self.training)
        if self.within_step is not None:
            self.within_step()
        loss = self.loss(x)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def _evaluate(self, batch: Any) -> None:
        random.random()
        np.random.rand()
        paddle.rand([1])
        self.log("score", batch[1].mean())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)
        self.log("val_loss", self.loss(batch[0]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)
        self.log("test_loss", self.loss(batch[0]))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        np.random.rand()
        paddle.rand([1])
        return self.body(batch[0])

    def configure_optimizers(self) -> Any:
        self.plateau = paddle.optimizer.lr.ReduceOnPlateau(0.1, patience=1, factor=0.5)
        optimizer = paddle.optimizer.Adam(self.plateau, parameters=self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.plateau, "monitor": "score"}}


Ask = Callable[[Trainer, Module], Any]


class Nested(Callback):
    """Calls `ask` in one place of the fit, once the optimizer has made `step` steps, and not within itself.

    `before` and `after` are what could be seen of the fit at the call.
    """

    def __init__(self, place: str, ask: Ask, step: int) -> None:
        self.place, self.ask, self.step = place, ask, step
        self.answer: Any = None
        self.calls = 0
        if place != "training_step":
            setattr(self, place, self.call)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if self.place == "training_step":
            module.within_step = functools.partial(self.call, trainer, module)

    def call(self, trainer: Any, module: Any, *arguments: Any) -> None:
        if self.calls == 0 and trainer.global_step == self.step:
            self.calls += 1
            self.before = seen_in(trainer, module)
            self.answer = self.ask(trainer, module)
            self.after = seen_in(trainer, module)


def fit(
    root: Path,
    *callbacks: Callback,
    ckpt_path: str | None = None,
    data: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[Trainer, Net]:
    """A fit with everything on that an evaluation might disturb; its score never improves, so three epochs end it."""
    keep = ModelCheckpoint(monitor="score", save_top_k=-1)
    options: dict[str, Any] = {
        "default_root_dir": root,
        "run_name": "run",
        "seed": 5,
        "max_epochs": EPOCHS,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "async_checkpoint": False,
        "logger": CSVLogger(),
        "callbacks": [*callbacks, EarlyStopping("score", patience=2), keep],
        **settings,
    }
    trainer, module = Trainer(**options), Net()
    trainer.fit(
        module,
        **(data or {"train_dataloaders": training_data(), "val_dataloaders": validation_data()}),
        ckpt_path=ckpt_path,
    )
    return trainer, module


def other_trainer() -> Trainer:
    return Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1
    )


# -- what a fit leaves -------------------------------------------------------------------------------------------------
def logged_cells(root: Path) -> dict[str, list[tuple[str, str]]]:
    """{name: [(step, value), ...]} of the CSV log."""
    with (root / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch") and value:
                cells.setdefault(name, []).append((row["step"], value))
    return cells


def left_by(trainer: Trainer, module: Net, root: Path) -> dict[str, Any]:
    """Everything that a fit leaves, but for the log, in which an evaluation may leave lines of its own."""
    (optimizer,) = trainer.optimizers
    stopping = trainer.early_stopping_callback
    return {
        "position": (trainer.current_epoch, trainer.global_step),
        "weights": {name: value.tolist() for name, value in weights_of(module).items()},
        "optimizer": [
            value.numpy().tolist() for by_name in optimizer._accumulators.values() for value in by_name.values()
        ],
        "learning rate": float(optimizer.get_lr()),
        "plateau": (float(module.plateau.best), module.plateau.num_bad_epochs),
        "callback_metrics": {
            name: float(value) for name, value in trainer.callback_metrics.items() if "test" not in name
        },
        "history": trainer.history,
        "early stopping": (stopping.wait_count, stopping.best_score, stopping.stopped_epoch, stopping.stopping_reason),
        "best": Path(trainer.checkpoint_callback.best_model_path).name,
        "checkpoints": [(entry.name, entry.epoch, entry.metrics) for entry in trainer.checkpoints.entries()],
        "random": (random.random(), np.random.rand(), paddle.rand([1]).item()),
        "modes": modes_of(module),
        "flags": flags_of(trainer),
        "module.trainer": module.trainer is trainer,
    }


def flags_of(trainer: Trainer) -> tuple[Any, ...]:
    return (
        trainer.state,
        *(trainer.training, trainer.validating, trainer.testing, trainer.predicting, trainer.sanity_checking),
    )


def modes_of(module: Module) -> list[bool]:
    return [layer.training for layer in module.sublayers(include_self=True)]


def seen_in(trainer: Trainer, module: Module) -> dict[str, Any]:
    """What a hook of the fit can see that is not its metrics."""
    return {
        "flags": flags_of(trainer),
        "module.trainer": module.trainer is trainer,
        "modes": modes_of(module),
        "gradients": paddle.is_grad_enabled(),
        "position": (trainer.current_epoch, trainer.global_step, trainer.is_last_batch),
        "data": (trainer.num_training_batches, trainer.num_val_batches, trainer.datamodule),
        "should_stop": trainer.should_stop,
        "checkpoint": trainer.ckpt_path,
        "random": (random.getstate(), np.random.get_state()[1].tolist()),
    }


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The parts that differ, as (found, expected)."""
    return {name: (found.get(name), value) for name, value in expected.items() if found.get(name) != value}


def is_subsequence(some: list[Any], of: list[Any]) -> bool:
    rest = iter(of)
    return all(item in rest for item in some)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the fit leaves without an evaluation in it, and its log."""
    root = tmp_path_factory.mktemp("undisturbed")
    trainer, module = fit(root)
    assert (trainer.current_epoch, trainer.global_step) == (3, 3 * BATCHES)  # of four: EarlyStopping has ended it
    return left_by(trainer, module, root), logged_cells(root)


# -- nothing of the fit changes ----------------------------------------------------------------------------------------
PLACES = {  # at the step given; early enough for what follows to show it
    "on_train_start": 0,
    "on_train_epoch_start": 4,
    "on_train_batch_start": 5,
    "training_step": 5,
    "on_before_optimizer_step": 5,
    "on_train_batch_end": 6,
    "on_validation_batch_end": 8,
    "on_validation_epoch_end": 8,
    "on_validation_end": 8,
    "on_train_epoch_end": 8,
}
CALLS: dict[str, Ask] = {
    "validate": lambda trainer, module: trainer.validate(module, validation_data(BETTER, 2), verbose=False),
    "validate, worse": lambda trainer, module: trainer.validate(module, validation_data(WORSE, 2), verbose=False),
    "test": lambda trainer, module: trainer.test(module, validation_data(BETTER, 2), verbose=False),
    "predict": lambda trainer, module: trainer.predict(module, validation_data(BETTER, 2)),
    "another's validate": lambda trainer, module: other_trainer().validate(
        module, validation_data(BETTER, 2), verbose=False
    ),
    "another's predict": lambda trainer, module: other_trainer().predict(module, validation_data(BETTER, 2)),
}
MAIN_PLACES = ("on_train_batch_end", "on_validation_epoch_end", "on_train_epoch_end")
MAIN_CALLS = ("validate", "test", "another's validate")
CASES = [(place, call) for place in PLACES for call in CALLS if place in MAIN_PLACES or call in MAIN_CALLS]


@dataclass
class Outcome:
    """What came of a fit with a call in it."""

    nested: Nested
    left: dict[str, Any]
    cells: dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outcome]:
    @functools.cache
    def outcome(place: str, call: str) -> Outcome:
        def ask(trainer: Trainer, module: Any) -> Any:
            return by_hand(module), CALLS[call](trainer, module)

        root = tmp_path_factory.mktemp("nested")
        nested = Nested(place, ask, PLACES[place])
        trainer, module = fit(root, nested)
        assert nested.calls == 1
        return Outcome(nested, left_by(trainer, module, root), logged_cells(root))

    return outcome


def by_hand(module: Any) -> tuple[float, list[Any]]:
    """The loss over the data of CALLS and the predictions for it, of the module in eval mode; as it was afterwards."""
    modes = [(layer, layer.training) for layer in module.sublayers(include_self=True)]
    module.eval()
    with paddle.no_grad():
        batches = [x for x, _ in validation_data(BETTER, 2)]  # of one size
        loss = float(np.mean([module.loss(x).item() for x in batches]))
        predictions = [module.body(x).tolist() for x in batches]
    for layer, mode in modes:
        layer.training = mode
    return loss, predictions


@pytest.mark.parametrize(("place", "call"), CASES)
def test_a_fit_with_an_evaluation_in_it_leaves_what_it_leaves_without(
    place: str,
    call: str,
    outcome_of: Callable[[str, str], Outcome],
    undisturbed: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    assert differences(outcome_of(place, call).left, undisturbed[0]) == {}


@pytest.mark.parametrize(("place", "call"), CASES)
def test_the_log_of_a_fit_has_all_its_lines_in_order_whatever_an_evaluation_adds(
    place: str,
    call: str,
    outcome_of: Callable[[str, str], Outcome],
    undisturbed: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    cells = outcome_of(place, call).cells
    assert [name for name, lines in undisturbed[1].items() if not is_subsequence(lines, cells.get(name, []))] == []


@pytest.mark.parametrize(("place", "call"), CASES)
def test_what_a_hook_can_see_of_the_fit_is_after_the_evaluation_as_before(
    place: str, call: str, outcome_of: Callable[[str, str], Outcome]
) -> None:
    nested = outcome_of(place, call).nested
    assert differences(nested.after, nested.before) == {}
    assert nested.before["flags"][0] == "fit" and nested.before["module.trainer"]


@pytest.mark.parametrize(("place", "call"), CASES)
def test_the_call_returns_what_its_own_data_gives_with_the_present_weights_and_nothing_of_the_fit(
    place: str, call: str, outcome_of: Callable[[str, str], Outcome]
) -> None:
    (loss, predictions), answer = outcome_of(place, call).nested.answer
    if "predict" in call:
        assert [batch.tolist() for batch in answer] == predictions
        return
    name = "test_loss" if call == "test" else "val_loss"
    score = WORSE if "worse" in call else BETTER
    assert [{name: pytest.approx(loss, rel=1e-6), "score": score}] == answer


OWN_DATA: dict[str, Ask] = {
    "its validation data": lambda trainer, module: trainer.validate(module, trainer.val_dataloaders, verbose=False),
    "its training data": lambda trainer, module: trainer.validate(module, trainer.train_dataloader, verbose=False),
}


@pytest.mark.parametrize("data", OWN_DATA)
@pytest.mark.parametrize("place", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_an_evaluation_over_the_fits_own_loaders_does_not_change_its_order_of_data(
    place: str, data: str, tmp_path: Path, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    nested = Nested(place, OWN_DATA[data], PLACES[place])
    trainer, module = fit(tmp_path, nested)
    assert nested.calls == 1
    assert differences(left_by(trainer, module, tmp_path), undisturbed[0]) == {}


def test_an_evaluation_in_every_batch_changes_nothing_either(
    tmp_path: Path, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    class Always(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.test(module, validation_data(WORSE, 2), verbose=False)

    trainer, module = fit(tmp_path, Always())
    assert differences(left_by(trainer, module, tmp_path), undisturbed[0]) == {}


@pytest.mark.parametrize("place", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_an_evaluation_that_fails_and_is_caught_changes_nothing_either(
    place: str, tmp_path: Path, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    class Torn:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            yield [paddle.ones([3, 4]), paddle.zeros([3])]
            raise OSError("torn")

    def fails(trainer: Trainer, module: Module) -> None:
        with pytest.raises(OSError, match="torn"):
            trainer.validate(module, Torn(), verbose=False)

    trainer, module = fit(tmp_path, Nested(place, fails, PLACES[place]))
    assert differences(left_by(trainer, module, tmp_path), undisturbed[0]) == {}


def test_a_resumed_fit_with_an_evaluation_in_it_ends_as_the_undisturbed(
    tmp_path: Path, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    fit(tmp_path, Nested("on_train_batch_end", CALLS["validate"], 3), max_steps=6)
    nested = Nested("on_train_epoch_end", CALLS["validate, worse"], 8)
    trainer, module = fit(tmp_path, nested, ckpt_path="last")
    assert nested.calls == 1
    found, expected = left_by(trainer, module, tmp_path), dict(undisturbed[0])
    del found["checkpoints"], expected["checkpoints"]  # the first of the two fits ended with one within an epoch
    assert differences(found, expected) == {}


def test_a_fit_keeps_its_datamodule_when_another_is_evaluated(tmp_path: Path) -> None:
    class Data(DataModule):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def train_dataloader(self) -> Any:
            return training_data()

        def val_dataloader(self) -> Any:
            return validation_data()

        def state_dict(self) -> dict[str, Any]:
            return {"name": self.name}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.name = state_dict["name"]

    def ask(trainer: Trainer, module: Module) -> Any:
        return trainer.validate(module, datamodule=Data("asked"), verbose=False)

    trainer, _ = fit(tmp_path, Nested("on_train_epoch_end", ask, 8), data={"datamodule": Data("fitted")}, max_epochs=3)
    assert trainer.datamodule.name == "fitted"
    resumed = Data("new")
    fit(tmp_path, data={"datamodule": resumed}, max_epochs=4, ckpt_path="last")
    assert resumed.name == "fitted"


# -- who counts what ---------------------------------------------------------------------------------------------------
def test_what_an_evaluation_logs_is_no_metric_of_a_later_checkpoint(tmp_path: Path) -> None:
    nested, keep = (
        Nested("on_train_batch_end", CALLS["validate"], 6),
        ModelCheckpoint(every_n_train_steps=1, save_top_k=-1),
    )
    trainer, _ = fit(tmp_path, callbacks=[nested, keep], max_epochs=2)
    scores = {entry.step: entry.metrics["score"] for entry in trainer.checkpoints.entries() if entry.step >= BATCHES}
    assert scores == dict.fromkeys(range(BATCHES, 2 * BATCHES + 1), FIT_SCORE)


def test_a_name_that_only_the_evaluation_logs_is_in_no_checkpoint(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, Nested("on_train_batch_end", CALLS["test"], 6), max_epochs=3)
    assert [entry.name for entry in trainer.checkpoints.entries() if "test_loss" in entry.metrics] == []


@pytest.mark.parametrize("call", ["validate", "validate, worse"])
@pytest.mark.parametrize("check_on_train_epoch_end", [None, True, False])
def test_early_stopping_does_not_count_an_evaluation_of_its_monitor(
    call: str, check_on_train_epoch_end: bool | None, tmp_path: Path
) -> None:
    class Always(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            CALLS[call](trainer, module)

    stopping = EarlyStopping("score", patience=2, check_on_train_epoch_end=check_on_train_epoch_end)
    trainer, _ = fit(tmp_path, callbacks=[Always(), stopping], enable_checkpointing=False, logger=False)
    assert (trainer.current_epoch, stopping.best_score) == (3, FIT_SCORE)


def test_the_best_checkpoint_is_not_that_of_an_evaluation(tmp_path: Path) -> None:
    class Always(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if trainer.state == "fit" and trainer.current_epoch == 1 and not self.inside:
                self.inside = True
                CALLS["validate"](trainer, module)
                self.inside = False

        inside = False

    keep = ModelCheckpoint(monitor="score")
    trainer, _ = fit(tmp_path, callbacks=[Always(), keep], max_epochs=3)
    assert (keep.best_model_score, trainer.checkpoints.first_of_pin("best").epoch) == (FIT_SCORE, 1)


def test_a_plateau_schedule_by_steps_takes_no_evaluation_for_a_validation(tmp_path: Path) -> None:
    class BySteps(Net):
        def configure_optimizers(self) -> Any:
            config = super().configure_optimizers()
            config["lr_scheduler"] |= {"interval": "step", "frequency": 2}
            return config

    def rates(root: Path, *callbacks: Callback) -> list[float]:
        found: list[float] = []

        class Look(Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                found.append(float(trainer.optimizers[0].get_lr()))

        trainer = Trainer(
            default_root_dir=root,
            seed=5,
            max_epochs=3,
            val_check_interval=1,
            callbacks=[*callbacks, Look()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(BySteps(), training_data(), validation_data())
        return found

    nested = Nested("on_validation_end", CALLS["validate"], 6)
    assert rates(tmp_path / "nested", nested) == rates(tmp_path / "plain")
    assert nested.calls == 1


# -- signals, time, tags -----------------------------------------------------------------------------------------------
class Preempting:
    """Data in whose first batch the process is asked to go."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(2):
            yield [paddle.ones([3, 4]), paddle.zeros([3])]


def preempted_before(trainer: Trainer, module: Module) -> Any:
    os.kill(os.getpid(), signal.SIGTERM)
    return trainer.validate(module, validation_data(), verbose=False)


def preempted_during(trainer: Trainer, module: Module) -> Any:
    return trainer.validate(module, Preempting(), verbose=False)


def preempted_during_anothers(trainer: Trainer, module: Module) -> Any:
    return other_trainer().validate(module, Preempting(), verbose=False)


@pytest.mark.parametrize("ask", [preempted_before, preempted_during, preempted_during_anothers])
@pytest.mark.parametrize("place", ["on_train_batch_end", "training_step", "on_validation_end", "on_train_epoch_end"])
def test_a_signal_before_or_during_the_evaluation_ends_the_fit_with_everything_saved(
    place: str, ask: Ask, tmp_path: Path, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    nested = Nested(place, ask, PLACES[place])
    with pytest.raises(SystemExit) as raised:
        fit(tmp_path, nested)
    assert raised.value.code == PREEMPTED
    steps: list[int] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            steps.append(trainer.global_step)

    _, module = fit(tmp_path, Look(), ckpt_path="last")
    assert steps == [PLACES[place] + (place == "training_step")]
    assert same_weights(
        weights_of(module), {name: np.array(value, "float32") for name, value in undisturbed[0]["weights"].items()}
    )


@pytest.mark.parametrize("call", ["validate", "another's validate"])
def test_max_time_goes_on_counting_after_an_evaluation(call: str, tmp_path: Path) -> None:
    def ask(trainer: Trainer, module: Module) -> None:
        CALLS[call](trainer, module)
        time.sleep(0.06)

    trainer, _ = fit(tmp_path, Nested("on_train_batch_start", ask, 0), max_time={"milliseconds": 50})
    assert trainer.global_step == 1


@pytest.mark.parametrize("place", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize("order", ["tag first", "evaluation first"])
def test_a_tag_asked_for_beside_an_evaluation_is_taken_at_the_next_save_point(
    place: str, order: str, tmp_path: Path, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    def ask(trainer: Trainer, module: Module) -> Any:
        if order == "tag first":
            taken = trainer.save_checkpoint("mine")
            CALLS["validate"](trainer, module)
        else:
            CALLS["validate"](trainer, module)
            taken = trainer.save_checkpoint("mine")
        return taken

    nested = Nested(place, ask, PLACES[place])
    trainer, module = fit(tmp_path, nested)
    assert nested.answer is None  # not yet taken
    found, expected = left_by(trainer, module, tmp_path), dict(undisturbed[0])
    del found["checkpoints"], expected["checkpoints"]  # one more, where the tag is within an epoch
    assert differences(found, expected) == {}
    assert [entry.step for entry in trainer.checkpoints.by_pin("mine")] == [PLACES[place]]
    _, resumed = fit(tmp_path, ckpt_path="mine")
    assert same_weights(weights_of(resumed), weights_of(module))


# -- fit inside fit ----------------------------------------------------------------------------------------------------
def names_fit(error: BaseException, root: Path) -> bool:
    return "fit" in str(error).replace(str(root), "")  # whose name is a test's


@pytest.mark.parametrize("place", ["on_train_start", "on_train_batch_end", "training_step", "on_train_epoch_end"])
def test_a_fit_inside_a_fit_is_refused_and_the_outer_one_goes_on_where_the_error_is_caught(
    place: str, tmp_path: Path, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    def ask(trainer: Trainer, module: Module) -> Any:
        with pytest.raises(ConfigurationError) as raised:
            trainer.fit(module, training_data(), validation_data())
        return raised.value

    nested = Nested(place, ask, PLACES[place])
    trainer, module = fit(tmp_path, nested)
    assert names_fit(nested.answer, tmp_path), nested.answer
    assert differences(left_by(trainer, module, tmp_path), undisturbed[0]) == {}


def test_a_fit_inside_a_fit_that_nobody_catches_ends_the_outer_one_with_an_error_that_names_fit(tmp_path: Path) -> None:
    def ask(trainer: Trainer, module: Module) -> None:
        trainer.fit(Net(), training_data())

    with pytest.raises(ConfigurationError) as raised:
        fit(tmp_path, Nested("on_train_batch_end", ask, 6))
    assert names_fit(raised.value, tmp_path), raised.value


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_fit_inside_an_evaluation_inside_a_fit_is_refused_too(stage: str, tmp_path: Path) -> None:
    said: list[BaseException] = []

    class FitWithin(Callback):
        def try_it(self, trainer: Any, module: Any) -> None:
            if not said:
                with pytest.raises(ConfigurationError) as raised:
                    trainer.fit(module, training_data())
                said.append(raised.value)

    within = FitWithin()
    setattr(within, {"validate": "on_validation_epoch_end", "test": "on_test_epoch_end"}[stage], within.try_it)
    ask = CALLS["test" if stage == "test" else "validate"]
    trainer, _ = fit(tmp_path, within, Nested("on_train_batch_end", ask, 2), max_epochs=2)
    assert len(said) == 1 and names_fit(said[0], tmp_path), said
    assert trainer.current_epoch == 2
