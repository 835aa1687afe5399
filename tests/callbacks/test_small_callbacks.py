"""Timer, GradientAccumulationScheduler, LambdaCallback, ModelSummary, PlotCurves, and the package's own guard."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import paddle
import pytest
from paddlelite_trainer.callbacks.model_summary import summarize
from scripted import Scripted, batches, fit

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import (
    GradientAccumulationScheduler,
    LambdaCallback,
    LRMonitor,
    ModelCheckpoint,
    ModelSummary,
    PlotCurves,
    Timer,
)
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError

ROOT = Path(__file__).resolve().parents[2]


# -- Timer -------------------------------------------------------------------------------------------------------------
class Clock(Callback):
    """Ten seconds a batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.now += 10.0

    def on_validation_batch_start(
        self, trainer: Trainer, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.now += 1.0


@pytest.mark.parametrize("duration", ["00:00:00:55", timedelta(seconds=55), {"seconds": 55}])
def test_the_timer_ends_the_fit_after_its_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, duration: Any
) -> None:
    timer = Timer(duration)
    trainer = fit(tmp_path, Scripted({"val_loss": float}), [Clock(monkeypatch), timer], max_epochs=9)
    assert trainer.global_step == 6  # one second of the first 55 is validation's
    assert timer.time_elapsed("train") == 61.0
    assert timer.time_elapsed("validate") == 1.0
    assert timer.time_remaining() == -6.0


def test_the_timer_by_epochs_lets_the_epoch_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fit(tmp_path, Scripted(), [Clock(monkeypatch), Timer("00:00:00:55", interval="epoch")], max_epochs=9)
    assert (trainer.global_step, trainer.current_epoch) == (8, 2)


def test_the_timer_counts_the_time_of_earlier_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    fit(tmp_path, Scripted(), [clock, Timer("00:00:01:35")], max_epochs=1)
    clock.now += 5000.0
    trainer = fit(tmp_path, Scripted(), [clock, Timer("00:00:01:35")], max_epochs=9, ckpt_path="last")
    assert trainer.global_step == 10
    again = fit(tmp_path, Scripted(), [clock, Timer("00:00:01:35")], max_epochs=9, ckpt_path="last")
    assert again.global_step == 10


def test_a_second_fit_has_the_timers_whole_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fit(tmp_path, Scripted(), [Clock(monkeypatch), Timer("00:00:00:35")], max_epochs=9)
    assert trainer.global_step == 4
    trainer.fit(Scripted(), batches())
    assert trainer.global_step == 4


def test_the_timer_refuses_what_is_no_duration() -> None:
    with pytest.raises(ConfigurationError, match=r"'DD:HH:MM:SS' \(days, hours, minutes, seconds\), got '12:00'"):
        Timer("12:00")
    with pytest.raises(ConfigurationTypeError, match="got 12"):
        Timer(12)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"Timer\(duration=\{'hour': 1\}\): .*those of datetime.timedelta"):
        Timer({"hour": 1})
    with pytest.raises(ConfigurationError, match=r"longer than datetime\.timedelta can hold"):
        Timer({"days": 10**12})
    assert Timer().time_remaining() is None


@pytest.mark.parametrize("text", ["1:2:3:4", "01:02:03:04", " 0:26:3:4 ", "0:0:1563:4"])
def test_the_timer_reads_a_duration_as_the_trainer_does(text: str) -> None:
    seconds = timedelta(days=1, hours=2, minutes=3, seconds=4).total_seconds()
    assert Timer(text).time_remaining() == Trainer(max_time=text, logger=False).max_seconds == seconds


