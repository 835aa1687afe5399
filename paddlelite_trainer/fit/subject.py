"""What a run is about, and what it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paddle

from ..callback import refuse_misspelt_hooks
from ..data.module import HOOKS as DATA_HOOKS
from ..data.module import DataModule
from ..errors import ConfigurationError, ConfigurationTypeError
from ..module import HOOKS as MODULE_HOOKS
from ..module import Module, is_written, refuse_what_is_never_called

if TYPE_CHECKING:
    from ..callback import Callback
    from ..machine.device import Device
    from ..machine.precision import Precision
    from ..machine.ranks import Ranks
    from .hooks import Hooks
    from .loading import Loading


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


def refuse_unfit_for(stage: str, model: Any, datamodule: Any) -> None:
    """Raise ConfigurationError for a module or datamodule that this stage cannot use."""
    if not isinstance(model, Module):
        takes = f"trainer.{stage} takes a paddlelite_trainer.Module, got"
        if isinstance(model, paddle.nn.Layer):
            raise ConfigurationTypeError(
                f"{takes} {type(model).__name__}: derive it from Module instead of paddle.nn.Layer"
            )
        if isinstance(model, type):
            raise ConfigurationTypeError(f"{takes} the class {model.__name__}; pass an object: {model.__name__}()")
        raise ConfigurationTypeError(f"{takes} {type(model).__name__}")
    refuse_what_is_never_called(model)
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
    refuse_misspelt_hooks(datamodule, DataModule, DATA_HOOKS)


def refuse_both(datamodule: DataModule | None, *loaders: Any) -> None:
    if datamodule is not None and any(loader is not None for loader in loaders):
        raise ConfigurationError("data comes from a datamodule or from loaders: pass one of them, not both")
