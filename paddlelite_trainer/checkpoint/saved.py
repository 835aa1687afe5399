"""A checkpoint on disk: verified against its manifest, its tensors mapped instead of loaded, no code ever run."""

from __future__ import annotations

import hashlib
import json
import mmap
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError
from .entry import Entry, entry_from_manifest, parse_entry_name
from .filesystem import REAL, FileSystem
from .format import array_at
from .links import read_pointer, strip_suffix
from .manifest import MANIFEST, MAX_MANIFEST_BYTES, StoredFile, parse_files, unseal
from .parts import joined, parse_parts
from .state import decode_state

TENSORS = "tensors.pdparams"
# A reader that follows a pin may find the directory gone when the pin has moved on; it looks again this often.
FOLLOW_ATTEMPTS = 100


class SavedCheckpoint:
    """A verified checkpoint, open for reading; it stays readable when the directory is deleted meanwhile."""

    def __init__(
        self, entry: Entry, manifest: dict[str, Any], stored: dict[str, StoredFile], data: Mapping[str, Any]
    ) -> None:
        self.entry = entry
        self.manifest = manifest
        self._wholes = parse_parts(manifest, stored)
        hidden = {part for whole in self._wholes.values() for part in whole.files}
        self.files = (*(name for name in stored if name not in hidden), *self._wholes)
        """What can be asked for; a file that is there in parts is one."""
        self._stored = stored
        self._data = data
        # Of the files that were asked for.
        self._places: dict[str, dict[str, list[tuple[str, Any]]]] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    def tensors(self, file: str) -> dict[str, np.ndarray]:
        """The tensors of one file by name, as arrays over its mapped bytes; changing them never reaches the file.

        bfloat16 comes as uint16 bits, which `paddle.to_tensor` takes for bfloat16; `dtype_of` tells.
        """
        if file in self._wholes:
            whole = self._wholes[file]
            return joined(whole, [self.tensors(part) for part in whole.files])
        data = self._data[self._known(file)]
        return {block.name: array_at(data, block) for block in self._blocks(file)}

    def shapes(self, file: str) -> dict[str, tuple[int, ...]]:
        """The tensors of one file by name; nothing of them is read."""
        return dict(self._shapes_of(file))

    def _shapes_of(self, file: str) -> dict[str, tuple[int, ...]]:
        if file not in self._shapes:
            whole = self._wholes.get(file)
            cut = whole.cut if whole is not None else {}
            places = self._found(file)
            self._shapes[file] = {name: cut.get(name, tuple(found[0][1].shape)) for name, found in places.items()}
        return self._shapes[file]

    def piece(self, file: str, name: str, start: int, end: int) -> np.ndarray:
        """What lies between two places of a tensor laid flat, and zeros behind its end; a view where that can be."""
        found = self._found(file).get(name)
        if found is None:
            raise CheckpointNotFoundError(f"{self.entry.path / file} has no tensor {name!r}")
        last, place = min(end, prod(self._shapes_of(file)[name])), 0
        pieces: list[np.ndarray] = []
        for part, block in found:
            flat = array_at(self._data[part], block).reshape(-1)
            pieces.append(flat[max(start - place, 0) : max(last - place, 0)])
            place += flat.size
        behind = end - max(last, start)
        filled = [piece for piece in pieces if piece.size] + [np.zeros(behind, pieces[0].dtype)] * (behind > 0)
        return filled[0] if len(filled) == 1 else np.concatenate(filled or pieces)

    def tensor(self, file: str, name: str) -> np.ndarray:
        """One tensor of a file; see `tensors`."""
        shape = self._shapes_of(file).get(name, ())
        return self.piece(file, name, 0, prod(shape)).reshape(shape)

    def _found(self, file: str) -> dict[str, list[tuple[str, Any]]]:
        """{tensor: [(part, where it stands in it)]}"""
        if file not in self._places:
            places: dict[str, list[tuple[str, Any]]] = {}
            for part in self._wholes[file].files if file in self._wholes else (file,):
                for block in self._blocks(part):
                    places.setdefault(block.name, []).append((part, block))
            self._places[file] = places
        return self._places[file]

    def is_in_parts(self, file: str) -> bool:
        """Whether no file has this name, and several hold its tensors."""
        return file in self._wholes

    def size_of(self, file: str) -> int:
        """Bytes of a file, of all its parts where it is there in parts."""
        parts = self._wholes[file].files if file in self._wholes else (self._known(file),)
        return sum(self._stored[part].size for part in parts)

    def dtype_of(self, file: str, name: str) -> str:
        """The element type that a tensor was saved with: `float32`, `bfloat16`, ..."""
        if name not in self._found(file):
            raise CheckpointNotFoundError(f"{self.entry.path / file} has no tensor {name!r}")
        return str(self._found(file)[name][0][1].dtype)

    def state(self, file: str, *, return_numpy: bool = False) -> Any:
        """The state tree that was saved as `file`; Tensors come back as Tensors, or as arrays with `return_numpy`."""
        try:
            tree = json.loads(bytes(self._data[self._known(file)]))
        except (ValueError, RecursionError) as error:
            raise CheckpointCorruptError(f"{self.entry.path / file} is not JSON: {error}") from error
        tensors = self.tensors(TENSORS) if TENSORS in self._stored else {}
        return decode_state(tree, tensors, (lambda array: array) if return_numpy else None)

    def _known(self, file: str) -> str:
        if file not in self._stored:
            raise CheckpointNotFoundError(f"{self.entry.path} has no file {file!r}; it has {', '.join(self.files)}")
        return file

    def _blocks(self, file: str) -> Any:
        blocks = self._stored[self._known(file)].blocks
        if blocks is None:
            raise CheckpointNotFoundError(f"{self.entry.path / file} holds no tensors")
        return blocks


