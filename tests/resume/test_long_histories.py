"""A checkpoint holds the newest epochs of a long history; the others lie beside it, and a resumed run has them all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy
from paddlelite_trainer.run import epochs


class Counts(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = paddle.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.trainer.record("odd", float("nan") if self.trainer.current_epoch % 2 else 1.0)

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


def fit(root: Path, max_epochs: int, lines: list[str] | None = None, copies: RemoteCopy | None = None) -> Trainer:
    paddle.seed(0)
    trainer = Trainer(
        default_root_dir=root, run_name="run", seed=1, max_epochs=max_epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ModelCheckpoint(keep_last_n=3), *([copies] if copies else [])],
    )  # fmt: skip
    trainer.print = lambda *values, **_: lines.append(" ".join(map(str, values))) if lines is not None else None  # type: ignore[method-assign]
    trainer.fit(Counts(), [paddle.ones([1, 1])] * 2, ckpt_path="last")
    return trainer


def held(run: Path) -> tuple[Any, Any]:
    state = json.loads((run / "latest/trainer.json").read_bytes())
    return state["history"], state.get("history_before")


@pytest.fixture(autouse=True)
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "EPOCHS_A_FILE", 4)


def as_text(history: Any) -> list[str]:
    return [repr(record) for record in history]  # NaN equals itself


def test_a_resumed_run_has_the_history_of_an_undisturbed_one_and_keeps_it_alike(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 23)
    for max_epochs in (3, 8, 9, 17, 23):
        resumed = fit(tmp_path / "parts", max_epochs)
    assert [record["epoch"] for record in whole.history] == list(range(23))
    assert as_text(resumed.history) == as_text(whole.history)
    assert as_text(held(tmp_path / "parts/run")) == as_text(held(tmp_path / "whole/run"))
    assert [record["epoch"] for record in held(tmp_path / "whole/run")[0]] == list(range(16, 23))
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / one / "run/history").iterdir()}
        for one in ("whole", "parts")
    ]
    assert files[0] == files[1] and len(files[0]) == 4


def test_a_short_history_is_in_the_checkpoint_alone(tmp_path: Path) -> None:
    fit(tmp_path, 7)
    assert len(held(tmp_path / "run")[0]) == 7 and held(tmp_path / "run")[1] is None
    assert not (tmp_path / "run/history").exists()


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_where_the_older_epochs_are_lost_a_run_goes_on_and_says_so(tmp_path: Path, how: str) -> None:
    fit(tmp_path, 13)
    run = tmp_path / "run"
    if how == "gone":
        shutil.rmtree(run / "history")
    else:
        name = held(run)[1]["file"]
        (run / "history" / name).write_bytes(b"x" + (run / "history" / name).read_bytes()[1:])
    lines: list[str] = []
    resumed = fit(tmp_path, 14, lines)
    assert any("history: the first 8 epochs of the history are not to be had" in line for line in lines), lines
    assert [record["epoch"] for record in resumed.history] == list(range(8, 14))
    fit(tmp_path, 30)
    assert [record["epoch"] for record in fit(tmp_path, 31).history] == list(range(8, 31))


def test_a_run_that_goes_on_in_another_directory_takes_the_history_along(tmp_path: Path) -> None:
    fit(tmp_path / "one", 13)
    shutil.copytree(tmp_path / "one", tmp_path / "other", symlinks=True)
    shutil.rmtree(tmp_path / "one")
    assert [record["epoch"] for record in fit(tmp_path / "other", 14).history] == list(range(14))


def test_a_file_of_a_history_is_named_by_its_checksum_and_leads_nowhere_else(tmp_path: Path) -> None:
    record = {"history_before": {"file": "../../secret.json", "epochs": 4}}
    found, finding = epochs.epochs_before(record, tmp_path / "checkpoints/step-000000001")
    assert found == [] and finding is not None and "is no file of a history" in finding


def test_a_run_that_goes_on_from_a_remote_has_the_history_without_the_logs_being_copied(tmp_path: Path) -> None:
    def run(where: str, max_epochs: int) -> Trainer:
        return fit(tmp_path / where, max_epochs, copies=RemoteCopy(f"file://{tmp_path}/remote"))

    run("one", 13)
    assert [record["epoch"] for record in run("elsewhere", 14).history] == list(range(14))
    assert not (tmp_path / "elsewhere/run/metrics.csv").exists()
