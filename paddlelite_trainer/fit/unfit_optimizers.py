"""What `configure_optimizers` may not return, given the module, the settings and the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigurationError
from ..machine import paddle_internals
from ..module import Module
from ..optimizers import parameters_of
from .optimization import Optimization, refuse_what_manual_steps_ignore


def refuse_number(module: Module, optimizers: Sequence[Any]) -> None:
    """Raise ConfigurationError for none or too many optimizers."""
    name = type(module).__name__
    if not optimizers and module.automatic_optimization:
        raise ConfigurationError(
            f"{name}.configure_optimizers returned no optimizer; fit needs one (or automatic_optimization = False)"
        )
    if len(optimizers) > 1 and module.automatic_optimization:
        raise ConfigurationError(
            f"{name}.configure_optimizers returned {len(optimizers)} optimizers: which steps when is yours to say. "
            "Set self.automatic_optimization = False in __init__, and in training_step use self.optimizers(), "
            "self.manual_backward(loss) and optimizer.step()."
        )


def refuse_unfit(optimization: Optimization, world_size: int) -> None:
    """Raise ConfigurationError for parameters of nobody's, gradients clipped twice, and what LBFGS cannot do."""
    module, settings = optimization.module, optimization.settings
    for optimizer in optimization.optimizers:
        for parameter in parameters_of(optimizer):
            if parameter.name not in optimization.parameter_names:
                raise ConfigurationError(
                    f"an optimizer holds the parameter {parameter.name!r} of shape {list(parameter.shape)}, which is "
                    f"not part of {type(module).__name__}: make its layer an attribute of the module, else no "
                    "checkpoint would hold it"
                )
        clip = paddle_internals.gradient_clip(optimizer)
        if clip is not None and settings.gradient_clip_val is not None:
            raise ConfigurationError(
                f"gradients would be clipped twice: by Trainer(gradient_clip_val={settings.gradient_clip_val}) and by "
                f"{type(optimizer).__name__}(grad_clip={type(clip).__name__}). Remove one."
            )
    if not optimization.is_automatic:
        refuse_what_manual_steps_ignore(settings)
    if not optimization.needs_closure:
        return
    if world_size > 1:
        raise ConfigurationError("LBFGS runs on one process: its several losses a step are not synchronised over ranks")
    if optimization.clips:
        raise ConfigurationError(
            "LBFGS evaluates the loss several times a step and steps by itself, so gradients cannot be clipped: leave "
            "gradient_clip_val and configure_gradient_clipping out"
        )
    if optimization.precision.effective not in ("32-true", "64-true") or max(settings.accumulation.values()) > 1:
        raise ConfigurationError(
            "LBFGS evaluates the loss several times a step: it works in '32-true' and '64-true', and without "
            "accumulate_grad_batches"
        )
