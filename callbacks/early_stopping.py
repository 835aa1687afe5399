"""EarlyStopping: ends a fit when a metric has stopped improving."""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paddlelite_trainer import Callback, Module, SavePoint, Trainer
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, explains_unknown_arguments

from .monitoring import Mode, MonitoredMetric, check_monitor, is_better, not_logged, should_be_there

if TYPE_CHECKING:
    from paddlelite_trainer.checkpoint import Entry


class EarlyStoppingReason(enum.Enum):
    """Why EarlyStopping asked a fit to end."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Stops the fit once `monitor` has not improved by more than `min_delta` in `patience` evaluations.

        EarlyStopping(monitor="val_loss", patience=5)

    The metric is evaluated once each time it is produced: after each validation for one logged there, at each epoch's
    end for one of training. Before `min_epochs` or `min_steps` the stop waits, and a run that recovers until then
    goes on. A stopped run that is started again says so and trains no further, unless the arguments given now would
    not have stopped it: they win over the saved ones.

    Args:
        monitor: the name of a logged metric.
        min_delta: a change of at most so much is no improvement.
        patience: evaluations without improvement after which the fit is stopped.
        verbose: tell of each improvement.
        mode: whether "min" or "max" is better.
        strict: raise where the metric was not logged; False warns once and never stops.
        check_finite: stop at NaN or infinity; where False, NaN counts as no improvement.
        stopping_threshold: stop as soon as the metric is better than this.
        divergence_threshold: stop as soon as it is worse than this.
        check_on_train_epoch_end: None as above; True evaluates a validation's metric at the epoch's end, False never
            there.
        restore_best_weights: put the weights with the best score into the module when the fit ends. They are read from
            a checkpoint, which this callback pins as `early-stopping-best`, so the best survives a crash.
        log_rank_zero_only: accepted for Lightning's sake; rank 0 alone tells.
        start_from_epoch: completed epochs before the first evaluation.

    To read: `wait_count` (evaluations without improvement), `best_score`, `stopped_epoch` (index of the epoch whose
    evaluation asked for the stop, 0 if none did), `stopping_reason` (an EarlyStoppingReason) and
    `stopping_reason_message` (a sentence, None while the run goes on).

    Raises:
        ConfigurationError: patience or min_delta is below 0, or the metric is never logged.
        ConfigurationTypeError: monitor is no name.
    """

    comes_last_at_epoch_end = True
    BEST_PIN = "early-stopping-best"

    @explains_unknown_arguments({})
    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Mode = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        *,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        if not isinstance(monitor, str):
            raise ConfigurationTypeError(f"EarlyStopping(monitor=...) is the name of a logged metric, got {monitor!r}")
        check_monitor("EarlyStopping", monitor, mode)
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise ConfigurationError(f"EarlyStopping(patience=...) must be an integer >= 0, got {patience!r}")
        if min_delta < 0:
            raise ConfigurationError(f"EarlyStopping(min_delta=...) must be >= 0, got {min_delta!r}")
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self._request: str | None = None
        self.divergence_threshold = divergence_threshold
        self.check_on_train_epoch_end = check_on_train_epoch_end
        if log_rank_zero_only:
            warnings.warn(
                "EarlyStopping(log_rank_zero_only=True) has no effect: rank 0 alone prints in any case", stacklevel=2
            )
        self.log_rank_zero_only = log_rank_zero_only
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.wait_count = 0
        self.best_score = math.inf if self.mode == "min" else -math.inf
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._last_score: float | None = None
        self._waiting: float | None = None  # a validation's score, to be evaluated at the epoch's end
        self._metric = MonitoredMetric(self.monitor)
        self._has_validated = False
        self._before_validation: float | None = None
        self._note: str | None = None

    @property
    def state_key(self) -> str:
        return f"EarlyStopping(monitor={self.monitor!r}, mode={self.mode!r})"

    def state_dict(self) -> dict[str, Any]:
        return {
            "wait_count": self.wait_count,
            "best_score": self.best_score,
            "stopped_epoch": self.stopped_epoch,
            "stopping_reason": self.stopping_reason_message,
            "stopping_reason_kind": self.stopping_reason.name,
            "patience": self.patience,
            "last_score": self._last_score,
            "waiting": self._waiting,
            "metric": self._metric.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wait_count = state_dict["wait_count"]
        self.best_score = state_dict["best_score"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.stopping_reason_message = state_dict["stopping_reason"]
        earlier = "NOT_STOPPED" if self.stopping_reason_message is None else "PATIENCE_EXHAUSTED"
        self.stopping_reason = EarlyStoppingReason[state_dict.get("stopping_reason_kind", earlier)]
        self._last_score = state_dict["last_score"]
        self._waiting = state_dict["waiting"]
        self._metric.load_state_dict(state_dict.get("metric"))
        if state_dict["patience"] != self.patience:
            before = state_dict["patience"]
            self._note = f"EarlyStopping({self.monitor!r}): patience was {before}, now {self.patience}, which counts"

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        self._begin_anew()
        if self.restore_best_weights and not trainer.enable_checkpointing and not trainer.fast_dev_run:
            raise ConfigurationError(
                "EarlyStopping(restore_best_weights=True) reads them from a checkpoint: leave enable_checkpointing on"
            )

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if self._note is not None:
            trainer.print(self._note)
        if self.stopping_reason_message is None:
            return
        reason = self.already_stopped()
        if reason is not None and not _is_over(trainer):
            self._request = f"early stopping: {reason}"
            trainer.stop(self._request, for_good=False)
        elif reason is not None:
            trainer.stop(f"already stopped after {self.stopped_epoch + 1} epochs: {reason}", for_good=False)
        else:
            trainer.print(
                f"EarlyStopping({self.monitor!r}): had stopped ({self.stopping_reason_message}); "
                "with the present arguments the run goes on"
            )
            self._forget_the_stop()

    def _forget_the_stop(self) -> None:
        self.stopped_epoch, self.stopping_reason, self.stopping_reason_message = (
            0,
            EarlyStoppingReason.NOT_STOPPED,
            None,
        )

    def already_stopped(self) -> str | None:
        """Why this run had ended, if the present arguments would end it too."""
        if self.stopping_reason_message is None or self._last_score is None:
            return None
        return self._verdict(self._last_score)[1]

    # -- when to evaluate ----------------------------------------------------------------------------------------------
    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._metric.begin(trainer)
        imported = trainer.imported_best
        if imported is not None and self.monitor in imported.metrics:
            self.best_score = imported.metrics[self.monitor]
            if self.restore_best_weights and trainer.checkpoint_store is not None:
                trainer.checkpoint_store.set_pins({self.BEST_PIN: [imported.name]})

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        if self._is_fit(trainer):
            self._before_validation = trainer.callback_metrics.get(self.monitor)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if not self._is_fit(trainer):
            return
        self._has_validated = True
        if trainer.callback_metrics.get(self.monitor) is self._before_validation:
            return  # a metric of training
        score = self._metric.look(trainer)
        if score is None:
            return
        if self.check_on_train_epoch_end:
            self._waiting = float(score)
        else:
            self._evaluate(trainer, float(score))

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        score, self._waiting = self._waiting, None
        newest = self._metric.look(trainer)
        score = score if newest is None else float(newest)
        if self.monitor not in trainer.callback_metrics and should_be_there(trainer, self._has_validated):
            error = not_logged("EarlyStopping", self.monitor, trainer)
            if self.strict:
                raise error
            warnings.warn(str(error), stacklevel=2)
        elif score is not None and self.check_on_train_epoch_end is not False:
            self._evaluate(trainer, score)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._metric.warn_if_it_never_came("EarlyStopping", trainer, has_validated=self._has_validated)

    @staticmethod
    def _is_fit(trainer: Trainer) -> bool:
        return trainer.state == "fit" and not trainer.sanity_checking

    # -- what it means -------------------------------------------------------------------------------------------------
    def _evaluate(self, trainer: Trainer, score: float) -> None:
        if trainer.current_epoch < self.start_from_epoch:
            return
        self._last_score = score
        if is_better(score, self.best_score, self.mode, self.min_delta):
            if self.verbose:
                trainer.print(f"EarlyStopping: {self.monitor} improved from {self.best_score:.6g} to {score:.6g}")
            self.best_score, self.wait_count = score, 0
        else:
            self.wait_count += 1
        reason, message = self._verdict(score)
        if message is not None:
            self.stopped_epoch, self.stopping_reason = trainer.current_epoch, reason
            self.stopping_reason_message = message
            self._request = f"early stopping: {message}"
            trainer.stop(self._request, for_good=False)
        elif self.stopping_reason_message is not None:  # it waited for min_epochs or min_steps; the run has recovered
            self._forget_the_stop()
            if trainer.stop_reason == self._request:
                trainer.should_stop = False

    def _verdict(self, score: float) -> tuple[EarlyStoppingReason, str | None]:
        why = EarlyStoppingReason
        if self.check_finite and not math.isfinite(score):
            return why.NON_FINITE_METRIC, f"{self.monitor} is {score}"
        if self.stopping_threshold is not None and is_better(score, self.stopping_threshold, self.mode):
            told = f"{self.monitor} {score:.6g} is better than the stopping_threshold {self.stopping_threshold:g}"
            return why.STOPPING_THRESHOLD, told
        if self.divergence_threshold is not None and is_better(self.divergence_threshold, score, self.mode):
            told = f"{self.monitor} {score:.6g} is worse than the divergence_threshold {self.divergence_threshold:g}"
            return why.DIVERGENCE_THRESHOLD, told
        if self.wait_count >= self.patience and self.wait_count > 0:
            more = f" by more than {self.min_delta:g}" if self.min_delta else ""
            return why.PATIENCE_EXHAUSTED, (
                f"{self.monitor} has not improved{more} in {self.wait_count} evaluations, "
                f"the best was {self.best_score:.6g}"
            )
        return why.NOT_STOPPED, None

    # -- the best weights ----------------------------------------------------------------------------------------------
    def on_save_point(self, trainer: Trainer, module: Module, save_point: SavePoint) -> dict[str, list[str]] | None:
        if not self.restore_best_weights or save_point.reason not in ("validation", "train_epoch"):
            return None
        if self._metric.step != trainer.global_step:
            return None
        if trainer.current_epoch - (save_point.reason == "train_epoch") < self.start_from_epoch:
            return None  # of the warm-up, whose scores do not count
        candidate = save_point.candidate
        score, best = candidate.metrics.get(self.monitor, math.nan), self._best(save_point.entries)
        if not candidate.healthy or not math.isfinite(score):
            return None
        if best is not None and not is_better(score, best.metrics[self.monitor], self.mode, self.min_delta):
            return None
        return {self.BEST_PIN: [candidate.name]}

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        if not self.restore_best_weights or trainer.run_dir is None:
            return
        # All ranks together: each could see another moment of what rank 0 writes.
        best = trainer.ranks.on_rank_zero(lambda: self._best(trainer.checkpoints.entries()))
        if best is not None:
            trainer.load_weights_of(best)
            trainer.print(
                f"EarlyStopping: the weights of epoch {best.epoch} are restored, {self.monitor} "
                f"{best.metrics[self.monitor]:.6g}"
            )

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        self.on_fit_end(trainer, module)

    def _best(self, entries: Sequence[Entry]) -> Entry | None:
        return next((entry for entry in entries if self.BEST_PIN in entry.pins), None)


def _is_over(trainer: Trainer) -> bool:
    """Whether a stop is carried out at once: both minima are reached, no validation or epoch's end was cut off."""
    if trainer.progress.owes_something:
        return False
    return trainer.current_epoch >= trainer.min_epochs and trainer.global_step >= trainer.min_steps
