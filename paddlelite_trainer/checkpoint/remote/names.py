"""Names: which checkpoints at a remote bear which name, whose run they are, and where its branches end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import CheckpointCorruptError, ConfigurationError
from ..links import check_pin_name
from ..manifest import unseal
from ..owner import MAIN, Owner, parse_owner
from ..pins import Edit, parse_changes
from .place import RemoteCheckpoint, parse_remote_name, remote_name_of


@dataclass(frozen=True)
class Names:
    """What names.json says. It is a hint about names, and the word on whose run a URL is for."""

    held: Mapping[str, list[RemoteCheckpoint]] = field(default_factory=dict)
    """{name: checkpoints, best first}."""
    owner: Owner | None = None
    """The run that has copied here; None while none has, or only one from before runs had an id."""
    branches: Mapping[str, RemoteCheckpoint] = field(default_factory=dict)
    """{branch: its newest checkpoint}; checkpoints from before there were branches are on none."""
    is_rebuilt: bool = False
    """Whether names.json was lost or damaged, and this was made of what else is there."""

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "format": 1,
            "names": {name: [one.name for one in held] for name, held in self.held.items()},
        }
        if self.owner is not None:
            record["run"] = self.owner.to_json()
            record["branches"] = {branch: newest.name for branch, newest in self.branches.items()}
        return record


def parse_names(data: bytes, what: str) -> Names:
    """What was written.

    Raises:
        CheckpointCorruptError: it was altered, or names what is no name; `what` says where it is.
    """
    record = unseal(data, what)
    try:
        held = {name: [_checkpoint(one) for one in found] for name, found in record["names"].items()}
        for name in held:
            check_pin_name(name)
        branches = {str(branch): _checkpoint(newest) for branch, newest in record.get("branches", {}).items()}
    except (ConfigurationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointCorruptError(f"{what} names what no checkpoint is kept under: {error}") from error
    return Names({name: found for name, found in held.items() if found}, parse_owner(record.get("run")), branches)


def _checkpoint(name: Any) -> RemoteCheckpoint:
    found = parse_remote_name(name)
    if found is None:
        raise ValueError(f"{name!r} is no checkpoint's name")
    return found


def rebuilt(before: Names | None, manifests: Iterable[Mapping[str, Any]]) -> Names:
    """The names as the saves of all checkpoints there have asked for them, in order; `before` is a copy of names.json.

    A manifest holds the names that its save gave and took. What was named without a save is in the copy alone; of what
    the copy knows, only later saves change anything.
    """
    held: dict[str, list[RemoteCheckpoint]] = (
        {} if before is None else {name: [*one] for name, one in before.held.items()}
    )
    owner = None if before is None else before.owner
    branches = {} if before is None else dict(before.branches)
    known = [one for found in held.values() for one in found] + [*branches.values()]
    last = max((one.commit for one in known), default=-1)
    newest: dict[str, RemoteCheckpoint] = {}  # of each local name, up to the commit that is looked at
    for manifest in sorted(manifests, key=lambda one: remote_name_of(one).order):
        here = remote_name_of(manifest)
        newest[here.entry_name] = here
        mine = parse_owner(manifest.get("run"))
        if mine is not None:
            owner = mine
            branches[mine.branch] = max(branches.get(mine.branch, here), here, key=lambda one: one.order)
        if here.commit <= last:
            continue
        for name, change in parse_changes(manifest["pins"]).items():
            there = {one.entry_name: one for one in held.get(name, ())}
            entries = change.applied(tuple(there)) if isinstance(change, Edit) else change
            there = {**there, **newest} if isinstance(change, Edit) else newest
            found = [there[entry] for entry in entries if entry in there]
            if found:
                held[name] = found
            elif not entries:
                held.pop(name, None)
    return Names(held, owner, branches, is_rebuilt=True)


def branch_of(owner: Owner | None) -> str:
    """The branch that a checkpoint with this owner is on; what was saved before there were any is on the first."""
    return MAIN if owner is None else owner.branch
