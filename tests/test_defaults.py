"""What Trainer adds when nothing is passed, and that a killed fit's logs are whole after a resume."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, CSVLogger, Logger, TensorBoardLogger
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary, ProgressBar
from paddlelite_trainer.defaults import default_callbacks, default_loggers
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError

ROOT = Path(__file__).resolve().parents[1]


def added(given: list[Callback], **switches: bool) -> list[type]:
    wanted = {"checkpointing": True, "progress_bar": True, "model_summary": True, **switches}
    return [type(callback) for callback in default_callbacks(given, **wanted)]


def test_the_users_callbacks_come_first_and_the_checkpoint_last() -> None:
    class Mine(Callback): ...

    assert added([Mine()]) == [Mine, ModelSummary, ProgressBar, ModelCheckpoint]


def test_what_is_given_or_switched_off_is_not_added() -> None:
    class MyCheckpoint(ModelCheckpoint): ...

    assert added([MyCheckpoint(), ProgressBar()]) == [MyCheckpoint, ProgressBar, ModelSummary]
    assert added([], checkpointing=False, progress_bar=False, model_summary=False) == []


def test_loggers_by_default_are_tensorboard_and_csv() -> None:
    for logger in (None, True):
        assert [type(one) for one in default_loggers(logger)] == [TensorBoardLogger, CSVLogger]
    assert default_loggers(False) == []
    own = CSVLogger()
    assert default_loggers(own) == default_loggers([own]) == [own]


@pytest.mark.parametrize("wrong", [3, [object()], Logger])
def test_what_is_no_logger_is_refused_with_the_remedy(wrong: Any) -> None:
    with pytest.raises(
        ConfigurationTypeError, match=r"derives from paddlelite_trainer\.Logger and defines log_metrics"
    ):
        default_loggers(wrong)


FIT = """
    import os, sys
    sys.path[:0] = [{root!r}, {tests!r}]
    import conftest
    import paddle
    from scripted import Scripted, batches
    from paddlelite_trainer import Trainer
    from paddlelite_trainer.callbacks import LambdaCallback, LRMonitor, ModelCheckpoint
    die_at = int(sys.argv[2])

    def die(trainer, module, *_):
        if trainer.global_step == die_at:
            for logger in trainer.loggers:
                logger.save()
            os._exit(9)

    paddle.seed(0)
    trainer = Trainer(
        max_epochs=4, log_every_n_steps=1, default_root_dir=sys.argv[1], seed=1,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[LRMonitor(), ModelCheckpoint(every_n_train_steps=3), LambdaCallback(on_train_batch_end=die)],
    )
    trainer.fit(Scripted(dict(val_loss=float)), batches(), batches(1), ckpt_path="last")
"""


def test_the_curves_of_a_fit_killed_three_times_equal_those_of_one_never_killed(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    script = tmp_path / "fit.py"
    script.write_text(textwrap.dedent(FIT.format(root=str(ROOT), tests=str(ROOT / "tests/callbacks"))))
    environment = {**os.environ, "GLOG_minloglevel": "2"}

    def run(root: str, die_at: int, expected: int) -> None:
        command = [sys.executable, str(script), str(tmp_path / root), str(die_at)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == expected, f"killed at {die_at}:\n{done.stdout}\n{done.stderr}"

    run("whole", -1, 0)
    for step in (5, 8, 13):
        run("killed", step, 9)
    run("killed", -1, 0)

    def rows(root: str) -> list[dict[str, str]]:
        with (tmp_path / root / "version_0/metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def curves(root: str) -> dict[str, list[tuple[int, float]]]:
        reader = event_accumulator.EventAccumulator(str(tmp_path / root / "version_0"))
        reader.Reload()
        return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}

    assert rows("whole") == rows("killed")
    assert curves("whole") == curves("killed")
    assert [step for step, _ in curves("killed")["train_loss"]] == list(range(1, 17))
    assert not (tmp_path / "killed/version_1").exists()


# -- callbacks of the Trainer, of the module, and appended ones --------------------------------------------------------
class Mine(Callback):
    def __init__(self) -> None:
        self.epochs = 0

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.epochs += 1


class Brings(Classifier):
    def configure_callbacks(self) -> list[Callback]:
        return [EarlyStopping("train_loss", patience=9)]


@pytest.mark.parametrize("module", [Classifier, Brings])
@pytest.mark.parametrize("when", ["before", "between fits"])
def test_a_callback_appended_after_construction_is_called_in_every_fit(module: Any, when: str) -> None:
    trainer, mine = quiet_trainer(), Mine()
    if when == "before":
        trainer.callbacks.append(mine)
    trainer.fit(module(), make_batches(2))
    if when == "between fits":
        trainer.callbacks.append(mine)
    trainer.fit(module(), make_batches(2))
    trainer.fit(module(), make_batches(2))
    assert mine.epochs == (3 if when == "before" else 2)
    assert sum(callback is mine for callback in trainer.callbacks) == 1


def test_a_callback_that_gives_way_to_the_module_s_is_named(capsys: Any) -> None:
    trainer = quiet_trainer(callbacks=[EarlyStopping("val_loss", patience=2)])
    trainer.fit(Brings(), make_batches(2))
    assert "the EarlyStopping of Trainer(callbacks=...) gives way to that of Brings.configure_callbacks" in (
        capsys.readouterr().out
    )
    (kept,) = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]
    assert kept.monitor == "train_loss"
    trainer.fit(Classifier(), make_batches(2), make_batches(1))
    (kept,) = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]
    assert kept.monitor == "val_loss"


def test_an_evaluation_of_another_module_in_a_hook_leaves_the_list_as_it_is() -> None:
    class Evaluates(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.validate(Brings(), make_batches(1), verbose=False)

    trainer = quiet_trainer(callbacks=[Evaluates()])
    mine = Mine()
    trainer.callbacks.append(mine)
    before = list(trainer.callbacks)
    for _ in range(2):
        trainer.fit(Classifier(), make_batches(2))
    assert trainer.callbacks == before
    assert mine.epochs == 2


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_two_loggers_in_one_file_are_refused(kind: type[Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"two {kind.__name__} in one directory.*directory='second'"):
        default_loggers([kind(), kind()])
    assert len(default_loggers([kind(), kind("second")])) == 2
