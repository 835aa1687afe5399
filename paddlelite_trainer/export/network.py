"""A module's forward as one function of Tensors, traced to a program by paddle.jit.save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..data.batch import move_to_device
from ..errors import ExportError
from ..layers import undisturbed as undisturbed
from ..machine.paddle_internals import forget_traces
from ..machine.trees import leaves
from .example import Example
from .refusal import why_not_traced


class Network(paddle.nn.Layer):
    """Takes the Tensors of a call as one list, and returns the Tensors of what forward returns as one list."""

    def __init__(self, module: paddle.nn.Layer, example: Example) -> None:
        super().__init__()
        self.module, self.example = module, example

    def forward(self, tensors: Any) -> Any:
        args, kwargs = arguments_of(self, tensors)
        return tensors_of(self.module(*args, **kwargs))


def _arguments_of(network: Network, tensors: Any) -> Any:
    return network.example.with_tensors(iter(tensors))


def _tensors_of(outputs: Any) -> list[Any]:
    return [leaf for leaf in leaves(outputs) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]


# Paddle's translator is not to look into these.
arguments_of, tensors_of = paddle.jit.not_to_static(_arguments_of), paddle.jit.not_to_static(_tensors_of)


def eager_outputs(module: paddle.nn.Layer, example: Example, tensors: list[Any]) -> dict[str, np.ndarray]:
    """What forward returns, by name: a dict's key, or `output` with its place."""
    place = next((parameter.place for parameter in module.parameters()), paddle.CPUPlace())
    args, kwargs = example.with_tensors(iter([move_to_device(tensor, place) for tensor in tensors]))
    outputs = module(*args, **kwargs)
    found = tensors_of(outputs)
    if not found:
        raise ExportError(f"{type(module).__name__}.forward returns no Tensor, so there is nothing to export")
    if isinstance(outputs, Mapping) and len(found) == len(outputs):
        names = [str(key) for key in outputs]
    else:
        names = ["output"] if len(found) == 1 else [f"output_{index}" for index in range(len(found))]
    return {name: _numbers(value) for name, value in zip(names, found)}


def _numbers(value: Any) -> np.ndarray:
    is_half = value.dtype in (paddle.bfloat16, paddle.float16)
    array: np.ndarray = (value.astype("float32") if is_half else value).numpy()
    return array


def save_program(module: paddle.nn.Layer, example: Example, prefix: Path) -> Path:
    """Write the program and its parameters beside one another, and return the program's file.

    Raises:
        ExportError: names the line of the user's code that Paddle cannot trace.
    """
    network = Network(module, example)
    network.eval()
    specs = [
        paddle.static.InputSpec(list(shape), tensor.dtype, name)  # which it writes into
        for shape, tensor, name in zip(example.shapes, example.tensors, example.names)
    ]
    forget_traces()  # of translations that failed elsewhere
    try:
        paddle.jit.save(network, str(prefix), input_spec=[specs])
    except Exception as error:
        forget_traces()
        raise ExportError(f"{type(module).__name__} cannot be exported. {why_not_traced(error)}") from error
    for suffix in (".json", ".pdmodel"):  # of Paddle 3 and of Paddle 2
        if Path(f"{prefix}{suffix}").is_file():
            return Path(f"{prefix}{suffix}")
    raise ExportError("paddle.jit.save wrote neither a .json nor a .pdmodel file")
