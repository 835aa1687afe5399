"""Recomputed: layers whose intermediate results are not kept but computed again in the backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import paddle

from ..layers import kept_statistics
from ..machine.rng import isolated_random_states, random_snapshot, set_random_snapshot
from ..machine.stand_ins import StandIn
from .chosen_layers import chosen


class Recomputed(StandIn):
    """Calls forward through Paddle's recompute in a way that gives the same bits.

    Paddle's default, `use_reentrant=True`, drops all gradients of a block whose inputs need none, the first one's of
    a network; without it BatchNorm counts each batch twice, and on the CPU of Paddle 2.6 random numbers cannot be kept.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.layer.training and paddle.is_grad_enabled()):
            return self.own(*args, **kwargs)
        from paddle.distributed.fleet.utils import recompute

        # An input that wants a gradient: without any Paddle warns at every call.
        token = paddle.to_tensor([0.0], stop_gradient=False)
        return recompute(_Twice(self), token, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


class _Twice:
    """One call of the layer: the first time as it is, the second time with the numbers of the first."""

    def __init__(self, recomputed: Recomputed) -> None:
        self.recomputed = recomputed
        self.random: Any = None

    def __call__(self, token: Any, *args: Any, **kwargs: Any) -> Any:
        own, layer = self.recomputed.own, self.recomputed.layer
        if self.random is None:
            self.random = random_snapshot()
            return own(*args, **kwargs)
        put_back = kept_statistics(layer, all_of_them=True)
        try:
            with isolated_random_states():
                set_random_snapshot(self.random)
                return own(*args, **kwargs)
        finally:
            put_back()


def recompute_layers(module: paddle.nn.Layer, patterns: str | Sequence[str]) -> Callable[[], None]:
    """Let the layers that the patterns mean be recomputed; calling the result undoes it.

    Raises:
        ConfigurationError: a pattern means no layer that is called.
    """
    stand_ins = [Recomputed(layer) for layer in chosen(module, patterns, "recompute").values()]
    for one in stand_ins:
        one.take_place()

    def undo() -> None:
        for one in stand_ins:
            one.end()

    return undo
