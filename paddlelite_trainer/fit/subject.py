"""What a run is about, and what it runs on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paddle

from ..callback import overridden, refuse_misspelt_hooks, refuse_what_is_never_called
from ..data.module import HOOKS as DATA_HOOKS
from ..data.module import DataModule
from ..errors import ConfigurationError, ConfigurationTypeError
from ..machine.device import refuse_static_mode
from ..module import HOOKS as MODULE_HOOKS
from ..module import Module, is_written

if TYPE_CHECKING:
    from ..callback import Callback
    from ..machine.device import Device
    from ..machine.paddle_sharding import Pieces
    from ..machine.precision import Precision
    from ..machine.ranks import Ranks
    from ..machine.strategy import Strategy
    from .hooks import Hooks
    from .loading import Loading


_NAMED_BY_USERS = (paddle.nn.Sequential, paddle.nn.LayerList, paddle.nn.LayerDict, paddle.nn.ParameterList)
"""Layers whose parts nobody reaches as attributes."""


@dataclass(frozen=True)
class Machine:
    """What a run runs on."""

    ranks: Ranks
    device: Device
    precision: Precision


@dataclass
class Subject:
    """What a run is about: the module, its data and who listens; known when a run begins."""

    module: Module
    datamodule: DataModule | None
    callbacks: Sequence[Callback]
    hooks: Hooks
    loading: Loading
    life: Hooks
    """Who hears of setup and teardown: not the callbacks of a Trainer that runs already, nor a running fit's module."""
    brings_module: bool
    """Whether no other run has prepared the module's data already."""
    own_datamodule: DataModule | None
    """The datamodule that is set up and torn down with this run."""

    pieces: Pieces | None = None
    """Weights that were cut as `configure_model` made them."""

    def set_up(self, stage: str, ranks: Ranks, strategy: Strategy, shown: Any) -> None:
        """Prepare and set up what begins with this run; `shown` is what the datamodule's `trainer` is to be."""

        def prepare_data() -> None:
            if self.own_datamodule is not None:
                self.own_datamodule.prepare_data()
            if self.brings_module and is_written(self.module, "prepare_data"):
                self.module.prepare_data()

        ranks.on_rank_zero(prepare_data)
        if self.own_datamodule is not None:
            on_exception = overridden(self.own_datamodule, "on_exception", DataModule)
            if on_exception is not None:
                self.hooks.add("on_exception", on_exception)
            self.own_datamodule.trainer = shown
            self.own_datamodule.setup(stage)
        self.life.call("setup", stage)
        if self.brings_module:
            self.module.configure_once(self._building(stage, ranks, strategy))

    def _building(self, stage: str, ranks: Ranks, strategy: Strategy) -> contextlib.AbstractContextManager[Any]:
        """What is around `configure_model`: where weights will be cut, they are as soon as they are made."""
        is_cut = stage == "fit" and strategy.stage == 3 and ranks.world_size > 1
        if not is_cut or not is_written(self.module, "configure_model"):
            return contextlib.nullcontext()
        from ..machine.paddle_sharding import Pieces

        ranks.meet("configure_model")
        self.pieces = Pieces(self.module, strategy.segment_size)
        return self.pieces.of_what_is_built()

    def end_with(self, stack: contextlib.ExitStack, stage: str) -> None:
        """Let what this run has set up be torn down when the stack is unwound: hooks first, then the datamodule."""
        if self.own_datamodule is not None:
            stack.callback(self.own_datamodule.teardown, stage)
        stack.callback(self.life.call, "teardown", stage)


def the_module(stage: str, model: Any) -> Module:
    """`model`, which must be a Module; else ConfigurationTypeError says what it is."""
    if isinstance(model, Module):
        return model
    takes = f"trainer.{stage} takes a paddlelite_trainer.Module, got"
    if isinstance(model, paddle.nn.Layer):
        raise ConfigurationTypeError(
            f"{takes} {type(model).__name__}: derive it from Module instead of paddle.nn.Layer"
        )
    if isinstance(model, type):
        raise ConfigurationTypeError(f"{takes} the class {model.__name__}; pass an object: {model.__name__}()")
    raise ConfigurationTypeError(f"{takes} {type(model).__name__}")


def refuse_unfit_for(stage: str, model: Any, datamodule: Any) -> None:
    """Raise ConfigurationError for a module or datamodule that this stage cannot use."""
    _refuse_uninitialized(the_module(stage, model))
    refuse_static_mode(f"trainer.{stage}")
    _tell_of_layers_out_of_reach(model)
    _refuse_assigned_hparams(model)
    refuse_what_is_never_called(model, Module)
    if stage == "fit":
        for method in ("training_step", "configure_optimizers"):
            if not is_written(model, method):
                refuse_misspelt_hooks(model, Module, MODULE_HOOKS)
                raise ConfigurationError(f"{type(model).__name__} has no {method}; fit needs it")
    refuse_misspelt_hooks(model, Module, MODULE_HOOKS)
    if datamodule is None:
        return
    if not isinstance(datamodule, DataModule):
        raise ConfigurationTypeError(
            f"datamodule must be a paddlelite_trainer.DataModule, got {type(datamodule).__name__}"
        )
    _refuse_assigned_hparams(datamodule)
    refuse_misspelt_hooks(datamodule, DataModule, DATA_HOOKS)


def _refuse_uninitialized(module: Module) -> None:
    if "hparams" not in vars(module):
        name = type(module).__name__
        raise ConfigurationError(f"{name}.__init__ does not call super().__init__(): write that as its first line")


def _tell_of_layers_out_of_reach(module: Module) -> None:
    """Warn of an attribute that Paddle has registered and that a method of the same name hides."""
    for path, layer in module.named_sublayers(include_self=True):
        base = Module if layer is module else paddle.nn.Layer
        parts = [*layer.named_children(), *layer.named_parameters(include_sublayers=False)]
        for name, _ in parts:
            if callable(getattr(base, name, None)) and not isinstance(layer, _NAMED_BY_USERS):
                owner = f"{type(layer).__name__}{f' ({path})' if path else ''}"
                warnings.warn(
                    f"{owner} has a layer or parameter {name!r}, which `self.{name}` does not reach: every "
                    f"{base.__name__} has a method of that name. Give it another name.",
                    stacklevel=2,
                )


def _refuse_assigned_hparams(owner: Module | DataModule) -> None:
    hparams = getattr(owner, "hparams", {})
    if not isinstance(hparams, Mapping):
        raise ConfigurationTypeError(
            f"{type(owner).__name__}.hparams holds hyper-parameters by name, got {hparams!r}: keep them by "
            "self.save_hyperparameters(...), which takes a Namespace too, or give the attribute another name"
        )


def refuse_both(datamodule: DataModule | None, *loaders: Any) -> None:
    if datamodule is not None and any(loader is not None for loader in loaders):
        raise ConfigurationError("data comes from a datamodule or from loaders: pass one of them, not both")
