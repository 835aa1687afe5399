"""Averages of the weights, kept beside the live ones and put in their place while the model is evaluated."""

from __future__ import annotations

from typing import Any

import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.checkpoint import open_checkpoint
from paddlelite_trainer.errors import CheckpointMismatchError, ConfigurationError
from paddlelite_trainer.layers import move_towards
from paddlelite_trainer.optimizers import master_weights


class AveragedWeights(Callback):
    """Base of the callbacks that average weights; a subclass decides when, with `begin` and `move`.

    Averaged is every floating-point parameter, in float32 at least; where the optimizer keeps float32 masters of half
    precision weights, those. In Paddle the running statistics of BatchNorm are parameters too. Buffers are not
    averaged: evaluation uses the live ones.

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
        self._averaged_module: Module | None = None
        # {(average's type, whether it is wider than the parameter's): [(average, parameter)]}, found once
        self._pairs: dict[tuple[Any, bool], list[tuple[Any, Any]]] = {}
        self._shares: dict[Any, tuple[float, Any]] = {}
        self._live_copies: list[tuple[Any, Any]] = []  # (parameter, its live value), while the averages are in place

    @property
    def averages(self) -> dict[str, Any]:
        """The averages by parameter name; empty before the first. Only this callback changes them."""
        return self._averages

    # -- for subclasses ------------------------------------------------------------------------------------------------
    def begin(self, trainer: Trainer, module: Module) -> None:
        """Make the averages a copy of the present weights."""
        masters = _masters(trainer)
        with paddle.no_grad():
            self._averages = {
                name: _widened(masters.get(parameter.name, parameter)).clone()
                for name, parameter in _averaged_parameters(module)
            }
        self._averaged_module, self._pairs = module, {}

    def move(self, trainer: Trainer, module: Module, share: float) -> None:
        """average += share * (weight - average), on the device."""
        if not self._pairs:
            for name, parameter in _averaged_parameters(module):
                average = self._averages[name]
                kind = average.dtype, average.dtype != parameter.dtype
                self._pairs.setdefault(kind, []).append((average, parameter))
        with paddle.no_grad():
            for (dtype, is_wider), pairs in self._pairs.items():
                weight = self._share(share, dtype)
                if is_wider:
                    masters = _masters(trainer)
                    pairs = [(average, _widened(masters.get(one.name, one))) for average, one in pairs]
                for average, parameter in pairs:
                    move_towards(average, parameter, weight)

    def _share(self, share: float, dtype: Any) -> Any:
        # A tensor, kept: made for every parameter it would take 30 us.
        kept = self._shares.get(dtype)
        if kept is None or kept[0] != share:
            kept = self._shares[dtype] = (share, paddle.full([], share, dtype=dtype))
        return kept[1]

    def put_averages_in_place(self, module: Module, averages: dict[str, Any]) -> None:
        """Let the module's parameters hold the averages; `put_live_weights_back` undoes it, bit for bit."""
        assert not self._live_copies
        with paddle.no_grad():
            for name, parameter in module.named_parameters():
                if name in averages:
                    self._live_copies.append((parameter, parameter.clone()))
                    parameter.copy_(averages[name].astype(parameter.dtype), True)

    def put_live_weights_back(self) -> None:
        """Does nothing where they are in place."""
        with paddle.no_grad():
            while self._live_copies:
                parameter, live = self._live_copies.pop()
                parameter.copy_(live, True)

    def keep_averages_in_place(self) -> None:
        """The averages are the module's weights from now on."""
        self._live_copies.clear()

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
        if trainer.strategy.stage == 3:
            raise ConfigurationError(
                f"{type(self).__name__} cannot be with strategy='sharding_stage3', which cuts the weights: use "
                "'sharding_stage2', which shards the optimizer and keeps them whole"
            )
        if stage == "fit":
            self._averages, self._averaged_module, self._pairs = {}, None, {}

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        # A save inside a validation (after an exception, by another callback): the file of live weights must hold them.
        self.put_live_weights_back()
        if not self._averages:
            return
        if self.file in checkpoint["files"]:
            raise ConfigurationError(
                f"two callbacks keep averages in {self.file}; give one of them another name: "
                f"{type(self).__name__}(name=...)"
            )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        checkpoint["files"][self.file] = {
            name: self._averages.get(names.get(id(value), ""), value) for name, value in module.state_dict().items()
        }

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        self.put_live_weights_back()
        self._averaged_module, self._pairs = module, {}
        self._averages = (
            _averages_in(checkpoint["files"][self.file], module) if self.file in checkpoint["files"] else {}
        )

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
    """{parameter's name in Paddle: its float32 master}; none but under O2."""
    masters: dict[str, Any] = {}
    for optimizer in trainer.optimizers:
        masters.update(master_weights(optimizer))
    return masters


def _widened(value: Any) -> Any:
    return value.astype("float32") if value.dtype in (paddle.float16, paddle.bfloat16) else value


def _averages_in(arrays: dict[str, Any], module: Module) -> dict[str, Any]:
    parameters = [name for name, _ in _averaged_parameters(module)]
    missing = [f"{name}: in this module, not among the averages" for name in parameters if name not in arrays]
    if missing:
        raise CheckpointMismatchError(f"the averaged weights do not fit {type(module).__name__}:", missing)
    return {name: paddle.to_tensor(arrays[name]) for name in parameters}
