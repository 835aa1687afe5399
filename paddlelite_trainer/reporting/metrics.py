"""What `self.log()` collects: values kept on the device until somebody looks, and their means over an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, ConfigurationTypeError
from .paddle_metrics import PaddleMetricSeries, Result, results_by_name
from .paddle_metrics import counts_added_up as counts_added_up
from .paddle_metrics import counts_of as counts_of
from .paddle_metrics import paddle_metrics_of as paddle_metrics_of
from .paddle_metrics import set_counts as set_counts
from .paddle_metrics import stored_counts as stored_counts
from .series import REDUCTIONS, Options, Series
from .series import MetricValue as MetricValue

PENDING_LIMIT = 512
"""Values a series holds on the device before they are read: bounds memory when nobody looks for long."""

_TENSOR = paddle.Tensor


def refuse_taken_names(*names: str) -> None:
    """Raise ConfigurationError for a metric's name that every row of the logs has already."""
    for name in names:
        if name in ("step", "epoch"):
            raise ConfigurationError(
                f"a metric cannot be named {name!r}: "
                f"every row of the logs has the trainer's own {name} under that name. Choose another."
            )


def forked(name: str, kind: str) -> str:
    """`name` with `_step` or `_epoch`, which stand before a loader's suffix."""
    own, mark, loader = name.partition("/dataloader_idx_")
    return f"{own}_{kind}{mark}{loader}"


NOT_COMPILED = (
    "self.log({!r}, ...) is in a forward that is being compiled, where nothing has a value: log in the step, of what "
    "forward returns"
)


