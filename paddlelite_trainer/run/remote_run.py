"""Brings what is newer at a remote into a run on this machine, verified, with the best ones so far."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from ..checkpoint.entry import Entry, entry_from_manifest
from ..checkpoint.filesystem import REAL
from ..checkpoint.links import CHECKPOINTS, HISTORY
from ..checkpoint.owner import Owner
from ..checkpoint.remote import Names, OwnCopies, Remote, RemoteCheckpoint, branch_of, commit_of, fetch_checkpoint
from ..checkpoint.remote.logs import bring_logs
from ..checkpoint.saved import inspect, read_manifest
from ..checkpoint.store import CheckpointStore
from ..errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigurationError, RemoteError
from .directory import locked
from .journal import JOURNAL
from .whose import standing_of

T = TypeVar("T")
ATTEMPTS = 4
FIRST_RETRY_SECONDS = 1.0
# What later checkpoints are ranked against, and so has to be on this machine's disk.
RANKED_AGAINST = ("best", "imported-best", "early-stopping-best")


@dataclass(frozen=True)
class Brought:
    """The checkpoint that is in the run's store now; None where this machine's own is to be taken."""

    entry: Entry | None
    findings: tuple[str, ...]
    """A sentence for each one that was passed over or could not be brought."""


def contents(remote: Remote) -> list[RemoteCheckpoint]:
    """The checkpoints there, newest first; that one may write there is tried out."""
    return _patiently(remote.prepare)


def names_of(remote: Remote) -> Names:
    """Names, owner and branches there."""
    return _patiently(remote.record)


def refuse_used(remote: Remote, there: Sequence[RemoteCheckpoint], record: Names) -> None:
    """Raise ConfigurationError where a run that begins afresh would be mixed with the one that is there."""
    if _patiently(lambda: remote.holds_any(there)):
        owner = _patiently(lambda: remote.owner(record, there))
        whose = f" ({owner}, up to {there[0].entry_name})" if owner is not None else ""
        raise ConfigurationError(
            f"{remote.url} already holds a run's checkpoints{whose}, and this run begins afresh. To go on with that "
            "run pass ckpt_path='last'; for a fresh run choose another URL."
        )


def refuse_another_s(remote: Remote, there: Sequence[RemoteCheckpoint], record: Names, run_dir: Path) -> Owner | None:
    """The run there, which is the one in `run_dir` too.

    Raises:
        ConfigurationError: it is another one; the message has both, and says what to do.
    """
    standing = standing_of(run_dir)
    own = OwnCopies(run_dir / CHECKPOINTS)
    if standing.copied_from is not None and _patiently(lambda: remote.holds_any(there)):
        raise ConfigurationError(
            f"{remote.url} is for the run in {standing.copied_from} ({standing.owner}). {run_dir} is a copy of that "
            "directory and goes on as a run of its own: give it a URL of its own. If it is to take the other's place, "
            f"move {standing.copied_from} away."
        )
    why = _patiently(lambda: remote.refusal(standing.owner, own, there, record))
    if why is not None:
        raise ConfigurationError(
            f"{remote.url} and {run_dir} hold different runs, which would be mixed: {why}. To go on with the run there "
            f"pass ckpt_path='last' with another run_name, or move {run_dir} away; to go on with the one here choose "
            "another URL."
        )
    return _patiently(lambda: remote.owner(record, there))


@dataclass(frozen=True)
class Past:
    """What of the run is at a remote, seen from the checkpoint to go on from."""

    commit: int
    """The highest number of a commit there."""
    is_left: bool
    """Whether something there is newer, or of another continuation: from here on the run is on a branch."""
    other_branches: Mapping[str, RemoteCheckpoint]
    """The newest of each other branch."""


def past_at(remote: Remote, there: Sequence[RemoteCheckpoint], record: Names, entry: Entry) -> Past:
    """How `entry`, a checkpoint on this machine, stands to what is at the remote."""
    own = OwnCopies(entry.path.parent)
    here = commit_of(read_manifest(entry.path, REAL))
    branch = branch_of(entry.owner)
    newest = record.branches.get(branch)
    is_newer = _patiently(lambda: remote.holds_any([one for one in there if one.commit > here]))
    is_forked = newest is not None and newest in there and newest not in own
    others = {name: one for name, one in record.branches.items() if name != branch and one in there}
    return Past(max((one.commit for one in there), default=0), is_newer or is_forked, others)


def bring_newer(
    remote: Remote,
    there: Sequence[RemoteCheckpoint],
    record: Names,
    *,
    newer_than: Entry | None,
    run_dir: Callable[[], Path],
) -> Brought:
    """Bring the newest sound checkpoint that is newer than this machine's into `run_dir()`, asked for only then.

    Raises:
        CheckpointCorruptError: there are checkpoints, none of them is sound, and there is none on this machine.
    """
    here = -1 if newer_than is None else commit_of(read_manifest(newer_than.path, REAL))
    findings: list[str] = []
    unhealthy: list[RemoteCheckpoint] = []
    for checkpoint in there:
        if checkpoint.commit <= here:
            continue
        try:
            usable = _usable(remote, checkpoint, record.owner)
            if usable == "yes":
                found = _bring(remote, checkpoint, record, run_dir(), findings)
                passed = [
                    f"Remote checkpoint {one.name} holds NaN or infinite values; it was passed over."
                    for one in unhealthy
                ]
                return Brought(found.entry, (*found.findings, *passed))
            if usable == "unhealthy":
                unhealthy.append(checkpoint)
            if usable == "another's":
                findings.append(f"Remote checkpoint {checkpoint.name} is of another run and was passed over.")
        except CheckpointCorruptError as error:
            findings.append(f"Remote checkpoint {checkpoint.name} is damaged and was passed over. {error}")
    if unhealthy and newer_than is None:
        return _bring(remote, unhealthy[0], record, run_dir(), findings)
    if findings and newer_than is None:
        raise CheckpointCorruptError(
            f"There are checkpoints at {remote.url} and none of them can be used; for a fresh run choose another URL."
            + "".join(f"\n  - {finding}" for finding in findings)
        )
    return Brought(None, tuple(findings))


def bring_named(remote: Remote, checkpoint: RemoteCheckpoint, record: Names, run_dir: Path) -> Entry:
    """Bring one checkpoint into a run, under the names that it bears there."""
    with locked(run_dir):
        store = CheckpointStore(run_dir)
        pins = {name: [checkpoint.entry_name] for name, held in record.held.items() if checkpoint in held}
        entry = _adopt(store, remote, checkpoint, pins or {"brought": [checkpoint.entry_name]})
        own = OwnCopies(store.directory)
        for one in _patiently(remote.checkpoints) if not record.is_rebuilt else [checkpoint]:
            own.add(one.entry_name, one.digest)
    return entry


def fetched(remote: Remote, name: str, folder: Path) -> Entry | None:
    """The checkpoint that a name means at a remote, below `folder` for a look at it: no run goes on from there.

    One that was fetched before is taken where it is sound. None where the remote has no such name.
    """
    try:
        checkpoint = _patiently(lambda: remote.find(name))
    except CheckpointNotFoundError:
        return None
    place = folder / checkpoint.name
    saved, _, _ = inspect(place / checkpoint.entry_name, REAL)
    if saved is not None:
        return saved.entry
    shutil.rmtree(place, ignore_errors=True)
    return fetch_checkpoint(remote, checkpoint, place, _patiently)


def bring_logs_of(remote: Remote, run_dir: Path, *, all_of_them: bool) -> list[str]:
    """Bring the logs that reach to the checkpoint that has come, and beyond, or the history alone.

    Returns sentences about what could not be had.
    """
    only = None if all_of_them else HISTORY
    try:
        return _patiently(lambda: bring_logs(remote.objects, run_dir, but=(JOURNAL,), only=only))
    except RemoteError as error:
        return [f"The logs could not be brought from {remote.url}. {error}"]


def _usable(
    remote: Remote, checkpoint: RemoteCheckpoint, owner: Owner | None
) -> Literal["yes", "no", "unhealthy", "another's"]:
    found = _patiently(lambda: remote.manifest(checkpoint))
    if found is None:
        return "no"  # a process died while it copied it
    entry = entry_from_manifest(Path(checkpoint.entry_name), found[1])
    if owner is not None and not owner.may_hold(entry.owner):
        return "another's"
    if entry.info.get("weights_only"):
        return "no"
    return "yes" if entry.healthy else "unhealthy"


def _bring(
    remote: Remote, checkpoint: RemoteCheckpoint, record: Names, run_dir: Path, findings: Sequence[str]
) -> Brought:
    with locked(run_dir):
        store = CheckpointStore(run_dir)
        # What was the latest here stays until the next save: only then has the one that came proved to fit.
        latest = _each_once(checkpoint.entry_name, *store.pins().get("latest", ()))
        entry = _adopt(store, remote, checkpoint, {"latest": latest})
        own = OwnCopies(store.directory)
        own.add(entry.name, entry.sha256[:16])
        try:
            findings = [*findings, *_bring_ranked(store, remote, record.held)]
            if not record.is_rebuilt:  # else names may have been lost, and what bore them is not to be deleted
                for one in _patiently(remote.checkpoints):  # the run that this one is from here on
                    own.add(one.entry_name, one.digest)
        except RemoteError as error:  # the newest is here, and that is what the run goes on from
            findings = [*findings, f"The best ones could not be brought from {remote.url}. {error}"]
    return Brought(entry, tuple(findings))


def _bring_ranked(store: CheckpointStore, remote: Remote, names: Mapping[str, Sequence[RemoteCheckpoint]]) -> list[str]:
    """The best ones too, which ModelCheckpoint ranks the next ones against; returns what could not be brought."""
    findings = []
    here = {entry.name: entry.sha256[:16] for entry in store.entries()}
    for name, held in names.items():
        if name.partition("_")[0] not in RANKED_AGAINST:
            continue
        kept: list[str] = []
        before = store.pins().get(name, ())  # they stay, as the latest here does
        for one in held:
            try:
                if one.entry_name not in here:
                    _adopt(store, remote, one, {name: _each_once(*kept, one.entry_name, *before)})
                    here[one.entry_name] = one.digest
                if here[one.entry_name] == one.digest:  # else it is of another past than what is here
                    kept.append(one.entry_name)
            except CheckpointCorruptError as error:
                findings.append(f"Remote checkpoint {one.name}, of {name!r}, is damaged and was left out. {error}")
        if kept:
            store.set_pins({name: _each_once(*kept, *before)})
    return findings


def _each_once(*names: str) -> list[str]:
    return list(dict.fromkeys(names))


def _adopt(store: CheckpointStore, remote: Remote, checkpoint: RemoteCheckpoint, pins: dict[str, list[str]]) -> Entry:
    def fill(directory: Path) -> None:
        remote.download(checkpoint, directory, asked=_patiently)

    return store.adopt(checkpoint.entry_name, fill, pins)


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again a few times where the remote does not answer."""
    for attempt in range(1, ATTEMPTS):
        try:
            return ask()
        except RemoteError:
            time.sleep(FIRST_RETRY_SECONDS * 2 ** (attempt - 1) * secrets.SystemRandom().uniform(0.5, 1.0))
    return ask()
