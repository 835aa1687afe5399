"""ForwardInputs: what a module's `forward` is called with, kept of the first call of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import paddle

from .machine.paddle_internals import copied_to, is_on
from .machine.stand_ins import StandIn
from .machine.trees import leaves, mapped

WHOLE_BELOW = 2**25
"""Bytes up to which a call's Tensors are kept whole; of larger ones the first samples."""
SAMPLES = 4


@dataclass(frozen=True)
class Call:
    """One call of a forward: its arguments, with Tensors on the host, and how many samples the batch had."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_size: int | None

    @property
    def tensors(self) -> list[Any]:
        return [leaf for leaf in leaves([self.args, self.kwargs]) if isinstance(leaf, paddle.Tensor)]


class ForwardInputs:
    """Only it writes; `call` is of the first call that was watched, `described` may come from a checkpoint."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.described: dict[str, Any] | None = None
        """The call without its numbers, as a checkpoint keeps it; see `described`."""

    def watch(self, module: Any, *, afresh: bool = False) -> Callable[[], None]:
        """Keep the module's next call of forward; calling the result gives the watch up.

        A call that was kept before stays, unless it is to be `afresh`.
        """
        if afresh:
            self.call = self.described = None
        if self.call is not None:
            return lambda: None
        watch = Watch(self, module)
        watch.take_place()  # and no hook of Paddle's: those of 2.6 do not see keyword arguments
        return watch.end

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep this call."""
        self.call = kept(args, kwargs)
        if self.described is None:
            self.described = described(self.call)

    def recall(self, saved: Mapping[str, Any] | None) -> None:
        """What a checkpoint has kept of a call; an older one has kept nothing."""
        self.described = dict(saved) if saved is not None else None


class Watch(StandIn):
    """Stands in for a module's forward until it is called once."""

    def __init__(self, inputs: ForwardInputs, module: Any) -> None:
        super().__init__(module)
        self.inputs = inputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.end()
        self.inputs.note(args, kwargs)
        return self.layer.forward(*args, **kwargs)


def kept(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call with copies of its Tensors on the host, cut to a few samples where they are large."""
    tensors = [leaf for leaf in leaves([args, kwargs]) if isinstance(leaf, paddle.Tensor)]
    batch_size = next((int(one.shape[0]) for one in tensors if one.ndim), None)
    cuts = sum(int(one.size) * one.element_size() for one in tensors) > WHOLE_BELOW

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, paddle.Tensor):
            return leaf
        is_batch = leaf.ndim > 0 and leaf.shape[0] == batch_size
        found = leaf.detach()[:SAMPLES] if cuts and is_batch else leaf.detach()
        return found.clone() if is_on(found, paddle.CPUPlace()) else copied_to(found, paddle.CPUPlace())

    with paddle.no_grad():
        copied_args, copied_kwargs = mapped(copy, args), mapped(copy, kwargs)
    if cuts and batch_size is not None:
        batch_size = min(batch_size, SAMPLES)
    return Call(copied_args, copied_kwargs, batch_size)


def described(call: Call) -> dict[str, Any] | None:
    """The call for a checkpoint: shapes, with None for the batch's axis, types, and whole numbers' ranges.

    No number of the data is kept but the smallest and the largest of whole ones, which an embedding must know. None
    where an argument is something that cannot be told.
    """
    try:
        return {
            "args": [_told(one, call.batch_size) for one in call.args],
            "kwargs": _told(call.kwargs, call.batch_size)["dict"],
        }
    except TypeError:
        return None


def _told(value: Any, batch_size: int | None) -> Any:
    if isinstance(value, paddle.Tensor):
        dtype = str(value.dtype).rpartition(".")[2]
        shape = [int(size) for size in value.shape]
        if shape and shape[0] == batch_size:
            shape[0] = -1
        told: dict[str, Any] = {"shape": shape, "dtype": dtype}
        if dtype.startswith(("int", "uint")) and value.size:
            told |= {"low": int(value.min()), "high": int(value.max())}
        return {"tensor": told}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _told(item, batch_size) for key, item in value.items()}}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return {"list" if isinstance(value, list) else "tuple": [_told(item, batch_size) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(type(value).__name__)


def named_tensors(forward: Callable[..., Any], call: Call) -> dict[str, Any]:
    """The Tensors of a call by name: the argument's, or the key's where one argument is a dict."""
    try:
        bound: Mapping[str, Any] = inspect.signature(forward).bind(*call.args, **call.kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{f"input_{index}": one for index, one in enumerate(call.args)}, **call.kwargs}
    long = [(name, value) for argument, value in bound.items() for name, value in _named((argument,), value)]
    short = [_from_last_key(path) for path, _ in long]
    unique = len(set(short)) == len(short)
    return {_plain(name if unique else "_".join(map(str, path))): value for name, (path, value) in zip(short, long)}


def _from_last_key(path: tuple[Any, ...]) -> str:
    last = max(index for index, part in enumerate(path) if isinstance(part, str))
    return "_".join(map(str, path[last:]))


def _named(path: tuple[Any, ...], value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, paddle.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named((*path, str(key)), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _named((*path, index), item)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name)
