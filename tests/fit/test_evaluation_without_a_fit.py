"""What an evaluation by a Trainer that has fitted nothing writes, and where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import CSVLogger, Logger, TensorBoardLogger
from paddlelite_trainer.errors import CheckpointNotFoundError, ConfigurationError, ConfigurationTypeError


def rows(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_logger_that_was_asked_for_gets_the_values_of_an_evaluation_without_a_fit(tmp_path: Path, stage: str) -> None:
    trainer = quiet_trainer(logger=[CSVLogger(), TensorBoardLogger()], default_root_dir=tmp_path)
    (values,) = getattr(trainer, stage)(Classifier(), make_batches(2))
    ((name, value),) = values.items()
    header, row = rows(tmp_path / "version_0" / "metrics.csv")
    assert dict(zip(header.split(","), row.split(",")))[name] == repr(float(value))
    assert list((tmp_path / "version_0").glob("events.out.tfevents.*"))
    assert trainer.logger.log_dir == str(tmp_path / "version_0")


def test_several_evaluations_of_one_trainer_write_into_one_directory(tmp_path: Path) -> None:
    trainer, module = quiet_trainer(logger=CSVLogger(), default_root_dir=tmp_path), Classifier()
    trainer.validate(module, make_batches(2))
    trainer.test(module, make_batches(2))
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
    assert rows(tmp_path / "version_0" / "metrics.csv")[0].startswith("step,val_loss,epoch,test_loss")


def test_a_fit_afterwards_is_a_run_of_its_own(tmp_path: Path) -> None:
    trainer = quiet_trainer(logger=CSVLogger(), default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.validate(Classifier(), make_batches(2))
    trainer.fit(Classifier(), make_batches(2))
    trainer.test(Classifier(), make_batches(2), ckpt_path="last")
    assert trainer.run_dir == tmp_path / "version_1"
    assert len(rows(tmp_path / "version_0" / "metrics.csv")) == 2
    assert "test_loss" in rows(tmp_path / "version_1" / "metrics.csv")[0]


def test_the_directory_of_an_evaluation_is_not_what_last_means(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"default_root_dir": tmp_path, "enable_checkpointing": True}
    quiet_trainer(max_epochs=1, **settings).fit(Classifier(), make_batches(2))
    evaluates = quiet_trainer(logger=True, **settings)
    evaluates.test(Classifier(), make_batches(2), ckpt_path="last")
    evaluates.test(Classifier(), make_batches(2), ckpt_path="last")
    assert evaluates.ckpt_path is not None and evaluates.ckpt_path.parent.parent == tmp_path / "version_0"
    assert (tmp_path / "version_1" / "metrics.csv").exists()


def test_a_named_run_that_was_trained_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"default_root_dir": tmp_path, "run_name": "mine", "logger": CSVLogger()}
    quiet_trainer(enable_checkpointing=True, **settings).fit(Classifier(), make_batches(2))
    before = {path: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()}
    settings["logger"] = CSVLogger()
    quiet_trainer(**settings).test(Classifier(), make_batches(2), ckpt_path="last")
    assert {path: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()} == before
    assert "not logged" in capsys.readouterr().out


def test_without_a_logger_that_was_asked_for_nothing_is_written(tmp_path: Path) -> None:
    quiet_trainer(logger=None, default_root_dir=tmp_path).test(Classifier(), make_batches(2))
    quiet_trainer(logger=True, default_root_dir=tmp_path, fast_dev_run=True).test(Classifier(), make_batches(2))
    quiet_trainer(logger=True, default_root_dir=tmp_path).predict(Classifier(), make_batches(2))
    assert list(tmp_path.iterdir()) == []


def test_a_logger_of_one_s_own_knows_its_directory(tmp_path: Path) -> None:
    class Keeps(Logger):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            self.seen.append((self.run_dir, sorted(metrics), step))

        def log_hyperparams(self, params: Mapping[str, Any]) -> None:
            self.seen.append(dict(params))

    keeps = Keeps()
    quiet_trainer(logger=keeps, default_root_dir=tmp_path).test(Classifier(hidden=5), make_batches(2))
    assert keeps.seen == [{"hidden": 5, "lr": 0.1}, (tmp_path / "version_0", ["epoch", "test_loss"], 0)]


def test_a_logger_that_another_trainer_has_opened_stays_there(tmp_path: Path) -> None:
    logger, module = CSVLogger(), Classifier()
    quiet_trainer(logger=logger, default_root_dir=tmp_path).fit(module, make_batches(2))
    quiet_trainer(logger=logger, default_root_dir=tmp_path).test(module, make_batches(2))
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
    assert "test_loss" in rows(tmp_path / "version_0" / "metrics.csv")[0]


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_what_is_no_module_is_refused_as_in_fit(stage: str) -> None:
    evaluate = getattr(quiet_trainer(), stage)
    takes = rf"trainer\.{stage} takes a paddlelite_trainer\.Module, got "
    with pytest.raises(ConfigurationTypeError, match=takes + "Linear: derive it from Module"):
        evaluate(paddle.nn.Linear(4, 3), make_batches(2))
    with pytest.raises(ConfigurationTypeError, match=takes + "list"):
        evaluate(make_batches(2), Classifier())
    with pytest.raises(ConfigurationTypeError, match=takes + r"the class Classifier; pass an object: Classifier\(\)"):
        evaluate(Classifier, make_batches(2))


@pytest.mark.parametrize(("stage", "limit"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_a_limit_of_zero_is_named_where_it_leaves_no_data(stage: str, limit: str) -> None:
    trainer = quiet_trainer(**{f"limit_{limit}_batches": 0})
    with pytest.raises(ConfigurationError, match=rf"limit_{limit}_batches=0\) leaves trainer\.{stage}\(\) no data"):
        getattr(trainer, stage)(Classifier(), make_batches(2))


@pytest.mark.parametrize("word", ["last", "latest"])
def test_no_checkpoint_to_evaluate_is_not_called_a_fresh_run(tmp_path: Path, word: str) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path)
    with pytest.raises(CheckpointNotFoundError) as error:
        trainer.validate(Classifier(), make_batches(2), ckpt_path=word)
    assert str(error.value) == f"trainer.validate(ckpt_path={word!r}): no checkpoint in {tmp_path} yet"
