"""A monitored metric: whether its value is new, whose weights earned it, the error where no such name was logged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

from paddlelite_trainer import Trainer
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, did_you_mean

Mode = Literal["min", "max"]


class MonitoredMetric:
    """Follows one name in `trainer.callback_metrics`, where an older value stays until a newer one comes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.step = -1
        """The step at which the newest value was first seen; its weights are the ones that earned it."""
        self.times = 0
        """How often a new value was seen since `begin`."""
        self._value: float | None = None
        self._began_at = -1
        self._trainer: Trainer | None = None
        self._restored: Mapping[str, Any] | None = None

    def begin(self, trainer: Trainer) -> None:
        """A fit begins: of what came with its checkpoint only that is new which waited to be looked at."""
        self._trainer = trainer
        restored, self._restored = self._restored, None
        if restored is None:
            self.look(trainer)
        else:
            self.step = restored["step"]
            if not restored["waits"]:
                self._value = trainer.callback_metrics.get(self.name)
        self.times, self._began_at = 0, trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """Whose weights earned the newest value, and whether one waits that nobody has looked at."""
        newest = self._trainer.callback_metrics.get(self.name) if self._trainer is not None else None
        return {"step": self.step, "waits": newest is not None and newest is not self._value}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """For `begin`, when the metrics are restored; None of a checkpoint of an earlier version."""
        self._restored = state

    def look(self, trainer: Trainer) -> float | None:
        """The value, if it has been produced since the last look, else None. Reads metrics: not for the batch path."""
        value = trainer.callback_metrics.get(self.name)
        if value is None or value is self._value:  # every value logged is an object of its own, equal ones too
            return None
        self._value, self.step = value, trainer.global_step
        self.times += 1
        return value

    def warn_if_it_never_came(self, owner: str, trainer: Trainer, *, has_validated: bool) -> None:
        """At a fit's end, where nothing has been an error: no epoch's end came at which it had to be there."""
        trained = trainer.global_step > self._began_at
        if not trained or trainer.fast_dev_run or not trainer.is_global_zero or self.name in trainer.callback_metrics:
            return
        why = ", and no validation has run" if any(trainer.num_val_batches) and not has_validated else ""
        warnings.warn(
            f"{owner} monitors {self.name!r}, which never came: the fit ended at epoch {trainer.current_epoch}, step "
            f"{trainer.global_step}{why}. Validate earlier (val_check_interval, check_val_every_n_epoch) or train "
            "longer.",
            stacklevel=2,
        )


def check_monitor(owner: str, monitor: object, mode: str) -> None:
    if monitor is not None and not (isinstance(monitor, str) and monitor):
        raise ConfigurationTypeError(f"{owner}(monitor=...) is the name of a logged metric, got {monitor!r}")
    if mode not in get_args(Mode):
        raise ConfigurationError(
            f"{owner}(mode=...) is 'min' where a smaller {monitor or 'metric'} is better, or 'max', got {mode!r}."
            f"{did_you_mean(str(mode)[:3].lower() + ' ', ('min', 'max'))}"
        )


def is_better(score: float, than: float, mode: str, min_delta: float = 0.0) -> bool:
    """Strictly, by more than min_delta: ties keep the earlier one. NaN is never better."""
    if math.isnan(score):
        return False
    if math.isnan(than):
        return True
    return score < than - min_delta if mode == "min" else score > than + min_delta


def not_logged(owner: str, monitor: str, trainer: Trainer, verb: str = "monitors") -> ConfigurationError:
    known = sorted(trainer.callback_metrics)
    by_loader = [name for name in known if name.startswith(f"{monitor}/dataloader_idx_")]
    if by_loader:
        return ConfigurationError(
            f"{owner} {verb} {monitor!r}, and with several loaders each has a name of its own: {', '.join(by_loader)}. "
            "Monitor one of them, or log with add_dataloader_idx=False for one value over all."
        )
    return ConfigurationError(
        f"{owner} {verb} {monitor!r}, which was not logged.{did_you_mean(monitor, known)} "
        f"Logged: {', '.join(known) or 'nothing'}. "
        f"Log it in validation_step or training_step: self.log({monitor!r}, value, on_epoch=True)."
    )


def should_be_there(trainer: Trainer, has_validated: bool) -> bool:
    """Whether, at an epoch's end, everything that is ever logged has been logged once."""
    return has_validated or not any(trainer.num_val_batches)
