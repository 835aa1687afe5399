"""Sharded optimizer state (ZeRO stages 1 and 2): each parameter's moments on one rank, by Paddle's group sharding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, TrainingError
from . import paddle_sharding
from .engine import Engine, Step, names_of, refuse_changed, refuse_skipping, refusing_what_paddle_cannot_shard
from .ranks import Ranks
from .strategy import Strategy

_LEVELS = {1: "os", 2: "os_g"}


class ShardedState(Engine):
    """Stages 1 and 2, which Paddle does alike: weights are whole on every rank, and so are buffers.

    Within a window gradients wait where they were made; at its end each goes to the rank that has the parameter's
    state, which steps and sends the weights. With `find_unused_parameters` they go after the backward, in one order,
    and a parameter that no rank has used is not stepped; without, as soon as each is there.
    """

    is_sharded = True

    def __init__(
        self,
        module: paddle.nn.Layer,
        optimizer: Any,
        strategy: Strategy,
        names: dict[str, str],
        ranks: Ranks,
        window: Callable[[], tuple[bool, bool]],
    ) -> None:
        self.strategy, self.names, self.ranks, self.window = strategy, names, ranks, window
        ranks.meet("the sharding of the optimizer")
        paddle_sharding.send_weights(module)
        with refusing_what_paddle_cannot_shard(optimizer, strategy.name):
            self.sharded = paddle_sharding.shard_optimizer(module, optimizer, _LEVELS[strategy.stage])
        self.wrapped = self.sharded.wrapped
        self.parameters = paddle_sharding.parameters(self.sharded)
        self.learns = [parameter.trainable for parameter in self.parameters]
        self.owners = paddle_sharding.owners(self.sharded)
        self.finds_unused = strategy.finds_unused
        self._is_open = False  # whether there is memory for a window's gradients
        self._sends = False  # whether the last backward sent gradients
        self._used: set[str] = set()
        for parameter in self.parameters if self.finds_unused else ():
            if parameter.trainable:
                paddle_sharding.on_gradient(parameter, self._marking(parameter.name))

    def _marking(self, name: str) -> Callable[..., None]:
        used = self._used
        return lambda *_: used.add(name)

    def training_step(self, step: Step) -> Step:
        strategy = self.strategy.name

        def training_step(batch: Any, batch_idx: int) -> Any:
            begins, ends = self.window()
            if begins or not self._is_open:
                self._open_window()
            self._sends = ends and not self.finds_unused
            paddle_sharding.reduce_in_backward(self.wrapped, self._sends)
            outputs = step(batch, batch_idx)
            refuse_skipping(outputs, strategy)
            return outputs

        return training_step

    def _open_window(self) -> None:
        refuse_changed(self.parameters, self.learns, self.names, self.strategy.name)
        self._used.clear()
        self._is_open = True
        paddle_sharding.open_window(self.wrapped)

    def stepping(self, optimizer: Any) -> Any:
        return self.sharded

    def gather_gradients(self) -> None:
        if not self._sends:  # nor where a hook has ended an epoch within a window
            paddle_sharding.reduce_in_backward(self.wrapped, True)
            paddle_sharding.reduce_the_rest(self.wrapped)
        else:
            left = paddle_sharding.not_yet_reduced(self.wrapped)
            if left:
                raise TrainingError(
                    f"{names_of(left, self.names)}: no gradient came in this step, and with "
                    f"strategy={self.strategy.name!r} others wait for it. Pass find_unused_parameters=True to Trainer, "
                    "or freeze what the loss does not use"
                )
        paddle_sharding.mean(self.wrapped)
        if self.finds_unused:
            self._hold_back_unused()

    def _hold_back_unused(self) -> None:
        """Let what no rank has used stay: its gradient of zeros would move it by weight decay and moments."""
        trainable = [parameter for parameter in self.parameters if parameter.trainable]
        used = paddle.to_tensor(np.array([parameter.name in self._used for parameter in trainable], "int32"))
        paddle.distributed.all_reduce(used)
        self.sharded.hold_back([parameter for parameter, count in zip(trainable, used.numpy()) if not count])

    def keeps(self, name: str) -> bool:
        return self.owners.get(name, self.ranks.rank) == self.ranks.rank

    def norm(self, parameters: Sequence[Any]) -> Any:
        """As one process has it, bit for bit: each parameter's norm from its rank, then the norm of these in order."""
        here = {parameter.name: parameter for parameter in parameters}
        unused = {parameter.name for parameter in self.sharded.held_back}
        clipped = [one for one in self.parameters if one.trainable and getattr(one, "need_clip", True)]
        with paddle.no_grad():
            norms = [
                paddle.linalg.norm(here[one.name].grad.astype("float32")) if one.name in here else paddle.zeros([])
                for one in clipped
                if one.name not in unused
            ]
            stacked = paddle.stack(norms)
            paddle.distributed.all_reduce(stacked)
            return paddle.linalg.norm(stacked)

    def put_gradient_back(self, parameter: Any, put: Callable[[Any], None]) -> None:
        if not self._is_open:
            self._open_window()
        self._used.add(parameter.name)
        kept = None if parameter.grad is None else paddle_sharding.same_memory(parameter.grad)  # which is sent
        put(parameter)
        if kept is not None:
            kept.copy_(parameter.grad, True)
            parameter.clear_gradient(False)
            paddle_sharding.show_gradient(parameter, kept)

    def refuse_new_parameters(self) -> None:
        raise ConfigurationError(
            f"strategy={self.strategy.name!r} deals parameters out once, as the fit begins, so an optimizer gets none "
            "later: give configure_optimizers all of them, or use strategy='ddp'"
        )

    def let_go(self) -> None:
        paddle_sharding.let_go(self.wrapped)
