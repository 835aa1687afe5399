"""Files of a checkpoint in parts, one of each process, side by side: how they are written, and read as one file.

The manifest names the whole under "parts": {"optimizer.pdopt": {"files": [part, ...], "cut": {tensor: shape}}}. A
tensor that is not cut stands in one part, whole; one that is stands in all in order, flat, the last one padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import CheckpointCorruptError, CheckpointError, CheckpointSaveError
from .filesystem import REAL, FileSystem
from .format import lay_out
from .manifest import StoredFile
from .writer import write_layout

PARTS = "parts"


def part_name(file: str, number: int) -> str:
    """`optimizer-part00001.pdopt`."""
    stem, dot, suffix = file.partition(".")
    return f"{stem}-part{number:05d}{dot}{suffix}"


@dataclass(frozen=True)
class Whole:
    """A file that is there in parts."""

    files: tuple[str, ...]
    cut: Mapping[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        return {"files": list(self.files), "cut": {name: list(shape) for name, shape in self.cut.items()}}


class Others(Protocol):
    """The processes that write parts of a checkpoint beside this one; what is called here, they take part in."""

    wholes: dict[str, Whole]
    """Which files are there in parts."""

    def begin(self, directory: Path | None) -> None:
        """Let each write its parts into the directory; None: there is nothing to write after all."""

    def written(self) -> dict[str, StoredFile]:
        """What they have written, durable; to be called once, after `begin`.

        Raises:
            CheckpointSaveError: one of them has failed; the message says which, and why.
        """

    def give_up(self) -> None:
        """Return when none of them writes any more; nothing where `written` was called."""


def write_parts(
    directory: Path, files: Mapping[str, Mapping[str, Any]], file_system: FileSystem = REAL
) -> dict[str, StoredFile]:
    """Write {part: tensors} into the directory of a checkpoint that is being made elsewhere, durable on return.

    Raises:
        CheckpointSaveError: the directory is not here, or writing failed.
    """
    if not file_system.exists(directory):
        raise CheckpointSaveError(
            f"{directory} is not on this machine: each process writes its part into the one directory of a checkpoint, "
            "so default_root_dir must be on a disk that all machines share"
        )
    stored = {}
    try:
        for name, tensors in files.items():
            descriptor = file_system.create(directory / name)
            try:
                written = write_layout(file_system, descriptor, lay_out(tensors))
                stored[name] = written.stored()
                file_system.fsync(descriptor)
            finally:
                file_system.close(descriptor)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointSaveError(f"{name} could not be written: {error.strerror or error}") from error
    return stored


def write_joined(path: Path, tensors: Mapping[str, np.ndarray], file_system: FileSystem = REAL) -> None:
    """Write the tensors of a whole as one Paddle file; bfloat16 as its bits, as in every such file."""
    descriptor = file_system.create(path)
    try:
        write_layout(file_system, descriptor, lay_out(tensors)).stored()
    finally:
        file_system.close(descriptor)


def parse_parts(manifest: Mapping[str, Any], stored: Mapping[str, StoredFile]) -> dict[str, Whole]:
    """The files that are there in parts, each claim checked against what the manifest says of the parts.

    Raises:
        CheckpointCorruptError: a part that is not there, a tensor in two parts, a cut one that does not add up.
    """
    try:
        wholes = {
            str(file): Whole(
                tuple(record["files"]), {str(name): tuple(map(int, shape)) for name, shape in record["cut"].items()}
            )
            for file, record in manifest.get(PARTS, {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointCorruptError(f"manifest.json does not describe its parts: {error!r}") from error
    for file, whole in wholes.items():
        missing = [part for part in whole.files if part not in stored or stored[part].blocks is None]
        if missing or not whole.files or file in stored:
            raise CheckpointCorruptError(f"manifest.json has no such parts of {file}: {', '.join(missing) or file}")
        found: dict[str, int] = {}
        for part in whole.files:
            for block in stored[part].blocks or ():
                if block.name in found and block.name not in whole.cut:
                    raise CheckpointCorruptError(f"manifest.json has {block.name!r} of {file} in two parts")
                found[block.name] = found.get(block.name, 0) + prod(block.shape)
        for name, shape in whole.cut.items():
            if found.get(name, -1) < prod(shape):
                raise CheckpointCorruptError(f"manifest.json has too little of {name!r}, which is cut, in {file}")
    return wholes


def slice_of(array: np.ndarray, start: int, end: int) -> np.ndarray:
    """What a process keeps of a whole tensor that is cut: flat, with zeros behind the tensor's end."""
    flat = array.reshape(-1)[start:end]
    behind = end - start - flat.size
    return np.concatenate([flat, np.zeros(behind, flat.dtype)]) if behind else flat


def joined(whole: Whole, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors of the whole; what is not cut is not copied."""
    tensors: dict[str, np.ndarray] = {}
    for part in parts:
        tensors.update({name: array for name, array in part.items() if name not in whole.cut})
    for name, shape in whole.cut.items():
        pieces = [part[name].reshape(-1) for part in parts if name in part]
        tensors[name] = np.concatenate(pieces)[: prod(shape)].reshape(shape)
    return tensors
