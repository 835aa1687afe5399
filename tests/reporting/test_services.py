"""Loggers to services: hyper-parameters, results and the best checkpoint there, and services that do not answer."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import stores
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer import MLFlowLogger, ServiceLogger, SwanLabLogger, Trainer, VisualDLLogger, WandbLogger
from paddlelite_trainer.callbacks import LRMonitor, ModelCheckpoint
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.reporting.loggers.nothing import Nothing


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("WANDB_SILENT", "WANDB_CONSOLE", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    stores.prepared(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


class Shows(Classifier):
    """Logs one thing of each kind."""

    def on_train_epoch_end(self) -> None:
        self.log_image("image", paddle.ones([3, 4, 5]) * 0.5)
        self.log_text("text", "**bold**")
        self.log_histogram("histogram", self.net[0].weight)
        self.log_audio("audio", np.sin(np.arange(800) / 8).astype("float32"), sample_rate=8000)


def fit(root: Path, logger: Any, module: Any = None, **settings: Any) -> Trainer:
    trainer = quiet_trainer(
        **{
            "logger": logger,
            "max_epochs": 2,
            "default_root_dir": root / "runs",
            "log_every_n_steps": 1,
            "enable_checkpointing": True,
            "callbacks": [ModelCheckpoint(monitor="val_loss"), LRMonitor("step")],
            **settings,
        }
    )
    trainer.fit(module or Classifier(), make_batches(3), make_batches(1), ckpt_path="last")
    return trainer


# -- what is there afterwards, at the real libraries -------------------------------------------------------------------
def test_mlflow_has_parameters_the_last_values_and_the_best_checkpoint_and_takes_a_test_after_the_fit(
    stored: Path,
) -> None:
    from mlflow import MlflowClient

    logger = MLFlowLogger(tracking_uri=f"sqlite:///{stored}/mlflow.db", log_model=True, tags={"mine": "yes"})
    trainer = fit(stored, logger, Shows())
    trainer.test(dataloaders=make_batches(1), verbose=False)
    assert stores.media_in_mlflow(stored) == {"audio", "image", "text", "checkpoints"}
    client = MlflowClient(f"sqlite:///{stored}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "runs"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.data.params, run.info.status, run.info.run_name) == (
        {"hidden": "8", "lr": "0.1"},
        "FINISHED",
        "version_0",
    )
    assert run.data.metrics["val_loss"] == pytest.approx(trainer.checkpoint_callback.best_model_score)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "test_loss")] == [6]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "epoch")] == [1, 2, 3, 4, 5, 6]
    files = {Path(one.path).name for one in client.list_artifacts(run.info.run_id, "checkpoints/best")}
    assert {"manifest.json", "model.pdparams"} <= files
    assert run.data.tags["mine"] == "yes" and run.data.tags["checkpoints.best"] == "step-000000006"
    assert trainer.logger.mlflow_run_id == run.info.run_id
    assert isinstance(trainer.logger.experiment, MlflowClient)


def test_wandb_has_the_configuration_the_summary_and_the_end_and_its_experiment_is_the_run(stored: Path) -> None:
    import json
    import subprocess

    import wandb

    class Looks(Shows):
        seen: Any = None

        def on_train_start(self) -> None:
            self.seen = self.logger.experiment
            self.seen.config.update({"mine": 1})

    module = Looks()
    trainer = fit(stored, WandbLogger("digits", offline=True, log_model=True, options={"dir": stored / "w"}), module)
    trainer.test(dataloaders=make_batches(1), verbose=False)
    assert isinstance(module.seen, wandb.Run)
    first, second = sorted(stored.glob("w/wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime)
    assert first.name == second.name == f"run-{trainer.run.owner.id}.wandb"
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(first)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    text = json.dumps(told)
    assert '"mine": 1' in text and '"hidden": 8' in text and "version_0" in text and "digits" in text, text
    assert stores.media_in_wandb(stored) == {"audio", "histogram", "image", "text"}
    found = stores.in_wandb(stored)[first.stem]
    assert found["val_loss"][-1] == (6, pytest.approx(trainer.checkpoint_callback.best_model_score))
    assert [step for step, _ in found["test_loss"]] == [7]  # W&B takes nothing more at a step that it has closed


def test_visualdl_has_the_table_of_hyperparameters_and_its_experiment_is_the_writer(stored: Path) -> None:
    from visualdl import LogReader, LogWriter

    class Looks(Shows):
        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            assert isinstance(self.logger.experiment, LogWriter)
            self.logger.experiment.add_scalar("mine", 0.5, self.global_step)

    fit(stored, "visualdl", Looks())
    (path,) = (stored / "runs" / "version_0").glob("vdlrecords.*")
    reader = LogReader(file_path=str(path))
    (record,) = reader.get_data("hyper_parameters", "hparam")
    assert {info.name for info in record.hparam.hparamInfos} == {"hidden", "lr"}
    assert {info.name for info in record.hparam.metricInfos} == {"train_loss", "val_loss", "lr"}
    assert [point.id for point in reader.get_data("scalar", "mine")] == [3, 6]
    assert stores.media_in_visualdl(stored) == {"audio", "histogram", "image", "text"}
    assert [point.id for point in reader.get_data("scalar", "epoch")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_has_hparams_beside_the_curves_and_one_epoch_a_step(stored: Path) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    fit(stored, "tensorboard", Shows())
    assert stores.media_in_tensorboard(stored) == {"audio", "histogram", "image", "text"}
    runs = EventMultiplexer().AddRunsFromDirectory(str(stored / "runs"))
    runs.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(stored))))
    metadata = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, metadata, [])
    assert {info.name for info in experiment.hparam_infos} == {"hidden", "lr"}
    assert {info.name.tag for info in experiment.metric_infos} >= {"train_loss", "val_loss"}
    assert [step for step, _ in stores.in_tensorboard(stored)["version_0"]["epoch"]] == [1, 2, 3, 4, 5, 6]


def test_swanlab_runs_and_leaves_the_trainer_its_signals(stored: Path) -> None:
    import swanlab

    class Looks(Shows):
        handlers: Any = None

        def on_train_start(self) -> None:
            assert isinstance(self.logger.experiment, swanlab.Run)
            self.handlers = signal.getsignal(signal.SIGINT)

    module = Looks()
    logger = SwanLabLogger("digits", mode="offline", options={"log_dir": stored / "s"})
    trainer = fit(stored, logger, module)
    assert type(getattr(module.handlers, "__self__", None)).__module__.startswith("paddlelite_trainer.")
    trainer.test(dataloaders=make_batches(1), verbose=False)
    assert stores.media_in_swanlab(stored) == {"audio", "image", "text"}
    ((name, curves),) = stores.in_swanlab(stored).items()
    assert name == f"run-{trainer.run.owner.id}"
    assert [step for step, _ in curves["train_loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["test_loss"]] == [6]


# -- where it does not answer ------------------------------------------------------------------------------------------
class Fake(ServiceLogger):
    """A service in this process, which may be away."""

    LIBRARY = "json"  # something that is installed
    points: list[tuple[str, int, float]]
    away = False

    def __init__(self, points: list[Any] | None = None) -> None:
        super().__init__()
        self.points = [] if points is None else points
        self.connected: list[bool] = []
        self.ends: list[str] = []

    def connect(self, *, resumed: bool) -> Any:
        if self.away:
            raise ConnectionError("no route")
        self.connected.append(resumed)
        return self.points

    def stored_steps(self) -> Mapping[str, Collection[int]]:
        steps: dict[str, set[int]] = {}
        for name, step, _ in self.points:
            steps.setdefault(name, set()).add(step)
        return steps

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        if self.away:
            raise ConnectionError("gone in between")
        self.points += [(name, step, value) for name, value in metrics.items()]

    def disconnect(self, status: str) -> None:
        self.ends.append(status)

    def steps(self, name: str) -> list[int]:
        return [step for of, step, _ in self.points if of == name]


def test_a_service_that_goes_away_is_told_once_and_has_all_of_it_in_the_end(tmp_path: Path) -> None:
    logger = Fake()

    class Comes(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.is_global_zero:
                logger.away = 2 <= self.global_step < 5

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fit(tmp_path, logger, Comes())
    told = [str(one.message) for one in heard if "Training goes on" in str(one.message)]
    assert len(told) == 1 and "ConnectionError: gone in between" in told[0] and "json.jsonl" in told[0], told
    assert logger.steps("train_loss") == [1, 2, 3, 4, 5, 6]
    assert logger.ends == ["finished"]


def test_a_service_that_is_away_all_the_time_has_all_of_it_when_the_run_is_opened_again(tmp_path: Path) -> None:
    logger = Fake()
    logger.away = True
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, logger)
    (told,) = [str(one.message) for one in heard if "Fake cannot reach its service" in str(one.message)]
    assert "ConnectionError: no route" in told and "Training goes on" in told
    assert trainer.current_epoch == 2 and logger.points == []
    assert isinstance(logger.experiment, Nothing)
    as_if_started_again()
    again = Fake()
    fit(tmp_path, again, max_epochs=3)
    assert again.connected == [True]
    assert again.steps("train_loss") == list(range(1, 10))


def test_points_that_the_service_has_are_not_sent_twice_and_what_it_lacks_is_sent(tmp_path: Path) -> None:
    class Stops(Classifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.global_step == 5:
                raise KeyboardInterrupt

    first = Fake()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, first, Stops())
    assert first.ends == ["failed"] and first.steps("train_loss") == [1, 2, 3, 4]
    kept = [point for point in first.points if point[1] not in (2, 3)]  # a library that was killed has lost some
    as_if_started_again()
    second = Fake(kept)
    fit(tmp_path, second)
    assert sorted(second.steps("train_loss")) == [1, 2, 3, 4, 5, 6]
    assert sorted(second.steps("epoch")) == [1, 2, 3, 4, 5, 6]


def test_mlflow_that_does_not_answer_ends_nothing_and_is_told_once(stored: Path) -> None:
    logger = MLFlowLogger(tracking_uri="http://127.0.0.1:9")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer = fit(stored, logger)
    assert len([one for one in heard if "MLFlowLogger cannot reach its service" in str(one.message)]) == 1
    assert trainer.current_epoch == 2
    assert (stored / "runs" / "version_0" / "mlflow.jsonl").read_text().count("train_loss") == 6
    assert isinstance(logger.experiment, Nothing)


# -- before there is a run ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [WandbLogger, MLFlowLogger, SwanLabLogger, VisualDLLogger])
def test_a_library_that_is_missing_is_named_with_the_command(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    extra = {"VisualDLLogger": "visualdl", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}.get(
        kind.__name__, "swanlab"
    )
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__} needs {extra}, .* 'paddlelite_trainer\[{extra}\]'"):
        kind()


def test_the_experiment_before_a_run_says_when_there_is_one() -> None:
    with pytest.raises(ConfigurationError, match="WandbLogger has no directory yet: the Trainer opens its loggers"):
        WandbLogger().experiment  # noqa: B018


def test_a_misspelt_or_foreign_argument_has_the_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationTypeError, match=r"save_dir.*options=\{'dir'"):
        WandbLogger(save_dir=tmp_path)
