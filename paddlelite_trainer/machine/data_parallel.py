"""training_step on several processes: gradients averaged over ranks by paddle.DataParallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle


class _TrainingStep(paddle.nn.Layer):
    """Calls training_step from a forward, where paddle.DataParallel prepares its reducer: without, nothing
    synchronises."""

    def __init__(self, module: paddle.nn.Layer) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any, batch_idx: int) -> Any:
        return self.module.training_step(batch, batch_idx)


def synchronised(module: paddle.nn.Layer, ends_window: Callable[[], bool]) -> Callable[[Any, int], Any]:
    """A training_step whose backward averages gradients over ranks, where `ends_window` says so.

    Wrapping sends rank 0's weights and buffers to all ranks: every rank must call this.
    """
    wrapped = paddle.DataParallel(_TrainingStep(module), find_unused_parameters=True)

    def training_step(batch: Any, batch_idx: int) -> Any:
        if ends_window():
            return wrapped(batch, batch_idx)
        with wrapped.no_sync():
            return wrapped(batch, batch_idx)

    return training_step
