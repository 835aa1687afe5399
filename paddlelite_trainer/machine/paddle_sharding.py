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

from ..errors import ConfigurationError, add_note


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


# -- stage 3 (group_sharded_stage3.py) ---------------------------------------------------------------------------------

_LEFT_WHOLE = (paddle.nn.BatchNorm, paddle.nn.layer.norm._BatchNormBase)
"""Layers whose parameters are running statistics too, each rank's own, which are changed where a layer is called."""


_COPYING = (paddle.nn.RNNCellBase, paddle.nn.layer.rnn.RNNBase)
"""Layers that, once they are made, move what they have made into one memory: cut only when they are complete."""


def left_whole(module: Any) -> list[int]:
    """Ids of the layers whose own parameters are not cut; in the module itself Paddle finds no call that needs them."""
    batch_norms = [layer for layer in module.sublayers() if isinstance(layer, _LEFT_WHOLE)]
    return [id(layer) for layer in (module, *batch_norms)]


def refuse_nested_outputs(name: str, layer: Any) -> None:
    """Raise ConfigurationError where a layer's outputs lie in one another: Paddle's hooks lose them in the backward."""
    if isinstance(layer, (paddle.nn.LSTM, paddle.nn.LSTMCell)):
        kind = type(layer).__name__
        raise ConfigurationError(
            f"{name}: strategy='sharding_stage3' cannot be with {kind}, as Paddle loses its states in the backward. "
            "Use strategy='sharding_stage2', or GRU"
        )


_WHEN_IT_IS_CUT = (
    "with strategy='sharding_stage3' the large weights of a layer are cut over the ranks as soon as another layer is "
    "made: give them their first values where the layer is made (weight_attr=), before the next one is, or in "
    "self.apply(function)"
)


