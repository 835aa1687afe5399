"""Averages of the weights, kept beside the live ones and put in their place while the model is evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.checkpoint import open_checkpoint
from paddlelite_trainer.errors import CheckpointMismatchError, ConfigurationError
from paddlelite_trainer.layers import has_memory, move_towards
from paddlelite_trainer.optimizers import master_weights


class AveragedWeights(Callback):
    """Base of the callbacks that average weights; a subclass decides when, with `begin` and `move`.

    Averaged is every floating-point parameter, in float32 at least; where the optimizer keeps float32 masters of half
    precision weights, those. In Paddle the running statistics of BatchNorm are parameters too. Buffers are not
    averaged: evaluation uses the live ones. With strategy "sharding_stage3" each rank averages its slices, and writes
    them into its part of the file; with stages 1 and 2, where a rank has masters of its own parameters alone, half
    precision weights themselves are averaged.

    A checkpoint holds the live weights in `model.pdparams`, always, and the averages in a file of their own, which is a
    complete set of weights: `Module.load_from_checkpoint("runs/version_0/best/ema.pdparams")`. Validation during fit,
    and validate, test and predict, run with the averages: those of `ckpt_path` if one is given, else those of the last
    fit. With `evaluate_with_average=False` they never do.

    Args:
        file: the checkpoint's file that holds the averages, such as `ema.pdparams`.
        evaluate_with_average: whether evaluations run with the averages.
    """

    def __init__(self, file: str, *, evaluate_with_average: bool) -> None:
        self.file = file
        self.evaluate_with_average = evaluate_with_average
        self._averages: dict[str, Any] = {}
        self._cut: set[str] = set()  # names of averages that are of this rank's slices
        self._is_whole_on_host = False  # what was loaded before it is known what is cut
        self._averaged_module: Module | None = None
        # {(average's type, whether it is wider than the parameter's): [(average, parameter)]}, found once
        self._pairs: dict[tuple[Any, bool], list[tuple[Any, Any]]] = {}
        self._shares: dict[Any, tuple[float, Any]] = {}
        self._live_copies: list[tuple[Any, Any]] = []  # (parameter, its live value), while the averages are in place
        self._live_slices: dict[str, Any] = {}  # of those that are cut meanwhile

    @property
    def averages(self) -> dict[str, Any]:
        """The averages by parameter name, of what is cut over ranks this one's slices; empty before the first.

        Only this callback changes them.
        """
        return self._averages

    # -- for subclasses ------------------------------------------------------------------------------------------------
    def begin(self, trainer: Trainer, module: Module) -> None:
        """Make the averages a copy of the present weights."""
        masters, cut = _masters(trainer), trainer.cut_weights
        with paddle.no_grad():
            self._averages = {
                name: _widened(cut[name][0] if name in cut else masters.get(parameter.name, parameter)).clone()
                for name, parameter in _averaged_parameters(module)
            }
        self._averaged_module, self._pairs, self._cut, self._is_whole_on_host = module, {}, set(cut), False

    def move(self, trainer: Trainer, module: Module, share: float) -> None:
        """average += share * (weight - average), on the device."""
        self._bring_to_device(trainer)
        if not self._pairs or self._cut:
            self._pairs, cut = {}, trainer.cut_weights  # each step makes other slices
            for name, parameter in _averaged_parameters(module):
                average, weight = self._averages[name], cut[name][0] if name in cut else parameter
                self._pairs.setdefault((average.dtype, average.dtype != weight.dtype), []).append((average, weight))
        with paddle.no_grad():
            for (dtype, is_wider), pairs in self._pairs.items():
                towards = self._share(share, dtype)
                if is_wider:
                    masters = _masters(trainer)
                    pairs = [(average, _widened(masters.get(one.name, one))) for average, one in pairs]
                for average, weight in pairs:
                    move_towards(average, weight, towards)

    def _share(self, share: float, dtype: Any) -> Any:
        # A tensor, kept: made for every parameter it would take 30 us.
        kept = self._shares.get(dtype)
        if kept is None or kept[0] != share:
            kept = self._shares[dtype] = (share, paddle.full([], share, dtype=dtype))
        return kept[1]

    def put_averages_in_place(self, module: Module, averages: dict[str, Any]) -> None:
        """Let the module's parameters hold the averages; `put_live_weights_back` undoes it, bit for bit.

        Where slices are averaged all ranks call it.
        """
        assert not self._live_copies
        cut = self._cut if averages is self._averages else set()
        present = module.trainer.cut_weights if cut else {}
        with paddle.no_grad():
            for name, parameter in module.named_parameters():
                if name in cut and not has_memory(parameter):
                    self._live_slices[name] = present[name][0].clone()
                    present[name][0].copy_(averages[name].astype(parameter.dtype), True)
                elif name in averages:
                    self._live_copies.append((parameter, parameter.clone()))
                    average = _gathered(averages[name], parameter) if name in cut else averages[name]
                    parameter.copy_(average.astype(parameter.dtype), True)

    def put_live_weights_back(self) -> None:
        """Does nothing where they are in place."""
        with paddle.no_grad():
            if self._live_slices:
                assert self._averaged_module is not None
                present = self._averaged_module.trainer.cut_weights  # each forward makes others
                for name in [name for name in self._live_slices if name in present]:
                    present[name][0].copy_(self._live_slices[name], True)
                self._live_slices.clear()
            while self._live_copies:
                parameter, live = self._live_copies.pop()
                parameter.copy_(live, True)

    def let_averages_be_weights(self, trainer: Trainer, module: Module) -> None:
        """The averages are the module's weights from now on."""
        self._bring_to_device(trainer)
        cut = trainer.cut_weights
        with paddle.no_grad():
            for name, parameter in module.named_parameters():
                if name in self._averages:
                    weight = cut[name][0] if name in cut else parameter
                    weight.copy_(self._averages[name].astype(weight.dtype), True)

    def _bring_to_device(self, trainer: Trainer) -> None:
        """Of what was loaded, what is this rank's."""
        if not self._is_whole_on_host:
            return
        cut = trainer.cut_weights
        for name, array in self._averages.items():
            if name in cut:
                _, start, end = cut[name]
                flat = np.asarray(array).reshape(-1)[start:end]
                array = np.concatenate([flat, np.zeros(end - start - flat.size, flat.dtype)])
            self._averages[name] = paddle.to_tensor(array)
        self._cut, self._is_whole_on_host = set(cut), False

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        rivals = [
            callback
            for callback in trainer.callbacks
            if isinstance(callback, AveragedWeights) and callback.evaluate_with_average
        ]
        if len(rivals) > 1:
            raise ConfigurationError(
                f"evaluation can use one average, and {' and '.join(type(rival).__name__ for rival in rivals)} both "
                "have evaluate_with_average=True: set it to False for all but one"
            )
        if stage == "fit":
            self._averages, self._averaged_module, self._pairs = {}, None, {}
            self._cut, self._is_whole_on_host = set(), False

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        self._bring_to_device(trainer)

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        self._bring_to_device(trainer)

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        # A save inside a validation (after an exception, by another callback): the file of live weights must hold them.
        self.put_live_weights_back()
        self._bring_to_device(trainer)
        if not self._averages or self._cut:
            return
        if self.file in checkpoint["files"]:
            raise ConfigurationError(
                f"two callbacks keep averages in {self.file}; give one of them another name: "
                f"{type(self).__name__}(name=...)"
            )
        checkpoint["files"][self.file] = {
            name: value if of is None else self._averages[of] for name, value, of in self._places(module)
        }

    def files_in_slices(self, module: Module) -> dict[str, tuple[dict[str, Any], set[str]]]:
        """Where slices are averaged, what each rank has of the file, and the names of those that are slices in it.

        The trainer asks it on every rank, and lets each write its part.
        """
        if not self._cut:
            return {}
        tensors = {name: value if of is None else self._averages[of] for name, value, of in self._places(module)}
        return {self.file: (tensors, {name for name, _, of in self._places(module) if of in self._cut})}

    def _places(self, module: Module) -> list[tuple[str, Any, str | None]]:
        """The module's state by name, and the name of the average that stands in its place."""
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        of = {name: names.get(id(value)) for name, value in module.state_dict().items()}
        return [
            (name, value, of[name] if of[name] in self._averages else None)
            for name, value in module.state_dict().items()
        ]

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        self.put_live_weights_back()
        self._averaged_module, self._pairs = module, {}
        arrays = checkpoint["files"].get(self.file)
        self._cut, self._is_whole_on_host = set(), False
        if arrays is None:
            self._averages = {}
        elif trainer.strategy.stage == 3:
            self._averages, self._is_whole_on_host = _checked(arrays, module), True
            if trainer.cut_weights:  # else the fit begins only now
                self._bring_to_device(trainer)
        else:
            self._averages = _averages_in(arrays, module)

    # -- evaluation ----------------------------------------------------------------------------------------------------
    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        self._put_right_averages_in_place(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self.put_live_weights_back()

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._put_right_averages_in_place(trainer, module)

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self.put_live_weights_back()

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        self._put_right_averages_in_place(trainer, module)

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        self.put_live_weights_back()

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        self.put_live_weights_back()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        self.put_live_weights_back()

    def _put_right_averages_in_place(self, trainer: Trainer, module: Module) -> None:
        if not self.evaluate_with_average:
            return
        averages = self._averages if module is self._averaged_module else {}
        if trainer.state != "fit" and trainer.ckpt_path is not None:
            saved = open_checkpoint(trainer.ckpt_path)
            averages = _averages_in(saved.tensors(self.file), module) if self.file in saved.files else {}
            if averages:
                trainer.print(f"with the averaged weights in {self.file}")
            else:
                trainer.print(f"WARNING: {trainer.ckpt_path} has no {self.file}; its plain weights are used.")
        self.put_averages_in_place(module, averages)


def _averaged_parameters(module: Module) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.is_floating_point()]


