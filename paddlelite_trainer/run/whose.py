"""Whose run a directory holds, by its run.json and its checkpoints, and whether it is a copy of another directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.entry import Entry, parse_entry_name
from ..checkpoint.filesystem import REAL
from ..checkpoint.links import CHECKPOINTS
from ..checkpoint.owner import MAIN, Owner, new_owner, parse_owner
from ..checkpoint.saved import read_manifest
from ..errors import CheckpointCorruptError, ConfigurationError

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Standing:
    """Whose run a directory holds."""

    owner: Owner | None
    """None where nothing says so: a run that has not begun, or one from before runs had an id."""
    copied_from: Path | None = None
    """The directory that this one is a copy of, where that is still there."""


def standing_of(path: Path, record: dict[str, Any] | None = None) -> Standing:
    """Whose run the directory `path` holds; it writes nothing. `record` is its run.json, read where it is not given."""
    record = read_json(path / RUN_FILE) if record is None else record
    owner = parse_owner({**record, "begun": record.get("created"), "branch": record.get("branch") or MAIN})
    if owner is None:
        owner = _owner_by_checkpoints(path)
    return Standing(owner, _original(path, record))


def refuse_others(path: Path, entries: Iterable[Entry], owner: Owner | None) -> None:
    """Raise ConfigurationError where the directory `path` holds a checkpoint of another run than its owner."""
    for entry in entries:
        if owner is not None and not owner.may_hold(entry.owner):
            raise ConfigurationError(
                f"{entry.path} is of {entry.owner}, and {path} holds {owner}: the two would be mixed. Move "
                f"{entry.name} to a directory of its own; a run is begun from it with "
                "fit(ckpt_path='<that directory>') under another run_name."
            )


def beginning(path: Path, record: dict[str, Any], given: Owner | None) -> tuple[Owner, Path | None]:
    """Who goes on in `path` from here: its run, `given` where nothing there says whose it is, or a new one.

    A copy of a directory that is still there is a run of its own: else two would write under one name.
    """
    found = standing_of(path, record)
    if found.copied_from is not None and found.owner is not None:
        ancestors = (*found.owner.ancestors, found.owner.id)
        return replace(new_owner(), ancestors=ancestors), found.copied_from
    return found.owner or given or new_owner(record.get("created")), None


def _original(path: Path, record: dict[str, Any]) -> Path | None:
    """The directory that was copied here, if it is still there; one that was moved is not."""
    before = record.get("path")
    if not isinstance(before, str) or not record.get("id") or Path(before) == path:
        return None
    try:
        if os.path.samefile(before, path):  # by another way: a link, a mount
            return None
    except OSError:
        return None
    return Path(before) if read_json(Path(before) / RUN_FILE).get("id") == record["id"] else None


def _owner_by_checkpoints(path: Path) -> Owner | None:
    """Of the newest that says so; for a run that was brought from elsewhere, or has lost its run.json."""
    try:
        names = [name for name in os.listdir(path / CHECKPOINTS) if parse_entry_name(name)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    for name in sorted(names, key=lambda one: parse_entry_name(one) or (0, 0), reverse=True):
        try:
            owner = parse_owner(read_manifest(path / CHECKPOINTS / name, REAL).get("run"))
        except (CheckpointCorruptError, OSError):
            continue
        if owner is not None:
            return owner
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
