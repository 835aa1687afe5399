"""Paddle's own private names: the one file that reaches for them, each for a reason and with the place it stands at.

Everything here was read in Paddle 2.6.2 and 3.3.1; the file that is named is that of 3.3.1, below paddle/, and 2.6.2
has the same unless it says otherwise. A new version of Paddle is supported when the tests pass, and where they do not,
here is the place to look.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar

import paddle
from paddle import _C_ops
from paddle.base.framework import _current_expected_place, _set_expected_place
from paddle.io.dataloader import worker as _dataloader_worker
from paddle.jit.dy2static import program_translator as _program_translator
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler

# -- places and tensors (base/framework.py, base/dygraph/tensor_patch_methods.py, C++) ---------------------------------

current_place = _current_expected_place
"""The place where Paddle creates tensors; base/framework.py."""

set_current_place = _set_expected_place
"""Make Paddle create tensors there, without set_device's checks and its parsing; base/framework.py."""


def is_on(tensor: Any, place: Any) -> bool:
    """Whether the tensor is on that very place; `==` on places makes objects, `_equals` of C++ does not."""
    return bool(tensor.place._equals(place))


def has_memory(tensor: Any) -> bool:
    """Whether the tensor has its numbers yet; to ask for those of one without ends in an error of C++."""
    return bool(tensor._is_initialized())


def copied_to(tensor: Any, place: Any) -> Any:
    """A copy on the place, when it is done, by C++'s `_copy_to(place, blocking)`; `Tensor.to` is slower."""
    return tensor._copy_to(place, True)


# -- operations without their Python wrappers, which take longer than a small tensor's arithmetic (C++) --------------

move_towards: Callable[[Any, Any, Any], Any] = _C_ops.lerp_  # type: ignore[attr-defined]
"""move_towards(tensor, end, share): tensor += share * (end - tensor), of Tensor.lerp_ the very kernel (tensor/math.py).

On Paddle 2.6 the wrapper takes 6 us and the kernel 3.
"""

squared_norm: Callable[[Any], Any] = _C_ops.squared_l2_norm
"""The sum of a float32 or float64 tensor's squares, of shape [1], as nn/clip.py takes it."""

total: Callable[[list[Any]], Any] = _C_ops.add_n
"""The sum of a list of tensors of one type, on the device."""


# -- optimizers (optimizer/optimizer.py) -------------------------------------------------------------------------------


def learning_rate(optimizer: Optimizer) -> float | LRScheduler:
    """The number or the scheduler that the optimizer was built with; `get_lr` gives only the number."""
    return optimizer._learning_rate


def gradient_clip(optimizer: Optimizer) -> Any:
    """The optimizer's own grad_clip, or None."""
    return optimizer._grad_clip


def keeps_master_weights(optimizer: Optimizer) -> bool:
    """Whether it was built, or decorated by paddle.amp, to keep float32 weights; a few classes cannot."""
    return bool(getattr(optimizer, "_multi_precision", False))


def master_weights(optimizer: Optimizer) -> dict[str, Any]:
    """{Paddle's parameter name: its float32 weight}, the live dict; an empty one for a class without."""
    return getattr(optimizer, "_master_weights", None) or {}


