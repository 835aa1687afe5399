"""Hyper-parameters: the arguments an object was constructed with, as a checkpoint keeps them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Sequence
from typing import Any

import paddle

from .errors import ConfigurationError


class HyperParameters(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no hyper-parameter {name!r}; saved ones: {', '.join(self) or 'none'}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def arguments_of_init(
    instance: object, frame: types.FrameType | None, names: Sequence[str], ignore: str | Collection[str]
) -> dict[str, Any]:
    """The arguments of the `__init__` that is calling, all or those named, without those in `ignore`.

    `frame` is that of the method called in `__init__`.

    Raises:
        ConfigurationError: not called in `__init__`; no such argument; an argument is a layer, which is not stored.
    """
    caller = frame.f_back if frame is not None else None
    kind = type(instance).__name__
    if caller is None or caller.f_code.co_name != "__init__" or _constructed(caller) is not instance:
        raise ConfigurationError(f"save_hyperparameters() must be called in {kind}.__init__")
    found = _arguments_of(caller)
    ignored = {ignore} if isinstance(ignore, str) else set(ignore)
    for name in names:
        if name not in found:
            raise ConfigurationError(
                f"save_hyperparameters({name!r}): {kind}.__init__ has no such argument; "
                f"it has {', '.join(found) or 'none'}"
            )
    kept = {name: found[name] for name in names or found if name not in ignored}
    for name, value in kept.items():
        if isinstance(value, paddle.nn.Layer):
            raise ConfigurationError(
                f"save_hyperparameters() cannot store the layer given as {name!r}: call "
                f"save_hyperparameters(ignore=[{name!r}]) and pass it to load_from_checkpoint again"
            )
    return kept


def _constructed(frame: types.FrameType) -> Any:
    """The object that a method's frame works on: its first argument, whatever its name."""
    first = frame.f_code.co_varnames[:1]
    return frame.f_locals.get(first[0]) if first else None


def _arguments_of(frame: types.FrameType) -> dict[str, Any]:
    """The arguments of the `__init__` calls from this frame outwards for the same object, the outermost winning."""
    constructed = _constructed(frame)
    found: dict[str, Any] = {}
    current: types.FrameType | None = frame
    while current is not None and current.f_code.co_name == "__init__" and _constructed(current) is constructed:
        names, _, keywords, values = inspect.getargvalues(current)
        found.update({name: values[name] for name in names[1:]})
        if keywords:
            found.update(values[keywords])
        current = current.f_back
    return found
