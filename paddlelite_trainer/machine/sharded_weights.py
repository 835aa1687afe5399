"""Sharded weights (ZeRO stage 3): large parameters cut over the ranks, gathered layer by layer, by Paddle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import paddle

from ..errors import ConfigurationError, TrainingError
from . import paddle_sharding
from .engine import Engine, Step, names_of, refuse_changed, refuse_skipping, refusing_what_paddle_cannot_shard
from .ranks import Ranks
from .strategy import Strategy


class ShardedWeights(Engine):
    """Stage 3. Parameters with more than `segment_size` numbers are cut, with their gradients and moments.

    Smaller ones are whole on every rank, and their gradients averaged at a window's end. Outside of steps nothing can
    read a cut parameter but within `whole`.
    """

    is_sharded = everyone_keeps = True

    def __init__(
        self,
        module: paddle.nn.Layer,
        optimizer: Any,
        strategy: Strategy,
        names: Mapping[str, str],
        ranks: Ranks,
        pieces: paddle_sharding.Pieces | None = None,
    ) -> None:
        self.module, self.names, self.ranks, self.strategy = module, dict(names), ranks, strategy
        for name, layer in module.named_sublayers():
            paddle_sharding.refuse_nested_outputs(name, layer)
        ranks.meet("the sharding of the weights")
        paddle_sharding.send_weights(module)
        with refusing_what_paddle_cannot_shard(optimizer, strategy.name):
            self.cutting = paddle_sharding.CutWeights(module, optimizer, strategy.segment_size, pieces)
        self.shapes = {names[one.name]: tuple(one.shape) for one in self.cutting.cut if one.name in names}
        self.learns = [one.trainable for one in self.cutting.parameters]
        self.parameters = [one for one in self.cutting.parameters if one.trainable]
        self.is_over = False  # from then on the weights are whole
        self._used: set[str] = set()
        for parameter in self.parameters:
            self._mark(parameter)

    def _mark(self, parameter: Any) -> None:
        used, name = self._used, parameter.name
        paddle_sharding.on_gradient(parameter, lambda *_: used.add(name))

    def training_step(self, step: Step) -> Step:
        strategy = self.strategy.name

        def training_step(batch: Any, batch_idx: int) -> Any:
            self.cutting.calls.clear()
            outputs = step(batch, batch_idx)
            refuse_skipping(outputs, strategy)
            return outputs

        return training_step

    def stepping(self, optimizer: Any) -> Any:
        return self.cutting

    def gather_gradients(self) -> None:
        refuse_changed(self.cutting.parameters, self.learns, self.names, self.strategy.name)
        missing = [parameter for parameter in self.parameters if parameter.name not in self._used]
        self._used.clear()
        if missing:
            raise TrainingError(
                f"{names_of(missing, self.names)}: no gradient came in this step, and with "
                f"strategy={self.strategy.name!r} Paddle takes a step only where each parameter has one. Freeze what "
                "the loss does not use, or use strategy='sharding_stage2'"
            )
        self.cutting.take_gradients()

    def norm(self, parameters: Sequence[Any]) -> Any:
        is_cut = [one.name.startswith(paddle_sharding.SLICE) for one in parameters]
        with paddle.no_grad():
            norms = [paddle.linalg.norm(one.grad.astype("float32")) for one in parameters]
            squares = [norm.square() if cut else paddle.zeros([]) for cut, norm in zip(is_cut, norms)]
            total = paddle.stack(squares)
            paddle.distributed.all_reduce(total)
            over_ranks = total.sqrt().unbind()
            whole = [over if cut else norm for cut, norm, over in zip(is_cut, norms, over_ranks)]
            return paddle.linalg.norm(paddle.stack(whole))

    def refuse_new_parameters(self) -> None:
        raise ConfigurationError(
            f"strategy={self.strategy.name!r} cuts parameters once, as the fit begins; an optimizer gets none later: "
            "give configure_optimizers all of them, or use strategy='ddp'"
        )

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        with self.cutting.whole() if not self.is_over else contextlib.nullcontext():
            yield

    def begin_batch(self) -> None:
        self.cutting.calls.clear()

    def go_along(self) -> None:
        self.cutting.repeat_calls()

    def held(self, weights: list[Any]) -> list[Any]:
        return weights if self.is_over else self.cutting.held(weights)

    def slices(self, weights: Mapping[str, Any]) -> dict[str, tuple[Any, int, int]]:
        if self.is_over:
            return {}
        cut = {one.name for one in self.cutting.cut}
        of = {name: weight for name, weight in weights.items() if weight.name in cut}
        return {name: (weight.fw_storage, *self.cutting.bounds(weight)) for name, weight in of.items()}

    @property
    def keeps_cut(self) -> bool:
        return self.strategy.keep_cut and not self.is_over

    # -- the optimizer's state -----------------------------------------------------------------------------------------
    def state_names(self, names: Mapping[str, str]) -> dict[str, str]:
        return {**names, **{paddle_sharding.SLICE + one.name: names[one.name] for one in self.cutting.cut}}

    def cut(self, tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        found = {}
        for name, tensor in tensors.items():
            shape = self.shapes.get(name.partition("/")[2].rpartition("/")[0])
            if shape is not None and int(tensor.size) > 1:
                found[name] = shape
        return found

    def part_of(self, parameter: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
        if self.shapes.get(parameter) != shape:
            return None
        return self.cutting.bounds(next(one for one in self.cutting.cut if self.names[one.name] == parameter))

    @contextlib.contextmanager
    def state_in(self, optimizer: Any) -> Iterator[None]:
        with self.cutting.with_slices():
            yield

    def let_go(self) -> None:
        self.cutting.let_go(to_host=self.strategy.keep_cut)
        self.is_over = True
