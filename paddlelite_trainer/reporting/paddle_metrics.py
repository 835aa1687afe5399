"""paddle.metric.Metric objects: where a module has them, what they have counted, and a series that asks one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError
from .series import Options, Series


class PaddleMetricSeries(Series):
    """A name under which a paddle.metric.Metric is logged: the epoch's result is what the object has counted.

    After a restart the object may not be in the module: then its counts wait for the `log` that brings it.
    """

    __slots__ = ("awaited", "metric", "over_ranks")

    def __init__(self, name: str, options: Options) -> None:
        self.metric: Any = None
        self.awaited: Mapping[str, Any] | None = None
        """What an object had counted that has not come yet."""
        self.over_ranks: float | None = None
        """What the counts of all ranks give."""
        super().__init__(name, options)

    @classmethod
    def instead_of(cls, series: Series) -> PaddleMetricSeries:
        """What takes the place of a plain series when an object is logged under its name."""
        made = cls(series.name, series.options)
        made.take_over(series)
        return made

    def belongs_to(self, metric: Any, awaited: Mapping[str, Any] | None) -> None:
        """The object that a checkpoint found in the module, or what it had counted where it is not there."""
        self.metric, self.awaited = metric, awaited

    def ask(self, metric: Any, known: Callable[[], Mapping[str, Any]]) -> float:
        """What the object gives now; it is asked from here on. `known` are those that a checkpoint restores."""
        self.metric = metric
        if self.awaited is not None:
            if all(metric is not restored for restored in known().values()):
                set_numbers(metric, self.awaited)
            self.awaited = None
        result = metric.accumulate()
        if isinstance(result, (list, tuple)) and len(result) != 1:
            raise ConfigurationError(
                f"self.log({self.name!r}, metric): {type(metric).__name__} gives {len(result)} numbers; "
                "log them one by one."
            )
        return float(result[0] if isinstance(result, (list, tuple)) else result)

    def clear(self) -> None:
        super().clear()
        self.over_ranks = None
        if self.metric is not None:
            self.metric.reset()

    def result(self) -> float | None:
        if self.over_ranks is not None:
            return self.over_ranks
        return self.saved_result if self.metric is None else float(self.metric.accumulate())

    def reduce_over(self, states: Iterable[Mapping[str, Any]]) -> None:
        states = list(states)
        if self.metric is None:
            super().reduce_over(states)
        elif all(state["metric"] is not None for state in states):
            self.over_ranks = _over_all(self.metric, [state["metric"] for state in states])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "metric": self.awaited if self.metric is None else numbers_of(self.metric)}

    def take_over(self, other: Series) -> None:
        super().take_over(other)
        if isinstance(other, PaddleMetricSeries):
            self.metric, self.awaited, self.over_ranks = other.metric, other.awaited, other.over_ranks


def paddle_metrics_of(module: paddle.nn.Layer) -> dict[str, paddle.metric.Metric]:
    """{where: object} of every paddle.metric.Metric in an attribute of a layer, or in a list or dict there."""
    found: dict[str, paddle.metric.Metric] = {}
    for layer_name, layer in module.named_sublayers(include_self=True):
        for attribute, value in vars(layer).items():
            inside: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, (list, tuple)):
                inside = enumerate(value)
            elif isinstance(value, dict) and not attribute.startswith("_"):
                inside = value.items()
            for key, item in [(None, value), *inside]:
                if isinstance(item, paddle.metric.Metric):
                    place = ".".join(filter(None, (layer_name, attribute)))
                    found[place if key is None else f"{place}[{key!r}]"] = item
    return found


def numbers_of(metric: Any) -> dict[str, Any]:
    """A copy of a paddle.metric.Metric's running counts: its attributes that are numbers, arrays or lists of them."""
    plain = (int, float, np.generic, np.ndarray)
    return {
        key: copy.copy(value)
        for key, value in vars(metric).items()
        if isinstance(value, plain) or (isinstance(value, list) and all(isinstance(item, plain) for item in value))
    }


def set_numbers(metric: Any, numbers: Mapping[str, Any]) -> None:
    """Put back what `numbers_of` gave."""
    vars(metric).update({key: copy.copy(value) for key, value in numbers.items()})


def _over_all(metric: Any, everyones: Iterable[Mapping[str, Any]]) -> float | None:
    """What a metric of Paddle's own gives from the counts of all ranks, which add up; None for other classes."""
    if type(metric).__module__.partition(".")[0] != "paddle":
        return None
    own = numbers_of(metric)
    metric.reset()
    for key, start in numbers_of(metric).items():
        if not isinstance(start, bool):
            total = np.asarray(start) + sum(np.asarray(theirs[key]) - np.asarray(start) for theirs in everyones)
            setattr(metric, key, total.tolist() if isinstance(start, list) else total)
    result = metric.accumulate()
    set_numbers(metric, own)
    return float(result[0] if isinstance(result, (list, tuple)) else result)
