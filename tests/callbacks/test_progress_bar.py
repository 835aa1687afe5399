"""ProgressBar: lines in a file, a bar in a terminal, and how little it does between redraws."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from paddlelite_trainer.callbacks.progress_display import Columns
from scripted import Scripted, batches, by_epoch, fit

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import LambdaCallback, ProgressBar, progress_bar
from paddlelite_trainer.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def lines(capsys: pytest.CaptureFixture[str], start: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(start)]


def test_without_a_terminal_there_is_one_line_per_epoch_with_its_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, Scripted({"val_loss": by_epoch([0.5, 0.25])}), ProgressBar(), max_epochs=2, enable_progress_bar=True)
    found = lines(capsys, "Epoch")
    assert len(found) == 2
    assert re.fullmatch(r"Epoch 1/2  4 batches  \d+\.\d s  .*val_loss 0\.5.*", found[0])
    assert "val_loss 0.25" in found[1]


def test_only_prog_bar_metrics_are_shown_where_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def log(trainer: Trainer, module: Any, *_: Any) -> None:
        module.log("shown", 0.125, prog_bar=True)

    fit(tmp_path, Scripted({"val_loss": float}), [LambdaCallback(on_train_batch_end=log), ProgressBar()], max_epochs=1)
    (line,) = lines(capsys, "Epoch")
    assert line.endswith("shown 0.125")


def test_an_epoch_s_value_of_training_is_in_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def log(trainer: Trainer, module: Any, *_: Any) -> None:
        module.log("mean", float(trainer.progress.batches_in_epoch), on_step=False, on_epoch=True, prog_bar=True)

    def log_late(trainer: Trainer, module: Any) -> None:
        module.log("late", 0.125, prog_bar=True)

    logs = LambdaCallback(on_train_batch_end=log, on_train_epoch_end=log_late)
    fit(tmp_path, Scripted({"val_loss": float}), [ProgressBar(), logs], max_epochs=1)
    (line,) = lines(capsys, "Epoch")
    assert line.endswith("mean 1.5      late 0.125")


def test_a_validation_test_or_prediction_of_its_own_has_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False)
    module = Scripted({"val_loss": float})
    trainer.validate(module, batches(2))
    trainer.test(module, batches(3))
    trainer.predict(module, batches(4))
    out = capsys.readouterr().out
    assert re.findall(r"^(Validation|Test|Prediction): (\d) batches", out, re.M) == [
        ("Validation", "2"),
        ("Test", "3"),
        ("Prediction", "4"),
    ]


class FakeBar:
    """Counts redraws; stands where rich's display stands."""

    def __init__(self) -> None:
        self.redraws = 0
        self.tasks: list[dict[str, Any]] = []
        self.live = self
        self.transient = False

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def add_task(self, description: str, **fields: Any) -> int:
        self.tasks.append({"description": description, **fields})
        return len(self.tasks) - 1

    def update(self, task: int, **fields: Any) -> None:
        self.tasks[task].update(fields)

    def remove_task(self, task: int) -> None:
        self.tasks[task]["removed"] = True

    def draw(self) -> None:
        self.redraws += 1


def test_between_redraws_no_metric_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, clock, reads = FakeBar(), [0.0], [0]
    monkeypatch.setattr("paddlelite_trainer.callbacks.progress_bar._rich_bar", lambda: bar)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    metrics = Trainer.progress_bar_metrics.fget
    monkeypatch.setattr(
        Trainer, "progress_bar_metrics", property(lambda self: (reads.__setitem__(0, reads[0] + 1), metrics(self))[1])
    )

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            clock[0] += 0.01

    trainer = Trainer(
        max_epochs=1,
        callbacks=[Tick(), ProgressBar()],
        default_root_dir=tmp_path,
        logger=False,
        enable_model_summary=False,
    )
    trainer.fit(Scripted(), batches(100))
    # 100 batches in one second, four redraws a second, one at the first batch, one at the epoch's end.
    assert 4 <= bar.redraws <= 7
    assert reads[0] <= bar.redraws + 1  # for the epoch's line
    assert bar.tasks[-1]["completed"] == 100


