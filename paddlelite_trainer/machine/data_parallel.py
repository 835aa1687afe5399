"""Data parallel training: gradients averaged over ranks by paddle.DataParallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, TrainingError
from .engine import Engine, Step
from .paddle_internals import average_in_backward, has_sparse_gradient
from .paddle_sharding import show_gradient
from .ranks import Ranks
from .strategy import Strategy


class _TrainingStep(paddle.nn.Layer):
    """Calls training_step from a forward, where paddle.DataParallel prepares its reducer: without, nothing
    synchronises."""

    def __init__(self, module: paddle.nn.Layer) -> None:
        super().__init__()
        self.module = module

    def forward(self, step: Step, batch: Any, batch_idx: int) -> Any:
        outputs = step(batch, batch_idx)
        if outputs is None:  # the others would wait for this rank's gradients
            raise TrainingError(
                f"{type(self.module).__name__}.training_step returned None, which skips a batch on one process alone: "
                "here each step is one of all ranks. Return a loss that is 0 where there is nothing to learn: loss * 0."
            )
        return outputs


class DataParallel(Engine):
    """Each rank has everything; the backward that ends a window averages gradients, those before it do not.

    Making it sends rank 0's weights and buffers to all ranks: every rank must. Without `ends_window`, in manual
    optimization, each `manual_backward` averages the gradients that it makes.
    """

    def __init__(
        self, module: paddle.nn.Layer, strategy: Strategy, ranks: Ranks, ends_window: Callable[[], bool] | None
    ) -> None:
        self.module, self.strategy, self.ranks, self.ends_window = module, strategy, ranks, ends_window
        ranks.meet("the wrapping of the module")
        unused = strategy.finds_unused
        self.wrapped = paddle.DataParallel(_TrainingStep(module), find_unused_parameters=unused)
        self._waits = False  # whether there are gradients that no backward has averaged

    def manual(self, backward: Callable[..., None]) -> Callable[..., None]:
        def over_ranks(loss: Any, retain_graph: bool = False) -> None:
            self.ranks.begin_exchange()
            average_in_backward(self.wrapped, loss)
            backward(loss, retain_graph)

        return over_ranks

    def training_step(self, step: Step) -> Step:
        ends_window, wrapped = self.ends_window, self.wrapped
        if ends_window is None:
            return step
        layers = self.module.named_sublayers(include_self=True)
        sparse = [name for name, layer in layers if has_sparse_gradient(layer)]

        def training_step(batch: Any, batch_idx: int) -> Any:
            self._waits = not ends_window()
            if not self._waits:
                return wrapped(step, batch, batch_idx)
            if sparse:
                raise ConfigurationError(
                    "accumulate_grad_batches on several processes cannot be with the sparse gradient which "
                    f"{sparse[0]} has: Paddle ends the process where it is to add to one that waits. Make the layer "
                    "without sparse=True, or accumulate over 1 batch"
                )
            with wrapped.no_sync():
                return wrapped(step, batch, batch_idx)

        return training_step

    def gather_gradients(self) -> None:
        """Where a hook has ended an epoch within a window no backward has averaged: it is done here, one by one."""
        if not self._waits:
            return
        self.ranks.begin_exchange()
        learning = [parameter for parameter in self.module.parameters() if not parameter.stop_gradient]
        with paddle.no_grad():
            used = paddle.to_tensor(np.array([parameter.grad is not None for parameter in learning], "int32"))
            paddle.distributed.all_reduce(used)
            for parameter in (one for one, count in zip(learning, used.numpy()) if count):  # by a batch of any rank
                if parameter.grad is None:
                    show_gradient(parameter, paddle.zeros_like(parameter))
                paddle.distributed.all_reduce(parameter.grad)
                parameter.grad.scale_(1 / self.ranks.world_size)
