"""Batches of NumPy arrays, from a list or another iterable, as Tensors; and data as a whole, which are no batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import paddle

from ..machine.trees import leaves, mapped
from .fetch import to_tensor


def holds_arrays(batch: Any) -> bool:
    """Whether something of the batch is an array."""
    return any(isinstance(leaf, np.ndarray) for leaf in leaves(batch))


def with_tensors(batch: Any, *, keep_float64: bool) -> Any:
    """The batch with its arrays as Tensors; float64, NumPy's own, in Paddle's default type unless it is to be kept.

    Arrays that Paddle has no dtype for (text, objects) stay arrays.
    """

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        return to_tensor(leaf.astype(paddle.get_default_dtype()) if not keep_float64 and leaf.dtype == "d" else leaf)

    return mapped(made, batch)


class TensorBatches(Sequence[Any]):
    """A sequence of batches with their arrays as Tensors, made when they are asked for; the newest two are kept."""

    def __init__(self, batches: Sequence[Any], *, keep_float64: bool) -> None:
        self._batches, self._keep_float64 = batches, keep_float64
        self._made: dict[int, tuple[Any, Any]] = {}

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: Any) -> Any:
        batch = self._batches[index]
        known = self._made.get(index)
        if known is not None and known[0] is batch:
            return known[1]
        tensors = with_tensors(batch, keep_float64=self._keep_float64)
        self._made[index] = batch, tensors
        while len(self._made) > 2:
            del self._made[next(iter(self._made))]
        return tensors


_PASS = "pass paddle.io.DataLoader(paddle.io.TensorDataset([{tensors}]), batch_size=32, shuffle=True)"


def why_no_batches(data: Any) -> str | None:
    """What to say where data are arrays or Tensors of all samples, in the place of batches; None where they are not."""
    if _is_array(data):
        return f"is {_described(data)}, and no loader: {_PASS.format(tensors=_as_tensor(data, 'x'))}"
    if not isinstance(data, (list, tuple)) or not 2 <= len(data) <= 8 or not all(map(_is_array, data)):
        return None
    first = data[0]
    if any(len(one.shape) == 0 or one.shape[0] != first.shape[0] for one in data):
        return None
    # Plain batches have one type and as many axes; their lengths along the others may differ, in a list.
    differ = any(len(one.shape) != len(first.shape) or one.dtype != first.dtype for one in data)
    if not differ and (isinstance(data, list) or all(list(one.shape) == list(first.shape) for one in data)):
        return None
    tensors = ", ".join(_as_tensor(one, name) for one, name in zip(data, ("x", "y", "z", "u", "v", "w", "s", "t")))
    parts = ", ".join(map(_described, data))
    return (
        f"is a {type(data).__name__} of {parts}: data of {first.shape[0]} samples as a whole, and not batches; "
        f"{_PASS.format(tensors=tensors)}"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, paddle.Tensor))


def _described(array: Any) -> str:
    word = "a Tensor" if isinstance(array, paddle.Tensor) else "an array"
    return f"{word} of shape {list(array.shape)}"


def _as_tensor(array: Any, name: str) -> str:
    return name if isinstance(array, paddle.Tensor) else f"paddle.to_tensor({name})"
