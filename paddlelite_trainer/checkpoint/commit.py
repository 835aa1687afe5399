"""One save: written beside the others, committed by one rename with the pins that go with it, undone if it fails."""

from __future__ import annotations

import errno
import json
import platform
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, CheckpointSaveError, ConfigurationError, UnserializableStateError
from .entry import Entry
from .filesystem import FileSystem, attempt, temporary_path
from .format import Layout, lay_out, lay_out_bytes
from .manifest import FORMAT_VERSION, MANIFEST, is_file_name, seal
from .parts import PARTS, Others
from .pins import Edit, PinChange, Pins, changes_to_json
from .record import PinRecord, Staged
from .saved import TENSORS
from .state import encode_state
from .tensors import is_tensor, why_not_stored
from .writer import FSYNC_EARLY_BYTES, HostBuffer, run_together, write_layout

# What a process that died left half written or half deleted.
LITTER = re.compile(r"\.(?:tmp|trash)-(?:step-\d{9,18}(?:-r\d{1,9})?|pins)-[0-9a-f]{8}")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
Plan = Mapping[str, Layout]
"""{file: what is to be written}"""


@dataclass(frozen=True)
class Commit:
    """All that one save needs: what it writes, and what is there before it and after it."""

    file_system: FileSystem
    directory: Path
    entry: Entry
    plan: Mapping[str, Layout]
    record: dict[str, Any]
    """The manifest without its files."""
    newest_before: Entry | None
    known_before: Collection[str]
    """All checkpoints there are."""
    pins_before: Pins
    pins: PinRecord
    staged: Staged
    """What it makes of the pins."""
    others: Others | None = None
    """Who writes parts of it beside this process."""

    def carry_out(self) -> Entry:
        """Write the checkpoint and commit it; returns its entry as it was committed.

        Raises:
            CheckpointSaveError: writing failed, and everything is as it was before.
        """
        temporary = temporary_path(self.directory, ".tmp", self.entry.name)
        staged_pins = temporary_path(self.directory, ".tmp", "pins")
        pins_reached = False
        try:
            self._require_space()
            self.file_system.mkdir(temporary)
            if self.others is not None:
                self.others.begin(temporary)
            manifest = self._write_all(temporary, staged_pins)
            self.file_system.rename(temporary, self.entry.path)
            self.file_system.fsync_directory(self.directory)  # committed
            pins_reached = True
            self.pins.put(staged_pins, self.staged)
        except BaseException as error:
            if self.others is not None:
                self.others.give_up()  # before what they write is removed
            free = self._free_space()  # before what was written makes room again
            self._undo([temporary, staged_pins], pins_reached)
            if isinstance(error, OSError) and not isinstance(error, CheckpointError):
                needed = _space_for(self.plan)
                raise save_error(self.file_system, self.entry.path, needed, error, self.newest_before, free) from error
            raise
        nbytes = sum(record["size"] for record in self.record["files"].values())
        return replace(self.entry, sha256=_sha256_of(manifest), nbytes=nbytes)

    def _write_all(self, temporary: Path, staged_pins: Path) -> bytes:
        """Write a checkpoint's files, its manifest last, and the pins that will go with it, all durable on return."""
        file_system, plan = self.file_system, self.plan
        with ExitStack() as open_files:

            def create(path: Path) -> int:
                descriptor = file_system.create(path)
                open_files.callback(file_system.close, descriptor)
                return descriptor

            descriptors = [create(temporary / name) for name in plan]
            written = []
            for descriptor, layout in zip(descriptors, plan.values()):
                written.append(write_layout(file_system, descriptor, layout))
                open_files.callback(written[-1].stored)  # no hashing goes on after an error
            syncs = [partial(file_system.fsync, descriptor) for descriptor in descriptors]
            if sum(layout.size for layout in plan.values()) >= FSYNC_EARLY_BYTES:
                run_together(syncs)  # while the hashes are computed
                syncs = []
            stored = {name: file.stored() for name, file in zip(plan, written)}
            if self.others is not None:
                run_together(syncs)  # or their work would be for nothing where this disk fails
                syncs = []
                stored |= self.others.written()
            self.record["files"] = {name: file.to_json() for name, file in stored.items()}
            manifest = seal(self.record)
            for path, data in ((temporary / MANIFEST, manifest), (staged_pins, self.staged.data)):
                descriptor = create(path)
                file_system.write(descriptor, data)
                syncs.append(partial(file_system.fsync, descriptor))
            run_together([*syncs, partial(file_system.fsync_directory, temporary)])
        return manifest

    def _undo(self, temporary: list[Path], pins_reached: bool) -> None:
        if pins_reached:
            self.pins.undo(self.staged, self.pins_before, self.known_before)
        trash = temporary_path(self.directory, ".trash", self.entry.name)
        attempt(partial(self.file_system.rename, self.entry.path, trash))  # there only if the rename was reached
        for path in (*temporary, trash):
            attempt(partial(self.file_system.remove_tree, path))

    def _require_space(self) -> None:
        free, needed = self.file_system.free_space(self.directory), _space_for(self.plan)
        if free < needed:
            raise OSError(errno.ENOSPC, f"{_size(needed)} are needed and {_size(free)} are free")

    def _free_space(self) -> int | None:
        try:
            return self.file_system.free_space(self.directory)
        except OSError:
            return None