def accumulators(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """{accumulator: {Paddle's parameter name, or its master's: tensor}}, the live dict."""
    return optimizer._accumulators  # type: ignore[no-any-return]


def has_groups(optimizer: Optimizer) -> bool:
    """Whether the optimizer was built with dicts, one for each group, and not with a list of parameters."""
    return isinstance(optimizer._parameter_list[0], Mapping)


def parameter_list(optimizer: Optimizer) -> Sequence[Any]:
    """What the optimizer was built with: parameters, or groups as dicts with "params"."""
    return optimizer._parameter_list or ()


def parameter_groups(optimizer: Optimizer) -> list[Any]:
    """The groups with all defaults filled in; the very list of parameters where there are none."""
    return optimizer._param_groups  # type: ignore[no-any-return]


def default(optimizer: Optimizer, key: str) -> Any:
    """What groups get for a key that they do not say, or None."""
    return optimizer._default_dict.get(key)


def coefficient(decay: Any) -> Any:
    """The number in a paddle.regularizer.L1Decay or L2Decay (regularizer.py); another value is given back."""
    return getattr(decay, "_coeff", decay)


def constants(optimizer: Optimizer) -> dict[str, float]:
    """The numbers that it was built with, but for its learning rate: weight_decay, beta1, momentum, ..."""
    values = dict(optimizer._default_dict)
    if "regularization_coeff" in values:  # Momentum's word
        values["weight_decay"] = values.pop("regularization_coeff")
    if getattr(optimizer, "regularization", None) is not None:  # where the others have made one of weight_decay
        values["weight_decay"] = optimizer.regularization
    numbers = {name: coefficient(value) for name, value in values.items()}
    return {name: value for name, value in numbers.items() if isinstance(value, (int, float))}


def append_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Let it train one group more. `_add_param_group` alone leaves the two lists unequal, which state_dict goes by."""
    optimizer._add_param_group(dict(group))
    optimizer._parameter_list.append(group)
    _renew_fused_lists(optimizer)


def append_parameters(optimizer: Optimizer, parameters: Iterable[Any]) -> None:
    """Let an optimizer without groups train more."""
    optimizer._parameter_list.extend(parameters)  # the very list that _param_groups is
    _renew_fused_lists(optimizer)


def _renew_fused_lists(optimizer: Optimizer) -> None:
    optimizer._param_dict = optimizer._create_multi_tensor_dict()  # what use_multi_tensor=True steps by


def set_dtype(optimizer: Optimizer, dtype: Any) -> None:
    """The type of its learning rate's tensor, which `__init__` takes from the parameters as they are then."""
    optimizer._dtype = dtype


found_inf = methodcaller("_get_auxiliary_var", "found_inf")
"""Whether the step that amp.GradScaler made found infinity: a tensor, on the host since Optimizer.step looked at it.

A C callable: it costs the batch no Python call more than reaching for the method.
"""


def forget_state(optimizer: Optimizer) -> None:
    """Drop accumulators and master weights, so that they can be created anew; set_state_dict only ever adds."""
    optimizer._accumulators.clear()
    optimizer._accumulators_holder = {}
    for created in ("_already_create_accumulator", "_already_create_accumulater"):  # 3.x and 2.6, spelt so
        getattr(optimizer, created, set()).clear()
    master_weights(optimizer).clear()


def create_state(optimizer: Optimizer, parameter_names: set[str]) -> None:
    """Create accumulators and master weights of these parameters, as the first step would before it computes."""
    from paddle.base.layer_helper import LayerHelper

    if getattr(optimizer, "helper", None) is None:
        optimizer.helper = LayerHelper(type(optimizer).__name__)  # 2.6 creates accumulators through it
    block = paddle.static.default_main_program().global_block()
    groups = optimizer._param_groups if has_groups(optimizer) else [optimizer._parameter_list]
    for group in groups:
        is_group = isinstance(group, Mapping)
        parameters = [one for one in (group["params"] if is_group else group) if one.name in parameter_names]
        if parameters:
            optimizer._create_accumulators(block, {**group, "params": parameters} if is_group else parameters)


# -- BatchNorm (nn/layer/norm.py: BatchNorm, _BatchNormBase and its subclasses) ----------------------------------------


def is_batch_norm(layer: Any) -> bool:
    """Whether the layer keeps running statistics; told by what it has, as others' layers count too."""
    return hasattr(layer, "_mean") and hasattr(layer, "_variance")


def running_statistics(layer: Any) -> dict[str, Any]:
    """{attribute: running mean or variance} of a layer that has them: to Paddle, parameters that do not learn."""
    found = {name: layer._parameters.get(name) for name in ("_mean", "_variance")}
    return {name: value for name, value in found.items() if value is not None}


def momentum(layer: Any) -> float | None:
    """In running = momentum * running + (1 - momentum) * the batch's; None for a layer that has no such number."""
    return getattr(layer, "_momentum", None)


def set_momentum(layer: Any, value: float) -> None:
    """Effective from the next forward on: it is read anew in each."""
    layer._momentum = value


# -- Embedding (nn/layer/common.py) ------------------------------------------------------------------------------------


def has_sparse_gradient(layer: Any) -> bool:
    """Whether it is an Embedding(sparse=True); what paddle.DataParallel goes by, in distributed/parallel.py."""
    return isinstance(layer, paddle.nn.Embedding) and bool(layer._sparse)


# -- several processes (distributed/parallel.py, C++) ------------------------------------------------------------------


class DataParallel(paddle.DataParallel):  # type: ignore[misc]
    """paddle.DataParallel whose reducers live as long as the parameters, whose backward calls them through a pointer.

    To let one go while a parameter lives ends the process in the next backward. One that is whole is used again by the
    next wrapper that wants its like, so that many fits of one module do not gather many.
    """

    _spare: ClassVar[dict[Any, list[tuple[Any, Any]]]] = {}

    def init_reducer(self) -> None:
        self._in_use: dict[Any, Any] = {}
        self.look_again()

    def look_again(self) -> None:
        """Go by the parameters that learn now; `use_reducer` comes before the next backward."""
        self._learning = [parameter for parameter in self._layers.parameters() if parameter.trainable]
        self._key = self.group.id, tuple(map(id, self._learning))

    def use_reducer(self, *, searches: bool) -> None:
        """Let the next backward go by all parameters, or search for those that it leaves out.

        `awaited` is then a parameter without whose gradient no collective begins, unless one is searched for.

        The backward must follow: a new reducer is told that there are gradients for all, since one that does not search
        thinks for ever that parameters which are not in the first graph that it sees will have none.
        """
        key = (searches, self._key)
        if key not in self._in_use:
            spare = self._spare.get(key)
            self._in_use[key] = spare.pop() if spare else self._new_reducer(key)
        self._reducer, self.awaited = self._in_use[key]

    def _new_reducer(self, key: Any) -> Any:
        self.find_unused_parameters = key[0]
        with _all_learn(self._learning):  # though some may be held back in this step
            super().init_reducer()
            of_layers = (layer.parameters(include_sublayers=False) for layer in self.sublayers())
            in_order = {id(one): one for of_layer in of_layers for one in of_layer if one.trainable}
            sent = [one for one in in_order.values() if not getattr(one, "no_sync", False)]
            awaited = sent[min(self.group_indices[-1])]
            if not key[0]:
                self._reducer.prepare_for_backward([(parameter * 0).sum() for parameter in self._learning])
        for parameter in self._learning:
            weakref.finalize(parameter, self._forget, key, self._reducer)
        return self._reducer, awaited

    @classmethod
    def _forget(cls, key: Any, reducer: Any) -> None:
        """A parameter is gone, and its id may come again."""
        cls._spare.pop(key, None)

    def give_back(self) -> None:
        """Every backward that was begun has ended: another wrapper may use the reducers."""
        for key, reducer in self._in_use.items():
            self._spare.setdefault(key, []).append(reducer)
        self._in_use.clear()


def average_in_backward(wrapped: Any, loss: Any) -> None:
    """Let the next backward, of this loss, average gradients, as paddle.DataParallel's forward does for its outputs."""
    wrapped._reducer.prepare_for_backward([loss])


def have_gradients_of_zero(parameters: Sequence[Any]) -> None:
    """A backward that gives each of these zeros, frozen ones too; reducers take part in it as in any."""
    with _all_learn(parameters):
        paddle.autograd.backward([(parameter * 0).sum() for parameter in parameters])


@contextlib.contextmanager
def _all_learn(parameters: Sequence[Any]) -> Iterator[None]:
    held_back = [parameter for parameter in parameters if parameter.stop_gradient]
    for parameter in held_back:
        hold_back(parameter, False)
    try:
        yield
    finally:
        for parameter in held_back:
            hold_back(parameter, True)


def hold_back(parameter: Any, stops: bool) -> None:
    """Let a parameter have no gradient, or have one again."""
    parameter.stop_gradient = stops


def job_store() -> Any:
    """Keys with bytes that all processes of the job share, once init_parallel_env has run; `get` waits for a key."""
    return paddle.base.core.create_or_get_global_tcp_store()


# -- translating to programs (jit/dy2static/program_translator.py, parameter_recorder.py) ------------------------------


def forget_traces() -> None:
    """Drop what Paddle noted of programs under translation, unless one is under way.

    The notes go by the program's id and are taken away only where the translation ended well: a later program that
    gets the id of one that failed would get that one's parameters too.
    """
    if not paddle.in_dynamic_mode():
        return
    for notes in notes_of_traces():
        notes.clear()


def notes_of_traces() -> list[dict[Any, Any]]:
    """What Paddle keeps of programs under translation: {the program's id: its parameters, or in-place results}."""
    translator = _program_translator.ProgramTranslator.get_instance()
    keepers = [translator._params_recorder, translator._inplace_map]
    with contextlib.suppress(ImportError):  # 2.6 has no programs of a second kind
        from paddle.jit.dy2static import parameter_recorder

        keepers += [parameter_recorder._global_parameter_recorder, parameter_recorder._global_inplace_map]
    names = ("params_dict", "tensor2value")
    return [getattr(keeper, name) for keeper in keepers for name in names if hasattr(keeper, name)]


# -- DataLoader (io/) --------------------------------------------------------------------------------------------------


def loader_with_workers(dataset: Any, *, batch_size: int, shuffle: bool, num_workers: int) -> Any:
    """A DataLoader with so many workers: its constructor gives it none on Windows and macOS; io/reader.py."""
    loader = paddle.io.DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)
    vars(loader)["num_workers"] = num_workers
    return loader


