"""OptunaPruning: tells an optuna trial of a metric, and ends the fit where the study's pruner gives the trial up."""

from __future__ import annotations

from typing import Any

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, explains_unknown_arguments

from .monitoring import MonitoredMetric, check_monitor, not_logged, should_be_there


class OptunaPruning(Callback):
    """Reports a monitored metric to an `optuna.Trial`, and raises `optuna.TrialPruned` from `fit` where it is pruned.

        def objective(trial):
            module = Classifier(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
            pruning = OptunaPruning(trial, "val_loss")
            trainer = Trainer(max_epochs=20, run_name=f"trial_{trial.number}", callbacks=pruning)
            trainer.fit(module, train_loader, val_loader, ckpt_path="last")
            return trainer.callback_metrics["val_loss"]

    A value is reported under the epoch that it belongs to (the first is 0), the newest where there are several. A
    pruned run ends as after `trainer.stop`: it is saved and torn down, says why it stopped, and then `fit` raises, so
    the study counts the trial as pruned. A resumed run goes on with what was reported: to the same trial nothing is
    reported twice, and a new one (optuna's RetryFailedTrialCallback) is told the curve so far first; a run that was
    pruned is pruned again. One process only. Needs `pip install 'paddlelite_trainer[optuna]'`.

    Args:
        trial: what optuna gives the objective.
        monitor: the name of a logged metric.

    Raises:
        ConfigurationTypeError: trial is not what optuna gives an objective.
    """

    @explains_unknown_arguments({})
    def __init__(self, trial: Any, monitor: str) -> None:
        check_monitor("OptunaPruning", monitor, "min")
        for method in ("report", "should_prune"):
            if not callable(getattr(trial, method, None)):
                raise ConfigurationTypeError(
                    "OptunaPruning(trial=...) is what optuna gives the objective, got "
                    f"{trial!r} ({type(trial).__name__})"
                )
        self.trial, self.monitor = trial, monitor
        self.reported: dict[int, float] = {}
        """{epoch: value}, over all processes of the run."""
        self.pruned_at: int | None = None
        self._metric = MonitoredMetric(monitor)
        self._trial_told: int | None = None  # of the checkpoint
        self._has_validated = False

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}:{self.monitor}"

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise ConfigurationError(
                f"OptunaPruning works on one process, this job has {trainer.world_size}: each would have a trial of "
                "its own. Let every trial run on one device, and several trials at once by study.optimize(n_jobs=)"
            )
        self.reported, self.pruned_at, self._trial_told, self._has_validated = {}, None, None, False

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if self._trial_told is not None and self._trial_told != self.trial.number:
            self.pruned_at = None
            for epoch, value in self.reported.items():
                self.trial.report(value, epoch)
            self._ask(trainer)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._metric.begin(trainer)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.state == "fit" and not trainer.sanity_checking:
            self._has_validated = True

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        value = self._metric.look(trainer)
        if self.monitor not in trainer.callback_metrics and should_be_there(trainer, self._has_validated):
            raise not_logged("OptunaPruning", self.monitor, trainer)
        epoch = trainer.current_epoch
        if value is None or epoch in self.reported:
            return
        self.reported[epoch] = float(value)
        self.trial.report(float(value), epoch)
        self._ask(trainer)

    def _ask(self, trainer: Trainer) -> None:
        if self.reported and self.trial.should_prune():
            self.pruned_at = max(self.reported)
            trainer.stop(self._why())

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        self.on_fit_start(trainer, module)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._metric.warn_if_it_never_came("OptunaPruning", trainer, has_validated=self._has_validated)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit" and self.pruned_at is not None:
            from optuna import TrialPruned

            raise TrialPruned(self._why())

    def _why(self) -> str:
        assert self.pruned_at is not None
        value = self.reported[self.pruned_at]
        return f"pruned by optuna at epoch {self.pruned_at}: {self.monitor} {value:.6g}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "trial": self.trial.number,
            "epochs": list(self.reported),
            "values": list(self.reported.values()),
            "pruned_at": self.pruned_at,
            "metric": self._metric.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._trial_told, self.pruned_at = state_dict["trial"], state_dict["pruned_at"]
        self.reported = dict(zip(state_dict["epochs"], state_dict["values"]))
        self._metric.load_state_dict(state_dict["metric"])
