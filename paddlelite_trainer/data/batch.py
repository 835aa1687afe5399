"""Batches as trees of tensors: what is in one, how large it is, and its move to a device."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import paddle

from ..machine.paddle_internals import copied_to, is_on


def move_to_device(batch: Any, place: Any) -> Any:
    """The batch with its Tensors on place; itself, unchanged, if they are there.

    Goes into lists, tuples, namedtuples, mappings and dataclasses, and keeps their types. An object with a method `to`
    is asked to move itself; arrays and other things stay.
    """
    if _is_there(batch, place):
        return batch
    return _moved(batch, place)


def needs_only_copies(batch: Any, place: Any) -> bool:
    """Whether some Tensor of the batch is not on place, and moving it runs no code but Paddle's."""
    return _is_plain(batch) and not _is_there(batch, place)


def nbytes(batch: Any) -> int:
    """Bytes of the Tensors in nested lists, tuples and dicts."""
    if isinstance(batch, paddle.Tensor):
        return int(batch.element_size() * batch.size)
    fields = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return sum(map(nbytes, fields))


def batch_size_of(batch: Any) -> int:
    """The first dimension of the batch's first Tensor or array; 1 if it has none."""
    leaf = _first_leaf(batch)
    if leaf is None or len(leaf.shape) == 0:
        return 1
    return int(leaf.shape[0])


def _is_there(batch: Any, place: Any) -> bool:
    if isinstance(batch, paddle.Tensor):
        return is_on(batch, place)
    if isinstance(batch, (list, tuple)):
        for item in batch:  # noqa: SIM110  a generator would cost more than the check
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
    kind = type(batch)
    if kind is list or kind is tuple:
        return all(_is_plain(item) for item in batch)
    if kind is dict:
        return all(_is_plain(item) for item in batch.values())
    return batch is None or isinstance(batch, (paddle.Tensor, np.ndarray, str, bytes, numbers.Number))


def _moved(batch: Any, place: Any) -> Any:
    if isinstance(batch, paddle.Tensor):
        return batch if is_on(batch, place) else copied_to(batch, place)
    if isinstance(batch, tuple):
        items = [_moved(item, place) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, list):
        copied = copy.copy(batch)
        copied[:] = [_moved(item, place) for item in batch]
        return copied
    if isinstance(batch, Mapping):
        items_by_key = {key: _moved(item, place) for key, item in batch.items()}
        if not isinstance(batch, dict):
            return type(batch)(items_by_key)  # type: ignore[call-arg]
        copied_dict = copy.copy(batch)  # a defaultdict keeps its factory
        copied_dict.update(items_by_key)
        return copied_dict
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        clone = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(clone, field.name, _moved(getattr(batch, field.name), place))  # frozen ones too
        return clone
    if callable(getattr(batch, "to", None)):
        return batch.to(place)
    return batch


def _first_leaf(batch: Any) -> Any:
    if isinstance(batch, (paddle.Tensor, np.ndarray)):
        return batch
    items: Iterable[Any]
    if isinstance(batch, (list, tuple)):
        items = batch
    elif isinstance(batch, Mapping):
        items = batch.values()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        items = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    else:
        return None
    for item in items:
        leaf = _first_leaf(item)
        if leaf is not None:
            return leaf
    return None