def keeps_workers(loader: Any) -> bool:
    """DataLoader(persistent_workers=...), which has no public name; io/reader.py."""
    return bool(loader._persistent_workers)


def is_plain_sampler(sampler: Any) -> bool:
    """Whether it gives one batch's indices at a time, as all but auto-parallel's do; io/dataloader/batch_sampler.py."""
    return getattr(sampler, "_acc_steps", 1) == 1


def reads_in_order(loader: Any) -> bool:
    """Whether the DataLoader's dataset is an IterableDataset; io/dataloader/worker.py."""
    return bool(loader.dataset_kind == _dataloader_worker._DatasetKind.ITER)


def set_worker_info(*, number: int, workers: int, dataset: Any, seed: int) -> None:
    """What paddle.io.get_worker_info() gives in this process from here on; io/dataloader/worker.py."""
    _dataloader_worker._worker_info = _dataloader_worker.WorkerInfo(
        id=number, num_workers=workers, dataset=dataset, seed=seed
    )


# -- what Paddle says at a start (C++'s glog; distributed/parallel.py) -------------------------------------------------


def log_errors_only() -> bool:
    """Let Paddle's C++ log errors alone, unless the environment asks for its log; whether that could be done.

    glog reads GLOG_minloglevel where Paddle is imported, which may have been before us; its variable is exported.
    """
    if "GLOG_minloglevel" in os.environ or "GLOG_v" in os.environ:
        return False
    root, is_done = Path(paddle.__file__).parent, False
    for library in (root / "base/libpaddle.so", root / "libs/libphi_core.so", root / "libs/libphi.so"):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not loaded, or built otherwise
            loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            level = ctypes.c_int.in_dll(loaded, "_ZN3fLI17FLAGS_minloglevelE")
            ctypes.memmove(ctypes.byref(level), ctypes.byref(_GLOG_ERROR), ctypes.sizeof(level))
            is_done = True
    return is_done


