"""Layers of a model: their train and eval modes, BatchNorm's running statistics and momentum, weights moved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import paddle

from .errors import ConfigurationError
from .machine.paddle_internals import (
    has_memory,
    is_batch_norm,
    momentum,
    move_towards,
    running_statistics,
    set_momentum,
)
from .machine.rng import isolated_random_states
from .machine.stand_ins import lifted

__all__ = [
    "batch_norms",
    "has_memory",
    "in_eval_mode",
    "kept_statistics",
    "modes",
    "momentum",
    "move_towards",
    "put_into_modes",
    "put_modes_back",
    "running_statistics",
    "saved_statistics",
    "set_momentum",
    "statistics_of",
    "undisturbed",
]


def batch_norms(layer: paddle.nn.Layer) -> list[Any]:
    """Every BatchNorm layer in the tree, `layer` itself among them."""
    return [one for one in layer.sublayers(include_self=True) if is_batch_norm(one)]


def modes(module: paddle.nn.Layer) -> list[tuple[Any, bool]]:
    """Every layer, and whether it is in training mode."""
    return [(layer, layer.training) for layer in module.sublayers(include_self=True)]


def put_modes_back(found: Sequence[tuple[Any, bool]]) -> None:
    """Put every layer into the mode that `modes` found it in; a layer's own train() would take its sublayers along."""
    for layer, training in found:
        layer.training = training


def in_eval_mode(module: paddle.nn.Layer) -> list[str]:
    """Names of the layers that are in eval mode; of the module itself it is empty."""
    return [name for name, layer in module.named_sublayers(include_self=True) if not layer.training]


def put_into_modes(module: paddle.nn.Layer, in_eval: Collection[str]) -> None:
    """Put these layers into eval mode and all others into training mode."""
    put_modes_back([(layer, name not in in_eval) for name, layer in module.named_sublayers(include_self=True)])


def statistics_of(module: paddle.nn.Layer) -> dict[str, Any]:
    """What layers keep count of without learning it, by name: buffers, and BatchNorm's mean and variance."""
    found = dict(module.named_buffers())
    for path, layer in module.named_sublayers(include_self=True):
        for name, value in running_statistics(layer).items():
            if value.stop_gradient:
                found[f"{path}.{name}" if path else name] = value
    return found


def saved_statistics(module: paddle.nn.Layer) -> dict[str, Any]:
    """Those of `statistics_of` that a checkpoint's weights hold."""
    saved = module.state_dict()
    return {name: value for name, value in statistics_of(module).items() if name in saved}


def synchronise_batch_norm(module: paddle.nn.Layer, device: str) -> None:
    """Let every BatchNorm in the module take its statistics over all ranks' batches, by paddle.nn.SyncBatchNorm.

    Raises:
        ConfigurationError: this device has no kernel for it.
    """
    trial = paddle.nn.SyncBatchNorm(1)
    try:
        trial(paddle.ones([2, 1]))
    except (RuntimeError, NotImplementedError, OSError) as error:
        raise ConfigurationError(
            f"sync_batchnorm=True: Paddle {paddle.__version__} has no SyncBatchNorm for {device}. Leave it out, or use "
            "a GroupNorm or LayerNorm, which need no other samples"
        ) from error
    paddle.nn.SyncBatchNorm.convert_sync_batchnorm(module)


def kept_statistics(module: paddle.nn.Layer, *, all_of_them: bool) -> Callable[[], None]:
    """Copies of all of `statistics_of`; calling the result puts them back.

    Unless `all_of_them`, a buffer that has its version still is left alone, as to write into it counts as a change of
    it. BatchNorm's operator changes its statistics without a new version.
    """
    buffers = {id(value) for value in module.buffers()}
    with paddle.no_grad():
        kept = [
            (value, value.clone(), None if all_of_them or id(value) not in buffers else value.inplace_version)
            for value in statistics_of(module).values()
            if has_memory(value)  # a recurrent layer has a place for cuDNN's state
        ]

    def put_back() -> None:
        with paddle.no_grad():
            for value, before, version in kept:
                if value.inplace_version != version:
                    value.copy_(before, True)

    return put_back


class _Unheard:
    """A run for what a forward logs while it is exported: nowhere."""

    def __init__(self) -> None:
        self.optimization = None
        self.target: Any = self
        self.collector, self.on_step, self.suffix = self, True, ""

    def log(self, *_: Any) -> None:
        """Kept nowhere."""


@contextlib.contextmanager
def undisturbed(module: Any) -> Iterator[None]:
    """Within, the module is in eval mode and has no gradients; afterwards it and all random numbers are as before."""
    found, put_statistics_back = modes(module), kept_statistics(module, all_of_them=False)
    put_back = lifted(module, all_of_them=True)
    lend = getattr(module, "lend_to", None)  # a Module's
    take_back = lend(_Unheard()) if lend is not None else None
    with isolated_random_states(), paddle.no_grad(), paddle.utils.unique_name.guard():
        try:
            module.eval()
            yield
        finally:
            put_modes_back(found)
            put_statistics_back()
            if take_back is not None:
                take_back()
            put_back()
