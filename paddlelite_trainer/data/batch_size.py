"""How many samples a batch has: what its loader drew, else what its parts agree on."""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import paddle

_ARRAYS = (paddle.Tensor, np.ndarray)


def batch_size_of(batch: Any, likely: int | None = None) -> int:
    """The samples of a batch: the size that most of its parts agree on; 1 where nothing in it has a size.

    A part's size is its first axis; a list of images or of dicts may also be one sample an item. Numbers and scalars
    say nothing. Where first axes disagree, second ones count too (time first). Of several sizes, `likely` is taken, for
    example the loader's own batch_size, and else that of the part with the most axes.
    """
    return _guess(batch, likely)[0]


def weight_of(batch: Any, likely: int | None = None) -> int:
    """The same, for means; warns where the parts do not agree."""
    size, is_sure = _guess(batch, likely)
    if not is_sure:
        warnings.warn(
            f"the size of a batch is not clear from its parts, so means over an epoch take it as {size} samples; "
            "pass self.log(..., batch_size=...)",
            stacklevel=2,
        )
    return size


def _guess(batch: Any, likely: int | None) -> tuple[int, bool]:
    # Most batches first: they are a Tensor, or a list of Tensors of one length.
    if isinstance(batch, _ARRAYS) and likely is None:
        return (batch.shape[0] if batch.shape else 1), True
    parts = _parts(batch)
    if isinstance(batch, (list, tuple)) and _are_samples(parts):
        return len(parts), True
    for look_at_second_axes in (False, True):
        found = [sizes for part in parts if (sizes := _sizes(part, look_at_second_axes))]
        votes = Counter(size for sizes in found for size in sizes)
        if likely in votes:
            return int(likely or 1), True
        if not votes:
            return (_texts(parts) or 1), True
        size, count = votes.most_common(1)[0]
        if 2 * count > len(found):
            tied = [other for other, voted in votes.items() if voted == count]
            return (size if len(tied) == 1 else _of_most_axes(parts, tied)), True
    return _of_most_axes(parts, list(votes)), False


def _parts(batch: Any) -> list[Any]:
    if isinstance(batch, (list, tuple)):
        return list(batch)
    if isinstance(batch, Mapping):
        return list(batch.values())
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    if _is_an_object(batch):
        said = getattr(batch, "batch_size", None)
        if isinstance(said, numbers.Integral):
            return [np.empty([int(said)])]
        return list(vars(batch).values())
    return [batch]


def _is_an_object(value: Any) -> bool:
    """Of a class of somebody's own, with attributes that may be parts."""
    return hasattr(value, "__dict__") and not isinstance(value, (*_ARRAYS, str, bytes, numbers.Number, type))


def _are_samples(items: list[Any]) -> bool:
    """Whether a list of dicts has one for each sample: where their parts have different lengths, or none."""
    if len(items) < 2 or not all(isinstance(item, Mapping) for item in items):
        return False
    if len({frozenset(item) for item in items}) > 1:
        return False
    values = [value for item in items for value in item.values()]
    lengths = {value.shape[0] if value.shape else None for value in values if isinstance(value, _ARRAYS)}
    return len(lengths) != 1 or None in lengths or any(isinstance(value, numbers.Number) for value in values)


def _sizes(part: Any, look_at_second_axes: bool) -> set[int]:
    """The sizes that a part allows; none where it says nothing."""
    if isinstance(part, _ARRAYS):
        return set(part.shape[: 2 if look_at_second_axes else 1])
    if isinstance(part, (str, bytes, numbers.Number)) or part is None:
        return set()
    items = _parts(part)
    of_items = [sizes for item in items if (sizes := _sizes(item, look_at_second_axes))]
    common = set.intersection(*of_items) if of_items else set()
    if isinstance(part, (list, tuple)) and of_items:
        common = common | {len(items)}
    return common


def _of_most_axes(parts: list[Any], among: list[int]) -> int:
    arrays = [array for array in _arrays(parts) if array.shape and array.shape[0] in among]
    if not arrays:
        return among[0]
    return int(max(arrays, key=lambda array: len(array.shape)).shape[0])


def _arrays(parts: Iterable[Any]) -> Iterable[Any]:
    for part in parts:
        if isinstance(part, _ARRAYS):
            yield part
        elif not isinstance(part, (str, bytes, numbers.Number)) and part is not None:
            yield from _arrays(_parts(part))


def _texts(parts: list[Any]) -> int:
    """The length of a list of texts, alone or as a part."""
    if parts and all(isinstance(part, str) for part in parts):
        return len(parts)
    return next((len(part) for part in parts if isinstance(part, list) and _texts(part)), 0)
