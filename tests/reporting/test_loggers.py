"""Loggers: what is on disk after a kill, a resume and a column that came late."""

from __future__ import annotations

import csv
import errno
import inspect
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, LogWriteError
from paddlelite_trainer.reporting.loggers import CSVLogger, Logger, TensorBoardLogger, append_only, tensorboard

ROOT = Path(__file__).resolve().parents[2]
RUN_ID = "0123456789abcdef"


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = event_accumulator.EventAccumulator(str(run_dir))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def opened(logger_class: type[Logger], run_dir: Path, state: object = None) -> Logger:
    logger = logger_class()
    run_dir.mkdir(exist_ok=True)
    logger.open(run_dir, RUN_ID, bool(state), state)
    return logger


# -- CSV ---------------------------------------------------------------------------------------------------------------
def test_csv_holds_one_row_per_step_and_full_precision(tmp_path: Path) -> None:
    logger = opened(CSVLogger, tmp_path)
    logger.log_metrics({"loss": 1 / 3}, 1)
    logger.log_metrics({"lr": 0.1}, 1)
    logger.log_metrics({"loss": float("nan")}, 2)
    logger.finalize("success")
    assert [{"step": "1", "loss": repr(1 / 3), "lr": "0.1"}, {"step": "2", "loss": "nan", "lr": ""}] == rows(tmp_path)


def test_csv_writes_the_same_name_of_one_step_twice_as_two_rows(tmp_path: Path) -> None:
    logger = opened(CSVLogger, tmp_path)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_metrics({"loss": 2.0}, 1)
    logger.finalize("success")
    assert [row["loss"] for row in rows(tmp_path)] == ["1", "2"]


def test_csv_column_that_appears_late_keeps_the_earlier_rows(tmp_path: Path) -> None:
    logger = opened(CSVLogger, tmp_path)
    for step in range(5):
        logger.log_metrics({"loss": float(step)}, step)
    logger.log_metrics({"val_acc": 0.5}, 5)
    logger.finalize("success")
    table = rows(tmp_path)
    assert [str(step) for step in range(6)] == [row["step"] for row in table]
    assert [row["val_acc"] for row in table] == [None] * 5 + ["0.5"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_csv_names_with_commas_and_quotes_come_back(tmp_path: Path) -> None:
    logger = opened(CSVLogger, tmp_path)
    logger.log_metrics({'a,"b"': 1.0, "größe": 2.0}, 0)
    logger.finalize("success")
    assert rows(tmp_path) == [{"step": "0", 'a,"b"': "1", "größe": "2"}]


def test_csv_resumed_at_every_step_equals_the_uninterrupted_file_byte_for_byte(tmp_path: Path) -> None:
    # Names appear at steps 0, 4 and 8: positions lie before, between and after replaced headers.
    def metrics(step: int) -> dict[str, float]:
        return {
            "loss": step / 3,
            **({"val": step / 7} if step % 4 == 0 and step else {}),
            **({"late": 1.0} if step == 8 else {}),
        }

    whole = opened(CSVLogger, tmp_path / "whole", {})
    for step in range(12):
        whole.log_metrics(metrics(step), step)
        whole.state_dict()
    expected = whole.path.read_bytes()
    for killed_after in range(12):
        run_dir = tmp_path / f"killed-{killed_after}"
        first = opened(CSVLogger, run_dir, {})
        states = []
        for step in range(12):
            states.append(first.state_dict())
            first.log_metrics(metrics(step), step)
        first.save()  # everything later than the checkpoint reached the disk too
        second = opened(CSVLogger, run_dir, states[killed_after])
        for step in range(killed_after, 12):
            second.log_metrics(metrics(step), step)
        second.finalize("success")
        assert expected == second.path.read_bytes()


def test_csv_of_a_fit_that_starts_from_nothing_begins_anew(tmp_path: Path) -> None:
    first = opened(CSVLogger, tmp_path, {})
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("failed")
    second = opened(CSVLogger, tmp_path, {})
    second.log_metrics({"loss": 2.0}, 0)
    second.finalize("success")
    assert [row["loss"] for row in rows(tmp_path)] == ["2"]


def test_csv_opened_without_a_state_only_adds(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        logger = opened(CSVLogger, tmp_path)
        logger.log_metrics({"test_acc": value}, 7)
        logger.finalize("success")
    assert [row["test_acc"] for row in rows(tmp_path)] == ["1", "2"]


def test_csv_file_that_somebody_changed_is_kept_and_named(tmp_path: Path) -> None:
    logger = opened(CSVLogger, tmp_path, {})
    logger.log_metrics({"loss": 1.0}, 0)
    state = logger.state_dict()
    (tmp_path / "metrics.csv").write_text("mine,only\n1,2\n")
    with pytest.warns(UserWarning, match=r"metrics\.csv does not hold what the checkpoint says"):
        opened(CSVLogger, tmp_path, state)
    assert (tmp_path / "metrics.csv").read_text() == "mine,only\n1,2\n"


def test_csv_line_torn_by_a_power_loss_is_cut_off_before_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.0\n1,0.")
    logger = opened(CSVLogger, tmp_path)
    logger.log_metrics({"loss": 3.0}, 2)
    logger.finalize("success")
    assert [row["step"] for row in rows(tmp_path)] == ["0", "2"]


def test_csv_can_be_logged_to_after_its_run_was_finalized(tmp_path: Path) -> None:
    logger = opened(CSVLogger, tmp_path, {})
    logger.log_metrics({"loss": 1.0}, 3)
    logger.finalize("success")
    logger.log_metrics({"test_acc": 0.9})
    logger.finalize("success")
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("3", "1"), ("3", "")]


def test_hyperparameters_are_readable_json(tmp_path: Path) -> None:
    opened(CSVLogger, tmp_path).log_hyperparams({"lr": 0.1, "path": Path("x")})
    assert {"lr": 0.1, "path": repr(Path("x"))} == json.loads((tmp_path / "hparams.json").read_text())


def test_nothing_is_written_where_nothing_is_logged(tmp_path: Path) -> None:
    for logger_class in (CSVLogger, TensorBoardLogger):
        logger = opened(logger_class, tmp_path, {})
        logger.state_dict()
        logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


# -- TensorBoard -------------------------------------------------------------------------------------------------------
def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    logger = opened(TensorBoardLogger, tmp_path)
    for step in range(3):
        logger.log_metrics({"loss": step / 2, "acc": 1.0}, step)
    logger.finalize("success")
    assert curves(tmp_path) == {"loss": [(0, 0.0), (1, 0.5), (2, 1.0)], "acc": [(0, 1.0), (1, 1.0), (2, 1.0)]}


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300, 2**31, 2**40, -1])
def test_tensorboard_events_are_what_tensorboardx_makes_of_the_same_numbers(step: int) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import scalar

    values = [
        *(("loss", 1 / 3), ("/val/acc top-1 (%)", -0.0), ("größe", 1e300), ("n" * 200, -1e300)),
        *(("tiny", 1e-300), ("inf", -math.inf), ("big", 2.0**24 + 1)),
    ]
    ours = tensorboard.scalars_event(values, step, 1234.5)
    expected = Summary(value=[value for name, number in values for value in scalar(name, number).value])
    assert ours == Event(wall_time=1234.5, step=step, summary=expected)


