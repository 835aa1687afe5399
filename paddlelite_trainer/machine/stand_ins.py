"""StandIn: what is called in the place of a layer's forward for a while, and how all of them are lifted."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import paddle


class StandIn:
    """Stands in the layer's own attributes, where its class's `forward` is not looked for; nothing else changes."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.own: Callable[..., Any] = layer.forward
        """What was called before, which may be another stand-in."""
        self._before = vars(layer).get("forward")
        with contextlib.suppress(TypeError, ValueError):  # of what was compiled
            self.__signature__ = inspect.signature(self.own)

    def take_place(self) -> None:
        vars(self.layer)["forward"] = self

    def end(self) -> None:
        """Let the layer have what it had; does nothing where something else has come in between."""
        if vars(self.layer).get("forward") is self:
            if self._before is None:
                del vars(self.layer)["forward"]
            else:
                vars(self.layer)["forward"] = self._before


def lifted(module: paddle.nn.Layer, *, all_of_them: bool) -> Callable[[], None]:
    """Lift every stand-in, or with `all_of_them=False` none; the result gives every layer the forward that it had.

    Paddle's translator puts its translation into each layer that a forward calls, and leaves it there.
    """
    found = [(layer, vars(layer).get("forward")) for layer in module.sublayers(include_self=True)]
    for layer, forward in found:
        if all_of_them and isinstance(forward, StandIn):
            del vars(layer)["forward"]

    def put_back() -> None:
        for layer, forward in found:
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = forward

    return put_back
