"""Schedules: when each learning rate schedule steps, and with which metric."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigurationError, did_you_mean
from ..optimizers import LRSchedulerConfig, SchedulerState, apply_snapshot, scheduler_snapshot, will_drop

if TYPE_CHECKING:
    from ..machine.ranks import Ranks
    from ..module import Module
    from ..progress import Progress


class Schedules:
    """The learning rate schedules of one fit; only they step them.

    `metrics` gives callback_metrics; `before_drop` is called where a schedule is about to lower the rate in one
    jump, and told whether the hooks of the epoch's end have been.
    """

    def __init__(
        self,
        module: Module,
        configs: Sequence[LRSchedulerConfig],
        progress: Progress,
        ranks: Ranks,
        metrics: Callable[[], Mapping[str, float]],
        before_drop: Callable[[bool], None] | None,
    ) -> None:
        self.module, self.progress, self.ranks, self.metrics, self.before_drop = (
            module,
            progress,
            ranks,
            metrics,
            before_drop,
        )
        self.configs = list(configs)
        self.states = [SchedulerState(config) for config in configs]
        self.catch_up: Callable[[], None] = self._catch_up
        self._taken: list[float | None] = [None] * len(self.configs)
        """The value that each schedule stepped with last: an object of its own each time that it was produced."""
        self._restored_as_taken: list[bool] = []
        self._stepped: set[int] = set()  # those of the running epoch's end
        self._has_validated = False

    def _catch_up(self) -> None:
        """Bring the schedules of interval "step" up to the optimizer step just made, once."""
        if self.progress.schedulers_are_due:
            self.step("step", self.progress.global_step)
            self.progress.note_schedules_stepped()

    def step(self, interval: Literal["epoch", "step"], count: int) -> None:
        """Step those that are due after `count` of their intervals; every rank calls it.

        One that watches a metric steps once for each time that it was produced, and waits where it is not.
        """
        if not self.module.automatic_optimization:
            return
        self._stepped = self._step_those(self._due(interval, count))

    def end_epoch(self, count: int, *, will_validate: bool) -> None:
        """After on_train_epoch_end, where what a schedule by epochs watches may have been logged; every rank calls it.

        Raises:
            ConfigurationError: for a metric that is not there although all that is ever logged has been.
        """
        if not self.module.automatic_optimization:
            return
        due = [index for index in self._due("epoch", count) if self.configs[index].needs_metric]
        for index in self._stepped.intersection(due):  # what was added since is this epoch's still
            self._taken[index] = self._newest(self.configs[index])
        self._step_those([index for index in due if index not in self._stepped], is_after_hooks=True)
        self._stepped = set()
        if self._has_validated or not will_validate:
            self._refuse_missing()

    @property
    def may_drop_after_hooks(self) -> bool:
        """Whether a drop that is to be told may come from a metric of on_train_epoch_end."""
        watching = (config.needs_metric and config.interval == "epoch" for config in self.configs)
        return self.before_drop is not None and any(watching)

    def _due(self, interval: Literal["epoch", "step"], count: int) -> list[int]:
        return [
            index
            for index, config in enumerate(self.configs)
            if config.interval == interval and count % config.frequency == 0
        ]

    def _step_those(self, due: Sequence[int], *, is_after_hooks: bool = False) -> set[int]:
        """Step all that need no metric or have a new value of it; returns which."""
        values = {index: self._new_value(index) for index in due}
        ready = [index for index in due if not self.configs[index].needs_metric or values[index] is not None]
        if self.before_drop is not None and any(will_drop(self.configs[index], values[index]) for index in ready):
            self.before_drop(is_after_hooks)
        for index in ready:
            config, value = self.configs[index], values[index]
            if config.needs_metric:
                self._taken[index] = self._newest(config)
            self.module.lr_scheduler_step(config.scheduler, None if value is None else float(value))
        return set(ready)

    def _newest(self, config: LRSchedulerConfig) -> float | None:
        return self.metrics().get(str(config.monitor))

    def _new_value(self, index: int) -> float | None:
        """The metric's value if it was produced since this schedule's last step."""
        config = self.configs[index]
        if not config.needs_metric:
            return None
        newest = self._newest(config)
        value = None if newest is self._taken[index] else newest
        # What one step logs differs between ranks, and their rates must not.
        return value if self.ranks.world_size == 1 else self.ranks.broadcast_object(value)

    def note_validation(self) -> None:
        self._has_validated = True

    def _missing(self) -> list[LRSchedulerConfig]:
        watching = [config for config in self.configs if config.needs_metric and config.strict]
        missing = [config for config in watching if self._newest(config) is None]
        if watching and self.ranks.world_size > 1:  # a name that only some ranks have
            positions = self.ranks.broadcast_object([self.configs.index(config) for config in missing])
            missing = [self.configs[position] for position in positions]
        return missing

    def _refuse_missing(self) -> None:
        for config in self._missing():
            known = sorted(self.metrics())
            raise ConfigurationError(
                f"ReduceOnPlateau watches {config.monitor!r}, which was not logged. "
                f"Logged: {', '.join(known) or 'nothing'}.{did_you_mean(str(config.monitor), known)} "
                "Log it, or pass 'strict': False to step only when it is there."
            )

    def warn_of_missing(self) -> None:
        """At a fit's end that no epoch's end came before; every rank calls it."""
        if not self.module.automatic_optimization or not self.progress.global_step:
            return
        for config in self._missing():
            warnings.warn(
                f"ReduceOnPlateau watches {config.monitor!r}, which never came: the fit ended at epoch "
                f"{self.progress.current_epoch}, step {self.progress.global_step}, and the schedule has not stepped.",
                stacklevel=2,
            )

    # -- a checkpoint's part, and going back ---------------------------------------------------------------------------
    def state_dict(self) -> list[dict[str, Any]]:
        """Each schedule's state, and of those that watch a metric whether its newest value still waits for them."""
        return [
            {
                **state.state_dict(),
                **({"metric_waits": self._newest(config) is not taken} if config.needs_metric else {}),
            }
            for state, config, taken in zip(self.states, self.configs, self._taken)
        ]

    def load_state_dict(self, saved: Sequence[Mapping[str, Any]]) -> list[str]:
        """Take it back; returns a sentence for each that was built otherwise. Metrics come later: see note_restored."""
        self._restored_as_taken = [not state.get("metric_waits", True) for state in saved]
        notes = [one.load_state_dict(state) for state, one in zip(saved, self.states)]
        return [note for note in notes if note is not None]

    def note_restored(self) -> None:
        """The metrics are restored: which of their values have been stepped with already."""
        for index, (config, was_taken) in enumerate(zip(self.configs, self._restored_as_taken)):
            if config.needs_metric and was_taken:
                self._taken[index] = self._newest(config)

    def snapshot(self) -> tuple[Any, ...]:
        return [scheduler_snapshot(config.scheduler) for config in self.configs], list(self._taken)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        schedulers, taken = snapshot
        for config, values in zip(self.configs, schedulers):
            apply_snapshot(config.scheduler, values)
        self._taken = list(taken)

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.catch_up = timed("learning rate schedules", self.catch_up)


def follow_steps(module: Module, configs: Sequence[LRSchedulerConfig]) -> bool:
    """Whether some of the schedules step with the optimizer."""
    return module.automatic_optimization and any(config.interval == "step" for config in configs)