def test_tensorboard_draws_a_nan_as_one(tmp_path: Path) -> None:
    logger = opened(TensorBoardLogger, tmp_path)
    logger.log_metrics({"loss": math.nan}, 1)
    logger.finalize("success")
    ((step, value),) = curves(tmp_path)["loss"]
    assert step == 1 and math.isnan(value)


def test_tensorboard_resumed_from_an_earlier_checkpoint_has_no_gap_and_no_doubled_step(tmp_path: Path) -> None:
    state: dict[str, object] = {}
    for first_step, checkpoint_at, last_step in ((0, 4, 7), (4, 6, 9), (6, 99, 12)):
        logger = opened(TensorBoardLogger, tmp_path, state)
        for step in range(first_step, last_step):
            if step == checkpoint_at:
                state = logger.state_dict()
            logger.log_metrics({"loss": float(step)}, step)
        logger.save()
    assert [(step, float(step)) for step in range(12)] == curves(tmp_path)["loss"]


def test_tensorboard_removes_only_its_own_later_files(tmp_path: Path) -> None:
    foreign = tmp_path / "events.out.tfevents.1234567890.host"
    foreign.write_bytes(b"somebody else's")
    logger = opened(TensorBoardLogger, tmp_path, {})
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    opened(TensorBoardLogger, tmp_path, {})
    assert [foreign] == list(tmp_path.iterdir())
    assert foreign.read_bytes() == b"somebody else's"


