"""What `self.log()` collects: values kept on the device until somebody looks, and their means over an epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, ConfigurationTypeError

PENDING_LIMIT = (
    512  # values a series holds on the device before they are read: bounds memory when nobody looks for long
)

_TENSOR = paddle.Tensor
_REDUCTIONS = ("mean", "sum", "min", "max")


class MetricValue(float):
    """A float that also answers `.item()`, as the tensors in Lightning's `callback_metrics` do."""

    __slots__ = ()

    def item(self) -> float:
        return float(self)


def refuse_taken_names(*names: str) -> None:
    """Raise ConfigurationError for a metric's name that every row of the logs has already."""
    for name in names:
        if name in ("step", "epoch"):
            raise ConfigurationError(
                f"a metric cannot be named {name!r}: every row of the logs has the trainer's own {name} under that name. Choose another."
            )


class Series:
    """One logged name of one stage: its options, the values not yet read, and the reduction so far.

    Sums run in float64, value by value in the order logged, so it does not matter when the values were read.
    """

    __slots__ = (
        "awaited_metric",
        "last",
        "metric",
        "name",
        "options",
        "over_ranks",
        "pending",
        "reduced",
        "reduction",
        "saved_result",
        "values",
        "versions",
        "weight",
        "weights",
    )

    def __init__(
        self, name: str, options: tuple[Any, ...], reduction: str | Callable[[list[float]], float] | None
    ) -> None:
        self.name = name
        self.options = options  # (on_step, on_epoch, prog_bar, logger, reduce_fx)
        self.reduction = reduction  # None: a function, as the checkpoint says; the next log tells which
        self.metric: Any = None  # a paddle.metric.Metric that accumulates by itself
        self.awaited_metric: Mapping[str, Any] | None = None  # what one had counted that is not found in the module
        self.saved_result: float | None = None
        self.over_ranks: float | None = None  # what a paddle metric gives from the counts of all ranks
        self.pending: list[Any] = []
        self.weights: list[float] = []
        self.versions: list[int] = []  # of pending tensors, to find those changed in place after they were logged
        self.last: float | None = None
        self.clear()

    def clear(self) -> None:
        self.reduced = (
            {"min": math.inf, "max": -math.inf}.get(self.reduction, 0.0) if isinstance(self.reduction, str) else 0.0
        )
        self.weight = 0.0
        self.over_ranks = None
        self.values: list[float] = []
        self.forget_pending()

    def forget_pending(self) -> None:
        self.pending.clear()
        self.weights.clear()
        self.versions.clear()

    def add(self, value: float, weight: float) -> None:
        self.last = value
        if self.reduction == "mean":
            self.reduced += value * weight
        elif self.reduction == "sum":
            self.reduced += value
        elif self.reduction == "min":
            self.reduced = value if value != value else min(self.reduced, value)
        elif self.reduction == "max":
            self.reduced = value if value != value else max(self.reduced, value)
        else:
            self.values.append(value)
        self.weight += weight

    def result(self) -> float | None:
        if self.over_ranks is not None:
            return self.over_ranks
        if self.metric is not None:
            return float(self.metric.accumulate())
        if self.reduction is None or self.awaited_metric is not None:
            return self.saved_result
        if self.weight == 0.0:
            return None
        if self.reduction == "mean":
            return self.reduced / self.weight
        if callable(self.reduction):
            return float(self.reduction(self.values))
        return self.reduced

    def state_dict(self) -> dict[str, Any]:
        return {
            "reduced": self.reduced,
            "weight": self.weight,
            "values": self.values,
            "last": self.last,
            "metric": self.awaited_metric if self.metric is None else numbers_of(self.metric),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reduced, self.weight = state["reduced"], state["weight"]
        self.values, self.last = list(state["values"]), state["last"]

    def copy(self) -> Series:
        """The series as it is now; values on the device and a paddle metric's counts are shared."""
        copied = Series(self.name, self.options, self.reduction)
        for slot in self.__slots__:
            value = getattr(self, slot)
            setattr(copied, slot, list(value) if isinstance(value, list) else value)
        return copied


class MetricCollector:
    """Everything logged in one stage since the epoch began. Only `Module.log` adds to it; Trainer reads and clears it."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._reduced: set[str] = set()  # names whose reduction is over all ranks already
        self.batch_size: Callable[[], int] = lambda: 1
        self.paddle_metrics: Callable[[], Mapping[str, Any]] = dict
        """The module's paddle.metric.Metric objects by where they are; their counts are saved and restored with the module's."""

    def look_at(self, batch_size: Callable[[], int], paddle_metrics: Callable[[], Mapping[str, Any]] = dict) -> None:
        """Where the size of the batch at hand and the module's own metrics come from."""
        self.batch_size, self.paddle_metrics = batch_size, paddle_metrics

    def log(
        self,
        name: str,
        value: Any,
        on_step: bool,
        on_epoch: bool,
        prog_bar: bool,
        logger: bool,
        reduce_fx: str | Callable[[list[float]], float],
        batch_size: int | None,
    ) -> None:
        if batch_size is not None and not (isinstance(batch_size, (int, np.integer)) and batch_size >= 1):
            raise ConfigurationError(f"self.log({name!r}, batch_size=...) must be an int >= 1, got {batch_size!r}")
        options = (on_step, on_epoch, prog_bar, logger, reduce_fx)
        series = self._series.get(name)
        if series is None:
            series = self._new_series(name, options)
        elif series.options != options and not self._adopt(series, options):
            raise ConfigurationError(
                f"self.log({name!r}, ...) was called before with other options: (on_step, on_epoch, prog_bar, logger, reduce_fx) were "
                f"{series.options}, now they are {options}. Use one set of options per name, or two names."
            )
        if isinstance(value, _TENSOR):
            if value.shape not in ([], [1]):
                raise ConfigurationError(
                    f"self.log({name!r}, ...) takes a single number, got a tensor of shape {list(value.shape)}. Log its mean or one entry."
                )
            if value.stop_gradient:
                # The caller may go on changing its own tensor in place, a running sum for example.
                value, version = value.clone(), 0
            else:
                # A result of the step, which nothing changes: let go of the graph, and check when it is read. A copy
                # costs five times as much.
                value = value.detach()
                version = value.inplace_version
        else:
            version = 0
            if not isinstance(value, (float, int)):
                value = self._number(series, value)
        if series.pending and not on_epoch:  # of a step's value only the newest is ever asked for
            series.pending[0], series.versions[0] = value, version
            return
        series.pending.append(value)
        series.versions.append(version)
        series.weights.append(batch_size if batch_size is not None else self.batch_size() if on_epoch else 1)
        if len(series.pending) >= PENDING_LIMIT:
            self.read()

    def _new_series(self, name: str, options: tuple[Any, ...]) -> Series:
        if not isinstance(name, str) or not name:
            raise ConfigurationTypeError(f"self.log takes a name first, got {name!r}")
        refuse_taken_names(name)
        reduction = options[4]
        if not callable(reduction) and reduction not in _REDUCTIONS:
            raise ConfigurationError(
                f"self.log({name!r}, reduce_fx=...) must be one of {_REDUCTIONS} or a function, got {reduction!r}"
            )
        series = self._series[name] = Series(name, options, _known(reduction))
        return series

    def _adopt(self, series: Series, options: tuple[Any, ...]) -> bool:
        """Take the function that a restored series is reduced by, which a checkpoint cannot hold."""
        if series.reduction is not None or series.options[:4] != options[:4] or not callable(options[4]):
            return False
        series.options, series.reduction = options, _known(options[4])
        return True

    def _number(self, series: Series, value: Any) -> float:
        if isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
            return float(value.reshape(()))
        if isinstance(value, paddle.metric.Metric):
            series.metric = value
            if series.awaited_metric is not None:
                if all(value is not known for known in self.paddle_metrics().values()):
                    set_numbers(value, series.awaited_metric)
                series.awaited_metric = None
            result = value.accumulate()
            if isinstance(result, (list, tuple)) and len(result) != 1:
                raise ConfigurationError(
                    f"self.log({series.name!r}, metric): {type(value).__name__} gives {len(result)} numbers; log them one by one."
                )
            return float(result[0] if isinstance(result, (list, tuple)) else result)
        raise ConfigurationTypeError(
            f"self.log({series.name!r}, ...) takes a number, a tensor or array with one element, or a paddle.metric.Metric, got {type(value).__name__}"
        )

    def read(self) -> None:
        """Bring every waiting value to the host: one copy for each data type."""
        waiting = [series for series in self._series.values() if series.pending]
        if not waiting:
            return
        for series in waiting:
            for value, version in zip(series.pending, series.versions):
                if isinstance(value, _TENSOR) and value.inplace_version != version:
                    raise ConfigurationError(
                        f"the tensor given to self.log({series.name!r}, ...) was changed in place before it could be "
                        "read. Log a copy: value.detach().clone()."
                    )
        numbers = iter(_to_host(value for series in waiting for value in series.pending))
        for series in waiting:
            for weight in series.weights:
                series.add(next(numbers), weight)
            series.forget_pending()

    def step_values(self, *, prog_bar: bool | None = None, logger: bool | None = None) -> dict[str, float]:
        """The last value of every name logged on steps; forked names end in `_step`."""
        self.read()
        values: dict[str, float] = {}
        for name, series in self._series.items():
            on_step, on_epoch, in_bar, in_logger, _ = series.options
            if on_step and series.last is not None and prog_bar in (None, in_bar) and logger in (None, in_logger):
                values[f"{name}_step" if on_epoch else name] = MetricValue(series.last)
        return values

    def epoch_values(self, *, prog_bar: bool | None = None, logger: bool | None = None) -> dict[str, float]:
        """The reduction of every name logged on epochs; forked names end in `_epoch`."""
        self.read()
        values: dict[str, float] = {}
        for name, series in self._series.items():
            on_step, on_epoch, in_bar, in_logger, _ = series.options
            if on_epoch and prog_bar in (None, in_bar) and logger in (None, in_logger):
                result = series.result()
                if result is not None:
                    values[f"{name}_epoch" if on_step else name] = MetricValue(result)
        return values

    def callback_values(self, *, epoch_end: bool) -> dict[str, float]:
        """What callbacks may monitor: the plain name, and both forks of a forked one."""
        values = self.step_values()
        if epoch_end:
            values.update(self.epoch_values())
        for name, series in self._series.items():
            if series.options[0] and series.options[1]:
                fork = f"{name}_epoch" if epoch_end else f"{name}_step"
                if fork in values:
                    values[name] = values[fork]
        return values

    def reduce_over(self, gather: Callable[[Any], list[Any]]) -> None:
        """Replace every epoch reduction by that over all ranks, each once an epoch; every rank must call it.

        A rank that has not logged a name, for want of batches, takes what the others logged. Paddle's own metrics are
        taken from the counts of all ranks; a class of the user's own stays each rank's.
        """
        self.read()
        mine = {
            name: {"options": (*series.options[:4], series.reduction), **series.state_dict()}
            for name, series in self._series.items()
            if series.options[1] and name not in self._reduced
        }
        for state in mine.values():
            if callable(state["options"][4]):  # it may not travel to another process
                state["options"] = None
        everyones = gather(mine)
        names = dict.fromkeys(name for theirs in everyones for name in theirs if name not in self._reduced)
        self._reduced.update(names)
        for name in names:
            states = [theirs[name] for theirs in everyones if name in theirs]
            series = self._series.get(name)
            if series is None:
                options = states[0]["options"]
                if options is None or states[0]["metric"] is not None:
                    continue  # a function, or an object, that is not here
                series = self._series[name] = Series(name, options, options[4])
            if series.metric is not None:
                if all(state["metric"] is not None for state in states):
                    series.over_ranks = _over_all(series.metric, [state["metric"] for state in states])
                continue
            series.clear()
            for state in states:
                series.weight += state["weight"]
                series.values += state["values"]
                if series.reduction in ("mean", "sum"):
                    series.reduced += state["reduced"]
                elif callable(series.reduction):
                    pass
                elif state["reduced"] != state["reduced"]:
                    series.reduced = state["reduced"]
                else:
                    series.reduced = (min if series.reduction == "min" else max)(series.reduced, state["reduced"])

    def clear(self) -> None:
        """Begin a new epoch: reductions go, options and paddle metrics' objects stay."""
        self._reduced.clear()
        for series in self._series.values():
            series.clear()
            if series.metric is not None:
                series.metric.reset()

    def copy(self) -> MetricCollector:
        """The collector as it is now; see `Series.copy`."""
        copied = MetricCollector()
        copied.batch_size, copied.paddle_metrics = self.batch_size, self.paddle_metrics
        copied._series = {name: series.copy() for name, series in self._series.items()}
        copied._reduced = set(self._reduced)
        return copied

    def state_dict(self, *, epoch_is_over: bool = False) -> dict[str, Any]:
        """`epoch_is_over` says that nothing may be logged any more in this epoch, so results of functions are kept too."""
        self.read()
        places = {id(metric): place for place, metric in self.paddle_metrics().items()}
        return {
            name: {
                "options": [*series.options[:4], series.options[4] if isinstance(series.options[4], str) else None],
                "metric_place": places.get(id(series.metric)),
                "over_all_ranks": name in self._reduced,
                "result": series.result() if epoch_is_over else None,
                **series.state_dict(),
            }
            for name, series in self._series.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Call it when the module's paddle metrics are restored."""
        self._series.clear()
        self._reduced = {name for name, saved in state.items() if saved["over_all_ranks"]}
        metrics = self.paddle_metrics()
        for name, saved in state.items():
            reduction = saved["options"][4]
            series = self._series[name] = Series(name, tuple(saved["options"]), reduction)
            series.load_state_dict(saved)
            series.saved_result = saved["result"]
            series.metric = metrics.get(saved["metric_place"])
            if series.metric is None:
                series.awaited_metric = saved["metric"]


def _known(reduction: Any) -> Any:
    """paddle.mean and friends are what a Lightning user passes; their names are exact and cheaper."""
    name = getattr(reduction, "__name__", "")
    return name if callable(reduction) and name in _REDUCTIONS else reduction


def paddle_metrics_of(module: paddle.nn.Layer) -> dict[str, paddle.metric.Metric]:
    """{where: object} of every paddle.metric.Metric that is an attribute of the module or a sublayer, or in a list or dict there."""
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


def _to_host(values: Iterable[Any]) -> list[float]:
    everything = list(values)
    if len(everything) == 1 and isinstance(everything[0], _TENSOR):
        return [float(everything[0].item())]
    by_dtype: dict[Any, list[int]] = {}
    for position, value in enumerate(everything):
        if isinstance(value, _TENSOR):
            by_dtype.setdefault(value.dtype, []).append(position)
    for dtype, positions in by_dtype.items():
        with paddle.no_grad():
            stacked = paddle.stack(
                [
                    everything[position].reshape([]) if everything[position].shape else everything[position]
                    for position in positions
                ]
            )
            if dtype == paddle.bfloat16:
                stacked = stacked.astype("float32")  # NumPy has no bfloat16
        for position, number in zip(positions, stacked.numpy().tolist()):
            everything[position] = number
    return [float(value) for value in everything]


def numbers_of(metric: Any) -> dict[str, Any]:
    """A copy of a paddle.metric.Metric's running counts: its attributes that are numbers, arrays or lists of them."""
    plain = (int, float, np.generic, np.ndarray)
    return {
        key: copy.copy(value)
        for key, value in vars(metric).items()
        if isinstance(value, plain) or (isinstance(value, list) and all(isinstance(item, plain) for item in value))
    }


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


def set_numbers(metric: Any, numbers: Mapping[str, Any]) -> None:
    """Put back what `numbers_of` gave."""
    vars(metric).update({key: copy.copy(value) for key, value in numbers.items()})
