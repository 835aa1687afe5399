"""What people and callbacks read of a Trainer: what runs, counters, metrics, optimizers, the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .defaults import LoggersGiven, default_loggers
from .errors import ConfigurationError
from .fit.evaluation import Evaluation
from .fit.fit import Fit
from .names_elsewhere import no_attribute
from .settings import as_schedule, check_setting
from .surroundings import Surroundings

if TYPE_CHECKING:
    from .checkpoint import CheckpointReader, CheckpointStore, Entry
    from .machine.signals import SignalWatch
    from .optimizers import LRSchedulerConfig
    from .progress import Progress
    from .reporting.loggers import Logger
    from .reporting.train_log import TrainLog
    from .run.directory import RunDirectory


class Readable(Surroundings):
    """Lightning's names for the state of a Trainer; settable are `should_stop` and `accumulate_grad_batches`.

    Everything here asks the run on top of `_running`, or the last fit; there is no state of its own.
    """

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
        """Whether a fit or an evaluation has begun and not ended."""
        return bool(self._running)

    def runs(self, run: object) -> bool:
        """Whether this fit or evaluation has not ended yet."""
        return any(one is run for one in self._running)

    @property
    def training(self) -> bool:
        """Whether the fit is in its training batches: in no validation, and in no sanity check."""
        return self._running_fit and self._fit.phase == "training" and self._fit.evaluation is None

    @property
    def sanity_checking(self) -> bool:
        """Whether the validation before the first epoch runs."""
        return self._running_fit and self._fit.phase == "sanity"

    @property
    def validating(self) -> bool:
        """Whether a validation runs, one within a fit and the sanity check included."""
        evaluation = self._evaluation
        return evaluation is not None and evaluation.stage == "validate"

    @property
    def testing(self) -> bool:
        """Whether `test` runs."""
        evaluation = self._evaluation
        return evaluation is not None and evaluation.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether `predict` runs."""
        evaluation = self._evaluation
        return evaluation is not None and evaluation.stage == "predict"

    @property
    def evaluating(self) -> bool:
        """Whether a validation or a test runs."""
        return self.validating or self.testing

    @property
    def _running_fit(self) -> bool:
        return bool(self._running) and isinstance(self._running[-1], Fit)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the last fit; in a notebook fit returns then."""
        return self._fit.is_interrupted

    @property
    def signals(self) -> SignalWatch:
        """Which signal the fit has received, if any; it is looked at after each step."""
        return self._fit.stopping.signals

    # -- where a fit is ------------------------------------------------------------------------------------------------
    @property
    def progress(self) -> Progress:
        """The counters of the fit: steps, epochs, and batches of the epoch."""
        return self._fit.progress

    @property
    def current_epoch(self) -> int:
        """Completed epochs, so the index of the one that runs, from 0."""
        return self._fit.progress.current_epoch

    @property
    def global_step(self) -> int:
        """Completed steps of the optimizers; a window of `accumulate_grad_batches` is one step."""
        return self._fit.progress.global_step

    @property
    def seed(self) -> int | None:
        """The seed of the run's order, batches and random numbers: as given, drawn, or from the checkpoint."""
        return self._fit.seed

    @property
    def should_stop(self) -> bool:
        """Whether something has asked the fit to end; setting it asks, and False takes that back."""
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
        """How many threads Paddle's operators have on the CPU in this fit; None before one."""
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
        """The optimizers of the fit, in the order of `configure_optimizers`; empty before it is called."""
        return self._fit.optimization.optimizers if self._fit.optimization is not None else []

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """Each schedule with its interval, frequency, monitor and name; empty before they are made."""
        return self._fit.schedules.configs if self._fit.schedules is not None else []

    @property
    def parameter_names(self) -> dict[str, str]:
        """{Paddle's name of a parameter: its name in the module}."""
        return self._fit.optimization.parameter_names if self._fit.optimization is not None else {}

    @property
    def cut_weights(self) -> dict[str, tuple[Any, int, int]]:
        """Of each parameter that "sharding_stage3" has cut: this rank's slice, flat, where it begins and where it ends.

        Places are in the whole, which is flat too, with zeros behind it. Empty outside a fit and with other strategies.
        """
        engine = self._fit.engine
        return {} if engine is None else engine.slices(dict(self._fit.module.named_parameters()))

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
        """Where metrics go, in the order given; to be set between two runs."""
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
