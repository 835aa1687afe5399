"""LambdaCallback: hooks given as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddlelite_trainer import Callback
from paddlelite_trainer.callback import HOOKS
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, did_you_mean


class LambdaCallback(Callback):
    """A callback of functions, each named by its hook and called with the hook's arguments.

    LambdaCallback(on_train_epoch_end=lambda trainer, module: print(trainer.callback_metrics))

    Args:
        hooks: {hook's name: function}, by name.

    Raises:
        ConfigurationError: there is no hook of that name.
        ConfigurationTypeError: what is given for it is no function.
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                raise ConfigurationError(f"LambdaCallback: {name!r} is not a hook.{did_you_mean(name, HOOKS)}")
            if not callable(function):
                raise ConfigurationTypeError(f"LambdaCallback({name}=...) must be a function, got {function!r}")
            setattr(self, name, function)
