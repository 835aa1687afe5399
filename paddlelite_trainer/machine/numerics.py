"""detect_anomaly and deterministic: Paddle's flags, set for one fit and put back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Literal

import paddle

from ..errors import ConfigurationError

_DETERMINISM_FLAGS = ("FLAGS_cudnn_deterministic", "FLAGS_embedding_deterministic")


@contextlib.contextmanager
def numeric_checks(*, detect_anomaly: bool, deterministic: bool | Literal["warn"]) -> Iterator[None]:
    """Within: `detect_anomaly` lets the first op, forward or backward, that yields NaN or infinity raise by its name.

    `deterministic=True` asks CUDA's libraries for deterministic kernels; on a CPU Paddle is deterministic anyway.

    Raises:
        ConfigurationError: deterministic=True on a build that does not offer the flags it needs.
    """
    flags: dict[str, object] = {}
    if detect_anomaly:
        flags["FLAGS_check_nan_inf"] = True
    if deterministic and paddle.is_compiled_with_cuda():
        flags.update(dict.fromkeys(_DETERMINISM_FLAGS, True))
    elif deterministic and paddle.get_device() != "cpu":
        message = f"Paddle offers no deterministic mode for {paddle.get_device()}"
        if deterministic is True:
            raise ConfigurationError(
                f"Trainer(deterministic=True): {message}. Pass deterministic='warn' to train all the same."
            )
        warnings.warn(message, stacklevel=2)
    before = {}
    try:
        for name, value in flags.items():
            try:
                before.update(paddle.get_flags(name))
                paddle.set_flags({name: value})
            except ValueError as error:
                if name not in _DETERMINISM_FLAGS:
                    raise
                if deterministic is True:
                    raise ConfigurationError(
                        f"Trainer(deterministic=True): this Paddle has no {name}. "
                        "Pass deterministic='warn' to train all the same."
                    ) from error
                warnings.warn(f"Trainer(deterministic='warn'): this Paddle has no {name}", stacklevel=2)
        yield
    finally:
        if before:
            paddle.set_flags(before)
