"""Layers of a model: their train and eval modes, and BatchNorm's running statistics and momentum."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import paddle

from .machine.paddle_internals import is_batch_norm, momentum, running_statistics, set_momentum

__all__ = [
    "batch_norms",
    "in_eval_mode",
    "modes",
    "momentum",
    "put_into_modes",
    "put_modes_back",
    "running_statistics",
    "set_momentum",
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
