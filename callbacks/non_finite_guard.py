"""Stops, skips or rolls back when a loss or a gradient is NaN or infinite."""

from __future__ import annotations

from typing import Any, Literal, get_args

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, NonFiniteError, did_you_mean, explains_unknown_arguments
from paddlelite_trainer.gradients import all_finite
from paddlelite_trainer.optimizers import parameters_of

Action = Literal["stop", "skip", "roll_back"]


class NonFiniteGuard(Callback):
    """Looks at every loss and every gradient just before the optimizer would step, in one copy to the host per step.

        NonFiniteGuard("skip")

    - "stop": raise NonFiniteError. The weights are still those of the last good step.
    - "skip": drop the window's gradients; no weight and no optimizer value changes. Counters and schedules go on as
      after any step.
    - "roll_back": put back weights, optimizers, loss scale and averages of the newest healthy checkpoint and go on with
      the next batch. Counters, schedules, data and random numbers go on, so the same batch does not come again.

    After `max_in_a_row` bad steps without a good one between them NonFiniteError is raised all the same.
    `non_finite_steps` and `non_finite_roll_backs` in the metrics count over the whole run, resumes included. With
    float16, infinite gradients are the loss scaler's business, and only losses are looked at. In manual optimization
    gradients alone are. LBFGS can only be stopped: it steps by itself.

    Args:
        action: "stop", "skip" or "roll_back".
        max_in_a_row: bad steps without a good one between them after which it is an error.

    Raises:
        ConfigurationError: action is none of the three, or max_in_a_row is below 1.
        NonFiniteError: as told above; CheckpointNotFoundError where there is no healthy checkpoint to roll back to.
    """

    @explains_unknown_arguments({})
    def __init__(self, action: Action = "stop", *, max_in_a_row: int = 10) -> None:
        if action not in get_args(Action):
            raise ConfigurationError(
                f"NonFiniteGuard(action) must be 'stop', 'skip' or 'roll_back', got {action!r}."
                f"{did_you_mean(str(action), get_args(Action))}"
            )
        if max_in_a_row < 1:
            raise ConfigurationError(f"NonFiniteGuard(max_in_a_row=...) must be >= 1, got {max_in_a_row!r}")
        self.action = action
        self.max_in_a_row = max_in_a_row
        self.steps = 0
        """Bad steps so far."""
        self.roll_backs = 0
        self._in_a_row = 0
        self._losses: list[Any] = []  # of the open window, on the device

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self.steps = self.roll_backs = self._in_a_row = 0
            self._losses.clear()

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if self.action != "stop" and any(type(optimizer).__name__ == "LBFGS" for optimizer in trainer.optimizers):
            raise ConfigurationError(
                f"NonFiniteGuard({self.action!r}) cannot hold back LBFGS, which steps by itself: "
                "use NonFiniteGuard('stop')"
            )

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._record(trainer)

    def on_before_backward(self, trainer: Trainer, module: Module, loss: Any) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        if type(optimizer).__name__ == "LBFGS":  # its losses come after this
            return
        gradients: list[Any] = []
        if trainer.precision.scaler is None:
            gradients = [one for parameter in parameters_of(optimizer) if (one := parameter.grad) is not None]
        bad = not all_finite(gradients, self._losses)
        if trainer.world_size > 1:
            bad = trainer.ranks.any(bad)
        if not bad:
            self._losses.clear()
            self._in_a_row = 0
            return
        what = self._describe(module, optimizer)
        self._losses.clear()
        self._act(trainer, what)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._losses and any(type(optimizer).__name__ == "LBFGS" for optimizer in trainer.optimizers):
            finite = all_finite((), self._losses)
            self._losses.clear()
            if not finite:
                self._act(trainer, "the loss")

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._record(trainer)

    def _act(self, trainer: Trainer, what: str) -> None:
        self.steps += 1
        self._in_a_row += 1
        where = f"epoch {trainer.current_epoch}, batch {trainer.progress.batches_in_epoch}"
        if self.action == "stop":
            raise NonFiniteError(
                f"{what} is NaN or infinite in {where}. Trainer(detect_anomaly=True) finds the operation it comes "
                "from; NonFiniteGuard('skip') or ('roll_back') trains on."
            )
        if self._in_a_row >= self.max_in_a_row:
            raise NonFiniteError(
                f"{what} is NaN or infinite in {where}, the {self._in_a_row}. bad step in a row: "
                "passing over more will not help. Trainer(detect_anomaly=True) finds the operation it comes from; "
                "a lower learning rate or clipping may help."
            )
        trainer.skip_optimizer_step()
        if self.action == "roll_back":
            entry = trainer.roll_back()
            self.roll_backs += 1
            trainer.print(f"{what} is NaN or infinite in {where}: rolled back to {entry.name}.")
        else:
            trainer.print(f"{what} is NaN or infinite in {where}: step skipped.")
        self._record(trainer)
        trainer.log_metrics(self._counts())

    def _describe(self, module: Module, optimizer: Any) -> str:
        if not all_finite((), self._losses):
            return "the loss"
        names = {parameter.name: name for name, parameter in module.named_parameters()}
        bad = [
            names.get(parameter.name, parameter.name)
            for parameter in parameters_of(optimizer)
            if parameter.grad is not None and not all_finite([parameter.grad])
        ]
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        return f"the gradient of {', '.join(bad[:3])}{more}" if bad else "a loss or gradient on another process"

    def _counts(self) -> dict[str, float]:
        return {"non_finite_steps": float(self.steps), "non_finite_roll_backs": float(self.roll_backs)}

    def _record(self, trainer: Trainer) -> None:
        for name, count in self._counts().items():
            trainer.record(name, count)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "roll_backs": self.roll_backs, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.roll_backs = state_dict["steps"], state_dict["roll_backs"]
        self._in_a_row = state_dict["in_a_row"]
