"""Weights in several files: which files belong together, by their index or their names, and whether all are there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import CheckpointCorruptError, CheckpointMismatchError

INDEX_SUFFIX = ".index.json"
# model-00001-of-00002.safetensors, model_state-00001-of-00003.pdparams
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.(safetensors|pdparams)")
# model_state.tp00.pdparams, model_state.tp01_pp00.pdparams: each holds slices of the weights, not some of them whole.
_SLICE = re.compile(r".+\.(?:(?:tp|pp|dp|ep|moe|shard|sharding)\d+_?)+")
_SHOWN = 5


@dataclass(frozen=True)
class Parts:
    """The files of one set of weights, in order, and in which of them each weight is, where an index says so."""

    files: tuple[Path, ...]
    weight_map: Mapping[str, Path] | None = None

    def refuse_missing(self, names_in: Mapping[Path, set[str]]) -> None:
        """Raise CheckpointCorruptError where a file does not hold a weight that the index says it has."""
        missing = [
            f"{name} ({file.name})" for name, file in (self.weight_map or {}).items() if name not in names_in[file]
        ]
        if missing:
            raise CheckpointCorruptError(
                f"the weights in {self.files[0].parent} are not whole: the index names {len(missing)} that its files "
                f"do not hold: {', '.join(missing[:_SHOWN])}{' ...' if len(missing) > _SHOWN else ''}. {_REMEDY}"
            )


_REMEDY = "Copy or download index and files again, all from one save."


def name_of_parts(file: Path) -> str | None:
    """The name that the files of one set share, of an index or one of them; None for a file by itself."""
    if file.name.endswith(INDEX_SUFFIX):
        return file.name.removesuffix(INDEX_SUFFIX).removesuffix(".safetensors").removesuffix(".pdparams")
    match = _PART.fullmatch(file.name)
    return match[1] if match else None


def is_slice(stem: str) -> bool:
    """Whether a file of this name holds one process's slices of weights that several processes share."""
    return _SLICE.fullmatch(stem) is not None


def parts_of(file: Path) -> Parts | None:
    """All files of the set that `file`, an index or one of them, belongs to; None where it is a set by itself.

    Raises:
        CheckpointCorruptError: files are missing, or the index cannot be read.
        CheckpointMismatchError: the file holds slices of weights.
    """
    if file.name.endswith(INDEX_SUFFIX):
        return _by_index(file)
    match = _PART.fullmatch(file.name)
    if match is None:
        if is_slice(file.stem):
            raise CheckpointMismatchError(
                f"{file} holds what one process had of weights that several shared, so it is a part of them. "
                "Merge the parts with the tool that wrote them (PaddleNLP's merge scripts, unified_checkpoint), "
                "and pass the merged file."
            )
        return None
    base, digits, total, suffix = match[1], len(match[2]), int(match[3]), match[4]
    index = file.with_name(f"{base}.{suffix}{INDEX_SUFFIX}")
    if index.is_file():
        parts = _by_index(index)
        if file in parts.files:
            return parts
    if not 0 < total < 100_000:
        raise CheckpointCorruptError(f"{file} is named as one of {total} files. {_REMEDY}")
    files = tuple(file.with_name(f"{base}-{i:0{digits}}-of-{match[3]}.{suffix}") for i in range(1, total + 1))
    return Parts(_all_there(files, file))


def _by_index(index: Path) -> Parts:
    try:
        content = json.loads(index.read_bytes())
        weight_map = {str(name): _inside(index, file) for name, file in content["weight_map"].items()}
        if not weight_map:
            raise ValueError("it names no weights")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorruptError(f"{index} is no index of weights: {error!r}. {_REMEDY}") from error
    return Parts(_all_there(tuple(sorted(set(weight_map.values()))), index), weight_map)


def _inside(index: Path, file: object) -> Path:
    path = PurePosixPath(str(file))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{file} is not beside it")
    return index.parent / path


def _all_there(files: tuple[Path, ...], asked: Path) -> tuple[Path, ...]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointCorruptError(
            f"the weights of {asked} are in {len(files)} files, and {len(missing)} of them are not there: "
            f"{', '.join(missing[:_SHOWN])}{' ...' if len(missing) > _SHOWN else ''}. {_REMEDY}"
        )
    return files
