"""training_step on several processes: gradients averaged over ranks by paddle.DataParallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle

from ..errors import ConfigurationError, TrainingError
from .paddle_internals import has_sparse_gradient
from .ranks import Ranks


class _TrainingStep(paddle.nn.Layer):
    """Calls training_step from a forward, where paddle.DataParallel prepares its reducer: without, nothing
    synchronises."""

    def __init__(self, module: paddle.nn.Layer, step: Callable[[Any, int], Any]) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.step(batch, batch_idx)
        if outputs is None:  # the others would wait for this rank's gradients
            raise TrainingError(
                f"{type(self.module).__name__}.training_step returned None, which skips a batch on one process alone: "
                "here each step is one of all ranks. Return a loss that is 0 where there is nothing to learn: loss * 0."
            )
        return outputs


def synchronised(
    module: paddle.nn.Layer, step: Callable[[Any, int], Any], ends_window: Callable[[], bool], ranks: Ranks
) -> Callable[[Any, int], Any]:
    """The module's training_step, whose backward averages gradients over ranks, where `ends_window` says so.

    Wrapping sends rank 0's weights and buffers to all ranks: every rank must call this.
    """
    ranks.meet("the wrapping of the module")
    sparse = [name for name, layer in module.named_sublayers(include_self=True) if has_sparse_gradient(layer)]
    wrapped = paddle.DataParallel(_TrainingStep(module, step), find_unused_parameters=True)

    def training_step(batch: Any, batch_idx: int) -> Any:
        if ends_window():
            return wrapped(batch, batch_idx)
        if sparse:
            raise ConfigurationError(
                f"accumulate_grad_batches on several processes cannot be with the sparse gradient which {sparse[0]} "
                "has: Paddle ends the process where it is to add to one that waits. Make the layer without "
                "sparse=True, or accumulate over 1 batch"
            )
        with wrapped.no_sync():
            return wrapped(batch, batch_idx)

    return training_step


class WaitForRanks:
    """What is called last before a backward: a rank may be late in its data, in a hook or in the step."""

    def __init__(self, ranks: Ranks, ends_window: Callable[[], bool]) -> None:
        self.ranks, self.ends_window = ranks, ends_window

    def before_backward(self, loss: Any) -> None:
        if self.ends_window():
            self.ranks.begin_exchange()
