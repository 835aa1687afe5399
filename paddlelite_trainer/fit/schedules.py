"""Schedules: when each learning rate schedule steps, and with which metric."""

from __future__ import annotations

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

    `metrics` gives callback_metrics; `before_drop` is called where a schedule is about to lower the rate in one jump.
    """

    def __init__(
        self,
        module: Module,
        configs: Sequence[LRSchedulerConfig],
        progress: Progress,
        ranks: Ranks,
        metrics: Callable[[], Mapping[str, float]],
        before_drop: Callable[[], None] | None,
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

    def _catch_up(self) -> None:
        """Bring the schedules of interval "step" up to the optimizer step just made, once."""
        if self.progress.schedulers_are_due:
            self.step("step", self.progress.global_step)
            self.progress.note_schedules_stepped()

    def step(self, interval: Literal["epoch", "step"], count: int) -> None:
        """Step those that are due after `count` of their intervals; every rank calls it."""
        if not self.module.automatic_optimization:
            return
        due = [
            (config, self._metric_for(config))
            for config in self.configs
            if config.interval == interval and count % config.frequency == 0
        ]
        if self.before_drop is not None and any(will_drop(config, metric) for config, metric in due):
            self.before_drop()
        for config, metric in due:
            self._step_one(config, metric)

    def _metric_for(self, config: LRSchedulerConfig) -> float | None:
        if config.monitor is None or not config.needs_metric:
            return None
        metric = self.metrics().get(config.monitor)
        # What one step logs differs between ranks, and their rates must not.
        return metric if self.ranks.world_size == 1 else self.ranks.broadcast_object(metric)

    def _step_one(self, config: LRSchedulerConfig, metric: float | None) -> None:
        if not config.needs_metric:
            self.module.lr_scheduler_step(config.scheduler, None)
        elif metric is not None:
            self.module.lr_scheduler_step(config.scheduler, float(metric))
        elif config.strict:
            known = sorted(self.metrics())
            raise ConfigurationError(
                f"ReduceOnPlateau watches {config.monitor!r}, which was not logged. "
                f"Logged: {', '.join(known) or 'nothing'}.{did_you_mean(str(config.monitor), known)} "
                "Log it, or pass 'strict': False to step only when it is there."
            )

    def snapshot(self) -> list[dict[str, Any]]:
        return [scheduler_snapshot(config.scheduler) for config in self.configs]

    def restore(self, snapshot: Sequence[Mapping[str, Any]]) -> None:
        for config, values in zip(self.configs, snapshot):
            apply_snapshot(config.scheduler, values)

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.catch_up = timed("learning rate schedules", self.catch_up)


def follow_steps(module: Module, configs: Sequence[LRSchedulerConfig]) -> bool:
    """Whether some of the schedules step with the optimizer."""
    return module.automatic_optimization and any(config.interval == "step" for config in configs)
