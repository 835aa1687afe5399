"""Paddle's group sharding: the second file that reaches for Paddle's private names, those of its ZeRO stages.

Read in Paddle 3.3.1, paddle/distributed/fleet/meta_parallel/sharding/. Paddle's own loop calls the wrapper's forward,
which begins a window at each batch; here the parts of that forward are called where a window begins and ends.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import paddle


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within, Paddle's sharding logs errors alone: it draws rows of asterisks, and warns of what is handled here."""
    root, module = logging.getLogger(), sys.modules.get("paddle.distributed.sharding.group_sharded")
    own = getattr(module, "logger_", root)
    before = root.level, own.level
    root.setLevel(logging.ERROR)
    own.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before[0])
        own.setLevel(before[1])


def send_weights(module: Any) -> None:
    """Rank 0's parameters and buffers to all, as paddle.DataParallel does; distributed/parallel.py."""
    from paddle.distributed.parallel import sync_params_buffers

    sync_params_buffers(module, fuse_params=False)


def over_ranks(scaler: Any) -> Callable[[Any], None]:
    """GradScaler's unscaling whose finding of an infinity is that of any rank; group_sharded_utils.py.

    Paddle's leaves out what amp/grad_scaler.py does, to note that it was done: a step would then do it once more.
    """
    from paddle.amp.grad_scaler import OptimizerState
    from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_utils import GroupShardedScaler

    class Holder:
        """What GroupShardedScaler puts its method on; the scaler's own is kept."""

    unscale = MethodType(GroupShardedScaler(Holder())._unscale.__func__, scaler)

    def once(optimizer: Any) -> None:
        unscale(optimizer)
        scaler._optimizer_states[id(optimizer)]["state"] = OptimizerState.UNSCALED

    return once


# -- stages 1 and 2 (group_sharded_stage2.py, group_sharded_optimizer_stage2.py) ---------------------------------------


class ShardedOptimizer:
    """What unscales, steps and clears in an optimizer's place, each rank the parameters that are its own."""

    offload = False  # GroupShardedScaler asks

    def __init__(self, wrapped: Any, sharded: Any) -> None:
        self.wrapped, self.sharded = wrapped, sharded
        self.held_back: list[Any] = []
        """Parameters of this step that have no gradient on any rank."""
        self._optim = sharded._optim
        self._set_auxiliary_var, self._get_auxiliary_var = sharded._set_auxiliary_var, sharded._get_auxiliary_var

    def hold_back(self, parameters: list[Any]) -> None:
        """The next step leaves these as they are."""
        self.held_back = parameters

    def step(self) -> None:
        """Step, and send each rank's weights to the others; its own `step` would divide the gradients once more."""
        here = [parameter for parameter in self.held_back if parameter.grad is not None]
        without = [(parameter, same_memory(parameter.grad)) for parameter in here]
        for parameter, _ in without:
            parameter.clear_gradient(False)
        self.sharded._step()
        for parameter, gradient in without:
            show_gradient(parameter, gradient)

    def clear_grad(self, set_to_zero: bool = False) -> None:
        """To zeros in any case: gradients lie in memory that is sent."""
        self.wrapped._clear_gradients()


def shard_optimizer(module: Any, optimizer: Any, level: str) -> ShardedOptimizer:
    """Each parameter's state on one rank, and gradients reduced to it."""
    from paddle.distributed.sharding import group_sharded_parallel

    with quietly():
        wrapped, sharded, _ = group_sharded_parallel(module, optimizer, level)
    # From now on `mean` alone divides gradients; else hooks would, those of half precision twice in the first step.
    wrapped._get_scaled_grad_fn(next(iter(sharded.local_params)))(None)
    assert wrapped.scale_in_opt
    return ShardedOptimizer(wrapped, sharded)


def parameters(optimizer: ShardedOptimizer) -> list[Any]:
    """The optimizer's parameters, of all ranks, in its order."""
    return list(optimizer.sharded.local_params)


def owners(optimizer: ShardedOptimizer) -> dict[str, int]:
    """{Paddle's parameter name: the rank that has its state}."""
    return dict(optimizer.sharded.param2rank)


def open_window(wrapped: Any) -> None:
    """Gradients begin at nought."""
    with quietly():
        wrapped._init_internal_storage(not wrapped._bw_hooks)


def reduce_in_backward(wrapped: Any, reduces: bool) -> None:
    """Whether the next backward sends gradients to their ranks, or lets them wait here."""
    wrapped._grad_reduced[:] = [reduces] * len(wrapped._trainable_params)
    for storage in wrapped._grad_storage_list:
        storage.reset_checked_in()


def not_yet_reduced(wrapped: Any) -> list[Any]:
    """Parameters whose gradient has not come since `reduce_in_backward(..., True)`."""
    return [one for one, waits in zip(wrapped._trainable_params, wrapped._grad_reduced) if waits]


def reduce_the_rest(wrapped: Any) -> None:
    """Send what waits, parameters without a gradient as zeros, in one order on all ranks."""
    with paddle.no_grad():
        for index, (parameter, waits) in enumerate(zip(wrapped._trainable_params, wrapped._grad_reduced)):
            if waits:
                if parameter.grad is None:
                    parameter._copy_gradient_from(paddle.zeros_like(parameter))
                wrapped._get_reduce_fn(index, parameter, wrapped._trainable_param2rank[parameter.name])()


def mean(wrapped: Any) -> None:
    """Gradients are sums over ranks; make them means."""
    wrapped._grad_scale()


def on_gradient(parameter: Any, call: Callable[..., None]) -> None:
    """Call `call` whenever a backward has a gradient for the parameter, as long as it lives."""
    parameter._register_backward_hook(call)


def same_memory(gradient: Any) -> Any:
    """A tensor over the gradient's memory that outlives the clearing of the gradient, which a detached one does not."""
    other = paddle.empty_like(gradient)
    other.get_tensor()._share_data_with(gradient.get_tensor())
    return other


def show_gradient(parameter: Any, gradient: Any) -> None:
    """Let this tensor, which is part of what is sent, be the parameter's gradient."""
    parameter._copy_gradient_from(gradient)


def let_go(wrapped: Any) -> None:
    """Nothing is reduced any more, whatever is computed with the parameters, whose hooks stay; no gradient is kept."""
    reduce_in_backward(wrapped, False)
    for storages in wrapped._grad_storages.values():
        for storage in storages.values():
            storage.manual_release()
    for parameter in wrapped._trainable_params:
        parameter.clear_gradient(False)
