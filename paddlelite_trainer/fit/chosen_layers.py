"""The layers that patterns of names mean, for what is done to some layers of a module."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import paddle

from ..errors import ConfigurationError, did_you_mean

_ARE_NOT_CALLED = (paddle.nn.LayerList, paddle.nn.LayerDict)


def chosen(module: paddle.nn.Layer, patterns: str | Sequence[str], argument: str) -> dict[str, Any]:
    """{name: layer} of those that a pattern such as `blocks.*` means, without those inside another one of them.

    Raises:
        ConfigurationError: a pattern means none, or a list of layers, which nobody calls.
    """
    found: dict[str, Any] = {}
    layers = dict(module.named_sublayers())
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        meant = {name: layer for name, layer in layers.items() if fnmatchcase(name, pattern)}
        if not meant:
            raise ConfigurationError(
                f"Trainer({argument}=...): {pattern!r} means no layer of {type(module).__name__}."
                f"{did_you_mean(pattern, layers)} It has {_some(list(layers))}"
            )
        found |= meant
    for name, layer in found.items():
        if isinstance(layer, _ARE_NOT_CALLED):
            raise ConfigurationError(
                f"Trainer({argument}=...): {name!r} is a {type(layer).__name__}, which is not called itself: "
                f"name its layers, '{name}.*'"
            )
    return {name: layer for name, layer in found.items() if not any(name.startswith(f"{other}.") for other in found)}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no layers"
