"""What is logged at an epoch's end can be monitored in that epoch, wherever in the list of callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest
from scripted import Scripted, batches
from small_runs import batches as small_batches
from small_runs import net

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar, StochasticWeightAveraging
from paddlelite_trainer.checkpoint import CheckpointReader

SCORES = [3.0, 2.0, 2.5, 2.6, 9.0, 9.0]


class LogsLate(Callback):
    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        module.log("late", SCORES[trainer.current_epoch], prog_bar=True)


class RecordsLate(Callback):
    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        trainer.record("late", SCORES[trainer.current_epoch])


class ModuleLogsLate(Scripted):
    def on_train_epoch_end(self) -> None:
        self.log("late", SCORES[self.current_epoch], prog_bar=True)


WHO: dict[str, tuple[Callable[..., Any], list[Callback]]] = {
    "the module": (ModuleLogsLate, []),
    "a callback later in the list": (Scripted, [LogsLate()]),
    "a callback's record": (Scripted, [RecordsLate()]),
}


def fit(root: Path, who: str, *watching: Callback, module: Any = None, **settings: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    made, logging = WHO[who]
    trainer = Trainer(
        default_root_dir=root, run_name="run", callbacks=[*watching, *logging], **{"max_epochs": 6, **quiet, **settings}
    )
    trainer.fit(made() if module is None else module, batches(), ckpt_path="last")
    return trainer


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize("who", WHO)
def test_early_stopping_sees_this_epoch_s_value(tmp_path: Path, who: str, checkpoints: bool) -> None:
    stopping = EarlyStopping("late", patience=2)
    trainer = fit(tmp_path, who, stopping, enable_checkpointing=checkpoints)
    assert (trainer.current_epoch, stopping.stopped_epoch, stopping.best_score) == (4, 3, 2.0)
    assert [record["late"] for record in trainer.history] == SCORES[:4]


@pytest.mark.parametrize("who", WHO)
def test_the_decision_to_stop_is_in_that_epoch_s_checkpoint(tmp_path: Path, who: str) -> None:
    fit(tmp_path, who, EarlyStopping("late", patience=2))
    again = EarlyStopping("late", patience=2)
    trainer = fit(tmp_path, who, again)
    assert (trainer.current_epoch, again.stopped_epoch, again.wait_count) == (4, 3, 2)


@pytest.mark.parametrize("who", WHO)
def test_the_best_checkpoint_is_that_of_the_epoch_with_the_best_value(tmp_path: Path, who: str) -> None:
    saver = ModelCheckpoint(monitor="late")
    fit(tmp_path, who, saver)
    assert saver.best_model_score == 2.0
    assert saver.best_model_path.endswith("step-000000008")


class Plateau(paddle.optimizer.lr.ReduceOnPlateau):
    def __init__(self) -> None:
        self.given: list[float] = []
        super().__init__(0.1, patience=0, threshold=0.0)

    def step(self, metrics: Any, epoch: Any = None) -> None:
        self.given.append(float(metrics))
        super().step(metrics, epoch)


def watched(kind: Callable[..., Any]) -> tuple[Any, Plateau]:
    plateau = Plateau()

    def optimizers(module: Any) -> Any:
        optimizer = paddle.optimizer.SGD(plateau, parameters=module.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "late"}}

    return kind(optimizers=optimizers), plateau


@pytest.mark.parametrize("who", WHO)
def test_a_plateau_schedule_steps_with_this_epoch_s_value(tmp_path: Path, who: str) -> None:
    module, plateau = watched(WHO[who][0])
    fit(tmp_path, who, module=module)
    assert plateau.given == SCORES


@pytest.mark.parametrize("who", WHO)
def test_the_state_before_a_late_drop_goes_on_as_the_run_did(tmp_path: Path, who: str) -> None:
    module, plateau = watched(WHO[who][0])
    fit(tmp_path, who, ModelCheckpoint(save_before_lr_drop=True), module=module, max_epochs=3)
    (entry,) = [
        entry for entry in CheckpointReader(tmp_path / "run").entries() if "before-lr-drop-epoch_3" in entry.pins
    ]
    again, resumed = watched(WHO[who][0])
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, run_name="other", max_epochs=3, callbacks=WHO[who][1], **quiet)
    trainer.fit(again, batches(), ckpt_path=entry.path)
    assert resumed.given == plateau.given == SCORES[:3]
    assert resumed.last_lr == plateau.last_lr < 0.1
    assert [record["late"] for record in trainer.history] == SCORES[:3]


@pytest.mark.parametrize("who", ["the module", "a callback later in the list"])
def test_the_epoch_s_line_shows_it(tmp_path: Path, who: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, who, ProgressBar(), enable_progress_bar=True, max_epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if " batches " in line]
    assert ["late 3" in line or "late=3" in line for line in lines] == [True, False]
    assert ["late 2" in line or "late=2" in line for line in lines] == [False, True]


def test_a_record_of_an_equal_value_is_a_new_evaluation(tmp_path: Path) -> None:
    class Same(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            trainer.record("same", 1.0)

    stopping = EarlyStopping("same", patience=2)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=9, callbacks=[stopping, Same()], logger=False, enable_progress_bar=False
    )
    trainer.fit(Scripted(), batches())
    assert (trainer.current_epoch, stopping.wait_count) == (3, 2)


def test_a_callback_of_one_s_own_may_come_last_too(tmp_path: Path) -> None:
    class Reads(Callback):
        comes_last_at_epoch_end = True

        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            self.seen.append(float(trainer.callback_metrics["late"]))

    reads = Reads()
    fit(tmp_path, "the module", reads)
    assert reads.seen == SCORES


def test_a_finished_run_started_again_leaves_the_weights_that_its_end_left(tmp_path: Path) -> None:
    def weights() -> dict[str, Any]:
        best = EarlyStopping(monitor="val_loss", patience=5, restore_best_weights=True)
        trainer = Trainer(
            max_epochs=3,
            default_root_dir=tmp_path,
            run_name="run",
            callbacks=[best, StochasticWeightAveraging(0.5, swa_epoch_start=1)],
            enable_progress_bar=False,
            logger=False,
        )
        module = net()
        trainer.fit(module, small_batches(), small_batches(2, seed=1), ckpt_path="last")
        return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}

    first = weights()  # the averages as training ended, the best in their place as the fit did
    assert weights() == first
