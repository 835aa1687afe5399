"""Watches the gradient's norm, and the loss for spikes."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Literal

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments
from paddlelite_trainer.gradients import norm_of
from paddlelite_trainer.optimizers import parameters_of


class GradientNormWatch(Callback):
    """Logs `grad_norm`, the 2-norm of all gradients before clipping, every n-th optimizer step; no copy to the host.

    Where the Trainer clips by norm, the norm that clipping computed anyway is used, so it costs nothing. With
    `per_layer` `grad_norm/<top-level layer>` is logged as well, by a pass of its own.

    Args:
        every_n_steps: optimizer steps between two values; None: the Trainer's `log_every_n_steps`.
        per_layer: log the norm of each top-level layer too.

    Raises:
        ConfigurationError: every_n_steps is below 1.
    """

    @explains_unknown_arguments({})
    def __init__(self, every_n_steps: int | None = None, *, per_layer: bool = False) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ConfigurationError(f"GradientNormWatch(every_n_steps=...) must be >= 1, got {every_n_steps!r}")
        self.every_n_steps = every_n_steps
        self.per_layer = per_layer

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.strategy.stage == 3 and (self.per_layer or not _clipping_tells(trainer)):
            raise ConfigurationError(
                "GradientNormWatch cannot add up the slices of gradients that strategy='sharding_stage3' makes: leave "
                "per_layer out and pass gradient_clip_val=..., whose norm is over all slices, or use 'sharding_stage2'"
            )

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        if not self._is_due(trainer):
            return
        gradients: dict[str, list[Any]] = {}  # by the name that their norm is logged under
        parameters = [parameter for parameter in parameters_of(optimizer) if parameter.grad is not None]
        if self.per_layer:
            names = {parameter.name: name for name, parameter in module.named_parameters()}
            for parameter in parameters:
                layer = names[parameter.name].split(".")[0]
                gradients.setdefault(f"grad_norm/{layer}", []).append(parameter.grad)
        if parameters and not _clipping_tells(trainer):
            gradients["grad_norm"] = [parameter.grad for parameter in parameters]
        norms = {name: norm_of(some) for name, some in gradients.items()}
        if trainer.strategy.stage and (self.per_layer or not _clipping_tells(trainer)):
            norms = _over_ranks(trainer, norms)
        for name, norm in norms.items():
            module.log(name, norm)

    def on_before_zero_grad(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        if self._is_due(trainer) and _clipping_tells(trainer) and trainer.gradient_norm is not None:
            module.log("grad_norm", trainer.gradient_norm)

    def _is_due(self, trainer: Trainer) -> bool:
        every = self.every_n_steps or trainer.log_every_n_steps
        return (trainer.global_step + 1) % every == 0  # this step is not yet counted


class LossSpikeWatch(Callback):
    """Warns, or stops, when the training loss jumps: `threshold` deviations above the mean of the last `window`.

    Losses stay on the device and are read together, every `check_every_n_batches` (default: the Trainer's
    `log_every_n_steps`) and at a checkpoint; each is judged by those before it, a tenth of the window at least, with a
    deviation of at least 0.1 % of their mean. With several processes the mean of their losses is judged, by all alike.
    A spike, or a loss that is NaN or infinite, does not join the window. `loss_spikes` in the metrics counts over the
    run.

    Args:
        window: how many of the last losses are compared with.
        threshold: deviations above the mean that are a spike.
        check_every_n_batches: how often losses are read; None: the Trainer's `log_every_n_steps`.
        action: "warn", or "stop" the fit.

    Raises:
        ConfigurationError: window is below 2, threshold is not above 0, or action is neither.
    """

    @explains_unknown_arguments({})
    def __init__(
        self,
        *,
        window: int = 100,
        threshold: float = 6.0,
        check_every_n_batches: int | None = None,
        action: Literal["warn", "stop"] = "warn",
    ) -> None:
        if window < 2:
            raise ConfigurationError(f"LossSpikeWatch(window=...) must be >= 2, got {window!r}")
        if threshold <= 0:
            raise ConfigurationError(f"LossSpikeWatch(threshold=...) must be > 0, got {threshold!r}")
        if action not in ("warn", "stop"):
            raise ConfigurationError(f"LossSpikeWatch(action=...) must be 'warn' or 'stop', got {action!r}")
        self.window = window
        self.threshold = threshold
        self.check_every_n_batches = check_every_n_batches
        self.action = action
        self.spikes: list[dict[str, float]] = []
        """Each spike so far: batch (counted over the run, from 0), loss, mean and std before it."""
        self._judged = 0
        self._recent: deque[float] = deque(maxlen=window)
        self._waiting: list[Any] = []

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self.spikes, self._judged = [], 0
            self._recent.clear()
            self._waiting = []

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        trainer.record("loss_spikes", float(len(self.spikes)))

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, paddle.Tensor):
            return
        self._waiting.append(loss.detach())
        if len(self._waiting) >= (self.check_every_n_batches or trainer.log_every_n_steps):
            self._judge(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._judge(trainer)
        trainer.record("loss_spikes", float(len(self.spikes)))

    def _judge(self, trainer: Trainer) -> None:
        """Judge what waits; a collective, so that no rank stops alone."""
        losses = trainer.ranks.gather_object(self._read())
        self._waiting = []
        for of_ranks in zip(*losses):
            self._judge_one(trainer, sum(of_ranks) / len(of_ranks))
            self._judged += 1

    def _read(self) -> list[float]:
        """The waiting losses as numbers: one copy to the host."""
        on_device = [loss for loss in self._waiting if isinstance(loss, paddle.Tensor)]
        if on_device:
            read = [loss for loss in self._waiting if not isinstance(loss, paddle.Tensor)]
            with paddle.no_grad():
                read += paddle.concat([loss.astype("float32").reshape([1]) for loss in on_device]).numpy().tolist()
            self._waiting = read
        return self._waiting

    def _judge_one(self, trainer: Trainer, loss: float) -> None:
        known = len(self._recent) >= max(2, self.window // 10)
        mean = float(np.mean(self._recent)) if known else 0.0
        std = max(float(np.std(self._recent)), 1e-3 * abs(mean)) if known else float("inf")
        if np.isfinite(loss) and loss <= mean + self.threshold * std:
            self._recent.append(loss)
            return
        self.spikes.append({"batch": float(self._judged), "loss": loss, "mean": mean, "std": std})
        trainer.record("loss_spikes", float(len(self.spikes)))
        message = (
            f"the training loss jumped to {loss:g} at batch {self._judged} of the run; before it {mean:g} +- {std:g}"
        )
        trainer.print(f"WARNING: {message}.")
        if self.action == "stop":
            trainer.stop(message)

    def state_dict(self) -> dict[str, Any]:
        return {"spikes": self.spikes, "judged": self._judged, "recent": list(self._recent), "waiting": self._read()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spikes, self._judged = list(state_dict["spikes"]), state_dict["judged"]
        self._recent.clear()
        self._recent.extend(state_dict["recent"])
        self._waiting = list(state_dict["waiting"])


def _clipping_tells(trainer: Trainer) -> bool:
    return trainer.gradient_clip_val is not None and trainer.gradient_clip_algorithm != "value"


def _over_ranks(trainer: Trainer, norms: dict[str, Any]) -> dict[str, float]:
    """Of the gradients of all ranks together, each of which is on one; a collective."""
    squares: dict[str, float] = {}
    for of_rank in trainer.ranks.gather_object({name: float(norm.item()) for name, norm in norms.items()}):
        for name, norm in of_rank.items():
            squares[name] = squares.get(name, 0.0) + norm**2
    return {name: math.sqrt(square) for name, square in sorted(squares.items())}
