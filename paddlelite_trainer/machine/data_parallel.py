"""training_step on several processes: gradients averaged over ranks by paddle.DataParallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..module import Module
    from ..trainer import Trainer


class _TrainingStep(paddle.nn.Layer):
    """Calls training_step from a forward, where DataParallel prepares its reducer: else nothing is synchronised."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any, batch_idx: int) -> Any:
        return self.module.training_step(batch, batch_idx)


def synchronised_training_step(trainer: Trainer) -> Callable[[Any, int], Any]:
    """A training_step whose backward averages gradients over ranks, at the end of each accumulation window only.

    Wrapping sends rank 0's weights and buffers to all ranks: every rank must call this.
    """
    if not trainer.model.automatic_optimization:
        raise ConfigurationError(
            f"manual optimization runs on one process so far, this is one of {trainer.world_size}: "
            "gradients of a backward inside training_step would not be synchronised"
        )
    wrapped = paddle.DataParallel(_TrainingStep(trainer.model), find_unused_parameters=True)
    progress = trainer.progress

    def training_step(batch: Any, batch_idx: int) -> Any:
        if progress.batches_in_window + 1 == trainer.accumulate_grad_batches or trainer.is_last_batch:
            return wrapped(batch, batch_idx)
        with wrapped.no_sync():
            return wrapped(batch, batch_idx)

    return training_step
