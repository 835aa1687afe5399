"""An exponential moving average of the weights."""

from __future__ import annotations

import math
import warnings
from typing import Any

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments

from .averaged_weights import AveragedWeights


class ExponentialMovingAverage(AveragedWeights):
    """Averages weights over the steps, `average += (1 - decay) * (weight - average)`, and evaluates with the average.

        Trainer(callbacks=[ExponentialMovingAverage(decay=0.999), ModelCheckpoint(monitor="val_acc", mode="max")])

    The average begins as a copy of the weights at `start_step` and is moved after every `update_every_n_steps`-th
    optimizer step. With `warmup` the n-th move, from 0, uses min(decay, (1 + n) / (10 + n)), so that the first weights
    are soon forgotten (the formula of TensorFlow's ExponentialMovingAverage(num_updates=)). With
    `update_every_n_steps=k`, a decay of `d ** k` forgets as fast as `d` at every step.

    Checkpoints hold the average in `<name>.pdparams`; what it covers and where it is used: see AveragedWeights.

    Args:
        decay: how much of the average stays at each move, from 0 to 1.
        warmup: let the first moves forget faster.
        start_step: the optimizer step at which the average begins.
        update_every_n_steps: optimizer steps between two moves.
        evaluate_with_average: whether evaluations run with the average.
        name: of the checkpoint's file, `<name>.pdparams`.

    Raises:
        ConfigurationError: decay is not in [0, 1), or a number of steps is out of its range.
    """

    @explains_unknown_arguments({})
    def __init__(
        self,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        start_step: int = 0,
        update_every_n_steps: int = 1,
        evaluate_with_average: bool = True,
        name: str = "ema",
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigurationError(
                "ExponentialMovingAverage(decay=...) must be from 0.0 to below 1.0 (0.999: "
                f"over about 1000 steps), got {decay!r}"
            )
        for setting, value, least in (("start_step", start_step, 0), ("update_every_n_steps", update_every_n_steps, 1)):
            if value < least:
                raise ConfigurationError(f"ExponentialMovingAverage({setting}=...) must be >= {least}, got {value!r}")
        super().__init__(f"{name}.pdparams", evaluate_with_average=evaluate_with_average)
        self.decay = decay
        self.warmup = warmup
        self.start_step = start_step
        self.update_every_n_steps = update_every_n_steps
        self._moves = 0
        self._step_seen = 0

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}:{self.file}"

    def decay_of_move(self, move: int) -> float:
        """The decay that the average's `move`-th move, from 0, uses."""
        return min(self.decay, (1 + move) / (10 + move)) if self.warmup else self.decay

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        super().setup(trainer, module, stage)
        if stage == "fit":
            self._moves = 0

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._step_seen = trainer.global_step
        if self.averages:
            return
        if trainer.global_step >= self.start_step:
            self.begin(trainer, module)
            return
        # In manual optimization a batch may make any number of steps.
        last = trainer.estimated_stepping_batches if module.automatic_optimization else math.inf
        if last <= self.start_step and not trainer.fast_dev_run:
            warnings.warn(
                f"ExponentialMovingAverage(start_step={self.start_step}) averages nothing: "
                f"the fit ends with step {last}",
                stacklevel=2,
            )

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, self._step_seen = self._step_seen, trainer.global_step
        if self._step_seen == before:  # inside an accumulation window
            return
        if not self.averages:
            if self._step_seen >= self.start_step:
                self.begin(trainer, module)
        elif self._step_seen // self.update_every_n_steps != before // self.update_every_n_steps:
            self.move(trainer, module, share=1.0 - self.decay_of_move(self._moves))
            self._moves += 1

    def state_dict(self) -> dict[str, Any]:
        return {"moves": self._moves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._moves = state_dict["moves"]
