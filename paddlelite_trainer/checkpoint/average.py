"""Averages the weights of a run's last checkpoints into one file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import CheckpointMismatchError, CheckpointNotFoundError, ConfigurationError
from .filesystem import atomic_file
from .format import lay_out
from .reader import CheckpointReader
from .saved import SavedCheckpoint, open_checkpoint
from .tensors import from_bfloat16, to_bfloat16

_BFLOAT16 = "bfloat16"


def average_checkpoints(
    run_dir: str | os.PathLike[str],
    last_k: int = 5,
    *,
    to: str | os.PathLike[str] | None = None,
    file: str = "model.pdparams",
) -> Path:
    """Write the mean of the weights of a run's `last_k` newest checkpoints, as a `.pdparams` file, and return its path.

    Floating-point weights are averaged in float64 and rounded to their own type; others (counters) are the newest
    checkpoint's. The run must have kept that many: ModelCheckpoint(keep_last_n=5).

        path = average_checkpoints("runs/version_0", last_k=5)
        trainer.test(Classifier.load_from_checkpoint(path), test_loader)

    Args:
        run_dir: the run's directory.
        last_k: how many checkpoints.
        to: the file to write; by default `<run_dir>/average_last_<k>.pdparams`.
        file: which weights of a checkpoint; "ema.pdparams" averages averages.

    Raises:
        ConfigurationError: last_k is below 1.
        CheckpointNotFoundError: the run has fewer checkpoints. CheckpointMismatchError: they hold different weights.
        CheckpointCorruptError: one of them is damaged.
    """
    if last_k < 1:
        raise ConfigurationError(f"average_checkpoints(last_k=...) must be >= 1, got {last_k!r}")
    entries = CheckpointReader(Path(run_dir)).entries()
    if len(entries) < last_k:
        raise CheckpointNotFoundError(
            f"{run_dir} has {len(entries)} checkpoints, {last_k} are to be averaged. Lower last_k, or keep more: "
            f"ModelCheckpoint(keep_last_n={last_k})"
        )
    target = Path(to) if to is not None else Path(run_dir) / f"average_last_{last_k}.pdparams"
    checkpoints = [open_checkpoint(entry.path) for entry in entries[-last_k:]]
    newest = checkpoints[-1].tensors(file)
    for checkpoint in checkpoints:
        _check_alike(checkpoint, checkpoints[-1], file)
    averaged = {name: _mean(checkpoints, file, name) for name in newest}
    with atomic_file(target) as temporary, open(temporary, "wb") as stream:
        for piece in lay_out(averaged).pieces:
            stream.write(piece if isinstance(piece, bytes) else np.asarray(piece).tobytes())
    return target


def _check_alike(one: SavedCheckpoint, other: SavedCheckpoint, file: str) -> None:
    mine, theirs = one.tensors(file), other.tensors(file)
    problems = [
        f"{name}: {_kind(one, file, name)} in {one.entry.name}, {_kind(other, file, name)} in {other.entry.name}"
        for name in sorted(mine.keys() | theirs.keys())
        if _kind(one, file, name) != _kind(other, file, name)
    ]
    if problems:
        raise CheckpointMismatchError("checkpoints of different models cannot be averaged:", problems)


def _kind(checkpoint: SavedCheckpoint, file: str, name: str) -> str:
    tensors = checkpoint.tensors(file)
    return f"{checkpoint.dtype_of(file, name)}{list(tensors[name].shape)}" if name in tensors else "absent"


def _mean(checkpoints: list[SavedCheckpoint], file: str, name: str) -> np.ndarray:
    newest = checkpoints[-1].tensors(file)[name]
    is_bfloat16 = checkpoints[-1].dtype_of(file, name) == _BFLOAT16
    if not (is_bfloat16 or np.issubdtype(newest.dtype, np.floating)):
        return newest
    total = np.zeros(newest.shape, np.float64)
    for checkpoint in checkpoints:
        value = checkpoint.tensors(file)[name]
        total += from_bfloat16(value) if is_bfloat16 else value
    mean = total / len(checkpoints)
    return to_bfloat16(mean) if is_bfloat16 else np.asarray(mean.astype(newest.dtype))