def _masters(trainer: Trainer) -> dict[str, Any]:
    """{parameter's name in Paddle: its float32 master}; none but under O2, nor where each rank has its own alone."""
    masters: dict[str, Any] = {}
    if trainer.strategy.stage in (1, 2):  # averages would not be the same on all ranks
        return masters
    for optimizer in trainer.optimizers:
        masters.update(master_weights(optimizer))
    return masters


def _widened(value: Any) -> Any:
    return value.astype("float32") if value.dtype in (paddle.float16, paddle.bfloat16) else value


def _averages_in(arrays: dict[str, Any], module: Module) -> dict[str, Any]:
    return {name: paddle.to_tensor(array) for name, array in _checked(arrays, module).items()}


def _checked(arrays: dict[str, Any], module: Module) -> dict[str, Any]:
    parameters = [name for name, _ in _averaged_parameters(module)]
    missing = [f"{name}: in this module, not among the averages" for name in parameters if name not in arrays]
    if missing:
        raise CheckpointMismatchError(f"the averaged weights do not fit {type(module).__name__}:", missing)
    return {name: arrays[name] for name in parameters}


def _gathered(average: Any, parameter: Any) -> Any:
    """All ranks' slices of an average, as the parameter is shaped; a collective."""
    slices: list[Any] = []
    paddle.distributed.all_gather(slices, average)
    return paddle.concat(slices)[: int(parameter.size)].reshape(parameter.shape)
