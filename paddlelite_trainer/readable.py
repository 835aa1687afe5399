"""What people and callbacks read of a Trainer: counters, lengths, metrics, callbacks, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.source import lengths
from .defaults import LoggersGiven, default_loggers
from .errors import ConfigurationError
from .fit.evaluation import Evaluation
from .fit.fit import Fit
from .names_elsewhere import no_attribute
from .settings import Settings, as_schedule, check_setting

if TYPE_CHECKING:
    from .callback import Callback
    from .checkpoint import CheckpointReader, CheckpointStore, Entry
    from .data.module import DataModule
    from .data.source import BatchSource
    from .machine.device import Device
    from .machine.ranks import Ranks
    from .machine.signals import SignalWatch
    from .optimizers import LRSchedulerConfig
    from .progress import Progress
    from .reporting.loggers import Logger
    from .reporting.train_log import TrainLog
    from .run.directory import RunDirectory


class Readable(Settings):
    """Lightning's names for the state of a Trainer; settable are `should_stop` and `accumulate_grad_batches`.

    Everything here asks the run on top of `_running`, or the last fit; there is no state of its own.
    """

    callbacks: list[Callback]
    ranks: Ranks
    device: Device
    model: Any = None
    datamodule: DataModule | None = None
    _fit: Fit
    _running: list[Fit | Evaluation]
    _last: Fit | Evaluation
    _evaluated: dict[str, float]
    _loggers: list[Logger]

    if not TYPE_CHECKING:  # or type checkers would take any name

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property has raised this AttributeError, and is to raise its own again
                return object.__getattribute__(self, name)
            raise no_attribute(self, name)

    # -- what is running -----------------------------------------------------------------------------------------------
    @property
    def state(self) -> str | None:
        """ "fit", "validate", "test" or "predict" while it runs; None otherwise."""
        if not self._running:
            return None
        top = self._running[-1]
        return top.stage if isinstance(top, Evaluation) else "fit"

    @property
    def is_running(self) -> bool:
        return bool(self._running)

    def runs(self, run: object) -> bool:
        """Whether this fit or evaluation has not ended yet."""
        return any(one is run for one in self._running)

    @property
    def training(self) -> bool:
        return self._running_fit and self._fit.phase == "training" and self._fit.evaluation is None

    @property
    def sanity_checking(self) -> bool:
        return self._running_fit and self._fit.phase == "sanity"

    @property
    def validating(self) -> bool:
        evaluation = self._evaluation
        return evaluation is not None and evaluation.stage == "validate"

    @property
    def testing(self) -> bool:
        evaluation = self._evaluation
        return evaluation is not None and evaluation.stage == "test"

    @property
    def predicting(self) -> bool:
        evaluation = self._evaluation
        return evaluation is not None and evaluation.stage == "predict"

    @property
    def _running_fit(self) -> bool:
        return bool(self._running) and isinstance(self._running[-1], Fit)

    @property
    def _evaluation(self) -> Evaluation | None:
        """The evaluation at work, a fit's own validation included."""
        if not self._running:
            return None
        top = self._running[-1]
        found = top if isinstance(top, Evaluation) else top.evaluation
        return found if found is not None and found.is_at_work else None

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the last fit; in a notebook fit returns then."""
        return self._fit.is_interrupted

    @property
    def signals(self) -> SignalWatch:
        return self._fit.stopping.signals

    # -- where a fit is ------------------------------------------------------------------------------------------------
    @property
    def progress(self) -> Progress:
        return self._fit.progress

    @property
    def current_epoch(self) -> int:
        return self._fit.progress.current_epoch

    @property
    def global_step(self) -> int:
        return self._fit.progress.global_step

    @property
    def seed(self) -> int | None:
        return self._fit.seed

    @property
    def should_stop(self) -> bool:
        return self._fit.stopping.reason is not None

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value:
            self._fit.stopping.request("trainer.should_stop was set")
        else:
            self._fit.stopping.withdraw()

    @property
    def stop_reason(self) -> str | None:
        """What asked the fit to end, in a sentence; None where nothing did, or it was withdrawn."""
        return self._fit.stopping.reason

    @property
    def accumulation_schedule(self) -> dict[int, int]:
        """{first epoch: accumulation window from there on}."""
        return dict(self.accumulation)

    @property
    def accumulate_grad_batches(self) -> int:
        """The accumulation window that is set for this epoch, by a number or by {first epoch: number}.

        Set up to on_train_epoch_start it counts in this epoch, later from the next one on; set it on all ranks.

        Raises:
            ConfigurationError, ConfigurationTypeError: what Trainer(accumulate_grad_batches=...) would refuse.
        """
        return self.window_of(self.current_epoch)

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int | Mapping[int, int]) -> None:
        check_setting("accumulate_grad_batches", value, "trainer.accumulate_grad_batches")
        self.accumulation = as_schedule(value)

    @property
    def cpu_threads_in_use(self) -> int | None:
        return self._fit.cpu_threads

    # -- numbers -------------------------------------------------------------------------------------------------------
    @property
    def callback_metrics(self) -> dict[str, float]:
        """The newest value of every name logged, as numbers; reading brings waiting values to the host.

        They are those of what runs, or ran last: in `validate` and `test` after a fit nothing of the fit is there. An
        evaluation within a fit finds the fit's too.
        """
        top = self._running[-1] if self._running else self._last
        if isinstance(top, Fit):
            return self._fit.book.callback_metrics
        if len(self._running) <= 1:
            return dict(self._evaluated)
        return {**self._fit.book.callback_metrics, **self._evaluated}

    @property
    def logged_metrics(self) -> dict[str, float]:
        """What was last sent to the loggers."""
        return self._fit.book.sent

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The newest values logged with prog_bar=True."""
        return self._fit.book.show_steps() if self.training else self._fit.book.shown

    @property
    def last_loss(self) -> float | None:
        """The last training batch's loss, brought to the host; None where there is none, or its step was skipped."""
        loss = self._fit.optimization.last_loss_tensor if self._fit.optimization is not None else None
        return None if loss is None else float(loss.astype("float32").mean())

    @property
    def data_wait_seconds(self) -> float:
        """How long the last fit has waited for training batches, since the loader it reads now was opened."""
        return self._fit.data.train.waited_seconds if self._fit.data is not None else 0.0

    @property
    def history(self) -> list[dict[str, Any]]:
        """A record of every epoch: epoch, step, and what was logged."""
        return self._fit.book.history

    @property
    def gradient_norm(self) -> Any:
        """Of the last window, before clipping; a tensor where the Trainer clips by norm, else None."""
        return self._fit.optimization.gradient_norm if self._fit.optimization is not None else None

    # -- optimizers ----------------------------------------------------------------------------------------------------
    @property
    def optimizers(self) -> list[Any]:
        return self._fit.optimization.optimizers if self._fit.optimization is not None else []

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        return self._fit.schedules.configs if self._fit.schedules is not None else []

    @property
    def parameter_names(self) -> dict[str, str]:
        """{Paddle's name of a parameter: its name in the module}."""
        return self._fit.optimization.parameter_names if self._fit.optimization is not None else {}

    # -- the run -------------------------------------------------------------------------------------------------------
    @property
    def run(self) -> RunDirectory | None:
        """Who writes in the run's directory; on rank 0, where something is written."""
        return self._fit.run.directory

    @property
    def run_dir(self) -> Path | None:
        """Where this run's checkpoints, logs and curves are; None before fit and where nothing is written."""
        return self._fit.run.path

    @property
    def log_dir(self) -> Path | None:
        """`run_dir`; of a run with a `run_name` that is to write something before fit too."""
        writes = not self.fast_dev_run and (self.enable_checkpointing or self.loggers)
        if self.run_dir is None and self.run_name is not None and writes:
            return self.default_root_dir / self.run_name
        return self.run_dir

    @property
    def train_log(self) -> TrainLog:
        """The run's train.log, which holds what `trainer.print` has shown; `write` adds a line that nobody sees."""
        return self._fit.train_log

    @property
    def ckpt_path(self) -> Path | None:
        """The checkpoint that the running stage, or the last one, took its weights from; None where it took none."""
        run = self._running[-1] if self._running else self._last
        return run.ckpt_path if isinstance(run, Evaluation) else run.run.ckpt_path

    @property
    def checkpoints(self) -> CheckpointReader:
        """The run's checkpoints, to be read on every rank.

        A rank sees what is on the disk when it looks, and rank 0 may be writing: where ranks must agree, decide by
        `trainer.ranks.on_rank_zero(...)`, which all of them call.

        Raises:
            CheckpointError: there are none: before fit, and where nothing is written.
        """
        return self._fit.run.checkpoints

    @property
    def checkpoint_store(self) -> CheckpointStore | None:
        """Who saves, pins and deletes the run's checkpoints; on rank 0, where something is written."""
        return self._fit.run.store

    @property
    def imported_best(self) -> Entry | None:
        """The best checkpoint of another tool's run that `InitFrom(best=...)` has brought along, with its scores."""
        return self._fit.run.imported_best

    @property
    def loggers(self) -> list[Logger]:
        return self._loggers

    @loggers.setter
    def loggers(self, value: Sequence[Logger]) -> None:
        self._set_loggers("loggers", value)

    @property
    def logger(self) -> Logger | None:
        """The first of `loggers`. Either may be set between two runs, to what Trainer(logger=...) takes, or to None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, value: LoggersGiven) -> None:
        self._set_loggers("logger", value)

    def _set_loggers(self, name: str, value: LoggersGiven) -> None:
        if self._running:
            raise ConfigurationError(
                f"trainer.{name} was set while {self.state} runs, which has opened its loggers: set it before, or pass "
                "Trainer(logger=...)"
            )
        # The list stays the one that the last fit knows.
        given, is_dry = False if value is None else value, bool(self.fast_dev_run)
        self._loggers[:] = default_loggers(given, is_dry=is_dry, is_zero=self.ranks.is_zero)

    # -- callbacks -----------------------------------------------------------------------------------------------------
    @property
    def checkpoint_callback(self) -> Any:
        return self._first("ModelCheckpoint")

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        return self._all("ModelCheckpoint")

    @property
    def early_stopping_callback(self) -> Any:
        return self._first("EarlyStopping")

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        return self._all("EarlyStopping")

    @property
    def progress_bar_callback(self) -> Any:
        return self._first("ProgressBar")

    # -- data ----------------------------------------------------------------------------------------------------------
    @property
    def num_training_batches(self) -> int | float:
        """Of an epoch; of data that cannot tell `limit_train_batches`, or infinite."""
        return lengths([self._fit.data.train], self.limit_train_batches)[0] if self._fit.data is not None else math.inf

    @property
    def num_val_batches(self) -> list[int | float]:
        return lengths(self._sources("validate") or self._val_sources, self.limit_val_batches)

    @property
    def enable_validation(self) -> bool:
        """Whether the fit has validation data, and the module a step for it."""
        return self._fit.validates

    @property
    def num_test_batches(self) -> list[int | float]:
        return lengths(self._sources("test"), self.limit_test_batches)

    @property
    def num_predict_batches(self) -> list[int | float]:
        return lengths(self._sources("predict"), self.limit_predict_batches)

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        wanted = self.num_sanity_val_steps
        found = lengths(self._val_sources, self.limit_val_batches)
        return [length if wanted < 0 else min(length, wanted) for length in found]

    @property
    def train_dataloader(self) -> Any:
        """The training loader that was passed, or that the module or datamodule gave."""
        return self._fit.data.train.loader if self._fit.data is not None else None

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader, a list of several, or None."""
        loaders = [source.loader for source in self._val_sources]
        return None if not loaders else loaders[0] if len(loaders) == 1 else loaders

    @property
    def test_dataloaders(self) -> Any:
        """The test loader, a list of several, or None; while `test` runs."""
        return self._evaluated_loaders("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The loader of `predict`, a list of several, or None; while it runs."""
        return self._evaluated_loaders("predict")

    def _evaluated_loaders(self, stage: str) -> Any:
        loaders = [source.loader for source in self._sources(stage)]
        return None if not loaders else loaders[0] if len(loaders) == 1 else loaders

    @property
    def limit_train_batches(self) -> int | float | None:
        """As it was set: batches, or the share of an epoch; None for all."""
        return self.limits["train"]

    @property
    def limit_val_batches(self) -> int | float | None:
        return self.limits["validate"]

    @property
    def limit_test_batches(self) -> int | float | None:
        return self.limits["test"]

    @property
    def limit_predict_batches(self) -> int | float | None:
        return self.limits["predict"]

    @property
    def is_last_batch(self) -> bool:
        return self._fit.data is not None and self._fit.data.train.is_last

    @property
    def prefetches_to_device(self) -> bool | None:
        """Whether the next training batch is copied to the device beside the step; None while that is being
        measured."""
        prefetch = self._fit.data.train.prefetch if self._fit.data is not None else None
        return False if prefetch is None else prefetch.is_on

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps that the whole fit will take; infinite where that cannot be known."""
        if self._fit.data is None and self.model is not None:
            raise ConfigurationError("estimated_stepping_batches is known from configure_optimizers on")
        steps: float = float("inf")
        batches = self.num_training_batches
        if self.max_epochs is not None and self.max_epochs >= 0 and batches != float("inf"):
            steps = sum(-(-int(batches) // self.window_of(epoch)) for epoch in range(self.max_epochs))
        if self.max_steps >= 0:
            steps = min(steps, self.max_steps)
        return steps if steps == float("inf") else int(steps)

    # -- ranks ---------------------------------------------------------------------------------------------------------
    @property
    def num_devices(self) -> int:
        """Devices of this job on this machine: one for each process."""
        return self.ranks.local_size

    @property
    def device_ids(self) -> list[int]:
        """The index of this process's device."""
        return [self.device.index]

    @property
    def num_nodes(self) -> int:
        return -(-self.ranks.world_size // self.ranks.local_size)

    @property
    def node_rank(self) -> int:
        """Which of the machines this is."""
        return self.ranks.rank // self.ranks.local_size

    @property
    def received_sigterm(self) -> bool:
        return self.signals.received is not None and self.signals.received.name == "SIGTERM"

    @property
    def global_rank(self) -> int:
        return self.ranks.rank

    @property
    def local_rank(self) -> int:
        return self.ranks.local_rank

    @property
    def world_size(self) -> int:
        return self.ranks.world_size

    @property
    def is_global_zero(self) -> bool:
        return self.ranks.is_zero

    @property
    def evaluating(self) -> bool:
        return self.validating or self.testing

    @property
    def lightning_module(self) -> Any:
        return self.model

    # -- how -----------------------------------------------------------------------------------------------------------
    @property
    def _val_sources(self) -> Sequence[BatchSource]:
        return self._fit.data.val if self._fit.data is not None else ()

    def _sources(self, stage: str) -> Sequence[BatchSource]:
        evaluation = self._evaluation
        return evaluation.sources if evaluation is not None and evaluation.stage == stage else ()

    def _first(self, class_name: str) -> Any:
        return next(self._of_class(class_name), None)

    def _all(self, class_name: str) -> list[Any]:
        return list(self._of_class(class_name))

    def _of_class(self, class_name: str) -> Iterator[Any]:
        # By name, so that the engine does not import callbacks/.
        for callback in self.callbacks:
            if any(base.__name__ == class_name for base in type(callback).__mro__):
                yield callback
