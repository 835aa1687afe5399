"""What a Trainer says of itself by the names that Lightning has for it, within a fit, an evaluation and afterwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, Logger, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ProgressBar
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError


class Says(Callback):
    """Keeps what the Trainer says in a hook."""

    def __init__(self, hook: str, *names: str) -> None:
        self.names, self.said = names, {}
        setattr(type(self), hook, lambda self, trainer, module, *more: self.ask(trainer))

    def ask(self, trainer: Trainer) -> None:
        self.said = {name: getattr(trainer, name) for name in self.names}


def says(hook: str, *names: str) -> Says:
    return type("SaysIn", (Says,), {})(hook, *names)


class Predicts(Classifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


def test_within_a_fit() -> None:
    stops = [EarlyStopping("train_loss", patience=99), EarlyStopping("val_loss", patience=99)]
    names = ("num_sanity_val_batches", "num_training_batches", "num_val_batches", "accumulation_schedule", "is_running")
    kept = says(
        "on_train_batch_end",
        *names,
        *("early_stopping_callback", "early_stopping_callbacks", "lightning_module", "evaluating", "received_sigterm"),
    )
    module = Classifier()
    quiet_trainer(
        callbacks=[*stops, kept], num_sanity_val_steps=1, accumulate_grad_batches={0: 1, 4: 2}, max_epochs=1
    ).fit(module, make_batches(4), make_batches(3))
    assert kept.said == {
        "num_sanity_val_batches": [1],
        "num_training_batches": 4,
        "num_val_batches": [3],
        "accumulation_schedule": {0: 1, 4: 2},
        "is_running": True,
        "early_stopping_callback": stops[0],
        "early_stopping_callbacks": stops,
        "lightning_module": module,
        "evaluating": False,
        "received_sigterm": False,
    }


@pytest.mark.parametrize(
    ("stage", "hook", "names", "evaluating"),
    [
        ("test", "on_test_batch_end", ("num_test_batches", "test_dataloaders"), True),
        ("predict", "on_predict_batch_end", ("num_predict_batches", "predict_dataloaders"), False),
    ],
)
def test_within_an_evaluation(stage: str, hook: str, names: tuple[str, str], evaluating: bool) -> None:
    kept = says(hook, *names, "evaluating")
    data = make_batches(3)
    trainer = quiet_trainer(callbacks=[kept])
    getattr(trainer, stage)(Predicts(), data)
    assert kept.said == {names[0]: [3], names[1]: data, "evaluating": evaluating}
    assert getattr(trainer, names[1]) is None


def test_before_and_after(tmp_path: Path) -> None:
    settings = {"limit_train_batches": 2, "limit_val_batches": 0.5, "limit_test_batches": 3}
    trainer = quiet_trainer(callbacks=[ProgressBar()], logger=True, default_root_dir=tmp_path, **settings)
    assert (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches) == (2, 0.5, 3)
    assert trainer.limit_predict_batches is None
    assert (trainer.num_devices, trainer.log_dir, trainer.is_running) == (1, None, False)
    assert isinstance(trainer.progress_bar_callback, ProgressBar)
    trainer.fit(Classifier(), make_batches(4), make_batches(4))
    assert trainer.global_step == 2
    assert trainer.log_dir == tmp_path / "version_0"
    assert set(trainer.logged_metrics) >= {"val_loss"}
    assert trainer.cpu_threads_in_use is not None and trainer.cpu_threads_in_use >= 1


def test_where_a_process_is_and_on_which_device() -> None:
    trainer = quiet_trainer()
    assert (trainer.node_rank, trainer.num_nodes, trainer.device_ids) == (0, 1, [trainer.device.index])
    trainer.ranks.rank, trainer.ranks.world_size, trainer.ranks.local_size = 5, 6, 4
    assert (trainer.node_rank, trainer.num_nodes) == (1, 2)


def test_the_directory_of_a_named_run_is_known_before_fit(tmp_path: Path) -> None:
    def log_dir(**settings: Any) -> Any:
        return quiet_trainer(default_root_dir=tmp_path, run_name="mine", **settings).log_dir

    assert log_dir(logger=True) == log_dir(enable_checkpointing=True) == tmp_path / "mine"
    assert log_dir() is None
    assert log_dir(logger=True, fast_dev_run=True) is None
    trainer = quiet_trainer(default_root_dir=tmp_path, run_name="mine", logger=True)
    trainer.fit(Classifier(), make_batches(2))
    assert trainer.log_dir == tmp_path / "mine"


@pytest.mark.parametrize(("limit", "expected"), [(3, 3), (None, float("inf"))])
def test_data_without_a_length_have_as_many_batches_as_their_limit(limit: int | None, expected: float) -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(make_batches(9))

    kept = says("on_train_batch_end", "num_training_batches", "num_val_batches", "estimated_stepping_batches")
    trainer = quiet_trainer(callbacks=[kept], limit_train_batches=limit, limit_val_batches=limit, max_epochs=2)
    trainer.fit(Classifier(), Stream(), Stream())
    assert kept.said == {
        "num_training_batches": expected,
        "num_val_batches": [expected],
        "estimated_stepping_batches": expected * 2,
    }
    assert trainer.global_step == (2 * 9 if limit is None else 2 * limit)


class Counts(Logger):
    def __init__(self) -> None:
        self.seen: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.seen.append(step)


@pytest.mark.parametrize("how", ["logger", "loggers"])
def test_loggers_can_be_set_between_two_runs(tmp_path: Path, how: str) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path)
    counts = Counts()
    setattr(trainer, how, counts if how == "logger" else [counts])
    assert (trainer.logger, trainer.loggers) == (counts, [counts])
    trainer.fit(Classifier(), make_batches(2), make_batches(2))
    assert counts.seen == [2]
    setattr(trainer, how, None if how == "logger" else [])
    assert (trainer.logger, trainer.loggers) == (None, [])
    trainer.validate(verbose=False, dataloaders=make_batches(2))
    assert counts.seen == [2]


def test_what_is_no_logger_and_a_logger_within_a_run_are_refused() -> None:
    trainer = quiet_trainer()
    with pytest.raises(ConfigurationTypeError, match=r"takes True, False, a Logger, a name .*, got 3"):
        trainer.logger = 3

    class Sets(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            trainer.logger = Counts()

    with pytest.raises(ConfigurationError, match=r"trainer\.logger was set while fit runs.*Trainer\(logger=\.\.\.\)"):
        quiet_trainer(callbacks=[Sets()]).fit(Classifier(), make_batches(2))


@pytest.mark.parametrize(("data", "limit", "validates"), [(True, None, True), (True, 0, False), (False, None, False)])
def test_whether_a_fit_validates(data: bool, limit: int | None, validates: bool) -> None:
    kept = says("on_train_start", "enable_validation")
    trainer = quiet_trainer(callbacks=[kept], limit_val_batches=limit)
    assert not trainer.enable_validation
    trainer.fit(Classifier(), make_batches(2), make_batches(2) if data else None)
    assert kept.said == {"enable_validation": validates}


def test_a_sigterm_is_said() -> None:
    class Dies(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert not trainer.received_sigterm
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = quiet_trainer(callbacks=[Dies()])
    with pytest.raises(SystemExit):
        trainer.fit(Classifier(), make_batches(3))
    assert trainer.received_sigterm
