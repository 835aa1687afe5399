"""The steps that a user writes: which of batch, batch_idx and dataloader_idx each takes, found once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..data.source import Stage
    from ..module import Module

STEPS = {"train": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}
_WORDS = {"validate": "validation"}


def step_of(module: Module, stage: Stage, loaders: int = 1) -> Callable[..., Any]:
    """A stage's step, to be called with batch and batch_idx, and with dataloader_idx where there are several loaders.

    One that takes all of them is returned as it is, so it costs no call; else what it does not take is left out.

    Raises:
        ConfigurationError: it cannot be called, or lacks the loader's index; predict_step may lack it.
    """
    step: Callable[..., Any] = getattr(module, STEPS[stage])
    given = ("batch", "batch_idx") + (("dataloader_idx",) if loaders > 1 else ())
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):  # a callable without one is taken at its word
        return step
    names = list(signature.parameters)
    if names[:1] == ["dataloader_iter"]:
        raise ConfigurationError(
            f"{type(module).__name__}.{STEPS[stage]} takes dataloader_iter, and a step is given a batch here: write "
            f"{STEPS[stage]}(self, batch, batch_idx); what reads several batches a step is an iterable of your own"
        )
    named = [name for name in names if name in ("batch_idx", "dataloader_idx")]
    if _can_be(signature, given) and names[1:2] != ["dataloader_idx"]:
        return step
    if "dataloader_idx" in named and _can_be(signature, ("batch",), named):
        return _by_name(step, named)
    lacks_loader = loaders > 1 and "dataloader_idx" not in named
    if not lacks_loader or stage == "predict":
        if _can_be(signature, ("batch", "batch_idx")):
            return lambda batch, batch_idx, dataloader_idx=0: step(batch, batch_idx)
        if _can_be(signature, ("batch",)):
            return lambda batch, batch_idx, dataloader_idx=0: step(batch)
    word = _WORDS.get(stage, stage)
    why = f", because there are {loaders} {word} loaders: add dataloader_idx=0" if loaders > 1 else ""
    raise ConfigurationError(
        f"{type(module).__name__}.{STEPS[stage]}{signature} cannot be called: it is given ({', '.join(given)}){why}"
    )


def _can_be(signature: inspect.Signature, positional: tuple[str, ...], named: list[str] | None = None) -> bool:
    """Whether it can be called with so many arguments and these by name."""
    try:
        signature.bind(*positional, **dict.fromkeys(named or ()))
    except TypeError:
        return False
    return True


def _by_name(step: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def call(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        indices = {"batch_idx": batch_idx, "dataloader_idx": dataloader_idx}
        return step(batch, **{name: indices[name] for name in names})

    return call