def save_error(
    file_system: FileSystem,
    path: Path,
    nbytes: int,
    error: OSError,
    newest: Entry | None,
    free: int | None = None,
) -> CheckpointSaveError:
    """Why the checkpoint was not saved at `path`, what would help, and the newest before it."""
    why = error.strerror or str(error)
    if error.errno in _DISK_FULL and "are needed" not in why:
        left = "an unknown number of bytes" if free is None else _size(free)
        why += f": {_size(nbytes)} are needed and {left} were free"
    if error.errno in _DISK_FULL:
        why += "; delete something there, keep fewer checkpoints, or choose another directory"
    if newest is None:
        older = "There is none before it."
    elif _is_gone(file_system, newest.path):
        older = f"The newest before it, {newest.name}, is not where it was: somebody else removed it."
    else:
        older = f"The checkpoints before it are intact, the newest is {newest.name}."
    failed = CheckpointSaveError(f"Checkpoint {path.name} was not saved in {path.parent}: {why}. {older}")
    failed.errno = error.errno
    return failed


def _is_gone(file_system: FileSystem, path: Path) -> bool:
    try:
        return not file_system.exists(path)
    except OSError:  # a disk that cannot tell
        return False


def snapshot(plan: Mapping[str, Layout], buffer: HostBuffer) -> dict[str, Layout]:
    """The same files, with copies of their tensors in the buffer."""
    tensors = [piece for layout in plan.values() for piece in layout.pieces if not isinstance(piece, bytes)]
    copies = iter(buffer.snapshot(tensors))
    return {
        name: replace(layout, pieces=[piece if isinstance(piece, bytes) else next(copies) for piece in layout.pieces])
        for name, layout in plan.items()
    }


def plan_files(files: Mapping[str, Mapping[str, Any]], states: Mapping[str, Any]) -> dict[str, Layout]:
    """Every file of a checkpoint, laid out; nothing of the tensors is read yet."""
    plan: dict[str, Layout] = {}
    for file, tensors in files.items():
        _require_file_name(file, ".pdparams", ".pdopt", ".pdema")
        for name, value in tensors.items():
            if not isinstance(name, str) or not is_tensor(value):
                raise UnserializableStateError(
                    f"{file}[{name!r}] is a {type(value).__qualname__}; it takes {{str: array or Tensor}}"
                )
            reason = why_not_stored(value)
            if reason:
                raise UnserializableStateError(f"{file}[{name!r}] {reason}, which a checkpoint does not store")
        plan[file] = lay_out(tensors)
    state_tensors: dict[str, Any] = {}
    for file, tree in states.items():
        _require_file_name(file, ".json")
        encoded, tensors = encode_state(tree, file)
        state_tensors |= tensors
        plan[file] = lay_out_bytes(json.dumps(encoded, allow_nan=False).encode("ascii"))
    if state_tensors:
        plan[TENSORS] = lay_out(state_tensors)
    return plan


def _require_file_name(name: str, *suffixes: str) -> None:
    if not is_file_name(name) or not name.endswith(suffixes) or name == TENSORS:
        raise ConfigurationError(
            f"A checkpoint's file is named like model{suffixes[0]}, got {name!r} ({TENSORS} is its own)"
        )


def manifest_head(
    entry: Entry, sequence: int, pins: Mapping[str, PinChange], links: bool, others: Others | None
) -> dict[str, Any]:
    """The manifest without its files, of the oldest format that can say it.

    Without an owner it has no "run": readers take both.
    """
    info, tensors = encode_state(entry.info, "info")
    if tensors:
        raise UnserializableStateError(f"info holds arrays ({', '.join(tensors)}); put them into a state")
    from .. import __version__

    return {
        "format": _format_of(pins, others),
        "name": entry.name,
        "step": entry.step,
        "revision": entry.revision,
        "epoch": entry.epoch,
        "sequence": sequence,
        **({"run": entry.owner.to_json()} if entry.owner is not None else {}),
        "created": entry.created,
        "healthy": entry.healthy,
        "metrics": encode_state(entry.metrics, "metrics")[0],
        "pins": changes_to_json(pins),
        "links": links,
        "versions": {"paddlelite_trainer": __version__, "numpy": np.__version__, "python": platform.python_version()},
        "info": info,
        **({PARTS: {file: one.to_json() for file, one in others.wholes.items()}} if others is not None else {}),
    }


def _format_of(pins: Mapping[str, PinChange], others: Others | None) -> int:
    if any(isinstance(change, Edit) for change in pins.values()):
        return FORMAT_VERSION
    return 1 if others is None else 2


def _sha256_of(manifest: bytes) -> str:
    return manifest[12:76].decode("ascii")


def _space_for(plan: Mapping[str, Layout]) -> int:
    """Bytes on the disk at most: whole blocks of files, manifest (some 300 bytes a tensor) and directory."""
    tensors = sum(len(layout.blocks or {}) for layout in plan.values())
    sizes = [*(layout.size for layout in plan.values()), 4096 + 300 * tensors, 4096, 4096]
    return sum(-(-size // 4096) * 4096 for size in sizes)


def _size(nbytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} bytes"
