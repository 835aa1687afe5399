"""What loggers are told when they are opened: which run, whether it goes on, and from where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer import CSVLogger, Logger, TensorBoardLogger, Trainer
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError


class Killed(BaseException):
    pass


class Notes(Logger):
    """Writes down its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.rows = 0

    def open(self, run_dir: Path, run_id: str, resumed: bool, state: Any) -> None:
        self.calls.append(("open", run_dir.name, run_id, resumed, state))
        super().open(run_dir, run_id, resumed, state)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append(("log", step, *sorted(metrics)))
        self.rows += 1

    def log_summary(self, metrics: Any) -> None:
        self.calls.append(("summary", *sorted(metrics)))

    def finalize(self, status: str) -> None:
        self.calls.append(("finalize", status))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    @property
    def opened(self) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == "open"]


class Dies(Classifier):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.at:
            raise Killed


def fit(root: Path, logger: Any, module: Any = None, *, max_epochs: int = 3, **settings: Any) -> Trainer:
    as_if_started_again()
    trainer = quiet_trainer(
        logger=logger,
        max_epochs=max_epochs,
        default_root_dir=root,
        log_every_n_steps=1,
        enable_checkpointing=True,
        **settings,
    )
    trainer.fit(module or Classifier(), make_batches(2), ckpt_path="last")
    return trainer


def test_one_id_before_anything_is_logged_and_the_same_in_every_process(tmp_path: Path) -> None:
    first, second, third = Notes(), Notes(), Notes()
    with pytest.raises(Killed):
        fit(tmp_path, first, Dies(1), run_name="mine")  # before its first checkpoint
    with pytest.raises(Killed):
        fit(tmp_path, second, Dies(5), run_name="mine")
    fit(tmp_path, third, run_name="mine")
    ((_, id, resumed, state),) = first.opened
    assert len(id) == 16 and (resumed, state) == (False, {})
    assert second.opened == [("mine", id, True, {})]
    # Two epochs of two steps: four rows of steps, and none later though a fifth was logged.
    assert third.opened == [("mine", id, True, {"rows": 4})]
    assert first.calls[0][0] == "open"
    assert [call[1] for call in third.calls if call[0] == "log"] == [5, 6]


def test_a_finished_run_that_is_started_again_tells_its_summary_again(tmp_path: Path) -> None:
    first, again = Notes(), Notes()
    fit(tmp_path, first)
    fit(tmp_path, again)  # what came after the last save was cut off as its logs were opened
    assert [call[0] for call in first.calls if call[0] != "log"] == ["open", "summary", "finalize"]
    assert [call[0] for call in again.calls] == ["open", "summary", "finalize"]


def test_another_run_has_another_id(tmp_path: Path) -> None:
    one, other = Notes(), Notes()
    fit(tmp_path, one, run_name="one")
    fit(tmp_path, other, run_name="other")
    assert one.opened[0][1] != other.opened[0][1]


def test_a_run_that_goes_back_logs_under_the_name_of_its_branch(tmp_path: Path) -> None:
    from paddlelite_trainer.callbacks import ModelCheckpoint

    first, second = Notes(), Notes()
    fit(tmp_path, first, callbacks=[ModelCheckpoint(save_top_k=-1)])
    trainer = quiet_trainer(
        logger=second, max_epochs=3, default_root_dir=tmp_path, enable_checkpointing=True, log_every_n_steps=1
    )
    trainer.fit(Classifier(), make_batches(2), ckpt_path=tmp_path / "version_0" / "checkpoints" / "step-000000002")
    ((_, id, _, _),) = first.opened
    ((_, branch, resumed, state),) = second.opened
    assert branch.startswith(f"{id}-from-2-") and resumed and state == {"rows": 2}


def test_what_is_logged_after_the_end_is_logged_between_another_open_and_finalize(tmp_path: Path) -> None:
    logger = Notes()
    trainer = fit(tmp_path, logger, max_epochs=1)
    trainer.test(dataloaders=make_batches(1), verbose=False)
    trainer.predict(dataloaders=make_batches(1))
    ((_, id, _, _), again) = logger.opened
    assert again == ("version_0", id, True, None)
    assert [call[0] for call in logger.calls[-3:]] == ["open", "log", "finalize"]
    assert [call for call in logger.calls if call[0] == "finalize"] == [("finalize", "finished")] * 2


