"""ModelSummary: a table of layers and their parameters before the first batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callback import table
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments
from paddlelite_trainer.layers import undisturbed

from .forward_costs import ForwardCosts


@dataclass(frozen=True)
class LayerSummary:
    """One layer: its parameters and those of all layers inside it."""

    name: str
    type: str
    parameters: int
    trainable: int
    input_shape: list[int] | None = None
    """Of its first Tensor; the shapes and operations are None where no forward was seen."""
    output_shape: list[int] | None = None
    flops: int | None = None
    """Floating-point operations of the forward, of all layers inside it; see forward_costs.py for what counts."""


@dataclass(frozen=True)
class Summary:
    """A module's layers and its totals, in which a shared parameter counts once."""

    layers: list[LayerSummary]
    trainable: int
    non_trainable: int
    megabytes: float
    has_shared: bool
    flops: int | None = None
    batch_size: int | None = None

    @property
    def parameters(self) -> int:
        return self.trainable + self.non_trainable


class ModelSummary(Callback):
    """Prints layers, types and parameters down to `max_depth` (-1: all, 0: only the totals).

    Where the module has an `example_input_array`, a Tensor or a tuple of forward's arguments, shapes and floating-point
    operations too: forward is called with it once, apart from the run. With `shapes=True` and no such example it is the
    run's own first batch that is looked at while it passes, and the table comes after it. Neither changes a number of
    the run. With `shapes=False` there are none.

    Running statistics of normalisation layers are parameters in Paddle, not trained ones.

    Args:
        max_depth: how deep layers are listed; -1: all, 0: only the totals.
        shapes: of the first batch where there is no example (True), none (False); None: where there is an example.

    Raises:
        ConfigurationError: max_depth is below -1.
    """

    @explains_unknown_arguments({})
    def __init__(self, max_depth: int = 1, *, shapes: bool | None = None) -> None:
        if type(max_depth) is not int or max_depth < -1:
            raise ConfigurationError(f"ModelSummary(max_depth=...) must be an integer >= -1, got {max_depth!r}")
        self.max_depth, self.shapes = max_depth, shapes
        self._costs: ForwardCosts | None = None

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if not trainer.is_global_zero:
            return
        example = getattr(module, "example_input_array", None)
        if self.shapes is False or (example is None and not self.shapes):
            self._print(trainer, summarize(module, self.max_depth))
        elif example is not None:
            self._print(trainer, summarize(module, self.max_depth, example))
        elif trainer.compile:
            trainer.print("ModelSummary: what is compiled cannot be looked at; set self.example_input_array")
            self._print(trainer, summarize(module, self.max_depth))
        else:
            self._costs = ForwardCosts(module)

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._tell(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._tell(trainer, module)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._costs is not None:
            self._costs.end()
        self._costs = None

    def _tell(self, trainer: Trainer, module: Module) -> None:
        costs, self._costs = self._costs, None
        if costs is not None:
            costs.end()
            self._print(trainer, _summary(module, self.max_depth, costs))

    @staticmethod
    def _print(trainer: Trainer, summary: Summary) -> None:
        if summary.layers:
            trainer.print(_lines(summary))
        trainer.print(_totals(summary))


def summarize(module: Any, max_depth: int = 1, input_data: Any = None) -> Summary:
    """The summary of any paddle Layer; with `input_data`, a Tensor or a tuple of forward's arguments, its shapes and
    operations too, for which forward is called once in eval mode; nothing of the layer or of random numbers changes."""
    if input_data is None:
        return _summary(module, max_depth, None)
    with undisturbed(module):
        costs = ForwardCosts(module)
        try:
            arguments = input_data if isinstance(input_data, (list, tuple)) else (input_data,)
            module(*arguments)
        finally:
            costs.end()
    return _summary(module, max_depth, costs)


def _summary(module: Any, max_depth: int, costs: ForwardCosts | None) -> Summary:
    layers = []
    for name, layer in module.named_sublayers():
        depth = name.count(".") + 1
        if max_depth < 0 or depth <= max_depth:
            parameters = list(_unique(layer))
            seen = (costs.inputs.get(name), costs.outputs.get(name), costs.of(name)) if costs else ()
            trained = _count(parameters, trained=True)
            layers.append(LayerSummary(name, type(layer).__name__, _count(parameters), trained, *seen))
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
        flops=costs.of("") if costs else None,
        batch_size=costs.batch_size if costs else None,
    )


def _unique(layer: Any) -> Iterator[Any]:
    return iter({id(parameter): parameter for parameter in layer.parameters()}.values())


def _count(parameters: list[Any], trained: bool = False) -> int:
    return sum(int(parameter.size) for parameter in parameters if not (trained and parameter.stop_gradient))


def _lines(summary: Summary) -> str:
    rows = []
    for layer in summary.layers:
        share = "all" if layer.trainable == layer.parameters else f"{layer.trainable:,}" if layer.trainable else "none"
        row = [layer.name, layer.type, f"{layer.parameters:,}", share if layer.parameters else ""]
        if summary.flops is not None:
            row += [_shape(layer.input_shape), _shape(layer.output_shape), _operations(layer.flops)]
        rows.append(row)
    lines: list[str] = []
    heads, right = ["layer", "type", "parameters", "trained"], [2, 3]
    if summary.flops is not None:
        heads, right = [*heads, "in", "out", "FLOPs"], [*right, 6]
    table(heads, rows, right=right, write=lines.append)
    return "".join(lines).rstrip("\n")


def _totals(summary: Summary) -> str:
    text = f"{summary.parameters:,} parameters, {summary.megabytes:.3g} MB"
    if summary.non_trainable:
        text += f": {summary.trainable:,} trained, {summary.non_trainable:,} not"
    text += "; shared ones counted once" if summary.has_shared else ""
    if summary.flops:
        whole, batch = _operations(summary.flops), summary.batch_size
        a_sample = f", {_operations(summary.flops / batch)} a sample" if batch and batch > 1 else ""
        text += f"\nforward of a batch of {batch}: {whole} FLOPs{a_sample}; products in layers of paddle.nn, 2 each"
    return text


def _shape(shape: list[int] | None) -> str:
    return "x".join(map(str, shape)) if shape else ""


def _operations(count: float | None) -> str:
    for word, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count and count >= size:
            return f"{count / size:.3g}{word}"
    return f"{count:.0f}" if count else ""
