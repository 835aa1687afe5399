"""What is in a batch, and its move to a device."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from ..machine.paddle_internals import copied_to, is_on
from ..machine.trees import leaves, mapped


def move_to_device(batch: Any, place: Any) -> Any:
    """The batch with its Tensors on place; itself, unchanged, if they are there.

    Goes into lists, tuples, namedtuples, mappings and dataclasses, and keeps their types. An object with a method `to`
    is asked to move itself; arrays and other things stay.
    """
    if _is_there(batch, place):
        return batch

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, paddle.Tensor):
            return leaf if is_on(leaf, place) else copied_to(leaf, place)
        return leaf.to(place) if callable(getattr(leaf, "to", None)) else leaf

    return mapped(moved, batch)


def needs_only_copies(batch: Any, place: Any) -> bool:
    """Whether some Tensor of the batch is not on place, and moving it runs no code but Paddle's."""
    return _is_plain(batch) and not _is_there(batch, place)


def nbytes(batch: Any) -> int:
    """Bytes of the batch's Tensors."""
    return sum(int(leaf.element_size() * leaf.size) for leaf in leaves(batch) if isinstance(leaf, paddle.Tensor))


def _is_there(batch: Any, place: Any) -> bool:
    # By hand, not over `leaves`: every batch of a run on the CPU goes through here, and generators cost more.
    if isinstance(batch, paddle.Tensor):
        return is_on(batch, place)
    if isinstance(batch, (list, tuple)):
        for item in batch:  # noqa: SIM110
            if not _is_there(item, place):
                return False
        return True
    if isinstance(batch, Mapping):
        for item in batch.values():  # noqa: SIM110
            if not _is_there(item, place):
                return False
        return True
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return all(_is_there(getattr(batch, field.name), place) for field in dataclasses.fields(batch))
    return not callable(getattr(batch, "to", None))


def _is_plain(batch: Any) -> bool:
    # By hand: it asks what the containers are, and a subclass may run anybody's code.
    kind = type(batch)
    if kind is list or kind is tuple:
        return all(_is_plain(item) for item in batch)
    if kind is dict:
        return all(_is_plain(item) for item in batch.values())
    return batch is None or isinstance(batch, (paddle.Tensor, np.ndarray, str, bytes, numbers.Number))