def test_the_summary_comes_once_with_the_newest_values_before_the_end(tmp_path: Path) -> None:
    logger = Notes()
    fit(tmp_path, logger, max_epochs=1)
    assert logger.calls[-2:] == [("summary", "train_loss"), ("finalize", "finished")]


def test_a_run_that_fails_or_is_interrupted_has_no_summary_and_has_failed(tmp_path: Path) -> None:
    import os
    import signal

    class Interrupted(Classifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    for module, error in ((Dies(1), Killed), (Interrupted(), SystemExit)):
        logger = Notes()
        with pytest.raises(error):
            fit(tmp_path, logger, module)
        assert logger.calls[-1] == ("finalize", "failed")
        assert "summary" not in [call[0] for call in logger.calls]


def test_loggers_find_their_own_state_in_another_order_and_a_new_one_finds_none(tmp_path: Path) -> None:
    class Other(Notes):
        def state_dict(self) -> dict[str, Any]:
            return {"other": True}

    class New(Notes): ...

    with pytest.raises(Killed):
        fit(tmp_path, [Notes(), Other()], Dies(3))
    new, other, same = New(), Other(), Notes()
    fit(tmp_path, [new, other, same])
    assert [one.opened[0][3] for one in (new, other, same)] == [None, {"other": True}, {"rows": 2}]


def test_nothing_is_taken_out_of_a_log_where_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, CSVLogger(), Dies(3))
    before = (tmp_path / "version_0" / "metrics.csv").read_bytes()
    with pytest.raises(Exception, match=r"hidden|shape|mismatch|differ"):
        fit(tmp_path, CSVLogger(), Classifier(hidden=9))
    assert (tmp_path / "version_0" / "metrics.csv").read_bytes() == before


def test_a_logger_with_the_open_of_an_earlier_version_is_told_what_has_changed() -> None:
    class Old(Logger):
        def open(self, run_dir: Any, resume_state: Any = None) -> None: ...  # type: ignore[override]

    with pytest.raises(ConfigurationError, match=r"Old\.open is of an earlier version.*open\(run_dir, run_id, resumed"):
        quiet_trainer(logger=Old())


def test_a_logger_of_earlier_that_has_load_state_dict_keeps_working(tmp_path: Path) -> None:
    class Earlier(Logger):
        loaded: Any = None

        def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"row": 7}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.loaded = state_dict

    with pytest.raises(Killed):
        fit(tmp_path, Earlier(), Dies(3))
    logger = Earlier()
    fit(tmp_path, logger)
    assert logger.loaded == {"row": 7}


def test_loggers_are_given_by_name(tmp_path: Path) -> None:
    trainer = quiet_trainer(logger=["csv", "tensorboard"], default_root_dir=tmp_path)
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger, TensorBoardLogger]
    trainer.logger = "csv"
    assert isinstance(trainer.logger, CSVLogger)


def test_a_logger_that_is_given_twice_is_an_error() -> None:
    logger = CSVLogger()
    for given in (["csv", "csv"], [logger, logger]):
        with pytest.raises(ConfigurationError, match=r"twice, which would tear its file: pass it once"):
            quiet_trainer(logger=given)


def test_a_misspelt_name_has_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match=r"no logger has that name\. Did you mean 'tensorboard'"):
        quiet_trainer(logger="tensorbord")
    with pytest.raises(ConfigurationTypeError, match="takes True, False, a Logger, a name such as"):
        quiet_trainer(logger=[3])


def test_under_fast_dev_run_the_experiment_takes_everything(tmp_path: Path) -> None:
    mine = TensorBoardLogger()
    trainer = quiet_trainer(logger=mine, fast_dev_run=True, default_root_dir=tmp_path)
    for experiment in (trainer.logger.experiment, mine.experiment):
        experiment.add_image("a", None, 3).anything["x"] = 4
    trainer.fit(Classifier(), make_batches(2))
    assert list(tmp_path.iterdir()) == []


def test_on_other_ranks_loggers_take_everything_and_write_nothing() -> None:
    from paddlelite_trainer.defaults import default_loggers
    from paddlelite_trainer.reporting.loggers.dry import DryLogger

    mine = TensorBoardLogger()
    loggers = default_loggers([mine, "csv"], is_zero=False)
    assert [type(logger) for logger in loggers] == [DryLogger, DryLogger]
    for experiment in (mine.experiment, loggers[0].experiment):
        experiment.add_scalar("a", 1.0, 2)
        experiment.config["a"] = experiment.anything(3)
    loggers[1].of_your_own(4)
