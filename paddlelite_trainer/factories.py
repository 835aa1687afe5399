"""An optimizer and its schedule from a class, a name, a factory or an instance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import ConfigurationError, ConfigurationTypeError, did_you_mean


def make_schedule(kind: Callable[..., Any], arguments: Mapping[str, Any], learning_rate: float | None) -> Any:
    """A schedule that begins at `learning_rate`, where it is one that is given a rate."""
    takes_rate = "learning_rate" in inspect.signature(kind).parameters
    if takes_rate and learning_rate is not None and "learning_rate" not in arguments:
        arguments = {"learning_rate": learning_rate, **arguments}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigurationTypeError(f"{_name(kind)}({', '.join(arguments)}) failed: {error}") from error


def make_optimizer(kind: Callable[..., Any], arguments: Mapping[str, Any], parameters: Iterable[Any]) -> Any:
    """An optimizer of these parameters."""
    try:
        return kind(**arguments, parameters=list(parameters))
    except TypeError as error:
        raise ConfigurationTypeError(f"{_name(kind)}({', '.join(arguments)}) failed: {error}") from error


def by_name(name: str, module: Any, base: type, what: str) -> type:
    """The class of `module` that a name means, whatever its case: "adamw" is paddle.optimizer.AdamW.

    Raises:
        ConfigurationError: there is none.
    """
    known = {
        one.lower(): value for one, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)
    }
    found = known.get(name.lower())
    if found is None or found is base:
        near = did_you_mean(name.lower(), known)
        names = ", ".join(sorted(value.__name__ for value in known.values() if value is not base))
        raise ConfigurationError(f"{what} {name!r} is none of {module.__name__}'s: {names}.{near}")
    return found


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", None) or type(kind).__name__