_GLOG_ERROR = ctypes.c_int(2)
_MODIFIED_FLAGS = re.compile(r"^=+ Modified FLAGS detected =+\n(?:.*\n)*?=+\n", re.MULTILINE)


@contextlib.contextmanager
def without_modified_flags() -> Iterator[None]:
    """Within, the flags that init_parallel_env lists on sys.stderr are left out; distributed/parallel.py."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            yield
    finally:
        rest = _MODIFIED_FLAGS.sub("", told.getvalue())
        if rest:
            print(rest, end="", file=sys.stderr)


def move_to(module: Any, device: str | None = None, dtype: str | None = None) -> None:
    """`module.to(...)`, which raises for a buffer without memory, as LSTM and GRU have (PaddlePaddle/Paddle#65546).

    Such a buffer gets its memory where it is first used, on the device of that.
    """
    every = [layer._buffers for layer in module.sublayers(include_self=True)]
    before = [(buffers, dict(buffers)) for buffers in every]
    for buffers, own in before:
        for name, buffer in own.items():
            if buffer is not None and not buffer._is_initialized():
                del buffers[name]
    try:
        module.to(device, dtype)
    finally:
        for buffers, own in before:
            moved = {name: buffers.get(name, buffer) for name, buffer in own.items()}
            buffers.clear()
            buffers.update(moved)