class Pieces:
    """Parameters that are cut while a module is built: of each this rank's share, until Paddle's sharding cuts it.

    Those that a layer has made are cut once another layer makes one, so a model is whole for a layer or two at once.
    What the module itself makes stays whole, as `left_whole` says.
    """

    def __init__(self, module: Any, segment_size: int) -> None:
        from paddle.distributed import collective

        self._module, self._segment_size = module, segment_size
        self._group = collective._get_global_group()
        self._new: list[tuple[Any, Any]] = []
        self._shares: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def of_what_is_built(self) -> Iterator[None]:
        """Within, the module's layers are made."""
        layer_class, tensor_class = paddle.nn.Layer, paddle.Tensor
        create, apply, copy = layer_class.create_parameter, layer_class.apply, tensor_class.copy_

        def create_parameter(layer: Any, *given: Any, **named: Any) -> Any:
            refuse_nested_outputs(layer.full_name(), layer)
            self._cut_new(but_of=layer)
            parameter = create(layer, *given, **named)
            is_left = parameter is None or layer is self._module or isinstance(layer, (*_LEFT_WHOLE, *_COPYING))
            if not is_left and parameter._numel() > self._segment_size:
                self._new.append((layer, parameter))
            return parameter

        def apply_layer_by_layer(layer: Any, function: Any) -> Any:
            for child in layer.children():
                child.apply(function)
            with self._whole(layer.parameters(include_sublayers=False)):
                function(layer)
            return layer

        def copy_(tensor: Any, other: Any, *given: Any) -> Any:
            if isinstance(other, tensor_class) and not other._is_initialized():  # Paddle's does nothing then
                raise ConfigurationError(f"{other.name} has been cut over the ranks, and cannot be copied")
            return copy(tensor, other, *given)

        instead = [
            (layer_class, "create_parameter", create, create_parameter),
            (layer_class, "apply", apply, apply_layer_by_layer),
            (tensor_class, "copy_", copy, copy_),
        ]
        for owner, name, _, one in instead:
            type.__setattr__(owner, name, one)
        try:
            yield
            self._cut_new(but_of=None)
            self._refuse_what_was_copied()
        except Exception as error:
            if self._shares:
                add_note(error, _WHEN_IT_IS_CUT)
            raise
        finally:
            for owner, name, one, _ in instead:
                type.__setattr__(owner, name, one)

    def _refuse_what_was_copied(self) -> None:
        for name, parameter in self._module.named_parameters():
            if not parameter._is_initialized() and id(parameter) not in self._shares:
                raise ConfigurationError(f"{name} was copied from a weight that had been cut over the ranks")

    def _cut_new(self, but_of: Any) -> None:
        for layer, parameter in self._new:
            if layer is not but_of:
                self._cut(parameter)
        self._new = [one for one in self._new if one[0] is but_of]
        for parameter, _ in [*self._shares.values()]:
            if parameter._is_initialized():  # by an initializer that was called for it, later than the next layer
                self._cut(parameter)

    def _cut(self, parameter: Any) -> None:
        ranks, rank = self._group.nranks, self._group.rank
        with paddle.no_grad():
            paddle.distributed.broadcast(parameter, self._group.ranks[0])
            length = -(-int(parameter._numel()) // ranks)
            here = parameter.detach().flatten()[rank * length : (rank + 1) * length]
            padding = paddle.zeros([length - here.shape[0]], here.dtype)
            self._shares[id(parameter)] = parameter, paddle.concat([here, padding])
            parameter._clear_data()
        vars(parameter).update(no_sync=True)  # so that nobody sends it

    @contextlib.contextmanager
    def _whole(self, parameters: list[Any]) -> Iterator[None]:
        """Within, these are whole; what is written into them then is rank 0's."""
        cut = [one for one in parameters if id(one) in self._shares]
        for parameter in cut:
            self.give_back(parameter)
        yield
        for parameter in cut:
            self._cut(parameter)

    def give_back(self, parameter: Any) -> None:
        """Make the parameter whole, for good, if it was cut."""
        from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3 as paddle_s

        _, share = self._shares.pop(id(parameter), (None, None))
        if share is None:
            return
        with paddle.no_grad():
            whole, task = paddle_s._all_gather(share, int(share.shape[0]) * self._group.nranks, self._group)
            task.wait()
            whole._slice(0, parameter._numel())._share_buffer_to(parameter)
        vars(parameter).pop("no_sync")

    def give_all_back(self) -> None:
        """Make whole what nobody has taken."""
        for parameter, _ in [*self._shares.values()]:
            self.give_back(parameter)


SLICE = "slice@"
"""What Paddle puts before the name of a parameter's slice, by which the optimizer keeps its state."""


def _stage3(pieces: Pieces | None) -> Any:
    """Paddle's class, which takes one after the other what was cut before it, and has rank 0's weights already."""
    from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3 import GroupShardedStage3

    class Stage3(GroupShardedStage3):
        def _sync_params_and_buffers(self) -> None:
            """`send_weights` and `Pieces` have."""

        def _param_storage(self, parameter: Any, size: int) -> None:
            if pieces is not None:
                pieces.give_back(parameter)
            super()._param_storage(parameter, size)

    return Stage3


class CutWeights:
    """Parameters cut over ranks, and what unscales, steps and clears in their optimizer's place.

    Layers gather their parameters as they are called (`sync_comm`: no layer ahead, as the next one may not be called).
    What the optimizer was built with stays its own but for the step itself; Paddle leaves slices in its place, and in
    groups those of the first step for ever.
    """

    offload = False  # GroupShardedScaler asks

    def __init__(self, module: Any, optimizer: Any, segment_size: int, pieces: Pieces | None = None) -> None:
        self.optimizer = self._optim = optimizer
        both = [*optimizer._param_groups, *optimizer._parameter_list]  # other dicts, where there are groups
        self.groups = [group for group in both if isinstance(group, dict)]
        self.own = [list(group["params"]) for group in self.groups] or [list(optimizer._parameter_list)]
        self.parameters = [one for group in self.own[: max(1, len(self.groups) // 2)] for one in group]
        self._step = optimizer.step  # Paddle puts its own in its place
        layers = module.sublayers(include_self=True)
        self.hooks = [(layer, set(layer._forward_pre_hooks), set(layer._forward_post_hooks)) for layer in layers]
        with quietly():
            self.wrapped = _stage3(pieces)(
                module,
                optimizer,
                segment_size=segment_size,
                sync_comm=True,
                device=paddle.get_device().partition(":")[0],
                exclude_layer=left_whole(module),
            )
        if pieces is not None:
            pieces.give_all_back()
        self.cut = [one for one in module.parameters() if one.name in self.wrapped._param2buffer_size]
        self.calls: list[tuple[Any, bool]] = []
        """Layers that were called since `calls` was emptied, each as it gathers, and as it lets go: True."""
        for layer in layers:
            if self.wrapped._trainable_params.get(id(layer)):
                layer.register_forward_pre_hook(self._note(layer, False))
                layer.register_forward_post_hook(self._note(layer, True))
        self._set_auxiliary_var, self._get_auxiliary_var = optimizer._set_auxiliary_var, optimizer._get_auxiliary_var

    def _note(self, layer: Any, lets_go: bool) -> Callable[..., None]:
        return lambda *_: self.calls.append((layer, lets_go))

    def repeat_calls(self) -> None:
        """Gather and let go as the layers did that were called, for the ranks that call them once more."""
        from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3 as paddle_s

        wrapped, flow = self.wrapped, self.wrapped._task_flow
        with paddle.no_grad():
            for layer, lets_go in self.calls:
                cut = wrapped._trainable_params[id(layer)]
                if lets_go:
                    paddle_s._release_param(cut, wrapped._param2buffer, wrapped._rank, flow)
                else:
                    sizes = wrapped._param2buffer_size
                    paddle_s._allgather_buffer(cut, wrapped._group, sizes, True, flow, sync_wait=True)

    def bounds(self, parameter: Any) -> tuple[int, int]:
        """Where this rank's slice of the flat parameter begins and ends; the last one is padded."""
        start, end = self.wrapped._param2buffer[parameter.name][self.wrapped._rank]
        return int(start), int(end)

    def held(self, weights: list[Any]) -> list[Any]:
        """Those of the weights that are here, and this rank's slices of the others."""
        slices = [one.fw_storage for one in self.cut if one.fw_storage is not None]
        return [*(one for one in weights if one._is_initialized()), *slices]

    def take_gradients(self) -> None:
        """Average the gradients of what is not cut, and let the optimizer see slices with theirs."""
        self.wrapped._update_params_slice()
        self._give_back([[getattr(one, "fw_storage", one) for one in group] for group in self.own])

    def step(self) -> None:
        self._step()

    def clear_grad(self, set_to_zero: bool = False) -> None:
        self.wrapped._clear_gradients()
        self._give_back(self.own)

    def _give_back(self, lists: list[list[Any]]) -> None:
        if self.groups:
            for group, given in zip(self.groups, lists):
                group["params"] = list(given)
        else:
            vars(self.optimizer).update(_parameter_list=list(lists[0]), _param_groups=list(lists[0]))

    @contextlib.contextmanager
    def with_slices(self) -> Iterator[None]:
        """Within, the optimizer has parameters of the slices' names and shapes: what its state is of."""
        from paddle.base.framework import EagerParamBase

        def slice_of(parameter: Any) -> Any:
            if parameter.name not in self.wrapped._param2buffer_size:
                return parameter
            start, end = self.bounds(parameter)
            like = EagerParamBase(shape=[end - start], dtype=parameter.dtype, name=SLICE + parameter.name)
            if parameter.dtype != paddle.float32:  # whose master weights Paddle casts from it
                paddle.zeros([end - start], parameter.dtype)._share_buffer_to(like)
            return like

        self._give_back([[slice_of(parameter) for parameter in group] for group in self.own])
        try:
            yield
        finally:
            self._give_back(self.own)

    @contextlib.contextmanager
    def whole(self, only: Any = None) -> Iterator[None]:
        """Within, every parameter, or one, is whole on every rank; what is written into it its slices have then."""
        from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3 as paddle_s

        wrapped, cut = self.wrapped, self.cut if only is None else [only]
        flow = paddle_s.TaskFlow({}, {}, {})
        with paddle.no_grad():
            paddle_s._allgather_buffer(
                cut,
                wrapped._group,
                param2buffer_size=wrapped._param2buffer_size,
                use_calc_stream=True,
                task_flow=flow,
                sync_wait=True,
            )
        try:
            yield
        finally:
            with paddle.no_grad():
                paddle_s._release_param(cut, wrapped._param2buffer, wrapped._rank, flow)

    def let_go(self, *, to_host: bool) -> None:
        """Make the module whole again, of the host's memory where asked, and its layers plain ones."""
        for layer, before, after in self.hooks:
            for hooks, known in ((layer._forward_pre_hooks, before), (layer._forward_post_hooks, after)):
                for key in [key for key in hooks if key not in known]:
                    del hooks[key]
        with paddle.no_grad():
            for parameter in self.cut:  # one by one, so that there is room for one twice
                with self.whole(parameter):
                    value = parameter.detach().cpu() if to_host else parameter.clone().detach()
                value._share_buffer_to(parameter)
                for name in ("fw_storage", "bw_storage", "master_weight", "status", "use_count"):
                    vars(parameter).pop(name, None)
        for parameter in self.parameters:
            vars(parameter).pop("unslice", None)
            parameter.clear_gradient(False)
        self._give_back(self.own)
        for name in ("_optim", "update_slice", "step", "clear_grad", "minimize"):
            vars(self.optimizer).pop(name, None)
