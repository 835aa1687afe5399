"""paddle.metric.Metric objects: where a module has them, what they have counted, and a series that asks one."""

from __future__ import annotations

import collections
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

    __slots__ = ("awaited", "index", "metric", "over_ranks")

    def __init__(self, name: str, options: Options) -> None:
        self.metric: Any = None
        self.awaited: Mapping[str, Any] | None = None
        """What an object had counted that has not come yet."""
        self.over_ranks: float | None = None
        """What the counts of all ranks give."""
        self.index = 0
        """Which of the object's results it is."""
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

    def ask(self, metric: Any, index: int, known: Callable[[], Mapping[str, Any]]) -> float:
        """What the object gives now; it is asked from here on. `known` are those that a checkpoint restores."""
        self.metric, self.index = metric, index
        if self.awaited is not None:
            if all(metric is not restored for restored in known().values()):
                set_counts(metric, self.awaited)
            self.awaited = None
        return self._own(metric.accumulate())

    def _own(self, results: Any) -> float:
        return float(results[self.index] if isinstance(results, (list, tuple)) else results)

    def clear(self) -> None:
        super().clear()
        self.over_ranks = None
        if self.metric is not None:
            self.metric.reset()

    def refuse_if_counted_in(self, others: Iterable[Series], metric: Any, stage: str) -> None:
        """Raise ConfigurationError where `metric` counts for another stage, or for another loader, already."""
        for other in others:
            if not isinstance(other, PaddleMetricSeries) or other.metric is not metric:
                continue
            loader, other_loader = (name.partition("/dataloader_idx_")[2] for name in (self.name, other.name))
            if stage or loader != other_loader:
                raise ConfigurationError(
                    f"self.log({self.name!r}, metric): the same object is logged {stage}as {other.name!r}, and what it "
                    f"counts for one would count for the other. Make one for each: two {type(metric).__name__} objects."
                )

    def result(self) -> float | None:
        if self.over_ranks is not None:
            return self.over_ranks
        return self.saved_result if self.metric is None else self._own(self.metric.accumulate())

    def reduce_over(self, states: Iterable[Mapping[str, Any]]) -> None:
        states = list(states)
        if self.metric is None:
            super().reduce_over(states)
        elif all(state["metric"] is not None for state in states):
            results = _over_all(self.metric, [state["metric"] for state in states])
            self.over_ranks = None if results is None else self._own(results)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "metric": self.awaited if self.metric is None else stored_counts(self.metric)[0],
            "index": self.index,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.index = state.get("index", 0)

    def take_over(self, other: Series) -> None:
        super().take_over(other)
        if isinstance(other, PaddleMetricSeries):
            self.metric, self.awaited, self.over_ranks = other.metric, other.awaited, other.over_ranks
            self.index = other.index


class Result:
    """One of the results of a paddle.metric.Metric that has several, as self.log takes it."""

    def __init__(self, metric: Any, index: int) -> None:
        self.metric, self.index = metric, index


def results_by_name(name: str, metric: Any) -> dict[str, Result]:
    """{name of its own: result} of an object that gives several, logged as `name`; {} of one that gives one.

    Accuracy(topk=(1, 5)) logged as "val_acc" are "val_acc_top1" and "val_acc_top5": its own names are "acc_top1" and
    "acc_top5", and what they have in common gives way.
    """
    results = metric.accumulate()
    if not isinstance(results, (list, tuple)) or len(results) == 1:
        return {}
    names = metric.name()
    if not isinstance(names, (list, tuple)) or len(names) != len(results):
        names = [str(index) for index in range(len(results))]
    words = [own.split("_") for own in names]
    while all(len(parts) > 1 and parts[0] == words[0][0] for parts in words):
        words = [parts[1:] for parts in words]
    base, mark, loader = name.partition("/dataloader_idx_")
    return {f"{base}_{'_'.join(parts)}{mark}{loader}": Result(metric, index) for index, parts in enumerate(words)}


