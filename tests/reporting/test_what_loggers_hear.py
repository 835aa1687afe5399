"""What loggers hear of a run, and what they say of themselves by Lightning's names."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, CSVLogger, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint


def trained(root: Path, logger: Any, module: Any = None, **settings: Any) -> Trainer:
    trainer = quiet_trainer(
        **{"logger": logger, "default_root_dir": root, "enable_checkpointing": True, "max_epochs": 1, **settings}
    )
    trainer.fit(module or Classifier(), make_batches(2))
    return trainer


def rows(run_dir: Any) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Tells(CSVLogger):
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []
        self.saved: list[tuple[Any, str]] = []

    def finalize(self, status: str) -> None:
        self.ends.append(status)
        super().finalize(status)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.saved.append((checkpoint_callback, Path(checkpoint_callback.last_model_path).name))


def test_finalize_is_called_once_for_each_run(tmp_path: Path) -> None:
    class Fails(Classifier):
        def on_train_epoch_end(self) -> None:
            raise RuntimeError("planned")

    logger = Tells()
    trainer = trained(tmp_path, logger)
    assert logger.ends == ["finished"]
    trainer.test(dataloaders=make_batches(2), verbose=False)
    assert logger.ends == ["finished"] * 2
    with pytest.raises(RuntimeError, match="planned"):
        trainer.fit(Fails(), make_batches(2))
    assert logger.ends == ["finished", "finished", "failed"]


@pytest.mark.parametrize("background", [False, True])
def test_a_logger_hears_of_each_checkpoint_that_model_checkpoint_has_saved(tmp_path: Path, background: bool) -> None:
    logger, checkpoint = Tells(), ModelCheckpoint()
    trained(tmp_path, logger, callbacks=[checkpoint], max_epochs=3, async_checkpoint=background)
    assert [callback for callback, _ in logger.saved] == [checkpoint] * 3
    assert [name for _, name in logger.saved] == [f"step-{step:09}" for step in (2, 4, 6)]


def test_a_logger_hears_of_a_checkpoint_before_the_next_one_is_saved(tmp_path: Path) -> None:
    logger = Tells()
    heard: list[int] = []

    class Counts(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            heard.append(len(logger.saved))

    trained(tmp_path, logger, callbacks=[ModelCheckpoint(every_n_train_steps=1), Counts()], max_epochs=2)
    assert heard == [0, 2]
    assert len(logger.saved) == 4


def test_a_logger_hears_of_the_last_checkpoint_of_a_run_that_fails_too(tmp_path: Path) -> None:
    class Fails(Classifier):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2:
                raise RuntimeError("planned")

    logger = Tells()
    with pytest.raises(RuntimeError, match="planned"):
        trained(tmp_path, logger, Fails(), max_epochs=9, async_checkpoint=False)
    assert [name for _, name in logger.saved] == [f"step-{step:09}" for step in (2, 4)]


def test_the_experiment_of_csv_logger_logs_into_its_file(tmp_path: Path) -> None:
    class Logs(Classifier):
        def on_train_epoch_end(self) -> None:
            self.logger.experiment.log_metrics({"mine": 0.5}, step=1)
            self.logger.experiment.save()

    trainer = trained(tmp_path, CSVLogger(), module=Logs())
    assert "0.5" in [row.get("mine") for row in rows(trainer.run_dir)]


def test_a_logger_says_where_runs_are(tmp_path: Path) -> None:
    logger = CSVLogger("csv")
    assert (logger.save_dir, logger.root_dir) == (None, None)
    trained(tmp_path, logger)
    assert (logger.save_dir, logger.root_dir) == (str(tmp_path.parent), str(tmp_path))
    assert (logger.name, logger.version) == (tmp_path.name, "version_0")
    assert logger.log_dir == str(tmp_path / "version_0" / "csv")
