"""Book: every number of a fit, from what is logged to callbacks, history and loggers."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import LogWriteError
from .loggers.dry import DryLogger
from .media import Media
from .metrics import MetricCollector, MetricValue, counts_of, refuse_taken_names, set_counts

if TYPE_CHECKING:
    from ..machine.ranks import Ranks
    from ..progress import Progress
    from .log_target import LogTarget
    from .loggers import Logger


_EPOCHS_TAKEN_BACK = 100  # more than a mark outlives


class LoggedRun(Protocol):
    """What loggers are told of a run: its RunDirectory."""

    path: Path
    goes_on: bool

    @property
    def log_id(self) -> str: ...


_ENDED: weakref.WeakKeyDictionary[Logger, tuple[Path, str]] = weakref.WeakKeyDictionary()
"""{logger that was finalized, by whichever Trainer: directory and id of the run that it logged}."""


class Book:
    """The metrics of one fit. Only the fit's own parts write it; `Trainer.callback_metrics` and others read it."""

    def __init__(
        self,
        progress: Progress,
        ranks: Ranks,
        loggers: list[Logger],
        target: LogTarget,
        print_: Callable[..., None],
        *,
        mark: Callable[[], None],
        log_every_n_steps: int,
        may_fail: bool,
    ) -> None:
        self.progress, self.ranks, self.loggers, self.target, self.print = progress, ranks, loggers, target, print_
        self.mark, self.log_every_n_steps, self.may_fail = mark, log_every_n_steps, may_fail
        self.train, self.val = MetricCollector(), MetricCollector()
        self.train.keep_apart_from(lambda: self.val.series())
        self.val.keep_apart_from(lambda: self.train.series())
        self.published: dict[str, float] = {}
        """The newest value of every name; `callback_metrics` adds what the running step has logged."""
        self.epoch_record: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.sent: dict[str, float] = {}
        """What was last sent to the loggers."""
        self.shown: dict[str, float] = {}
        """The newest values logged with prog_bar=True."""
        self.next_log = 0
        self.before_log: Callable[[], None] = lambda: None
        self.on_bad_values: Callable[[], None] = lambda: None
        self._told: set[str] = set()
        self._place: tuple[Path, str] | None = None
        self.media = Media(self)

    # -- reading -------------------------------------------------------------------------------------------------------
    @property
    def callback_metrics(self) -> dict[str, float]:
        if self.target.on_step:  # at an epoch's end the epoch's values are there already
            self.publish_steps()
        return self.published

    def show_steps(self) -> dict[str, float]:
        """`shown`, with what the last training step has logged."""
        self.shown.update(self.train.step_values(prog_bar=True))
        return self.shown

    def as_numbers(self) -> dict[str, float]:
        """callback_metrics as plain floats, for a checkpoint."""
        return {name: float(value) for name, value in self.callback_metrics.items()}

    # -- writing -------------------------------------------------------------------------------------------------------
    def call_before_log(self, call: Callable[[], None]) -> None:
        """Called whenever something is about to be sent to the loggers."""
        self.before_log = call

    def call_on_bad_values(self, call: Callable[[], None]) -> None:
        """Called where a step's numbers that are sent to the loggers are not all finite."""
        self.on_bad_values = call

    def record(self, name: str, value: float) -> None:
        self.epoch_record[name] = value
        self.published[name] = MetricValue(value)  # an evaluation of its own, of an equal value too

    def publish_steps(self) -> None:
        """What the last steps have logged, into callback_metrics."""
        self.published.update(self.train.callback_values(epoch_end=False))

    def forget_rehearsal(self) -> None:
        self.val = MetricCollector()
        self.val.keep_apart_from(lambda: self.train.series())
        self.published.clear()

    def begin_epoch(self) -> None:
        self.train.clear()
        self.epoch_record = {}

    def publish_epoch(self) -> None:
        """The epoch's values over all ranks, for schedules, callbacks and the progress bar; every rank calls it.

        Called again after the hooks of the epoch's end, it adds what they have logged.
        """
        if self.ranks.world_size > 1:
            self.train.reduce_over(self.ranks.gather_object)
        else:
            self.train.read()
        self.target.expect_steps(False)
        self.published.update(self.train.callback_values(epoch_end=True))
        self.shown.update(self.train.epoch_values(prog_bar=True))

    def close_epoch(self) -> None:
        """After the last hook of the epoch: what it logged counts too."""
        self.mark()
        self.train.read()
        values = self.train.callback_values(epoch_end=True)
        self.published.update(values)
        to_log = self.train.epoch_values(logger=True)
        if to_log:
            self.log_metrics(to_log)
        self._tell_of_an_interval_that_no_step_meets()
        place = {"epoch": self.progress.current_epoch, "step": self.progress.global_step}
        record = {**place, **values, **self.epoch_record}
        if self.history and self.history[-1]["epoch"] == place["epoch"]:
            self.history.pop()  # of this epoch as far as it had come where the fit ended
        self.history.append({key: float(value) if isinstance(value, float) else value for key, value in record.items()})

    def _tell_of_an_interval_that_no_step_meets(self) -> None:
        steps, every = self.progress.global_step, self.log_every_n_steps
        if self.progress.current_epoch or steps >= every:
            return
        if all(isinstance(logger, DryLogger) for logger in self.open_loggers()):
            return
        names = ", ".join(map(repr, self.train.step_values(logger=True)))
        if names:
            warnings.warn(
                f"log_every_n_steps={every} is more than the {steps} step{'s' if steps != 1 else ''} of an epoch: "
                f"{names}, logged on steps, will be sent to the loggers at every {every}th step alone. Pass "
                f"Trainer(log_every_n_steps={max(1, steps // 5)}), or log with on_epoch=True.",
                stacklevel=2,
            )

    def take(self, collector: MetricCollector, is_final: bool = True) -> dict[str, float]:
        """Publish what an evaluation or the last hooks have collected; if it is final the loggers get it too."""
        values = self.values_of(collector)
        self.published.update(values)
        if is_final:
            self.send(collector)
        return values

    def send(self, collector: MetricCollector) -> None:
        """What a collector holds, to the progress bar and to the loggers."""
        self.shown.update(collector.epoch_values(prog_bar=True))
        to_log = {**collector.step_values(logger=True), **collector.epoch_values(logger=True)}
        if to_log:
            self.log_metrics(to_log)

    def send_apart(self, collector: MetricCollector) -> None:
        """What an evaluation after the fit has logged, but for the names that the fit has curves of."""
        to_log = {**collector.step_values(logger=True), **collector.epoch_values(logger=True)}
        own = {name: value for name, value in to_log.items() if name not in self.published}
        if own:
            self.log_metrics(own)

    def values_of(self, collector: MetricCollector) -> dict[str, float]:
        """What a collector holds, over all ranks; every rank calls it."""
        if self.ranks.world_size > 1:
            collector.reduce_over(self.ranks.gather_object)
        return collector.callback_values(epoch_end=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send numbers to every logger, at `global_step` unless told otherwise, with the epoch beside them."""
        values = {name: float(value) for name, value in metrics.items()}
        refuse_taken_names(*values)
        self.sent.update({name: MetricValue(value) for name, value in values.items()})
        loggers = self.loggers_to_write()
        if loggers:
            self.before_log()
        for logger in loggers:
            try:
                logger.log_metrics(
                    {**values, "epoch": float(self.progress.current_epoch)},
                    self.progress.global_step if step is None else step,
                )
            except LogWriteError as error:
                self.after_failed_log(error)

    def log_steps(self) -> None:
        """Send this step's numbers to the loggers, once; of several steps in a batch at the first past a multiple."""
        if self.progress.global_step < self.next_log:
            return
        self.go_on_logging()
        self.mark()
        values = self.train.step_values(logger=True)
        if values:
            if not all(map(math.isfinite, values.values())):
                self.on_bad_values()
            self.log_metrics(values)

    def go_on_logging(self) -> None:
        """Log next at the next multiple: an earlier process has logged what came before."""
        every = self.log_every_n_steps
        self.next_log = (self.progress.global_step // every + 1) * every

    # -- loggers -------------------------------------------------------------------------------------------------------
    def open_logs(self, loggers: Sequence[Logger], run: LoggedRun, states: Sequence[Any]) -> None:
        """Open those loggers, each with its own of `states`, as `Logger.open` explains. Rank 0 alone calls it."""
        self._place = run.path, run.log_id
        for logger, state in zip(loggers, states):
            _ENDED.pop(logger, None)
            logger.open(run.path, run.log_id, run.goes_on, state)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        for logger in self.open_loggers():
            logger.log_hyperparams(params)

    def open_loggers(self) -> list[Logger]:
        """Those that have somewhere to write: none before a fit has begun, and on rank 0 only."""
        if not self.ranks.is_zero:
            return []
        return [logger for logger in self.loggers if getattr(logger, "is_open", True)]

    def loggers_to_write(self) -> list[Logger]:
        """The same; those that were finalized are opened again."""
        loggers = self.open_loggers()
        for logger in loggers:
            place = _ENDED.pop(logger, None)
            if place is not None:
                logger.open(*place, True, None)
        return loggers

    def log_summary(self) -> None:
        """The fit has ended by itself: give the newest values to the loggers."""
        for logger in self.open_loggers():
            if logger in _ENDED:
                continue
            try:
                logger.log_summary({name: float(value) for name, value in self.sent.items()})
            except LogWriteError as error:
                self.after_failed_log(error)

    def finalize(self, logger: Logger, outcome: str) -> None:
        if logger in _ENDED:
            return
        try:
            logger.finalize(outcome)
        except LogWriteError as error:
            self.after_failed_log(error)
        if self._place is not None:
            _ENDED[logger] = self._place

    def after_failed_log(self, error: LogWriteError) -> None:
        if not self.may_fail:
            raise error
        if str(error) not in self._told:
            self._told.add(str(error))
            self.print(f"WARNING: {error}. Training goes on as on_save_error='warn' asks, and what is logged waits.")

    def load_state_dict(self, tree: Mapping[str, Any], epochs_before: Sequence[dict[str, Any]] = ()) -> None:
        """Take back what a checkpoint holds of it; the epoch's sums, which differ between ranks, come apart."""
        self.published.update(tree["callback_metrics"])
        self.history = [*epochs_before, *tree["history"]]
        self.epoch_record = dict(tree["epoch_record"])

    # -- going back ----------------------------------------------------------------------------------------------------
    def snapshot(self) -> tuple[Any, ...]:
        """What a batch, a validation or an epoch's end may change, apart from the logs themselves."""
        counts = [(metric, counts_of(metric)) for metric in self.train.paddle_metrics().values()]
        history = len(self.history), self.history[-_EPOCHS_TAKEN_BACK:]
        return self.train.copy(), counts, dict(self.published), dict(self.epoch_record), history

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        train, counts, published, epoch_record, (epochs, newest) = snapshot
        self.train.become(train)  # the same object, which self.log writes into
        self.published, self.epoch_record = dict(published), dict(epoch_record)
        assert len(self.history) >= epochs - len(newest)
        self.history[max(0, epochs - len(newest)) :] = newest
        for metric, numbers in counts:
            set_counts(metric, numbers)

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.log_steps = timed("logging: reading values", self.log_steps)  # type: ignore[method-assign]
        self.log_metrics = timed("logging: writing", self.log_metrics)  # type: ignore[method-assign]
        for collector in (self.train, self.val):
            collector.time_with(timed)
