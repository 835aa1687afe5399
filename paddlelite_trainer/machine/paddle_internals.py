"""Paddle's own private names, each behind a function that says what it relies on."""

from __future__ import annotations

from typing import Any


def grad_clip_of(optimizer: Any) -> Any:
    """The optimizer's own gradient clipping, or None."""
    return optimizer._grad_clip


def optimizer_tensors(optimizer: Any) -> list[Any]:
    """Every accumulator and master weight that the optimizer has so far."""
    found = [value for by_parameter in optimizer._accumulators.values() for value in by_parameter.values()]
    return found + list((getattr(optimizer, "_master_weights", None) or {}).values())


def keeps_master_weights(optimizer: Any) -> bool:
    """Whether the optimizer was made with multi_precision."""
    return bool(getattr(optimizer, "_multi_precision", False))