class MetricCollector:
    """All that a stage logged since the epoch began. Only `Module.log` adds to it; Trainer reads and clears it."""

    def __init__(self, series: Mapping[str, Series] | None = None, reduced: Iterable[str] = ()) -> None:
        self._series = dict(series or {})
        self._reduced = set(reduced)  # names whose reduction is over all ranks already
        self.batch_size: Callable[[], int] = lambda: 1
        self.paddle_metrics: Callable[[], Mapping[str, Any]] = dict
        """The module's paddle.metric.Metric objects by where they are; their counts are saved with the module."""
        self.elsewhere: Callable[[], Iterable[Series]] = tuple
        """What other stages of the run have logged: a paddle.metric.Metric counts for one of them only."""

    def keep_apart_from(self, elsewhere: Callable[[], Iterable[Series]]) -> None:
        self.elsewhere = elsewhere

    def series(self) -> Iterable[Series]:
        return self._series.values()

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let `log` be timed."""
        self.log = timed("self.log", self.log)  # type: ignore[method-assign]

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
        if not paddle.in_dynamic_mode():
            raise ConfigurationError(NOT_COMPILED.format(name))
        if batch_size is not None and not (isinstance(batch_size, (int, np.integer)) and batch_size >= 1):
            raise ConfigurationError(f"self.log({name!r}, batch_size=...) must be an int >= 1, got {batch_size!r}")
        options = (on_step, on_epoch, prog_bar, logger, reduce_fx)
        series = self._series.get(name)
        if series is None:
            series = self._new_series(name, options)
        elif series.options != options and not series.adopt(options):
            raise ConfigurationError(
                f"self.log({name!r}, ...) was called before with other options: "
                "(on_step, on_epoch, prog_bar, logger, reduce_fx) were "
                f"{series.options}, now they are {options}. Use one set of options per name, or two names."
            )
        if isinstance(value, _TENSOR):
            if value.shape not in ([], [1]):
                raise ConfigurationError(
                    f"self.log({name!r}, ...) takes a single number, got a tensor of shape {list(value.shape)}. "
                    "Log its mean or one entry."
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
            if isinstance(value, (float, int)):
                pass
            elif isinstance(value, (paddle.metric.Metric, Result)):
                value = self._ask(name, series, value, options, batch_size)
                if value is None:  # each of its results was logged
                    return
                series = self._series[name]
            else:
                value = _number(name, value)
        if series.pending and not on_epoch:  # of a step's value only the newest is ever asked for
            series.pending[0], series.versions[0] = value, version
            return
        series.pending.append(value)
        series.versions.append(version)
        series.weights.append(batch_size if batch_size is not None else self.batch_size() if on_epoch else 1)
        if len(series.pending) >= PENDING_LIMIT:
            self.read()

    def _ask(self, name: str, series: Series, value: Any, options: Options, batch_size: int | None) -> float | None:
        """What a paddle.metric.Metric, or one of its results, gives now; each of several is logged by its own name."""
        if not isinstance(value, Result):
            several = results_by_name(name, value)
            if several and series.is_unused:
                del self._series[name]
            for own_name, result in several.items():
                self.log(own_name, result, *(*options, batch_size))
            if several:
                return None
            value = Result(value, 0)
        if not isinstance(series, PaddleMetricSeries):
            series = self._series[name] = PaddleMetricSeries.instead_of(series)
        if series.metric is not value.metric:
            series.refuse_if_counted_in(self._series.values(), value.metric, "")
            series.refuse_if_counted_in(self.elsewhere(), value.metric, "in another stage of this run ")
        return series.ask(value.metric, value.index, self.paddle_metrics)

    def _new_series(self, name: str, options: Options) -> Series:
        if not isinstance(name, str) or not name:
            raise ConfigurationTypeError(f"self.log takes a name first, got {name!r}")
        refuse_taken_names(name)
        if not (options[0] or options[1]):
            raise ConfigurationError(
                f"self.log({name!r}, on_step=False, on_epoch=False) keeps nothing: have one of them on, or no call"
            )
        reduction = options[4]
        if not callable(reduction) and reduction not in REDUCTIONS:
            raise ConfigurationError(
                f"self.log({name!r}, reduce_fx=...) must be one of {REDUCTIONS} or a function, got {reduction!r}"
            )
        series = self._series[name] = Series(name, options)
        return series

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
            if on_step and prog_bar in (None, in_bar) and logger in (None, in_logger):
                newest = series.newest()
                if newest is not None:
                    values[forked(name, "step") if on_epoch else name] = newest
        return values

    def epoch_values(self, *, prog_bar: bool | None = None, logger: bool | None = None) -> dict[str, float]:
        """The reduction of every name logged on epochs; forked names end in `_epoch`."""
        self.read()
        values: dict[str, float] = {}
        for name, series in self._series.items():
            on_step, on_epoch, in_bar, in_logger, _ = series.options
            if on_epoch and prog_bar in (None, in_bar) and logger in (None, in_logger):
                total = series.total()
                if total is not None:
                    values[forked(name, "epoch") if on_step else name] = total
        return values

    def callback_values(self, *, epoch_end: bool) -> dict[str, float]:
        """What callbacks may monitor: the plain name, and both forks of a forked one."""
        values = self.step_values()
        if epoch_end:
            values.update(self.epoch_values())
        for name, series in self._series.items():
            if series.options[0] and series.options[1]:
                fork = forked(name, "epoch" if epoch_end else "step")
                if fork in values:
                    values[name] = values[fork]
        return values

    def names_of_epochs(self) -> dict[str, str]:
        """{each name that an epoch's value has: the name that was logged}."""
        names = {name: name for name, series in self._series.items() if series.options[1]}
        forks = {forked(name, "epoch"): name for name in names if self._series[name].options[0]}
        return {**names, **forks}

    def amounts(self) -> dict[str, float]:
        """How much was logged under each name; it grows with every value."""
        self.read()
        return {name: series.weight for name, series in self._series.items()}

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
                series = self._series[name] = Series(name, options)
            series.reduce_over(states)

    def clear(self) -> None:
        """Begin a new epoch: reductions go, options and paddle metrics' objects stay."""
        self._reduced.clear()
        for series in self._series.values():
            series.clear()

    def copy(self) -> MetricCollector:
        """The collector as it is now; values on the device and paddle metrics' counts are shared."""
        copied = MetricCollector({name: series.copy() for name, series in self._series.items()}, self._reduced)
        copied.look_at(self.batch_size, self.paddle_metrics)
        copied.keep_apart_from(self.elsewhere)
        return copied

    def become(self, other: MetricCollector) -> None:
        """Hold what another holds."""
        vars(self).update(vars(other.copy()))

    def state_dict(self, *, epoch_is_over: bool = False) -> dict[str, Any]:
        """`epoch_is_over` says that no more is logged in this epoch, so results of functions are kept too."""
        self.read()
        places = {id(metric): place for place, metric in self.paddle_metrics().items()}
        return {
            name: {
                "options": [*series.options[:4], series.options[4] if isinstance(series.options[4], str) else None],
                "metric_place": places.get(id(series.metric)) if isinstance(series, PaddleMetricSeries) else None,
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
            metric, options = metrics.get(saved["metric_place"]), tuple(saved["options"])
            if metric is None and saved["metric"] is None:
                series = Series(name, options)
            else:
                series = PaddleMetricSeries(name, options)
                series.belongs_to(metric, saved["metric"] if metric is None else None)
            series.load_state_dict(saved)
            self._series[name] = series


def dealt_again(states: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """What a rank's collector is to load where another number of ranks had saved theirs.

    Rank 0 has the sums of all, and the others begin with none; but what was taken over all ranks already each has.
    """
    dealt: dict[str, Any] = {}
    own = states[rank % len(states)]
    for name in dict.fromkeys(name for state in states for name in state):
        mine = [state[name] for state in states if name in state]
        base = own.get(name, mine[0])
        dealt[name] = base
        if not base["over_all_ranks"]:
            series = Series(name, tuple(base["options"]))
            if rank == 0:
                series.reduce_over(mine)
            values = {key: series.state_dict()[key] for key in ("reduced", "weight", "values")}
            counted = base["metric"] if rank < len(states) else None
            dealt[name] = {**base, **values, "metric": counted}
    return dealt


def _number(name: str, value: Any) -> float:
    if isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
        return float(value.reshape(()))
    raise ConfigurationTypeError(
        f"self.log({name!r}, ...) takes a number, a tensor or array with one element, or a paddle.metric.Metric, "
        f"got {type(value).__name__}"
    )


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
