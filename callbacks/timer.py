"""Timer: how long a run has trained, over all its processes, and an end to it."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Literal

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.duration import Duration, seconds
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments

Stage = Literal["train", "validate", "test"]


class Timer(Callback):
    """Measures training, validation and test, and stops the fit when `duration` of training is over.

        timer = Timer(duration="00:12:00:00")  # days:hours:minutes:seconds, a timedelta, or its arguments as a dict

    Time of earlier processes counts: it comes back on resume. `interval` says whether the end is looked for after each
    "step" or each "epoch".

    Args:
        duration: of training, after which the fit ends: "DD:HH:MM:SS", a timedelta, {"hours": 2}; None: never.
        interval: whether the end is looked for after each "step" or each "epoch".
        verbose: tell when the time is over.

    Raises:
        ConfigurationError: interval is none of these, or duration is no time.
    """

    @explains_unknown_arguments({})
    def __init__(
        self,
        duration: Duration | None = None,
        interval: Literal["step", "epoch"] = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ConfigurationError(f"Timer(interval=...) must be 'step' or 'epoch', got {interval!r}")
        self._duration = seconds(duration, "Timer", "duration")
        self._interval = interval
        self._verbose = verbose
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._start: dict[str, float | None] = dict.fromkeys(("train", "validate", "test"))
        self._end: dict[str, float | None] = dict(self._start)
        self._before = dict.fromkeys(self._start, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in ("train", "validate", "test")}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before.update(state_dict["time_elapsed"])

    def start_time(self, stage: Stage = "train") -> float | None:
        """`time.monotonic()` at the stage's start in this process."""
        return self._start[stage]

    def end_time(self, stage: Stage = "train") -> float | None:
        """`time.monotonic()` at the stage's end in this process; None while it has not ended."""
        return self._end[stage]

    def time_elapsed(self, stage: Stage = "train") -> float:
        """Seconds, earlier processes included."""
        start, end = self._start[stage], self._end[stage]
        if start is None:
            return self._before[stage]
        return self._before[stage] + (time.monotonic() if end is None else end) - start

    def time_remaining(self, stage: Stage = "train") -> float | None:
        """Seconds until `duration` is over; None without one."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._begin_anew()  # a resumed run's time comes afterwards, with its state

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        self._stop_if_over(trainer)  # a run that is started again after its time

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._begin("train")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._interval == "step":
            self._stop_if_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._stop_if_over(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._end["train"] = time.monotonic()

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking:
            self._begin("validate")

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if not trainer.sanity_checking:
            self._end["validate"] = time.monotonic()

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._begin("test")

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self._end["test"] = time.monotonic()

    def _begin(self, stage: Stage) -> None:
        self._before[stage] = self.time_elapsed(stage)
        self._start[stage], self._end[stage] = time.monotonic(), None

    def _stop_if_over(self, trainer: Trainer) -> None:
        if self._duration is not None and self.time_elapsed() >= self._duration:
            reason = f"the Timer's {timedelta(seconds=self._duration)} of training are over"
            if self._verbose and not trainer.should_stop:
                trainer.print(f"Stopping: {reason}")
            trainer.stop(reason, for_good=False)
