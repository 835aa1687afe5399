"""Hashes of what a training left behind, with everything masked that differs from one day to the next."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASKED = {
    "seconds": "trainer.json: how long the fit has taken",
    "seconds_since_save": "trainer.json: ModelCheckpoint's clock",
    "created": "manifest.json, run.json: when it was written",
    "started": "run.json: when the process began",
    "ended": "run.json: when the process ended",
    "pid": "run.json: the process",
    "host": "run.json: the machine",
    "command": "run.json: how the process was started, with its paths",
    "id": "manifest.json, run.json: drawn when a run begins",
    "begun": "manifest.json: when the run began",
    "branch": "manifest.json, run.json: drawn where a run goes back",
    "versions": "manifest.json: what wrote it",
    "paddlelite_trainer": "manifest.json, in `info`: the package's version",
    "paddle": "manifest.json and trainer.json: Paddle's version; not the random state of that name, which is no string",
    "numpy": "as `paddle`",
    "python": "as `paddle`",
    "sha256": "manifest.json, pins.json: of files with masked fields; the files themselves are hashed here",
    "size": "manifest.json: as `sha256`",
}
NEW = {"eval_layers": "trainer.json: what versions before did not keep"}
"""Fields of JSON files whose numbers and strings are not compared, and where they stand."""

_EVENT_FILE = re.compile(r"events\.out\.tfevents\.\d+\.[^\s/]*?\.paddlelite")  # holds the time and the machine's name
_EVENT_HEADER, _EVENT_FRAME = (
    12,
    16,
)  # bytes of TFRecord: length and its checksum before the data; with the data's after


def digest(value: Any) -> str:
    """sha256 of a tree, of arrays and tensors by type, shape and bytes; mappings in the order of their keys."""
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()


def of_directory(root: Path) -> dict[str, str]:
    """{part: hash} of all that training wrote below `root`."""
    parts: dict[str, list[Any]] = {"names": _names(root), "tensorboard": sorted(_scalars(root), key=repr)}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file() or _passes_a_link(path, root) or _EVENT_FILE.search(path.name):
            continue
        part = "random.json" if path.name.startswith("rng-rank") else path.name
        parts.setdefault(part, []).append([str(path.relative_to(root)), _content(path, root)])
    parts.pop(".lock", None)
    return {part: digest(found) for part, found in parts.items() if found}


def without_masked(value: Any, root: Path) -> Any:
    """A JSON tree with masked fields, the run's place and event files' names replaced."""
    if isinstance(value, Mapping):
        items = [(_neutral(name, root), _masked(name, entry, root)) for name, entry in value.items() if name not in NEW]
        return sorted(items, key=lambda item: item[0])  # pairs: two event files have one name now
    if isinstance(value, list):
        return [without_masked(entry, root) for entry in value]
    return _neutral(value, root) if isinstance(value, str) else value


def _masked(name: str, value: Any, root: Path) -> Any:
    if name in MASKED and (name == "versions" or not isinstance(value, (list, Mapping))):
        return "masked"
    return without_masked(value, root)


def _neutral(text: str, root: Path) -> str:
    return _EVENT_FILE.sub("event-file", text).replace(str(root), "ROOT")


def _content(path: Path, root: Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes()
    return without_masked(json.loads(path.read_text(encoding="utf-8")), root)


def _names(root: Path) -> list[str]:
    """Every file, folder and link, with where the links lead."""
    found = []
    for path in root.rglob("*"):
        if not _passes_a_link(path, root):
            leads = f" -> {path.readlink()}" if path.is_symlink() else "/" if path.is_dir() else ""
            found.append(_neutral(str(path.relative_to(root)) + leads, root))
    return sorted(found)


def _passes_a_link(path: Path, root: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if root in parent.parents)


def _scalars(root: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every event; wall times and the machine's name are left out."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in root.rglob("events.out.tfevents.*"):
        data, position = path.read_bytes(), 0
        while not _passes_a_link(path, root) and position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            start = position + _EVENT_HEADER
            event = Event.FromString(data[start : start + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            position += length + _EVENT_FRAME
    return found


def _feed(hasher: Any, value: Any) -> None:
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, Mapping):
        hasher.update(f"{{{len(value)}".encode())
        for name in sorted(value, key=str):
            hasher.update(f"{name}=".encode())
            _feed(hasher, value[name])
    elif isinstance(value, (list, tuple)):
        hasher.update(f"[{len(value)}".encode())
        for entry in value:
            _feed(hasher, entry)
    elif hasattr(value, "tobytes") and hasattr(value, "shape"):
        hasher.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, bytes):
        hasher.update(f"{len(value)}:".encode() + value)
    elif isinstance(value, float):
        hasher.update(value.hex().encode())
    else:
        hasher.update(f"{value!r};".encode())
