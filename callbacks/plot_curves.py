"""PlotCurves: a picture of a run's metrics and learning rates in its directory."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments

_STAGES = re.compile(r"^(train|val|valid|validation|test)[_/]|_(epoch|step)$")
_COLOURS = {"train": "#4c72b0", "val": "#dd8452"}
_OTHER_COLOURS = ("#55a868", "#8172b3", "#c44e52", "#937860", "#64b5cd", "#8c8c8c")


class PlotCurves(Callback):
    """Draws the history, one value per epoch, as `curves.png` in the run directory when the fit ends.

    One panel for each quantity: `train_loss` and `val_loss` share the panel `loss`; learning rates have a panel of
    their own with a logarithmic axis where they span more than a decade.
    Needs matplotlib (`pip install 'paddlelite_trainer[plot]'`).

    Args:
        filename: the picture in the run directory; its suffix says the format.
        every_n_epochs: also draw it while the run goes on.

    Raises:
        ConfigurationError: every_n_epochs is below 1.
    """

    @explains_unknown_arguments({})
    def __init__(self, filename: str = "curves.png", every_n_epochs: int | None = None) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ConfigurationError(f"PlotCurves(every_n_epochs=...) must be >= 1, got {every_n_epochs!r}")
        self.filename = filename
        self.every_n_epochs = every_n_epochs

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        import importlib.util

        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigurationError(
                "PlotCurves draws with matplotlib, which is not installed: pip install 'paddlelite_trainer[plot]'"
            )

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if self.every_n_epochs and trainer.current_epoch and trainer.current_epoch % self.every_n_epochs == 0:
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if trainer.run_dir is None or not trainer.is_global_zero or not trainer.history:
            return
        try:
            plot_curves(trainer.history, trainer.run_dir / self.filename, title=trainer.run_dir.name)
        except OSError as error:
            warnings.warn(f"PlotCurves: no picture was written: {error}", stacklevel=2)


def plot_curves(history: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Write a PNG of a trainer's history to path."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = _panels(history)
    if not panels:
        return
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (quantity, names) in zip(axes.flat, panels.items()):
        axis.set_prop_cycle(color=_OTHER_COLOURS)
        for name in names:
            points = [(record["epoch"] + 1, record[name]) for record in history if name in record]
            colour = next((colour for stage, colour in _COLOURS.items() if name.startswith(stage)), None)
            marker = "o" if len(points) <= 40 else None
            axis.plot(*zip(*points), marker=marker, markersize=3, label=name, color=colour)
        axis.set_title(quantity if len(names) > 1 or _is_rate(quantity) else names[0], fontsize=11)
        axis.set_xlabel("epochs")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axis.legend(frameon=False)
        if _is_rate(quantity) and _spans_a_decade(
            [record[name] for name in names for record in history if name in record]
        ):
            axis.set_yscale("log")
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=120)


def _panels(history: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{quantity: names}, learning rates last."""
    names = dict.fromkeys(
        name
        for record in history
        for name, value in record.items()
        if name not in ("epoch", "step") and isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    forked = {name for name in names if f"{name}_epoch" in names}  # the plain name and its `_epoch` fork are one curve
    panels: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (_is_rate(name), list(names).index(name))):
        if name.endswith("_step") or (name.endswith("_epoch") and name[: -len("_epoch")] in forked):
            continue
        quantity = "learning rate" if _is_rate(name) else _STAGES.sub("", name)
        panels.setdefault(quantity, []).append(name)
    return panels


def _is_rate(name: str) -> bool:
    return name == "learning rate" or bool(re.match(r"lr($|[-/])", name))


def _spans_a_decade(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 10
