"""A checkpoint's weights put into a module, and what of its state users' hooks are given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import CheckpointError, CheckpointMismatchError, CheckpointNotFoundError, did_you_mean

if TYPE_CHECKING:
    from ..checkpoint import SavedCheckpoint
    from ..checkpoint.weights import WeightsReport

MODEL, TRAINER = "model.pdparams", "trainer.json"


def load_weights_into(
    module: paddle.nn.Layer,
    checkpoint: SavedCheckpoint,
    file: str = MODEL,
    slices: Mapping[str, tuple[Any, int, int]] | None = None,
) -> None:
    """Set every weight; names, shapes and types must all fit, and nothing is changed where one does not.

    `slices` are of those that are cut over ranks: {name: (flat tensor, its first number in the whole, its last + 1)}.
    Of these no more is read.

    Raises:
        CheckpointMismatchError: lists each name with saved and present shape or type.
    """
    refuse_other_weights(module, checkpoint, file)
    slices = slices or {}
    for name, tensor in module.state_dict().items():
        if name in slices:
            mine, start, end = slices[name]
            mine.set_value(checkpoint.piece(file, name, start, end))
        else:
            tensor.set_value(checkpoint.tensor(file, name))


def refuse_other_weights(module: paddle.nn.Layer, checkpoint: SavedCheckpoint, file: str = MODEL) -> None:
    """Raise CheckpointMismatchError for names, shapes and types that do not fit."""
    saved = checkpoint.shapes(file)
    present = module.state_dict()
    problems = [
        f"{name}: in this module, not in the checkpoint.{did_you_mean(name, saved)}"
        for name in present
        if name not in saved
    ]
    problems += [
        f"{name}: in the checkpoint, not in this module.{did_you_mean(name, present)}"
        for name in saved
        if name not in present
    ]
    for name in present.keys() & saved.keys():
        shape, dtype = list(present[name].shape), str(present[name].dtype).rpartition(".")[2]
        saved_dtype = checkpoint.dtype_of(file, name)
        if list(saved[name]) != shape:
            problems.append(f"{name}: saved shape {list(saved[name])}, now {shape}")
        elif saved_dtype != dtype:
            problems.append(f"{name}: saved as {saved_dtype}, now {dtype}")
    if problems:
        raise CheckpointMismatchError(
            f"the weights of {checkpoint.entry.path} do not fit {type(module).__name__}; nothing was loaded. "
            "To take those that fit into a fresh run, use init_from=InitFrom(path, strict=False):",
            sorted(problems),
        )


def load_weights_at(module: paddle.nn.Layer, path: str | Path, *, strict: bool = True) -> WeightsReport:
    """Weights from one of our checkpoints or a file of any Paddle tool; see checkpoint/weights.py."""
    from ..checkpoint.weights import load_weights

    return load_weights(module, path, strict=strict)


def state_at(path: str | Path) -> dict[str, Any] | None:
    """What `on_load_checkpoint` is given of a checkpoint of ours; None for a file of any other tool."""
    from ..checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
    except CheckpointNotFoundError:
        if not Path(path).exists() and not Path(f"{path}.pdparams").exists():
            raise
        return None
    state = checkpoint.state(TRAINER)
    if "hyper_parameters" not in state:
        raise CheckpointError(f"{path} is no checkpoint of a Trainer: its state has no 'hyper_parameters'")
    return shown_to_hooks(checkpoint, state)


def shown_to_hooks(checkpoint: SavedCheckpoint, state: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's state with what hooks have added, and the tensor files under "files"."""
    return {**state, "files": _Files(checkpoint)}


class _Files(dict[str, Any]):
    """A checkpoint's tensor files, read when asked for."""

    def __init__(self, checkpoint: SavedCheckpoint) -> None:
        self._checkpoint = checkpoint
        super().__init__(dict.fromkeys(checkpoint.files))

    def __getitem__(self, name: str) -> Any:
        return self._checkpoint.tensors(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401
