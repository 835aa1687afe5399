"""One committed checkpoint as everyone but the store sees it, and how its directory is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointCorruptError
from .owner import Owner, parse_owner
from .state import decode_state

_NAME = re.compile(r"step-(\d{9}|[1-9]\d{9,17})(?:-r([1-9]\d{0,8}))?")


@dataclass(frozen=True)
class Entry:
    """A checkpoint's description; the order of checkpoints is that of (step, revision), never of dates or names."""

    name: str
    path: Path
    step: int
    revision: int
    epoch: int
    metrics: dict[str, float]
    healthy: bool
    pins: tuple[str, ...]
    nbytes: int
    created: str
    info: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    """Of the manifest, which has those of all files: equal exactly for equal checkpoints. Empty before the commit."""
    owner: Owner | None = None
    """Whose it is; None of what was saved before runs had an id."""

    @property
    def order(self) -> tuple[int, int]:
        return (self.step, self.revision)


def entry_name(step: int, revision: int) -> str:
    """`step-000001200`; the second checkpoint of the same step is `step-000001200-r1`."""
    return f"step-{step:09d}" + (f"-r{revision}" if revision else "")


def parse_entry_name(name: str) -> tuple[int, int] | None:
    """(step, revision), or None when no checkpoint is named so."""
    match = _NAME.fullmatch(name)
    return (int(match.group(1)), int(match.group(2) or 0)) if match else None


def entry_from_manifest(path: Path, manifest: Mapping[str, Any], pins: tuple[str, ...] = ()) -> Entry:
    """The entry that a verified manifest describes, wherever the directory has been moved to.

    Raises:
        CheckpointCorruptError: a field is missing or of the wrong type.
    """
    try:
        entry = Entry(
            name=manifest["name"],
            path=path,
            step=manifest["step"],
            revision=manifest["revision"],
            epoch=manifest["epoch"],
            metrics=decode_state(manifest["metrics"], {}),
            healthy=manifest["healthy"],
            pins=pins,
            nbytes=sum(record["size"] for record in manifest["files"].values()),
            created=manifest["created"],
            info=decode_state(manifest["info"], {}),
            sha256=manifest["sha256"],
            owner=parse_owner(manifest.get("run")),
        )
        if parse_entry_name(entry.name) != entry.order:
            raise ValueError(f"name {entry.name!r}, step {entry.step!r}, revision {entry.revision!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointCorruptError(f"{path / 'manifest.json'} does not describe a checkpoint: {error!r}") from error
    return entry
