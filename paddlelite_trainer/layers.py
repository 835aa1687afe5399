"""BatchNorm layers of a model: which they are, their running statistics, their momentum."""

from __future__ import annotations

from typing import Any

import paddle

from .machine.paddle_internals import is_batch_norm, momentum, running_statistics, set_momentum

__all__ = ["batch_norms", "momentum", "running_statistics", "set_momentum"]


def batch_norms(layer: paddle.nn.Layer) -> list[Any]:
    """Every BatchNorm layer in the tree, `layer` itself among them."""
    return [one for one in layer.sublayers(include_self=True) if is_batch_norm(one)]