# -- GradientAccumulationScheduler -------------------------------------------------------------------------------------
def test_accumulation_follows_the_epochs_also_after_a_resume(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [GradientAccumulationScheduler({1: 4, 2: 2}), ModelCheckpoint()]

    assert [record["step"] for record in fit(tmp_path / "whole", Scripted(), callbacks()).history] == [4, 5, 7]
    for epochs in (1, 2, 3):
        trainer = fit(tmp_path / "parts", Scripted(), callbacks(), max_epochs=epochs, ckpt_path="last")
    assert [record["step"] for record in trainer.history] == [4, 5, 7]


def test_a_second_fit_accumulates_as_the_first_did(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Scripted(), GradientAccumulationScheduler({0: 4, 1: 2}), max_epochs=2)
    trainer.fit(Scripted(), batches())
    assert [record["step"] for record in trainer.history] == [1, 3]


def test_an_unchanged_schedule_is_no_difference_to_tell_at_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs in (1, 2):
        scheduler = GradientAccumulationScheduler({0: 3, 1: 2})
        fit(tmp_path, Scripted(), [scheduler, ModelCheckpoint()], max_epochs=epochs, ckpt_path="last")
    told = capsys.readouterr().out
    assert "Resumed from" in told
    assert "accumulate_grad_batches" not in told


def test_accumulation_said_twice_is_a_contradiction(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"accumulate_grad_batches=2\) and a GradientAccumulationScheduler"):
        fit(tmp_path, Scripted(), GradientAccumulationScheduler({0: 4}), accumulate_grad_batches=2)


@pytest.mark.parametrize("scheduling", [{}, {-1: 2}, {0: 0}, {0: 1.5}])
def test_accumulation_that_cannot_be_is_refused(scheduling: Any) -> None:
    with pytest.raises(ConfigurationError, match="GradientAccumulationScheduler"):
        GradientAccumulationScheduler(scheduling)


# -- LambdaCallback ----------------------------------------------------------------------------------------------------
def test_functions_are_called_as_the_hooks_they_are_named_by(tmp_path: Path) -> None:
    seen: list[Any] = []
    callback = LambdaCallback(
        on_train_epoch_end=lambda trainer, module: seen.append(trainer.current_epoch),
        on_train_batch_end=lambda trainer, module, outputs, batch, batch_idx: seen.append(-batch_idx),
    )
    fit(tmp_path, Scripted(), callback, max_epochs=2)
    assert seen == [0, -1, -2, -3, 0, 0, -1, -2, -3, 1]


def test_a_name_that_is_no_hook_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'on_train_epoch_ends' is not a hook\. Did you mean 'on_train_epoch_end'\?"
    ):
        LambdaCallback(on_train_epoch_ends=print)
    with pytest.raises(ConfigurationTypeError, match="must be a function, got 3"):
        LambdaCallback(on_fit_end=3)  # type: ignore[arg-type]


# -- ModelSummary ------------------------------------------------------------------------------------------------------
def test_the_summary_counts_layers_trained_and_shared_parameters() -> None:
    class Tied(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.body = paddle.nn.Sequential(paddle.nn.Linear(3, 5), paddle.nn.BatchNorm1D(5))
            self.head = paddle.nn.Linear(3, 5)
            self.head.weight = self.body[0].weight
            self.head.bias.stop_gradient = True

    summary = summarize(Tied(), max_depth=1)
    assert [(layer.name, layer.type, layer.parameters, layer.trainable) for layer in summary.layers] == [
        ("body", "Sequential", 15 + 5 + 20, 15 + 5 + 10),
        ("head", "Linear", 20, 15),
    ]
    assert (summary.parameters, summary.trainable, summary.non_trainable) == (45, 30, 15)
    assert summary.megabytes == pytest.approx(45 * 4 / 1e6)
    assert summary.has_shared
    assert [layer.name for layer in summarize(Tied(), max_depth=-1).layers] == ["body", "body.0", "body.1", "head"]
    assert summarize(Tied(), max_depth=0).layers == []


def test_the_summary_is_printed_before_the_first_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def first_batch(*_: Any) -> None:
        print("FIRST BATCH")

    fit(tmp_path, Scripted(), [ModelSummary(), LambdaCallback(on_train_batch_start=first_batch)], max_epochs=1)
    before = capsys.readouterr().out.partition("FIRST BATCH")[0]
    assert "net" in before
    assert "2 parameters, 8e-06 MB" in before


# -- PlotCurves --------------------------------------------------------------------------------------------------------
def test_curves_are_drawn_when_the_fit_ends(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    module = Scripted({"val_loss": float, "val_acc": float})
    trainer = fit(tmp_path, module, [LRMonitor(), PlotCurves()])
    assert (trainer.run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_of_one_quantity_share_a_panel() -> None:
    from paddlelite_trainer.callbacks.plot_curves import _panels

    record = {"epoch": 0, "step": 4, "lr": 0.1, "train_loss_step": 1.0, "train_loss_epoch": 2.0, "train_loss": 2.0}
    more = {"val_loss": 1.0, "val_acc": 0.5, "lr-SGD/group_1": 0.1, "note": "text"}
    assert _panels([record, more]) == {
        "loss": ["train_loss", "val_loss"],
        "acc": ["val_acc"],
        "learning rate": ["lr", "lr-SGD/group_1"],
    }


def test_a_history_with_a_gap_or_nan_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from paddlelite_trainer.callbacks.plot_curves import plot_curves

    plot_curves(
        [{"epoch": 0, "a": 1.0, "lr": 0.0}, {"epoch": 1, "lr": 1.0}, {"epoch": 2, "a": float("nan")}],
        tmp_path / "x.png",
    )
    assert (tmp_path / "x.png").stat().st_size > 1000


# -- the package -------------------------------------------------------------------------------------------------------
def test_importing_callbacks_under_its_bare_name_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", "import callbacks"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "import these as paddlelite_trainer.callbacks" in done.stderr.splitlines()[-1]


def test_every_file_exports_its_callback() -> None:
    import paddlelite_trainer.callbacks as package

    for name in package.__all__:
        assert issubclass(getattr(package, name), Callback)
