"""ModelSummary: a table of layers and their parameters before the first batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callback import table
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments


@dataclass(frozen=True)
class LayerSummary:
    """One layer: its parameters and those of all layers inside it."""

    name: str
    type: str
    parameters: int
    trainable: int


@dataclass(frozen=True)
class Summary:
    """A module's layers and its totals, in which a shared parameter counts once."""

    layers: list[LayerSummary]
    trainable: int
    non_trainable: int
    megabytes: float
    has_shared: bool

    @property
    def parameters(self) -> int:
        return self.trainable + self.non_trainable


class ModelSummary(Callback):
    """Prints layers, types and parameters down to `max_depth` (-1: all, 0: only the totals).

    Running statistics of normalisation layers are parameters in Paddle, not trained ones.
    """

    @explains_unknown_arguments({})
    def __init__(self, max_depth: int = 1) -> None:
        if type(max_depth) is not int or max_depth < -1:
            raise ConfigurationError(f"ModelSummary(max_depth=...) must be an integer >= -1, got {max_depth!r}")
        self.max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.is_global_zero:
            summary = summarize(module, self.max_depth)
            if summary.layers:
                trainer.print(_lines(summary))
            trainer.print(_totals(summary))


def summarize(module: Any, max_depth: int = 1) -> Summary:
    """The summary of any paddle Layer."""
    layers = []
    for name, layer in module.named_sublayers():
        depth = name.count(".") + 1
        if max_depth < 0 or depth <= max_depth:
            parameters = list(_unique(layer))
            layers.append(
                LayerSummary(name, type(layer).__name__, _count(parameters), _count(parameters, trained=True))
            )
    everything = list(_unique(module))
    trainable = _count(everything, trained=True)
    named = [
        parameter
        for layer in module.sublayers(include_self=True)
        for parameter in layer.parameters(include_sublayers=False)
    ]
    return Summary(
        layers=layers,
        trainable=trainable,
        non_trainable=_count(everything) - trainable,
        megabytes=sum(int(parameter.size) * parameter.element_size() for parameter in everything) / 1e6,
        has_shared=len({id(parameter) for parameter in named}) < len(named),
    )


def _unique(layer: Any) -> Iterator[Any]:
    return iter({id(parameter): parameter for parameter in layer.parameters()}.values())


def _count(parameters: list[Any], trained: bool = False) -> int:
    return sum(int(parameter.size) for parameter in parameters if not (trained and parameter.stop_gradient))


def _lines(summary: Summary) -> str:
    rows = []
    for layer in summary.layers:
        share = "all" if layer.trainable == layer.parameters else f"{layer.trainable:,}" if layer.trainable else "none"
        rows.append([layer.name, layer.type, f"{layer.parameters:,}", share if layer.parameters else ""])
    lines: list[str] = []
    table(["layer", "type", "parameters", "trained"], rows, right=(2, 3), write=lines.append)
    return "".join(lines).rstrip("\n")


def _totals(summary: Summary) -> str:
    text = f"{summary.parameters:,} parameters, {summary.megabytes:.3g} MB"
    if summary.non_trainable:
        text += f": {summary.trainable:,} trained, {summary.non_trainable:,} not"
    return text + ("; shared ones counted once" if summary.has_shared else "")
