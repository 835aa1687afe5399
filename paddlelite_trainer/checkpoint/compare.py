"""What is different between two checkpoints: metrics, tensors by value, and every other recorded value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .saved import TENSORS, SavedCheckpoint
from .tensors import from_bfloat16

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Difference:
    """One thing that differs; None stands for "not there"."""

    where: str
    """`metrics`, `info` or a file's name."""
    name: str
    first: Any
    second: Any
    largest: float | None = None
    """The largest absolute difference of elements, for tensors of one shape and type; NaN where one is NaN alone."""


def compare(first: SavedCheckpoint, second: SavedCheckpoint) -> Iterator[Difference]:
    """Every difference between two checkpoints but those of name, date and place."""
    yield from _values("metrics", first.entry.metrics, second.entry.metrics)
    yield from _values(
        "info", {**first.entry.info, "epoch": first.entry.epoch}, {**second.entry.info, "epoch": second.entry.epoch}
    )
    for file in dict.fromkeys((*first.files, *second.files)):
        if file not in first.files or file not in second.files:
            yield Difference(file, "", _there(file in first.files), _there(file in second.files))
        elif file == TENSORS:
            continue  # seen through the states whose tensors it holds
        elif file.endswith(".json"):
            yield from _values(file, first.state(file, return_numpy=True), second.state(file, return_numpy=True))
        else:
            yield from _tensors(file, first, second)


def _there(present: bool) -> str | None:
    return "present" if present else None


def _tensors(file: str, first: SavedCheckpoint, second: SavedCheckpoint) -> Iterator[Difference]:
    ours, theirs = first.tensors(file), second.tensors(file)
    for name in dict.fromkeys((*ours, *theirs)):
        one = _describe(ours[name], first.dtype_of(file, name)) if name in ours else None
        other = _describe(theirs[name], second.dtype_of(file, name)) if name in theirs else None
        if one is None or one != other:
            yield Difference(file, name, one, other)
            continue
        largest = _largest_difference(ours[name], theirs[name], first.dtype_of(file, name) == "bfloat16")
        if largest is not None:
            yield Difference(file, name, one, other, largest)


def _describe(array: np.ndarray, dtype: str) -> str:
    return f"{dtype} {list(array.shape)}"


def _largest_difference(first: np.ndarray, second: np.ndarray, bfloat16: bool) -> float | None:
    """None where the two are the same bytes."""
    largest = None
    first, second = first.reshape(-1), second.reshape(-1)
    for start in range(0, first.size, _CHUNK):
        one, other = first[start : start + _CHUNK], second[start : start + _CHUNK]
        if one.tobytes() == other.tobytes():
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(_numbers(one, bfloat16) - _numbers(other, bfloat16))
        apart = apart[one != other]
        here = float(apart.max()) if apart.size else 0.0
        largest = here if largest is None or here > largest or here != here else largest
    return largest


def _numbers(array: np.ndarray, bfloat16: bool) -> np.ndarray:
    if bfloat16:
        array = from_bfloat16(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _values(where: str, first: Any, second: Any) -> Iterator[Difference]:
    ours, theirs = dict(_leaves(first)), dict(_leaves(second))
    for name in dict.fromkeys((*ours, *theirs)):
        one, other = ours.get(name), theirs.get(name)
        if name not in ours or name not in theirs or not _same(one, other):
            yield Difference(where, name, _shown(one), _shown(other))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, (list, tuple)) and tree:
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{index}]")
    else:
        yield path, tree


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def _shown(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {list(value.shape)}"
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool)) or value is None else repr(value)
