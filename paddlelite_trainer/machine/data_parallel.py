"""Data parallel training: gradients averaged over ranks by paddle.DataParallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, TrainingError
from .board import CHECKED, FLAGS, RECORDED, SETTLED, Board
from .engine import Backward, Engine, Step, names_of
from .paddle_internals import DataParallel as Wrapper
from .paddle_internals import average_in_backward, has_sparse_gradient, have_gradients_of_zero
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

    A backward that leaves parameters out must be known to Paddle beforehand, by a search that costs a collective. Here
    it is looked for afterwards where ranks share a board (`LeftOut`), until one has left any out; searched for are
    windows of several batches, whose gradients do not tell, manual optimization, and machines without a board.
    """

    def __init__(
        self,
        module: paddle.nn.Layer,
        strategy: Strategy,
        ranks: Ranks,
        names: dict[str, str],
        ends_window: Callable[[], bool] | None,
    ) -> None:
        self.module, self.ranks, self.names, self.ends_window = module, ranks, names, ends_window
        ranks.begin_exchanges("the wrapping of the module")
        self.wrapped = Wrapper(_TrainingStep(module))
        layers = module.named_sublayers(include_self=True)
        self._sparse = [name for name, layer in layers if has_sparse_gradient(layer)]
        self._asked = strategy.find_unused_parameters
        self._searches = self._asked is not False
        self._left_out: LeftOut | None = None
        may_look = ends_window is not None and not self._sparse and len(module.parameters()) <= FLAGS
        if self._asked is None and may_look and ranks.board is not None:
            self._left_out, self._searches = LeftOut(ranks, ranks.board), False
        self._stop_waiting: Callable[[], Any] = _nothing
        self._failure: BaseException | None = None
        self._look_again()
        self._waits = False  # whether there are gradients that no backward has averaged
        self._expects_all = self._is_within = False  # of the backward at hand; whether one is under way

    def _look_again(self) -> None:
        """Go by the parameters that learn now."""
        parameters = self.module.parameters()
        self._learning = [parameter for parameter in parameters if not parameter.stop_gradient]
        self._frozen = [parameter for parameter in parameters if parameter.stop_gradient]
        self.wrapped.look_again()
        self._kind: bool | None = None  # whether Paddle is set to search; it is set to nothing

    def _begin(self, searches: bool) -> None:
        """A backward that averages comes next."""
        for parameter in self._frozen:
            if not parameter.stop_gradient:
                self._look_again()
                break
        if searches is not self._kind:
            self.wrapped.use_reducer(searches=searches)
            self._kind = searches
            self._stop_waiting()
            self._stop_waiting = _nothing
            if not searches:
                self._stop_waiting = self.wrapped.awaited.register_hook(self._await_ranks).remove
        self._is_within = True

    def _await_ranks(self, gradient: Any) -> None:
        """Within the backward: a rank that comes first computes until gradients are to be exchanged."""
        try:
            self.ranks.await_exchange()
        except BaseException as error:
            self._failure = error  # which Paddle turns into one of its own
            raise

    def manual(self, backward: Backward) -> Backward:
        def over_ranks(loss: Any, retain_graph: bool = False) -> None:
            self._begin(self._searches)
            self.ranks.begin_exchange()
            average_in_backward(self.wrapped, loss)
            backward(loss, retain_graph)
            self._is_within = False

        return over_ranks

    def automatic(self, backward: Backward) -> Backward:
        if self._searches:
            return backward

        def with_all_gradients(loss: Any, retain_graph: bool = False) -> None:
            try:
                backward(loss, retain_graph)
            except Exception:
                if self._failure is not None:
                    raise self._failure from None
                raise
            self.ranks.wait_later(False)
            if not self._expects_all:
                return
            missing = [parameter for parameter in self._learning if parameter.grad is None]
            if self._left_out is not None:
                self._searches = self._left_out.settle(self._learning, missing)
            elif missing:
                self._refuse(missing)

        return with_all_gradients

    def _refuse(self, missing: list[Any]) -> None:
        raise TrainingError(
            f"{names_of(missing, self.names)}: no gradient came in this step, and with find_unused_parameters=False "
            "other ranks wait for it. Leave that out, or freeze what the loss does not use"
        )

    def training_step(self, step: Step) -> Step:
        ends_window, wrapped, sparse = self.ends_window, self.wrapped, self._sparse
        if ends_window is None:
            return step

        def training_step(batch: Any, batch_idx: int) -> Any:
            waited, self._waits = self._waits, not ends_window()
            self._expects_all = not (self._waits or waited or self._searches)
            if not self._waits:
                self._begin(self._searches or (waited and self._asked is None))
                self.ranks.wait_later(self._expects_all)
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
        self._is_within = False
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

    def let_go(self) -> None:
        self._stop_waiting()
        self._stop_waiting = _nothing
        self.ranks.wait_later(False)
        if not self._is_within:
            self.wrapped.give_back()


def _nothing() -> None:
    """What is called where nothing is to be undone."""


class LeftOut:
    """Finds out after each backward which parameters no rank's has reached; a step without any costs two stores.

    A rank whose backward has left some out gives Paddle zeros for them, as the others' collectives wait, and asks the
    board whether another rank has reached them: what none has is not stepped. Paddle's search, which does that in each
    step, is better where it happens again: ranks agree on it after steps 1, 10 and 100, and every thousandth.
    """

    def __init__(self, ranks: Ranks, board: Board) -> None:
        self.ranks, self.board = ranks, board
        self._step = self._recorded = self._times = 0

    def settle(self, learning: list[Any], missing: list[Any]) -> bool:
        """After each backward, on every rank; whether the ranks are to search from now on."""
        self._step = step = self._step + 1
        if missing:
            self._settle(step, learning, missing)
        else:
            self.board.post(CHECKED, step)
            self.board.post(SETTLED, step)
        if step % 1000 and step not in (1, 10, 100):
            return False
        return self.ranks.any(self._times > 0)

    def _settle(self, step: int, learning: list[Any], missing: list[Any]) -> None:
        board, await_on_board, what = self.board, self.ranks.await_on_board, "the gradients of a step"
        self._times += 1
        await_on_board(SETTLED, self._recorded, what)  # nobody reads the flags of the last time any more
        flags = [parameter.grad is None for parameter in learning]
        board.write_flags(bytes(flags))
        board.post(RECORDED, step)
        board.post(CHECKED, step)
        self._recorded = step
        have_gradients_of_zero(missing)
        await_on_board(CHECKED, step, what)
        for rank in board.others:
            theirs = board.flags_of(rank, len(flags)) if board.of(RECORDED, rank) == step else bytes(len(flags))
            flags = [mine and bool(its) for mine, its in zip(flags, theirs)]
        for parameter, is_unused in zip(learning, flags):
            if is_unused:
                parameter.clear_gradient(False)
        board.post(SETTLED, step)
