"""A module's forward as one function of Tensors, traced to a program by paddle.jit.save."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..data.batch import move_to_device
from ..errors import ExportError
from ..layers import modes, put_modes_back, statistics_of
from ..machine.rng import isolated_random_states
from ..machine.stand_ins import lifted
from ..machine.trees import leaves
from ..module import Module
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


class _Unheard:
    """A run for what a forward logs while it is exported: nowhere."""

    def __init__(self) -> None:
        self.optimization = None
        self.target: Any = self
        self.collector, self.on_step, self.suffix = self, True, ""

    def log(self, *_: Any) -> None:
        """Kept nowhere."""


@contextlib.contextmanager
def undisturbed(module: Module) -> Iterator[None]:
    """Within, the module is in eval mode and has no gradients; afterwards it and all random numbers are as before."""
    found, statistics = modes(module), statistics_of(module)
    before = {name: (value.clone(), value.inplace_version) for name, value in statistics.items()}
    put_back = lifted(module, all_of_them=True)
    take_back = module.lend_to(_Unheard())
    with isolated_random_states(), paddle.no_grad(), paddle.utils.unique_name.guard():
        try:
            module.eval()
            yield
        finally:
            put_modes_back(found)
            for name, value in statistics.items():
                if value.inplace_version != before[name][1]:  # a forward that counts in eval mode too
                    value.set_value(before[name][0])
            take_back()
            put_back()


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
    try:
        paddle.jit.save(network, str(prefix), input_spec=[specs])
    except Exception as error:
        raise ExportError(f"{type(module).__name__} cannot be exported. {why_not_traced(error)}") from error
    for suffix in (".json", ".pdmodel"):  # of Paddle 3 and of Paddle 2
        if Path(f"{prefix}{suffix}").is_file():
            return Path(f"{prefix}{suffix}")
    raise ExportError("paddle.jit.save wrote neither a .json nor a .pdmodel file")