def test_short_epochs_and_validations_are_not_drawn_more_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = FakeBar()
    monkeypatch.setattr("paddlelite_trainer.callbacks.progress_bar._rich_bar", lambda: bar)
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    trainer = Trainer(max_epochs=8, default_root_dir=tmp_path, logger=False, enable_model_summary=False)
    trainer.fit(Scripted({"val_loss": float}), batches(5), batches(5))
    # The first, in time, and the last, whatever the clock says.
    assert bar.redraws == 2
    assert [task["completed"] for task in bar.tasks if task["description"].startswith("Epoch 8")] == [5]


def test_rich_draws_only_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    bar = progress_bar._rich_bar()
    bar.start()
    started = len(screen.getvalue())
    bar.update(bar.add_task("Epoch 1", total=4, metrics=""), completed=2)
    assert len(screen.getvalue()) == started
    bar.draw()
    assert "2/4" in screen.getvalue()
    bar.stop()


def test_a_loader_without_length_shows_a_count_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = FakeBar()
    monkeypatch.setattr("paddlelite_trainer.callbacks.progress_bar._rich_bar", lambda: bar)

    class Endless:
        def __iter__(self) -> Any:
            return iter(batches(5))

    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False, enable_model_summary=False)
    trainer.fit(Scripted(), Endless())
    assert (bar.tasks[-1]["total"], bar.tasks[-1]["completed"]) == (None, 5)


def test_the_display_is_closed_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = FakeBar()
    stopped: list[bool] = []
    bar.stop = lambda: stopped.append(True)  # type: ignore[method-assign]
    monkeypatch.setattr("paddlelite_trainer.callbacks.progress_bar._rich_bar", lambda: bar)

    def fail(*_: Any) -> None:
        raise OSError("stop here")

    with pytest.raises(OSError, match="stop here"):
        fit(tmp_path, Scripted(), [LambdaCallback(on_train_batch_end=fail), ProgressBar()])
    assert stopped == [True]


TERMINAL = """
    import sys
    sys.path[:0] = [{root!r}, {tests!r}]
    import conftest
    from scripted import Scripted, batches
    from paddlelite_trainer import Trainer
    from paddlelite_trainer.callbacks import LambdaCallback, ProgressBar
    loud = LambdaCallback(on_train_batch_end=lambda *_: print("a whole printed line"))
    trainer = Trainer(max_epochs=2, default_root_dir={run!r}, logger=False,
                      callbacks=[loud, ProgressBar(refresh_seconds=0.0)])
    trainer.fit(Scripted(dict(val_loss=float)), batches(), batches(1))
    trainer.test(Scripted(), batches(3))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_in_a_terminal_there_is_a_bar_and_prints_stay_whole(tmp_path: Path) -> None:
    import pty

    code = TERMINAL.format(root=str(ROOT), tests=str(Path(__file__).parent), run=str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "GLOG_minloglevel": "2"}
    process = subprocess.Popen([sys.executable, str(script)], stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    output = io.BytesIO()
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        output.write(piece)
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue().decode())
    shown = [part for line in text.split("\n") for part in line.split("\r") if part.strip()]
    assert any(re.match(r"Epoch 2/2 .*4/4", part) for part in shown)
    assert any(re.match(r"Test .*3/3", part) for part in shown)
    printed = [part for part in shown if "printed" in part]
    assert printed == ["a whole printed line"] * 8


def test_a_negative_time_between_redraws_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be >= 0, got -1"):
        ProgressBar(refresh_seconds=-1)


def test_lines_of_epochs_are_a_table() -> None:
    columns = Columns()
    lines = [columns.line({"": "Epoch 9/10 ", "loss": "loss 0.5    ", "acc": "acc 1      "})]
    lines += [columns.line({"": "Epoch 10/10", "loss": "loss 0.00012345", "acc": "acc 0.25   "})]
    lines += [columns.line({"": "Epoch 10/10", "loss": "loss 0.5    ", "acc": "acc 1      "})]
    assert lines == [
        "Epoch 9/10   loss 0.5      acc 1",
        "Epoch 10/10  loss 0.00012345  acc 0.25",
        "Epoch 10/10  loss 0.5         acc 1",
    ]
