"""LRFinderResult: learning rates that were tried, the loss at each, and which of them to take."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field


@dataclass
class LRFinderResult:
    """Learning rates tried and the smoothed loss at each; what `Tuner.lr_find` returns.

    Args:
        learning_rates: in the order in which they were tried.
        losses: smoothed, one for each.
    """

    learning_rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def results(self) -> dict[str, list[float]]:
        """Lightning's form: {"lr": [...], "loss": [...]}."""
        return {"lr": self.learning_rates, "loss": self.losses}

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The rate at which the loss falls most steeply over its logarithm; None from too few or no finite losses."""
        end = len(self.losses) - skip_end
        points = [
            (math.log(rate), loss, rate)
            for rate, loss in list(zip(self.learning_rates, self.losses))[skip_begin:end]
            if math.isfinite(loss)
        ]
        if len(points) < 3:
            return None
        slopes = [
            ((after[1] - before[1]) / (after[0] - before[0]), here[2])
            for before, here, after in zip(points, points[1:], points[2:])
        ]
        return min(slopes)[1]

    def plot(self, path: str | os.PathLike[str], *, suggest: bool = True) -> None:
        """Draw loss over learning rate into a picture file, with the suggestion marked; needs matplotlib."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(self.learning_rates, self.losses)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title="Learning rate range test")
        rate = self.suggestion() if suggest else None
        if rate is not None:
            axes.plot(
                rate, self.losses[self.learning_rates.index(rate)], "o", color="red", label=f"suggestion {rate:.2e}"
            )
            axes.legend()
        figure.savefig(path)