def open_checkpoint(path: str | Path, *, file_system: FileSystem = REAL) -> SavedCheckpoint:
    """Open and verify the checkpoint at `path`: its directory, a pin's link, or `latest.pdparams` and its like.

    Raises:
        CheckpointNotFoundError: there is no checkpoint at `path`.
        CheckpointCorruptError: there is one, and its bytes are not what was written; the message lists the problems.
        CheckpointError: there is one, and its bytes cannot be read (no permission, a failing disk).
    """
    for _ in range(FOLLOW_ATTEMPTS):
        try:
            directory = resolve_checkpoint(path, file_system)
            manifest = _identity(directory, file_system)
        except FileNotFoundError as error:
            not_found = error
            continue
        saved, problems, content_is_wrong = inspect(directory, file_system)
        if saved is not None:
            return saved
        if _identity_or_none(directory, file_system) == manifest:
            if not content_is_wrong:
                raise CheckpointError(_report(f"The checkpoint {directory} cannot be read", problems))
            raise CheckpointCorruptError(_report(f"The checkpoint {directory} is damaged and was not loaded", problems))
        # Deleted, or replaced by another of the same name, while it was being read: follow the path anew.
        not_found = FileNotFoundError(directory)
    if isinstance(not_found, CheckpointNotFoundError):
        raise not_found
    raise CheckpointNotFoundError(f"{path} kept pointing to checkpoints that were being deleted") from not_found


def resolve_checkpoint(path: str | Path, file_system: FileSystem = REAL) -> Path:
    """The directory of the checkpoint that `path` leads to.

    Raises:
        CheckpointNotFoundError: it leads to none.
    """
    given = Path(path).absolute()
    for candidate in (given, strip_suffix(given)):
        pointed = read_pointer(candidate, file_system)
        directory = file_system.resolve(pointed or candidate)
        for found in (directory, directory.parent):
            if file_system.exists(found / MANIFEST):
                return found
    raise CheckpointNotFoundError(
        f"There is no checkpoint at {path}" + (" (a link to one that is gone)" if file_system.is_link(given) else "")
    )


def read_manifest(directory: Path, file_system: FileSystem) -> dict[str, Any]:
    """The checkpoint's manifest, its own checksum verified.

    Raises:
        CheckpointCorruptError: it is missing, altered, or no manifest.
    """
    path = directory / MANIFEST
    try:
        status = file_system.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            raise CheckpointCorruptError(f"{path} is no manifest ({status.st_size} bytes, mode {status.st_mode:o})")
        return unseal(file_system.read(path), str(path))
    except FileNotFoundError as error:
        raise CheckpointCorruptError(f"{path} is missing") from error


def inspect(
    directory: Path, file_system: FileSystem, pins: tuple[str, ...] = ()
) -> tuple[SavedCheckpoint | None, list[str], bool]:
    """Open a checkpoint and check every byte: (the checkpoint or None, what is wrong, whether its content is wrong).

    The last is False also when bytes could not be read at all (no permission, a failing disk), which is no proof
    against them.
    """
    try:
        manifest = read_manifest(directory, file_system)
        entry = entry_from_manifest(directory, manifest, pins)
        stored = parse_files(manifest)
        present = set(file_system.listdir(directory))
    except CheckpointCorruptError as error:
        return None, [str(error)], True
    except OSError as error:
        return None, [f"{directory} cannot be read: {error}"], isinstance(error, FileNotFoundError | NotADirectoryError)

    problems = [f"{name} is not part of the checkpoint" for name in sorted(present - {MANIFEST, *stored})]
    if parse_entry_name(directory.name) is not None and directory.name != entry.name:
        problems.append(f"the directory is named {directory.name}, its manifest is that of {entry.name}")
    content_is_wrong = bool(problems)
    data: dict[str, mmap.mmap | bytes] = {}
    for name, record in stored.items():
        try:
            wrong = _wrong_file(directory / name, record, file_system)
            if not wrong:
                data[name] = file_system.map(directory / name)
                continue
            content_is_wrong = True
        except OSError as error:
            wrong = f"cannot be read: {error}"
        problems.append(f"{name} {wrong}")
    for name, found in _hashes(data).items():
        if found != stored[name].sha256:
            written = stored[name].sha256
            problems.append(
                f"{name} was altered: its SHA-256 begins with {found[:12]}, it was written with {written[:12]}"
            )
            content_is_wrong = True
    if problems:
        return None, problems, content_is_wrong
    try:
        return SavedCheckpoint(entry, manifest, stored, data), [], False
    except CheckpointCorruptError as error:
        return None, [str(error)], True


def _wrong_file(path: Path, record: StoredFile, file_system: FileSystem) -> str:
    try:
        status = file_system.lstat(path)
    except FileNotFoundError:
        return "is missing"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != record.size:
        return f"has {status.st_size} bytes, it was written with {record.size}"
    return ""


def _hashes(data: Mapping[str, mmap.mmap | bytes]) -> dict[str, str]:
    def sha256(content: mmap.mmap | bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    if sum(map(len, data.values())) < 1 << 20:
        return {name: sha256(content) for name, content in data.items()}
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="checkpoint-verify") as pool:
        return dict(zip(data, pool.map(sha256, data.values())))


def _report(what: str, problems: list[str]) -> str:
    return f"{what}:" + "".join(f"\n  - {problem}" for problem in problems)


def _identity(directory: Path, file_system: FileSystem) -> tuple[int, int]:
    status = file_system.lstat(directory / MANIFEST)
    return status.st_ino, status.st_mtime_ns


def _identity_or_none(directory: Path, file_system: FileSystem) -> tuple[int, int] | None:
    try:
        return _identity(directory, file_system)
    except OSError:
        return None