def test_tensorboard_files_keep_their_order_when_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: dict[str, object] = {}
    for session, now in enumerate((2e9, 2e9, 1e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        logger = opened(TensorBoardLogger, tmp_path, state)
        logger.log_metrics({"loss": float(session)}, session)
        state = logger.state_dict()
    assert curves(tmp_path)["loss"] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert len(list(tmp_path.iterdir())) == 3


def test_tensorboard_says_when_an_event_file_has_gone(tmp_path: Path) -> None:
    logger = opened(TensorBoardLogger, tmp_path, {})
    logger.log_metrics({"loss": 1.0}, 0)
    state = logger.state_dict()
    next(tmp_path.iterdir()).unlink()
    with pytest.warns(UserWarning, match="shorter than when the checkpoint was taken, or gone: events.out"):
        opened(TensorBoardLogger, tmp_path, state)


def test_tensorboard_hyperparameters_are_one_text_across_resumes(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    state: dict[str, object] = {}
    for step in range(3):
        logger = opened(TensorBoardLogger, tmp_path, state)
        logger.log_hyperparams({"lr": 0.1})
        logger.log_metrics({"loss": 0.0}, step)
        state = logger.state_dict()
    reader = event_accumulator.EventAccumulator(str(tmp_path))
    reader.Reload()
    texts = reader.Tensors("hparams/text_summary")
    assert len(texts) == 1
    assert '"lr": 0.1' in texts[0].tensor_proto.string_val[0].decode()


def test_what_the_experiment_writes_is_taken_back_on_resume_too(tmp_path: Path) -> None:
    logger = opened(TensorBoardLogger, tmp_path, {})
    assert isinstance(logger, TensorBoardLogger)
    experiment = logger.experiment
    experiment.add_scalar("extra", 1.0, 0)
    state = logger.state_dict()
    experiment.add_scalar("extra", 2.0, 1)
    experiment.flush()
    experiment.close()
    experiment.add_scalar("extra", 3.0, 2)
    logger.save()
    assert curves(tmp_path)["extra"] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    opened(TensorBoardLogger, tmp_path, state)
    assert curves(tmp_path)["extra"] == [(0, 1.0)]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_experiment_stands_on_private_names_that_tensorboardx_2_6_has(tmp_path: Path) -> None:
    from tensorboardX.writer import FileWriter, SummaryWriter

    threads = threading.active_count()
    logger = opened(TensorBoardLogger, tmp_path)
    assert isinstance(logger, TensorBoardLogger)
    logger.experiment.add_text("note", "hello", 3)
    assert "_get_file_writer" in vars(SummaryWriter), "read writer.py of this tensorboardX: 2.6.5 had it"
    assert "_default_metadata" in inspect.getsource(FileWriter.add_event), "2.6.5 looks into it, this one does not"
    assert threading.active_count() == threads, "a FileWriter of tensorboardX's own was made"
    assert [path.suffix for path in tmp_path.iterdir()] == [TensorBoardLogger.OWN_SUFFIX]


# -- killed processes --------------------------------------------------------------------------------------------------
RUN = """
    import json, os, sys
    from pathlib import Path
    from paddlelite_trainer.reporting.loggers import CSVLogger, TensorBoardLogger

    run_dir, killed_at, end = Path(sys.argv[1]), int(sys.argv[2]), 30
    checkpoint = run_dir / "checkpoint.json"
    saved = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "loggers": [{}, {}]}
    loggers = [CSVLogger(), TensorBoardLogger()]
    for logger, state in zip(loggers, saved["loggers"]):
        logger.open(run_dir, '0123456789abcdef', bool(state), state)
    for step in range(saved["step"], end):
        for logger in loggers:
            logger.log_metrics({"loss": step / 3}, step)
            if step % 5 == 4:
                logger.log_metrics({f"val_{step // 10}": step / 7}, step)
        if step % 3 == 2:
            content = json.dumps({"step": step + 1, "loggers": [logger.state_dict() for logger in loggers]})
            Path(f"{checkpoint}.new").write_text(content)
            os.replace(f"{checkpoint}.new", checkpoint)
        if step == killed_at:
            for logger in loggers:
                if step % 2:
                    logger.save()
            os._exit(9)
    for logger in loggers:
        logger.finalize("success")
"""


def test_curves_of_a_run_killed_many_times_equal_those_of_one_never_killed(tmp_path: Path) -> None:
    def run(run_dir: Path, killed_at: int) -> int:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(RUN), str(run_dir), str(killed_at)], env=environment
        ).returncode

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(whole, -1) == 0
    for killed_at in (1, 4, 7, 7, 13, 20, 25, 29):
        assert run(killed, killed_at) == 9
    assert run(killed, -1) == 0
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    assert curves(whole) == curves(killed)
    assert [(step, pytest.approx(step / 3)) for step in range(30)] == curves(killed)["loss"]


def test_a_forked_child_writes_nothing_of_what_its_parent_has_waiting(tmp_path: Path) -> None:
    logger = opened(CSVLogger, tmp_path, {})
    for step in range(50):
        logger.log_metrics({"loss": 0.0}, step)
    child = os.fork()
    if child == 0:
        del logger
        os._exit(0)
    os.waitpid(child, 0)
    logger.finalize("success")
    assert [str(step) for step in range(50)] == [row["step"] for row in rows(tmp_path)]


# -- the base class, and errors ----------------------------------------------------------------------------------------
def test_a_logger_of_ones_own_needs_only_log_metrics(tmp_path: Path) -> None:
    class Remember(Logger):
        def __init__(self) -> None:
            self.seen: list[object] = []

        def log_metrics(self, metrics: object, step: int | None = None) -> None:
            self.seen.append((step, metrics))

    logger = Remember()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.open(tmp_path / "runs" / "version_3", RUN_ID, False, {})
        logger.log_metrics({"loss": 1.0}, 2)
        logger.log_hyperparams({})
        logger.finalize("success")
    assert logger.seen == [(2, {"loss": 1.0})]
    assert (logger.state_dict(), logger.name, logger.version) == ({}, "runs", "version_3")


def test_a_logger_without_log_metrics_says_what_it_lacks() -> None:
    class Empty(Logger): ...

    with pytest.raises(NotImplementedError, match="Empty must define log_metrics"):
        Empty().log_metrics({})


def test_logging_before_the_run_has_a_directory_says_when_it_gets_one() -> None:
    with pytest.raises(
        ConfigurationError, match="CSVLogger has no directory yet: the Trainer opens its loggers when a run begins"
    ):
        CSVLogger().log_metrics({"loss": 1.0}, 0)


def test_a_metric_that_is_no_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationTypeError, match="metric 'loss' must be a single number, got 'high' of type str"):
        opened(CSVLogger, tmp_path).log_metrics({"loss": "high"}, 0)  # type: ignore[dict-item]


