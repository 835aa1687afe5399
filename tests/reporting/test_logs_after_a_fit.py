"""An evaluation after a fit adds nothing to the fit's own curves; what has names of its own is written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches
from tensorboard.backend.event_processing import event_accumulator

from paddlelite_trainer import CSVLogger, TensorBoardLogger, Trainer


def curves_in_csv(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {name for row in rows for name in row if name not in ("step", "epoch")}
    return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in names}


def curves_in_tensorboard(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    reader = event_accumulator.EventAccumulator(str(run_dir))
    reader.Reload()
    names = [name for name in reader.Tags()["scalars"] if name != "epoch"]
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in names}


LOGGERS = pytest.mark.parametrize(
    ("logger", "curves"), [(CSVLogger, curves_in_csv), (TensorBoardLogger, curves_in_tensorboard)], ids=["csv", "tb"]
)


def trainer_in(root: Path, logger: Any) -> Trainer:
    return Trainer(
        max_epochs=2,
        default_root_dir=root,
        logger=logger(),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@LOGGERS
def test_validate_after_fit_leaves_the_fit_s_curves_alone(tmp_path: Path, logger: Any, curves: Any) -> None:
    trainer = trainer_in(tmp_path, logger)
    module = Classifier()
    trainer.fit(module, make_batches(2), make_batches(2))
    assert trainer.run_dir is not None
    before = curves(trainer.run_dir)
    assert [step for step, _ in before["val_loss"]] == [2, 4]
    (result,) = trainer.validate(module, make_batches(5, seed=3))
    assert curves(trainer.run_dir) == before
    assert trainer.callback_metrics["val_loss"] == result["val_loss"] != pytest.approx(before["val_loss"][-1][1])


@LOGGERS
def test_so_does_it_after_a_fit_that_had_nothing_left_to_do(tmp_path: Path, logger: Any, curves: Any) -> None:
    trainer_in(tmp_path, logger).fit(Classifier(), make_batches(2), make_batches(2))
    as_if_started_again()
    trainer = trainer_in(tmp_path, logger)
    trainer.fit(Classifier(), make_batches(2), make_batches(2), ckpt_path="last")
    assert trainer.run_dir is not None
    before = curves(trainer.run_dir)
    trainer.validate(dataloaders=make_batches(5, seed=3))
    assert curves(trainer.run_dir) == before


@LOGGERS
def test_what_test_logs_under_names_of_its_own_is_written(tmp_path: Path, logger: Any, curves: Any) -> None:
    class Both(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", 7.0)
            self.log("test_loss", float(self.loss(batch)))

    trainer = trainer_in(tmp_path, logger)
    module = Both()
    trainer.fit(module, make_batches(2), make_batches(2))
    assert trainer.run_dir is not None
    before = curves(trainer.run_dir)
    (first,) = trainer.test(module, make_batches(1))
    (second,) = trainer.test(module, make_batches(5, seed=3))
    after = curves(trainer.run_dir)
    assert after.pop("test_loss") == [(4, pytest.approx(result["test_loss"])) for result in (first, second)]
    assert after == before
