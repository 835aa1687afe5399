"""Example: what a network is exported and tried with: a call of its forward, and the shapes that a program accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, ConfigurationTypeError, ExportError
from ..forward_inputs import Call, kept, named_tensors
from ..machine.trees import leaves, mapped

MADE_UP_BATCH, MADE_UP_SIZE = 2, 16
"""Sizes of axes that nobody has told, for a trial with made-up numbers."""


@dataclass(frozen=True)
class Example:
    """A call of forward, its Tensors' names and the shapes, with None for any size, in the order of `tensors`."""

    call: Call
    names: list[str]
    shapes: list[list[int | None]]
    origin: str
    """Where the numbers are from, as people are told."""

    @property
    def tensors(self) -> list[Any]:
        return self.call.tensors

    def with_tensors(self, tensors: Iterator[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of forward, with other Tensors in these places."""

        def exchanged(leaf: Any) -> Any:
            return next(tensors) if isinstance(leaf, paddle.Tensor) else leaf

        return mapped(exchanged, self.call.args), mapped(exchanged, self.call.kwargs)

    def of_another_size(self) -> list[Any] | None:
        """The Tensors for a batch of another size; None where no axis is free or there is nothing to cut or double."""
        size = self.call.batch_size
        if size is None or not any(shape and shape[0] is None for shape in self.shapes):
            return None
        tensors = []
        for tensor, shape in zip(self.tensors, self.shapes):
            if not shape or shape[0] is not None:
                tensors.append(tensor)
            else:
                tensors.append(tensor[: size // 2] if size > 1 else paddle.concat([tensor, tensor]))
        return tensors


def example_of(module: Any, input_spec: Any, batch: Any) -> Example:
    """What to export with: what was given, else a call that was seen, else what a checkpoint tells of one.

    Raises:
        ConfigurationError: nothing is known of the input.
    """
    if input_spec is not None:
        return _of_spec(module, input_spec)
    if batch is not None:
        return _of_batch(module, batch)
    seen = module.forward_inputs
    if seen.call is not None:
        return _example(module, seen.call, "a batch of the run")
    given = getattr(module, "example_input_array", None)
    if given is not None:
        return _of_spec(module, given)
    if seen.described is not None:
        return _of_description(module, seen.described)
    raise ConfigurationError(
        f"nothing is known of the input of {type(module).__name__}.forward, which was not called in a run of this "
        "module. Pass input_spec=[paddle.static.InputSpec([None, 3, 224, 224], 'float32', 'image')], or example "
        "Tensors in its place, or batch=, a batch as predict_step takes it"
    )


def _example(module: Any, call: Call, origin: str, shapes: list[list[int | None]] | None = None) -> Example:
    by_name = {id(value): name for name, value in named_tensors(module.forward, call).items()}
    if shapes is None:
        shapes = [_with_free_batch(tensor, call.batch_size) for tensor in call.tensors]
    return Example(call, [by_name[id(tensor)] for tensor in call.tensors], shapes, origin)


def _with_free_batch(tensor: Any, batch_size: int | None) -> list[int | None]:
    shape: list[int | None] = [int(size) for size in tensor.shape]
    if shape and shape[0] == batch_size:
        shape[0] = None
    return shape


def _of_batch(module: Any, batch: Any) -> Example:
    """The call that predict_step makes for a batch."""
    from ..forward_inputs import ForwardInputs

    inputs = ForwardInputs()
    end = inputs.watch(module)
    try:
        with paddle.no_grad():
            module.predict_step(batch, 0)
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__}.predict_step fails with the batch= given: {type(error).__name__}: {error}"
        ) from error
    finally:
        end()
    if inputs.call is None:
        raise ConfigurationError(
            f"{type(module).__name__}.predict_step does not call self(...) for batch=, so the input of forward is "
            "not known: pass input_spec="
        )
    return _example(module, inputs.call, "the batch given")


def _of_spec(module: Any, input_spec: Any) -> Example:
    """InputSpecs and example Tensors or arrays, in any mixture and nesting, one for each argument of forward."""
    given = tuple(input_spec) if isinstance(input_spec, (list, tuple)) else (input_spec,)
    specs: list[list[int | None]] = []
    real: list[bool] = []

    def made(leaf: Any) -> Any:
        if isinstance(leaf, paddle.static.InputSpec):
            shape: list[int | None] = [None if size in (None, -1) else int(size) for size in leaf.shape]
            specs.append(shape)
            real.append(False)
            return _made_up(shape, str(leaf.dtype).rpartition(".")[2])
        if isinstance(leaf, np.ndarray):
            leaf = paddle.to_tensor(leaf)
        if isinstance(leaf, paddle.Tensor):
            specs.append([None, *map(int, leaf.shape[1:])] if leaf.ndim else [])
            real.append(True)
        elif not (leaf is None or isinstance(leaf, (bool, int, float, str))):
            raise ConfigurationTypeError(
                f"input_spec has a {type(leaf).__name__} for an argument of forward: give paddle.static.InputSpec, "
                "or an example Tensor or array"
            )
        return leaf

    call = kept(mapped(made, given), {})
    if not call.tensors:
        raise ConfigurationError(f"input_spec has no Tensor and no InputSpec: got {input_spec!r}")
    origin = "the example given" if all(real) else "made-up numbers of the shapes given"
    return _named_by_spec(_example(module, call, origin, specs), given)


def _named_by_spec(example: Example, given: Any) -> Example:
    """An InputSpec's own name goes before the argument's."""
    kinds = (paddle.static.InputSpec, paddle.Tensor, np.ndarray)
    names = [getattr(leaf, "name", None) for leaf in leaves(given) if isinstance(leaf, kinds)]
    are_specs = [isinstance(leaf, paddle.static.InputSpec) for leaf in leaves(given) if isinstance(leaf, kinds)]
    chosen = [own if is_spec and own else name for own, is_spec, name in zip(names, are_specs, example.names)]
    return Example(example.call, chosen, example.shapes, example.origin)


def _of_description(module: Any, told: Mapping[str, Any]) -> Example:
    shapes: list[list[int | None]] = []

    def built(node: Mapping[str, Any]) -> Any:
        ((kind, value),) = node.items()
        if kind == "tensor":
            shape: list[int | None] = [None if size < 0 else size for size in value["shape"]]
            shapes.append(shape)
            return _made_up(shape, value["dtype"], value.get("low", 0), value.get("high", 1))
        if kind == "dict":
            return {key: built(item) for key, item in value.items()}
        if kind in ("list", "tuple"):
            return (list if kind == "list" else tuple)(built(item) for item in value)
        return value

    args = tuple(built(node) for node in told["args"])
    call = kept(args, built({"dict": told["kwargs"]}))
    return _example(module, call, "made-up numbers, shaped as the run's own input", shapes)


def _made_up(shape: list[int | None], dtype: str, low: int = 0, high: int = 1) -> Any:
    numbers = np.random.RandomState(0)
    sizes = [MADE_UP_BATCH if axis == 0 and size is None else size or MADE_UP_SIZE for axis, size in enumerate(shape)]
    if dtype == "bool":
        return paddle.to_tensor(numbers.rand(*sizes) < 0.5)
    if dtype.startswith(("int", "uint")):
        return paddle.to_tensor(numbers.randint(low, high + 1, sizes).astype(dtype))
    return paddle.to_tensor(numbers.randn(*sizes).astype("float32")).astype(dtype)