def test_a_directory_outside_the_run_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is a folder inside the run directory, got '/tmp/logs'"):
        TensorBoardLogger("/tmp/logs")


# -- whether one can log -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("logger_class", [CSVLogger, TensorBoardLogger])
def test_a_logger_of_files_is_open_once_it_has_a_directory(logger_class: type[Logger], tmp_path: Path) -> None:
    assert not logger_class().is_open
    logger = opened(logger_class, tmp_path)
    assert logger.is_open
    logger.finalize("finished")
    assert logger.is_open  # logging may go on


def test_a_logger_that_needs_no_directory_is_always_open() -> None:
    class Printing(Logger):
        def log_metrics(self, metrics: object, step: int | None = None) -> None:
            print(metrics)

    assert Printing().is_open


# -- a full disk -------------------------------------------------------------------------------------------------------
def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_csv_header_that_a_full_disk_does_not_take_writes_into_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = opened(CSVLogger, tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    with monkeypatch.context() as patched:
        patched.setattr(append_only.os, "replace", full)
        logger.log_metrics({"b": 2.0}, 1)
        with pytest.raises(LogWriteError, match=r"metrics.csv could not be written: No space left"):
            logger.save()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    other = (tmp_path / "model.pdparams").open("wb")
    logger.log_metrics({"a": 3.0}, 2)
    logger.finalize("finished")
    other.close()
    assert (tmp_path / "model.pdparams").read_bytes() == b""
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n0,1\n1,,2\n2,3,\n"


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_what_a_full_disk_took_a_part_of_goes_on_where_it_ended(
    tmp_path: Path, kind: type[Logger], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, taken = os.write, []

    def takes_a_part(descriptor: int, data: memoryview) -> int:
        if taken:
            full()
        taken.append(5)
        return write(descriptor, data[:5])

    def log(place: str, fills_up: bool) -> bytes:
        (tmp_path / place).mkdir()
        logger = opened(kind, tmp_path / place)
        logger.log_metrics({"a": 1.0}, 0)
        logger.save()
        logger.log_metrics({"a": 2.0}, 1)
        logger.log_metrics({"a": 3.0}, 2)
        if fills_up:
            with monkeypatch.context() as patched:
                patched.setattr(append_only.os, "write", takes_a_part)
                with pytest.raises(LogWriteError, match="No space left"):
                    logger.save()
        logger.finalize("finished")
        (path,) = [path for path in (tmp_path / place).iterdir() if path.is_file()]
        return path.read_bytes()

    monkeypatch.setattr(tensorboard.time, "time", lambda: 1234.5)
    assert log("undisturbed", False) == log("full for a while", True)


def test_training_goes_on_with_a_full_disk_where_it_is_to_warn_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import Classifier, make_batches, quiet_trainer

    class FillsUp(Classifier):
        def on_train_start(self) -> None:
            monkeypatch.setattr(append_only.os, "write", full)

    def run(on_save_error: str) -> None:
        trainer = quiet_trainer(
            max_epochs=3, logger=True, log_every_n_steps=1, default_root_dir=tmp_path, on_save_error=on_save_error
        )
        trainer.fit(FillsUp(), make_batches(2), make_batches(1))
        assert trainer.current_epoch == 3

    monkeypatch.setattr(append_only, "FLUSH_SECONDS", 0.0)
    run("warn")
    told = capsys.readouterr().out
    assert told.count("WARNING: the log") == 2  # one for each file, not for each row
    assert "metrics.csv could not be written: No space left on device. Training goes on" in told
    with pytest.raises(LogWriteError, match=r"could not be written: No space left"):
        run("raise")


def test_what_a_checkpoint_says_was_logged_is_on_the_disk_first_and_a_validation_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint
    from paddlelite_trainer.fit import state as training_state

    on_disk: dict[str, int] = {}
    promised: list[dict[str, int]] = []
    fsync, trainer_tree = os.fsync, training_state.trainer_tree

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        on_disk[Path(os.readlink(f"/proc/self/fd/{descriptor}")).name] = os.fstat(descriptor).st_size

    def noting_tree(*of: Any) -> dict[str, Any]:
        tree = trainer_tree(*of)
        events, table = tree["loggers"] if "files" in tree["loggers"][0] else reversed(tree["loggers"])
        header = len(",".join(table["columns"])) + 1
        promised.append({"metrics.csv": header + table["data_bytes"], **events["files"]})
        for name, size in promised[-1].items():
            assert on_disk[name] >= size, name
        return tree

    class FailsAfterLogging(Classifier):
        def on_validation_epoch_start(self) -> None:
            self.before = dict(on_disk)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.trainer.log_metrics({"extra": 1.0})
            assert on_disk == self.before
            if self.trainer.current_epoch == 1:
                raise RuntimeError("stop here")

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(training_state, "trainer_tree", noting_tree)
    trainer = quiet_trainer(
        max_epochs=3,
        logger=True,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        callbacks=[ModelCheckpoint(save_on_exception=True)],
        enable_checkpointing=True,
    )
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.fit(FailsAfterLogging(), make_batches(2), make_batches(2))
    first, of_the_mark = promised
    assert all(size > first[name] for name, size in of_the_mark.items())


class AtAServer(Logger):
    """A logger of somebody's own, whose server is away."""

    def __init__(self) -> None:
        self.saves = 0

    def log_metrics(self, metrics: object, step: int | None = None) -> None: ...

    def save(self) -> None:
        self.saves += 1
        raise ConnectionError("the server is away")

    def finalize(self, status: str) -> None: ...


class WithAPosition(AtAServer):
    def state_dict(self) -> dict[str, Any]:
        return {"row": 1}


def trained(tmp_path: Path, logger: Logger, **settings: Any) -> Any:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint

    trainer = quiet_trainer(
        max_epochs=2,
        logger=[logger, CSVLogger()],
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)],
        **settings,
    )
    trainer.fit(Classifier(), make_batches(2))
    return trainer


def test_a_logger_of_which_a_checkpoint_keeps_nothing_does_not_stand_in_its_way(tmp_path: Path) -> None:
    trainer = trained(tmp_path, AtAServer())
    assert [entry.step for entry in trainer.checkpoints.entries()] == [1, 2, 3, 4]
    assert trainer.loggers[0].saves == 0


def test_a_logger_whose_position_cannot_be_saved_is_named_and_the_other_logs_are_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[Logger] = []
    save = CSVLogger.save
    monkeypatch.setattr(CSVLogger, "save", lambda logger: saves.append(logger) or save(logger))
    with pytest.raises(LogWriteError, match=r"WithAPosition.save\(\) failed: ConnectionError\('the server is away'\)"):
        trained(tmp_path / "raise", WithAPosition())
    assert saves
    trainer = trained(tmp_path / "warn", WithAPosition(), on_save_error="warn")
    assert trainer.global_step == 4
    assert "WithAPosition.save() failed: ConnectionError('the server is away')" in capsys.readouterr().out
