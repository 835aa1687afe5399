"""Lines within an epoch: every n steps, every s seconds, in the log even where there is a bar, and what they cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest
from scripted import Scripted, batches, by_epoch, fit

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint, ProgressBar, progress_bar
from paddlelite_trainer.errors import ConfigurationError

LINE = re.compile(
    r"epoch (\d)/2  step (\d)/4  lr 0\.1  loss -?\d[\d.]*  ips \d[\d.e+]*/s  wait 0 %  eta \d:\d\d", re.ASCII
)


class Silent(Scripted):
    """Logs nothing of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch).mean()


class Tick(Callback):
    """A clock that goes on a second a batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def on_train_batch_end(self, *_: Any) -> None:
        self.now += 1.0

    def on_validation_batch_end(self, *_: Any) -> None:
        self.now += 1.0


def step_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("epoch ")]


def test_every_n_steps_a_line_says_where_the_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Silent(), ProgressBar(every_n_steps=2, every_seconds=None), max_epochs=2)
    found = [LINE.fullmatch(line) for line in step_lines(capsys.readouterr().out)]
    assert [match and match.groups() for match in found] == [("1", "2"), ("1", "4"), ("2", "2"), ("2", "4")]


def test_a_line_comes_at_the_latest_after_the_time_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, Silent(), [Tick(monkeypatch), ProgressBar(every_seconds=3)], max_epochs=2)
    found = step_lines(capsys.readouterr().out)
    assert [re.findall(r"epoch (\d)/2  step (\d)/4", line)[0] for line in found] == [("1", "3"), ("2", "3")]
    # A batch of two a second; the 8 steps take a second each, and so do the two validations.
    assert "ips 2/s" in found[0]
    assert found[0].endswith("eta 0:05")


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"max_epochs": 3}, "0:09"),
        ({"max_epochs": 3, "max_steps": 8}, "0:05"),
        ({"max_epochs": -1, "max_steps": 8}, "0:05"),
        ({"max_epochs": -1, "max_time": {"seconds": 6}}, "0:03"),
        ({"max_epochs": -1, "max_time": {"seconds": 6}, "max_steps": 4}, "0:01"),
    ],
)
def test_the_time_left_is_that_to_the_first_limit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, Any],
    left: str,
) -> None:
    trainer = Trainer(
        **limits,
        default_root_dir=tmp_path,
        logger=False,
        enable_model_summary=False,
        callbacks=[Tick(monkeypatch), ProgressBar(every_seconds=3)],
    )
    trainer.fit(Silent(), batches(4))
    assert step_lines(capsys.readouterr().out)[0].endswith(f"eta {left}")


def test_where_no_limit_is_known_there_is_no_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Unknown:
        def __iter__(self) -> Any:
            return iter(batches(2))

    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False, callbacks=ProgressBar(every_n_steps=2))
    trainer.fit(Silent(), Unknown())
    (line,) = step_lines(capsys.readouterr().out)
    assert "eta" not in line and line.startswith("epoch 1/1  step 2  lr")


def test_a_long_validation_says_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = Tick(monkeypatch)
    trainer = Trainer(
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[tick, ProgressBar(every_seconds=4)],
    )
    trainer.fit(Scripted({"val_loss": float}), batches(2), batches(9))
    found = step_lines(capsys.readouterr().out)
    assert found == ["epoch 1/1  validation 4/9  eta 0:05", "epoch 1/1  validation 8/9  eta 0:01"]
    trainer.test(Scripted(), batches(3))
    assert not step_lines(capsys.readouterr().out)


def test_with_accumulation_batches_are_called_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(every_n_steps=4)
    fit(tmp_path, Silent(), bar, max_epochs=1, accumulate_grad_batches=2)
    (line,) = step_lines(capsys.readouterr().out)
    assert line.startswith("epoch 1/1  batch 4/4  ")


def test_the_loss_stands_once_whether_it_is_logged_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Shown(Silent):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss, prog_bar=True)
            self.log("accuracy", 0.5, prog_bar=True)
            return {"loss": loss}

    for module, names in ((Silent(), ["loss"]), (Shown(), ["train_loss", "accuracy"])):
        fit(tmp_path, module, ProgressBar(every_n_steps=4), max_epochs=1)
        out = capsys.readouterr().out
        (line,) = step_lines(out)
        (epoch,) = [line for line in out.splitlines() if line.startswith("Epoch ")]
        for text in (line, epoch):
            assert re.findall(r"(\w*loss|accuracy) -?\d", text) == names, text


@pytest.mark.parametrize("outputs", [None, "words", {"loss": None}, {}])
def test_what_manual_optimization_returns_need_not_be_a_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], outputs: Any
) -> None:
    class Manual(Scripted):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(self.net(batch).mean())
            self.optimizers().step()
            self.optimizers().clear_grad()
            return outputs

    fit(tmp_path, Manual(), ProgressBar(every_n_steps=4), max_epochs=1)
    (line,) = step_lines(capsys.readouterr().out)
    assert "loss" not in line


def test_between_lines_no_loss_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    monkeypatch.setattr(progress_bar, "_loss_in", reads.append)
    fit(tmp_path, Silent(), [Tick(monkeypatch), ProgressBar(every_seconds=3.5)], max_epochs=2)
    assert len(reads) == 2


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return paddle.ones([1]).numpy()


class Stream(paddle.io.IterableDataset):  # type: ignore[misc]
    def __iter__(self) -> Any:
        return (paddle.ones([1]).numpy() for _ in range(8))


@pytest.mark.parametrize(
    ("loader", "waits"),
    [
        (lambda: batches(4), 0),
        (lambda: paddle.io.DataLoader(Numbers(), batch_size=2), 4),
        (lambda: paddle.io.DataLoader(Numbers(), batch_size=2, num_workers=1), 4),
        (lambda: paddle.io.DataLoader(Stream(), batch_size=2), 4),
    ],
    ids=["a list", "in the process", "workers", "a stream"],
)
def test_waiting_for_data_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: Callable[[], Any], waits: int
) -> None:
    clock = iter(range(1000))
    for module in ("streams", "iterables"):
        monkeypatch.setattr(f"paddlelite_trainer.data.{module}.perf_counter", lambda: float(next(clock)))
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    trainer.fit(Silent(), loader())
    assert trainer.data_wait_seconds == waits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every_n_steps": 0}, r"every_n_steps=...\) must be an int >= 1, got 0"),
        ({"every_seconds": 0}, r"every_seconds=...\) must be > 0 or None, got 0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ProgressBar(**arguments)


def test_a_fit_ends_with_where_its_best_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Scripted({"val_loss": by_epoch([0.5, 0.25, 0.75])})
    trainer = fit(tmp_path, module, ModelCheckpoint(monitor="val_loss"))
    best = f"Best: val_loss 0.25, of epoch 2, step 8: {trainer.run_dir}/best_val_loss.pdparams"
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Finished 3/3 epochs, 12 steps, in 0:00:\d\d", out[-2])
    assert out[-1] == best
    assert Path(best.rpartition(": ")[2]).is_file()
    fit(tmp_path, module, ModelCheckpoint(monitor="val_loss"), ckpt_path="last", run_name="version_0")
    assert capsys.readouterr().out.splitlines()[-1] == best


def test_where_nothing_is_monitored_nothing_is_called_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Scripted(), ModelCheckpoint())
    assert "Best" not in capsys.readouterr().out


def test_every_n_batches_a_validation_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ProgressBar(every_n_steps=4, every_seconds=None)],
    )
    trainer.fit(Scripted({"val_loss": float}), batches(5), batches(9))
    found = [re.sub(r"  (lr|eta) .*", "", line) for line in step_lines(capsys.readouterr().out)]
    assert found == ["epoch 1/1  step 4/5", "epoch 1/1  validation 4/9", "epoch 1/1  validation 8/9"]
    trainer.test(Scripted(), batches(5))
    assert "test 4/5  eta" in capsys.readouterr().out


def test_a_subclass_says_what_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Shows(ProgressBar):
        def get_metrics(self, trainer: Any, module: Any) -> dict[str, float]:
            return {**super().get_metrics(trainer, module), "parts": float(len(list(module.parameters())))}

    fit(tmp_path, Silent(), Shows(every_n_steps=2), max_epochs=1, enable_progress_bar=True)
    lines = capsys.readouterr().out.splitlines()
    assert ["parts 2" in line for line in lines if line.startswith(("Epoch ", "epoch "))] == [True] * 3