def paddle_metrics_of(module: paddle.nn.Layer) -> dict[str, paddle.metric.Metric]:
    """{where: object} of every paddle.metric.Metric in an attribute of a layer, or in a list or dict there."""
    found: dict[str, paddle.metric.Metric] = {}
    for layer_name, layer in module.named_sublayers(include_self=True):
        for attribute, value in vars(layer).items():
            inside: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, (list, tuple)):
                inside = enumerate(value)
            elif isinstance(value, dict):
                inside = value.items()
            for key, item in [(None, value), *inside]:
                if isinstance(item, paddle.metric.Metric):
                    place = ".".join(filter(None, (layer_name, attribute)))
                    found[place if key is None else f"{place}[{key!r}]"] = item
    return found


_PLAIN = (int, float, np.generic, np.ndarray)
_STATE = (*_PLAIN, paddle.Tensor, list, tuple, dict, set, frozenset, collections.deque, paddle.metric.Metric)
_RECORDS = 256
"""A list longer than this holds records, which do not change once they are there, and no sums."""


def counts_of(metric: Any) -> dict[str, Any]:
    """A copy of a paddle.metric.Metric's running counts: its numbers, arrays, Tensors and containers."""
    return {
        key: counts_of(value) if isinstance(value, paddle.metric.Metric) else _copied(value)
        for key, value in vars(metric).items()
        if isinstance(value, _STATE)
    }


def stored_counts(metric: Any) -> tuple[dict[str, Any], list[str]]:
    """What of `counts_of` a checkpoint can hold, and the names of the attributes that it cannot."""
    counts = counts_of(metric)
    left = [key for key, value in counts.items() if not _can_be_stored(value)]
    return {key: value for key, value in counts.items() if key not in left}, left


def set_counts(metric: Any, counts: Mapping[str, Any]) -> None:
    """Put back what `counts_of` gave; containers stay of the class that the object has."""
    own = vars(metric)
    own.update({key: _put_into(own.get(key), value) for key, value in counts.items()})


def _copied(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.copy()
    if isinstance(value, paddle.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, set, frozenset, collections.deque)):
        return list(value) if len(value) > _RECORDS else [_copied(item) for item in value]
    return tuple(map(_copied, value)) if type(value) is tuple else value


def _put_into(present: Any, saved: Any) -> Any:
    if isinstance(present, paddle.metric.Metric):
        set_counts(present, saved)
        return present
    copied = _copied(saved)
    if isinstance(present, collections.deque):
        return type(present)(copied, present.maxlen)
    if isinstance(present, (set, frozenset)):
        return type(present)(copied)
    if isinstance(present, dict) and type(present) is not dict:
        kept = copy.copy(present)  # of a defaultdict what it makes
        kept.clear()
        kept.update(copied)
        return kept
    return copied


def _can_be_stored(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "biufc"
    if type(value) in (list, tuple):
        return all(map(_can_be_stored, value))
    if type(value) is dict:
        return all(map(_can_be_stored, value)) and all(map(_can_be_stored, value.values()))
    return value is None or isinstance(value, (int, float, str, bytes, paddle.Tensor))


def _adds_up(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, _PLAIN) and not isinstance(value, bool)


def counts_added_up(metric: Any, everyones: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a metric of Paddle's own has counted on all ranks together; None for other classes. It is reset."""
    if type(metric).__module__.partition(".")[0] != "paddle":
        return None
    metric.reset()
    totals = counts_of(metric)
    for key, start in totals.items():
        if _adds_up(start):
            total = np.asarray(start) + sum(np.asarray(theirs[key]) - np.asarray(start) for theirs in everyones)
            totals[key] = total.tolist() if isinstance(start, list) else total
    return totals


def _over_all(metric: Any, everyones: Iterable[Mapping[str, Any]]) -> Any:
    """What a metric of Paddle's own gives from the counts of all ranks, which add up; None for other classes."""
    own = counts_of(metric)
    totals = counts_added_up(metric, everyones)
    if totals is None:
        return None
    vars(metric).update(totals)
    result = metric.accumulate()
    set_counts(metric, own)
    return result
