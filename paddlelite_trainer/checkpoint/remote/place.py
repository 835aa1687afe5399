"""RemoteCheckpoint: what a checkpoint is called at a remote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointCorruptError
from ..entry import parse_entry_name

_NAME = re.compile(r"(step-[0-9r-]+)\.c(\d{1,18})\.([0-9a-f]{16})")


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A checkpoint's name at the remote: `<its own name>.c<number of its commit>.<its manifest's SHA-256, shortened>`.

    So two checkpoints of one step never share a place, and copying the same one twice makes nothing new.
    """

    entry_name: str
    commit: int
    digest: str

    @property
    def name(self) -> str:
        return f"{self.entry_name}.c{self.commit}.{self.digest}"

    @property
    def order(self) -> tuple[int, tuple[int, int]]:
        """Commits are counted over a run's whole life, so one that went back to an older step is in order too."""
        return (self.commit, parse_entry_name(self.entry_name) or (0, 0))


def parse_remote_name(name: object) -> RemoteCheckpoint | None:
    """None for what is not the name of a remote checkpoint."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or parse_entry_name(match[1]) is None:
        return None
    return RemoteCheckpoint(match[1], int(match[2]), match[3])


def remote_name_of(manifest: Mapping[str, Any]) -> RemoteCheckpoint:
    """What the checkpoint with this manifest is called at a remote."""
    return RemoteCheckpoint(str(manifest["name"]), commit_of(manifest), str(manifest["sha256"])[:16])


def commit_of(manifest: Mapping[str, Any]) -> int:
    """The number of the commit that made a checkpoint, counted over the life of its run."""
    number = manifest.get("sequence", 0)
    if type(number) is not int or not 0 <= number < 10**18:
        raise CheckpointCorruptError(f"manifest.json has an impossible number of its commit: {number!r}")
    return number
