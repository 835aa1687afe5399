"""LogCopies: what a run writes beside its checkpoints (train.log, metrics.csv, event files), in blocks at a remote."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import CheckpointCorruptError, RemoteError
from ..filesystem import atomic_file
from ..links import CHECKPOINTS
from ..manifest import seal, unseal
from .objects import Objects

LOGS = "logs"
LOGS_FILE = "logs.json"
BLOCK_BYTES = 4 << 20
_MOST_FILES = 10_000
_OF_THE_MACHINE = {"run.json"}


class LogCopies:
    """Copies of a run's logs: files that grow, so that only their last blocks are put again.

        <url>/logs/<16 hexadecimal digits of the path>/000000    4 MiB of the file, the last one less
        <url>/logs.json                                          {path: its size and its blocks' checksums}, sealed

    They are put before the checkpoint that knows how far they had come, so that they are never behind it; whoever goes
    on from there cuts off what is beyond.
    """

    def __init__(self, objects: Objects, run_dir: Path, *, only: str | None = None) -> None:
        """`only`: no more than what is in this folder of the run's directory."""
        self._objects = objects
        self._run_dir = run_dir
        self._only = only
        self._there: dict[str, Any] | None = None
        self._seen: dict[str, tuple[int, int]] = {}  # size and time of each file as it was copied

    def upload(self) -> None:
        """Put what has changed since the last time.

        Raises:
            RemoteError: the remote does not answer.
        """
        if self._only is not None and not (self._run_dir / self._only).is_dir():
            return
        if self._there is None:
            self._there = _listed(self._objects) or {}
        after = dict(self._there)
        for path in (
            _logs_of(self._run_dir, ()) if self._only is None else _logs_of(self._run_dir / self._only, (self._only,))
        ):
            name = path.relative_to(self._run_dir).as_posix()
            try:
                after[name] = self._copied(path, name, after.get(name))
            except OSError as error:
                if isinstance(error, RemoteError):
                    raise
                continue  # taken away meanwhile
        if after != self._there:
            self._objects.put(LOGS_FILE, seal({"format": 1, "files": after}))
            self._there = after

    def _copied(self, path: Path, name: str, before: dict[str, Any] | None) -> dict[str, Any]:
        status = path.stat()
        now = (status.st_size, status.st_mtime_ns)
        if before is not None and self._seen.get(name) == now:
            return before
        known = list(before["blocks"]) if before is not None else []
        blocks: list[str] = []
        with path.open("rb") as file:
            if name in self._seen and self._seen[name][0] <= status.st_size:  # it grew: what was full is as it was
                blocks = known[: self._seen[name][0] // BLOCK_BYTES]
                file.seek(len(blocks) * BLOCK_BYTES)
            while (at := len(blocks) * BLOCK_BYTES) < status.st_size:
                data = file.read(min(BLOCK_BYTES, status.st_size - at))
                if not data:
                    break
                digest = hashlib.sha256(data).hexdigest()[:16]
                if known[len(blocks) : len(blocks) + 1] != [digest]:
                    self._objects.put(f"{_place(name)}/{len(blocks):06d}", data)
                blocks.append(digest)
        self._seen[name] = now
        return {"size": status.st_size, "blocks": blocks}


def bring_logs(objects: Objects, run_dir: Path, *, but: Collection[str] = (), only: str | None = None) -> list[str]:
    """Write the logs at a remote into a run's directory, each whole or not at all; sentences about those that failed.

    Files named in `but` are left where they are there; `only` is the one folder to bring.
    """
    findings = []
    for name, record in (_listed(objects) or {}).items():
        target = run_dir / name
        if (name in but and target.exists()) or (only is not None and name.partition("/")[0] != only):
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.parent.resolve().is_relative_to(run_dir.resolve()) or target.is_symlink():
                raise CheckpointCorruptError("it leads out of the run's directory")
            with atomic_file(target) as temporary:
                with temporary.open("wb") as file:
                    for data in _blocks_of(objects, name, record):
                        file.write(data)
                temporary.chmod(0o644)
        except (OSError, CheckpointCorruptError) as error:
            findings.append(f"The log {name} could not be brought from {objects.url}: {error}")
    return findings


def _blocks_of(objects: Objects, name: str, record: dict[str, Any]) -> Iterator[bytes]:
    """What the file had when its checksums were written, whatever has been appended since."""
    left = record["size"]
    for number, digest in enumerate(record["blocks"]):
        data = objects.read(f"{_place(name)}/{number:06d}", 0, min(left, BLOCK_BYTES))
        if hashlib.sha256(data).hexdigest()[:16] != digest:
            raise CheckpointCorruptError(f"its block {number} is damaged")
        left -= len(data)
        yield data


def _listed(objects: Objects) -> dict[str, Any] | None:
    """{path: {size, blocks}} of what is at the remote; None where there is nothing, or no sound list."""
    try:
        files = unseal(objects.read(LOGS_FILE), LOGS_FILE)["files"]
        found = {name: record for name, record in files.items() if _is_path(name) and _is_record(record)}
    except (FileNotFoundError, CheckpointCorruptError, KeyError, AttributeError):
        return None
    return dict(list(found.items())[:_MOST_FILES])


def _is_path(name: str) -> bool:
    """Whether it is a path that `_logs_of` could have found."""
    parts = PurePosixPath(name).parts
    is_below = bool(parts) and name == "/".join(parts) and "\\" not in name and "\0" not in name
    return is_below and not any(part.startswith(".") for part in parts) and _is_log(parts)


def _is_record(record: Any) -> bool:
    blocks, size = record.get("blocks"), record.get("size")
    return isinstance(blocks, list) and type(size) is int and size >= 0 and len(blocks) == -(-size // BLOCK_BYTES)


def _is_log(parts: tuple[str, ...]) -> bool:
    return parts[0] not in ("/", CHECKPOINTS, *_OF_THE_MACHINE) and not parts[-1].endswith((".pdparams", ".pdopt"))


def _logs_of(folder: Path, parts: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files of a run but for its checkpoints, links, and what is hidden or of this machine."""
    try:
        with os.scandir(folder) as found:  # a run that keeps 10,000 checkpoints has 30,000 links, not to be looked into
            there = [one for one in found if not one.is_symlink() and not one.name.startswith(".")]
    except OSError:
        return  # taken away meanwhile
    there.sort(key=lambda one: one.name)
    for one in there:
        if one.is_file() and _is_log((*parts, one.name)):
            yield folder / one.name
    for one in there:
        if one.is_dir() and (parts or one.name != CHECKPOINTS):
            yield from _logs_of(folder / one.name, (*parts, one.name))


def _place(name: str) -> str:
    return f"{LOGS}/{hashlib.sha256(name.encode()).hexdigest()[:16]}"
