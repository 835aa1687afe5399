"""One logged name of one stage: what waits to be read, and the reduction so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

REDUCTIONS = ("mean", "sum", "min", "max")

S = TypeVar("S", bound="Series")

Options = tuple[Any, ...]
"""(on_step, on_epoch, prog_bar, logger, reduce_fx), as self.log was given them."""


class MetricValue(float):
    """A float that also answers `.item()`, as the tensors in Lightning's `callback_metrics` do.

    Each is one evaluation: two of one name are the same object as long as nothing new was logged.
    """

    __slots__ = ()

    def item(self) -> float:
        return float(self)


class Series:
    """The values logged under one name. Only MetricCollector writes it; `pending`, `weights`, `versions` go together.

    Sums run in float64, value by value in the order logged, so it does not matter when the values were read.
    """

    __slots__ = (
        *("name", "options", "reduction", "saved_result"),
        *("pending", "weights", "versions"),
        *("last", "reduced", "weight", "values"),
        *("_newest", "_total"),
    )

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self.options = options
        # None: a function, as the checkpoint says; `adopt` is told which, and until then there is only saved_result.
        self.reduction: str | Callable[[list[float]], float] | None = _known(options[4])
        self.saved_result: float | None = None
        self.pending: list[Any] = []
        self.weights: list[float] = []
        self.versions: list[int] = []  # of pending tensors, to find those changed in place after they were logged
        self.last: float | None = None
        self._newest: MetricValue | None = None
        self.clear()

    def clear(self) -> None:
        """Begin a new epoch."""
        self.reduced = {"min": math.inf, "max": -math.inf}.get(str(self.reduction), 0.0)
        self.weight = 0.0
        self.values: list[float] = []
        self._total: MetricValue | None = None
        self.forget_pending()

    def forget_pending(self) -> None:
        self.pending.clear()
        self.weights.clear()
        self.versions.clear()

    def adopt(self, options: Options) -> bool:
        """Take the function that a restored series is reduced by: no checkpoint holds it. False where others differ."""
        if self.reduction is not None or self.options[:4] != options[:4] or not callable(options[4]):
            return False
        self.options, self.reduction = options, _known(options[4])
        return True

    def add(self, value: float, weight: float) -> None:
        """A value has been read."""
        self.last = value
        self._newest = self._total = None
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

    @property
    def is_unused(self) -> bool:
        """Whether nothing was ever logged under its name."""
        return self.last is None and not self.pending

    def newest(self) -> MetricValue | None:
        """The last value, one object until the next one is added."""
        if self._newest is None and self.last is not None:
            self._newest = MetricValue(self.last)
        return self._newest

    def total(self) -> MetricValue | None:
        """The result, one object until more is added or it becomes another."""
        result = self.result()
        if result is None:
            return None
        before = self._total
        if before is None or not (before == result or (before != before and result != result)):
            self._total = MetricValue(result)
        return self._total

    def result(self) -> float | None:
        """The reduction of all that was added; None where nothing was."""
        if self.reduction is None:
            return self.saved_result
        if self.weight == 0.0:
            return None
        if self.reduction == "mean":
            return self.reduced / self.weight
        if callable(self.reduction):
            return float(self.reduction(self.values))
        return self.reduced

    def reduce_over(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Become what all ranks have added, from the `state_dict` of each."""
        self.clear()
        for state in states:
            self.weight += state["weight"]
            self.values += state["values"]
            if self.reduction in ("mean", "sum"):
                self.reduced += state["reduced"]
            elif callable(self.reduction):
                pass
            elif state["reduced"] != state["reduced"]:
                self.reduced = state["reduced"]
            else:
                self.reduced = (min if self.reduction == "min" else max)(self.reduced, state["reduced"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "reduced": self.reduced,
            "weight": self.weight,
            "values": self.values,
            "last": self.last,
            "metric": None,  # what a paddle.metric.Metric has counted
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reduced, self.weight = state["reduced"], state["weight"]
        self.values, self.last = list(state["values"]), state["last"]
        self.saved_result = state["result"]
        self._newest = self._total = None

    def copy(self: S) -> S:
        """The series as it is now; values on the device are shared."""
        copied = type(self)(self.name, self.options)
        copied.take_over(self)
        return copied

    def take_over(self, other: Series) -> None:
        """Be what another series is."""
        for slot in Series.__slots__:
            value = getattr(other, slot)
            setattr(self, slot, list(value) if isinstance(value, list) else value)


def _known(reduction: Any) -> Any:
    """paddle.mean and friends are what a Lightning user passes; their names are exact and cheaper."""
    name = getattr(reduction, "__name__", "")
    return name if callable(reduction) and name in REDUCTIONS else reduction
