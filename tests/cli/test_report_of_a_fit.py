"""`paddlelite report` of real fits: what the engine writes is what the report reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import LRMonitor, ModelCheckpoint, ThroughputMonitor
from paddlelite_trainer.cli.report.everything import Collection


class Dies(Callback):
    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 7:
            raise RuntimeError("the machine is gone")


def fit(root: Path, *callbacks: Callback) -> Trainer:
    best = ModelCheckpoint(monitor="val_loss", save_top_k=2)
    trainer = Trainer(
        max_epochs=3,
        default_root_dir=root,
        run_name="run",
        log_every_n_steps=2,
        profiler="simple",
        gradient_clip_val=0.5,
        callbacks=[best, LRMonitor(), ThroughputMonitor(), *callbacks],
    )
    trainer.fit(Classifier(), make_batches(4), make_batches(2, seed=1), ckpt_path="last")
    return trainer


def test_the_report_of_a_fit_that_failed_and_went_on_tells_what_the_trainer_knows(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="gone"):
        fit(tmp_path, Dies())
    as_if_started_again()
    trainer = fit(tmp_path)
    (run,) = Collection([str(tmp_path)]).read()["runs"]
    assert (run["status"], run["epoch"], run["step"], run["problems"]) == ("finished", 3, 12, [])

    losses = [record["val_loss"] for record in trainer.history]
    assert run["curves"]["val_loss"]["x"] == [4, 8, 12]
    assert run["curves"]["val_loss"]["y"] == pytest.approx(losses, rel=1e-5)
    assert {"lr", "samples_per_second"} <= run["curves"].keys()
    assert run["epochs"] == [[0, 0], [4, 1], [8, 2], [12, 3]]

    first, second = run["sessions"]
    assert (first["ended"], second["ended"]) == ("failed: RuntimeError: the machine is gone", "finished")
    assert (first["from"], first["to"], second["to"]) == (0, 7, 12)
    assert second["changed"] == ["trainer.callbacks: without Dies"]
    assert run["clock"][-1][0] == 12 and run["worked"] >= run["clock"][-1][1] > 0

    assert (run["monitor"], run["mode"], run["best"]["value"]) == (
        "val_loss",
        "min",
        pytest.approx(min(losses), rel=1e-5),
    )
    assert run["settings"]["hyper_parameters.lr"] == "0.1"
    assert run["settings"]["trainer.gradient_clip_val"] == "0.5"
    assert run["settings"]["environment.module"] == "Classifier"
    assert "training_step" in [row[0] for row in run["profiles"][-1]["rows"]]
    assert [epoch for epoch, _ in run["log"]["epochs"]] == [1, 2, 3]
    assert "the machine is gone" in run["log"]["error"]
