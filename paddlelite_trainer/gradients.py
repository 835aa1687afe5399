"""Gradients, dense or sparse: their entries, scaled and clipped in place, saved and put back.

`Embedding(sparse=True)` has a gradient of the rows that a batch used (Paddle's SelectedRows), a row as often as it was
used. Few operations know it; others end the process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from .errors import ConfigurationError
from .machine import paddle_internals


def entries_of(gradient: Any) -> Any:
    """A Tensor of the gradient's entries: of a sparse one the rows that are there, each once, and not the zeros."""
    if not gradient.is_selected_rows():
        return gradient
    return paddle.nn.clip.get_tensor_from_selected_rows(paddle.nn.clip.merge_selected_rows(gradient))


def all_finite(gradients: Sequence[Any], losses: Sequence[Any] = ()) -> bool:
    """Whether no entry is NaN or infinite, in one copy to the host; in two where the sum of all squares overflows.

    `gradients`, dense or sparse, of any shape; `losses` of one entry each. All of real numbers, of any types.
    """
    float32, norm = paddle.float32, paddle_internals.squared_norm
    with paddle.no_grad():
        # Their sum is finite only if every entry is; each takes one operation, and a loss none.
        squares = [
            norm(one) if one.dtype == float32 and not one.is_selected_rows() else _sum_of_squares(one)
            for one in gradients
        ]
        squares += [loss if loss.dtype == float32 else loss.astype("float32") for loss in losses]
        if not squares or math.isfinite(_total(squares).item()):
            return True
        are_finite = [paddle.isfinite(entries_of(one)).all() for one in (*gradients, *losses)]
        return bool(paddle.stack(are_finite).all().item())


def _total(numbers: list[Any]) -> Any:
    """On the device; the quicker operation is not among those of every custom one, and would go through the host."""
    if numbers[0].place.is_custom_place():
        return paddle.concat([number.reshape([1]) for number in numbers]).sum()
    return paddle_internals.total(numbers)


def _sum_of_squares(gradient: Any) -> Any:
    """Float32, of shape [1]; of other types the plain sum, as half precision's squares would overflow at once."""
    entries = entries_of(gradient)
    if entries.dtype == paddle.float32:
        return paddle_internals.squared_norm(entries)
    return entries.sum().astype("float32").reshape([1])


def scale_gradient(parameter: Any, factor: float) -> None:
    """Multiply the parameter's gradient in place."""
    with paddle.no_grad():
        if parameter.grad.is_selected_rows():
            _multiply_rows(parameter, paddle.full([1], factor))
        else:
            parameter.grad.scale_(factor)


def refuse_sparse(parameters: Sequence[Any], why: str) -> None:
    """Raise ConfigurationError where one of the gradients is sparse; `why` is what cannot be done with it."""
    for parameter in parameters:
        if parameter.grad.is_selected_rows():
            raise ConfigurationError(
                f"{why} the sparse gradient of a parameter of shape {list(parameter.shape)}: "
                "make its layer without sparse=True"
            )


def clip_gradients_by_value(parameters: Sequence[Any], value: float) -> None:
    """Clip every entry to -value..value, in place.

    Raises:
        ConfigurationError: a gradient is sparse.
    """
    refuse_sparse(parameters, 'gradient_clip_algorithm="value" cannot clip (and "norm" can)')
    paddle.nn.utils.clip_grad_value_(parameters, value)


def clip_gradients_by_norm(parameters: Sequence[Any], max_norm: float, norm: Any = None) -> Any:
    """Scale the gradients down together to a norm of `max_norm`, in place; returns the norm before, float32 or wider.

    `norm` is theirs and that of other ranks' gradients together, where it is known.

    `paddle.nn.utils.clip_grad_norm_`, and its formula where it cannot be used: it fails on gradients of several types,
    which O2 has, and on sparse ones, and sums squares in float16, which overflows at a norm of 65504.
    """
    halves = (paddle.float16, paddle.bfloat16)
    if norm is None and not any(
        parameter.grad.is_selected_rows() or parameter.grad.dtype in halves for parameter in parameters
    ):
        return paddle.nn.utils.clip_grad_norm_(parameters, max_norm)
    with paddle.no_grad():
        total = norm_of([parameter.grad for parameter in parameters]) if norm is None else norm
        factor = paddle.clip(max_norm / (total + 1e-6), max=1.0)
        for parameter in parameters:
            if parameter.grad.is_selected_rows():
                _multiply_rows(parameter, factor.reshape([1]))
            elif parameter.grad.dtype not in halves:
                parameter.grad.multiply_(factor)
            else:
                scaled = parameter.grad.astype("float32") * factor
                paddle.assign(scaled.astype(parameter.grad.dtype), parameter.grad)
    return total


def norm_of(gradients: Sequence[Any]) -> Any:
    """The 2-norm of all gradients together, float32, of shape [] and on the device."""
    with paddle.no_grad():
        norms = [paddle.linalg.norm(entries_of(gradient).astype("float32")) for gradient in gradients]
        return paddle.linalg.norm(paddle.stack(norms))


def saved_gradient(gradient: Any) -> Any:
    """What a checkpoint holds of it: an array, or of a sparse one its rows and their values as they stand."""
    if gradient.is_selected_rows():
        return {"rows": list(gradient.rows()), "values": gradient.numpy()}
    return gradient.numpy()


def put_gradient_back(parameter: Any, saved: Any) -> None:
    """Let the parameter have the gradient that `saved_gradient` gave."""
    if not isinstance(saved, dict):
        _put(parameter, paddle.to_tensor(saved))
        return
    # There is no way to make a sparse gradient but a backward: that of rows times values, which is the values.
    rows = paddle.to_tensor(np.asarray(saved["rows"], "int64"))
    taken = paddle.nn.functional.embedding(rows, parameter, sparse=True)
    taken.backward(paddle.to_tensor(saved["values"]))


def _multiply_rows(parameter: Any, factor: Any) -> None:
    _put(parameter, paddle.multiply(parameter.grad, factor.astype(parameter.grad.dtype)))


def _put(parameter: Any, gradient: Any) -> None:
    parameter.clear_gradient(False)  # nothing can be written into a sparse one
    parameter.grad = gradient
