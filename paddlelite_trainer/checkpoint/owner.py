"""Owner: whose a checkpoint is: a run, drawn when it begins, and the branch of it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

MAIN = "main"
_ID = re.compile(r"[0-9a-f]{16}")
_BRANCH = re.compile(r"main|from-[0-9]{1,18}-[0-9a-f]{4}")
_BEGUN = re.compile(r"[0-9T:.+-]{1,40}")


@dataclass(frozen=True)
class Owner:
    """The run that a checkpoint is of. Two runs never share an id, wherever they began; a run goes on with its own.

    A run that goes back to an older checkpoint, and on from there, is on another branch of the same run.
    """

    id: str
    """16 hexadecimal digits."""
    begun: str
    """When, in ISO 8601 with the zone."""
    branch: str = MAIN
    """"main", or "from-<step>-<4 hexadecimal digits>"."""
    ancestors: tuple[str, ...] = ()
    """Ids of the runs whose directories this one began as a copy of: their checkpoints are its own past."""

    def __str__(self) -> str:
        return f"run {self.id}, begun {self.begun}"

    def branching(self, step: int) -> Owner:
        """The same run, on a branch of its own that leaves the present one at `step`."""
        return replace(self, branch=f"from-{step}-{secrets.token_hex(2)}")

    def is_of(self, other: Owner | None) -> bool:
        """Whether both are of one run, on whichever branches."""
        return other is not None and self.id == other.id

    def may_hold(self, other: Owner | None) -> bool:
        """Whether a checkpoint of that owner may be among this run's; one that says nothing may."""
        return other is None or other.id == self.id or other.id in self.ancestors

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"id": self.id, "begun": self.begun, "branch": self.branch}
        return {**record, "ancestors": list(self.ancestors)} if self.ancestors else record


def new_owner(begun: object = None) -> Owner:
    """A run that begins now, or has begun at a time that was recorded without an id."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Owner(secrets.token_hex(8), str(begun) if _matches(_BEGUN, begun) else now)


def parse_owner(record: object) -> Owner | None:
    """What `to_json` wrote; None for anything else, as in what was saved before runs had an id.

    What it returns may be shown and be part of a file's name, whoever wrote the record.
    """
    if not isinstance(record, Mapping):
        return None
    id, begun, branch = record.get("id"), record.get("begun"), record.get("branch", MAIN)
    ancestors = record.get("ancestors") or ()
    is_one = _matches(_ID, id) and _matches(_BEGUN, begun) and _matches(_BRANCH, branch)
    if not is_one or not isinstance(ancestors, (list, tuple)) or not all(_matches(_ID, one) for one in ancestors):
        return None
    return Owner(str(id), str(begun), str(branch), tuple(map(str, ancestors)))


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
