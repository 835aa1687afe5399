"""Nested batches as trees: their leaves, and the same tree with other leaves."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import paddle


def leaves(batch: Any) -> Iterator[Any]:
    """Everything in nested lists, tuples, mappings and dataclasses that is none of them, in order."""
    if isinstance(batch, (list, tuple)):
        items: Any = batch
    elif isinstance(batch, Mapping):
        items = batch.values()
    elif _is_dataclass(batch):
        items = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    else:
        yield batch
        return
    for item in items:
        yield from leaves(item)


def mapped(function: Callable[[Any], Any], batch: Any) -> Any:
    """The tree with `function` of each leaf; every container has its type and order again, and what else it carries."""
    if isinstance(batch, paddle.Tensor):  # first, as most leaves are
        return function(batch)
    if isinstance(batch, tuple):
        items = [mapped(function, item) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, list):
        copied = copy.copy(batch)
        copied[:] = [mapped(function, item) for item in batch]
        return copied
    if isinstance(batch, Mapping):
        by_key = {key: mapped(function, item) for key, item in batch.items()}
        if not isinstance(batch, dict):
            return type(batch)(by_key)  # type: ignore[call-arg]
        copied_dict = copy.copy(batch)  # a defaultdict keeps its factory
        copied_dict.update(by_key)
        return copied_dict
    if _is_dataclass(batch):
        clone = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(clone, field.name, mapped(function, getattr(batch, field.name)))  # frozen ones too
        return clone
    return function(batch)


def detached(outputs: Any) -> Any:
    """What a step returned, with every Tensor in lists, tuples and dicts detached from the graph that made it."""
    return mapped(_detach, outputs) if isinstance(outputs, (dict, list, tuple)) else _detach(outputs)


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, paddle.Tensor) else leaf


def _is_dataclass(batch: Any) -> bool:
    return dataclasses.is_dataclass(batch) and not isinstance(batch, type)
