"""LRMonitor: the learning rate of every optimizer and parameter group, each under one clear name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments
from paddlelite_trainer.optimizers import coefficient, default, parameter_groups


class LRMonitor(Callback):
    """Logs learning rates, and fills `callback_metrics` and the history with them, with or without a logger.

        Trainer(callbacks=[LRMonitor(logging_interval="step")], ...)

    Names: `lr` for a single optimizer; `lr-AdamW`, `lr-SGD` for several, `lr-AdamW-1` for the second of a class; a
    scheduler's own `name`, if it was given one; behind it, where an optimizer has several parameter groups, `/` and the
    group's own "name", or `group_<i>`.

    Args:
        logging_interval: "step" logs at the steps at which metrics are logged (`log_every_n_steps`), the rate with
            which that step was made; "epoch" the rate at each epoch's start; None follows each optimizer's scheduler.
        log_momentum: also `<name>-momentum` (of Adam: its beta1).
        log_weight_decay: also `<name>-weight_decay`.
        log_key_prefix: stands before every name: "optim/" logs `optim/lr`.

    Raises:
        ConfigurationError: logging_interval is none of these.
    """

    comes_last_at_epoch_start = True

    @explains_unknown_arguments({})
    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
        log_key_prefix: str | None = None,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigurationError(
                f"LRMonitor(logging_interval=...) must be 'step', 'epoch' or None, got {logging_interval!r}"
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.log_key_prefix = log_key_prefix or ""
        self.lrs: dict[str, float] = {}
        """The newest rates."""
        self._names: list[str] = []
        self._by_step: list[bool] = []

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._names = [self.log_key_prefix + name for name in _names(trainer)]
        intervals = {config.optimizer_index: config.interval for config in trainer.lr_scheduler_configs}
        self._by_step = [
            (self.logging_interval or intervals.get(index, "epoch")) == "step"
            for index in range(len(trainer.optimizers))
        ]

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        to_log: dict[str, float] = {}
        for index, by_step in enumerate(self._by_step):
            values = self._record(trainer, index)
            if not by_step:
                to_log.update(values)
        if to_log:
            trainer.log_metrics(to_log)

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        if True not in self._by_step:
            return
        step = trainer.global_step + 1  # that this call is about to make
        if step % trainer.log_every_n_steps:
            return
        values: dict[str, float] = {}  # of all of them: which one makes the step of a multiple is chance
        for index, by_step in enumerate(self._by_step):
            if by_step:
                values.update(self._record(trainer, index))
        trainer.log_metrics(values, step)

    def _record(self, trainer: Trainer, index: int) -> dict[str, float]:
        values = dict(self._values(trainer.optimizers[index], self._names[index]))
        self.lrs.update(values)
        for name, value in values.items():
            trainer.record(name, value)
        return values

    def _values(self, optimizer: Any, name: str) -> Iterator[tuple[str, float]]:
        groups = [group for group in parameter_groups(optimizer) if isinstance(group, Mapping)]
        rate = float(optimizer.get_lr())
        for position, group in enumerate(groups or [{}]):
            own = f"{name}/{group.get('name', f'group_{position}')}" if len(groups) > 1 else name
            yield own, rate * float(group.get("learning_rate", 1.0))  # in Paddle a group's rate is a factor
            if self.log_momentum:
                yield f"{own}-momentum", _first_number(group, optimizer, ("momentum", "beta1"))
            if self.log_weight_decay:
                yield f"{own}-weight_decay", _first_number(group, optimizer, ("weight_decay", "regularization_coeff"))


def _names(trainer: Trainer) -> list[str]:
    given = {config.optimizer_index: config.name for config in trainer.lr_scheduler_configs if config.name}
    classes = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    seen: Counter[str] = Counter()
    names = []
    for index, word in enumerate(classes):
        name = given.get(index) or ("lr" if len(classes) == 1 else f"lr-{word}")
        names.append(name if not seen[name] else f"{name}-{seen[name]}")
        seen[name] += 1
    return names


def _first_number(group: Mapping[str, Any], optimizer: Any, keys: tuple[str, ...]) -> float:
    """Of the group, else of the optimizer; 0.0 where neither has it."""
    found = [group.get(key, default(optimizer, key)) for key in keys]
    found.append(getattr(optimizer, "regularization", None) if "weight_decay" in keys else None)
    for value in found:
        value = coefficient(value)
        if value is not None:
            return float(value.item() if hasattr(value, "item") else value)
    return 0.0
