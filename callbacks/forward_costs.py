"""ForwardCosts: the shapes that pass through each layer in a forward, and its floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import paddle

nn: Any = paddle.nn
_CONVOLUTIONS = (nn.Conv1D, nn.Conv2D, nn.Conv3D)
_TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)
_RECURRENT = (nn.SimpleRNN, nn.LSTM, nn.GRU)
_CELLS = (nn.SimpleRNNCell, nn.LSTMCell, nn.GRUCell)


class ForwardCosts:
    """Looks on while the module's layers are called, until `end`; changes nothing of what they compute.

    Counted are the products, two operations each, of linear layers, convolutions, recurrent layers and attention of
    paddle.nn, in the forward alone. Not counted is what costs little beside them, biases, norms, activations, pooling,
    and products that a forward writes itself, as `paddle.matmul`.
    """

    def __init__(self, module: Any) -> None:
        self.inputs: dict[str, list[int]] = {}
        """{layer: shape of its first Tensor, at its first call}; the module itself is ""."""
        self.outputs: dict[str, list[int]] = {}
        self.flops: dict[str, int] = {}
        """{layer: operations of its own, over all calls}."""
        layers = dict(module.named_sublayers(include_self=True))
        recurrent = [name for name, layer in layers.items() if isinstance(layer, _RECURRENT)]
        self._hooks = [
            layer.register_forward_post_hook(self._seen(name))
            for name, layer in layers.items()
            if not any(name.startswith(f"{other}.") for other in recurrent)  # the whole counts them
        ]

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def batch_size(self) -> int | None:
        """The first axis of the first Tensor that any layer was given."""
        shape = next(iter(self.inputs.values()), [])
        return shape[0] if shape else None

    def of(self, name: str) -> int:
        """Operations of a layer and of all within it; of the module for ""."""
        return sum(own for other, own in self.flops.items() if not name or (f"{other}.").startswith(f"{name}."))

    def _seen(self, name: str) -> Callable[[Any, Any, Any], None]:
        def hook(layer: Any, inputs: Any, outputs: Any) -> None:
            taken, given = _first_shape(inputs), _first_shape(outputs)
            if taken is not None:
                self.inputs.setdefault(name, taken)
            if given is not None:
                self.outputs.setdefault(name, given)
                self.flops[name] = self.flops.get(name, 0) + self._operations(name, layer, taken, given)

        return hook

    def _operations(self, name: str, layer: Any, taken: list[int] | None, given: list[int]) -> int:
        if isinstance(layer, nn.Linear):
            return 2 * math.prod(given) * int(layer.weight.shape[0])
        if isinstance(layer, _CONVOLUTIONS):
            return 2 * math.prod(given) * int(math.prod(layer.weight.shape[1:]))
        if isinstance(layer, _TRANSPOSED):
            return 2 * math.prod(taken or given) * int(math.prod(layer.weight.shape[1:]))
        if isinstance(layer, (*_RECURRENT, *_CELLS)):
            return 2 * math.prod(given[:-1]) * sum(int(one.size) for one in layer.parameters() if one.ndim == 2)
        if isinstance(layer, nn.MultiHeadAttention):
            keys = self.outputs.get(f"{name}.k_proj".lstrip("."), given)[1]  # of this shape are all calls taken to be
            return 2 * 2 * math.prod(given) * keys
        return 0


def _first_shape(values: Any) -> list[int] | None:
    """Of the first Tensor in nested lists, tuples and dicts."""
    if isinstance(values, paddle.Tensor):
        return [int(size) for size in values.shape]
    if isinstance(values, dict):
        values = list(values.values())
    for value in values if isinstance(values, (list, tuple)) else ():
        found = _first_shape(value)
        if found is not None:
            return found
    return None
