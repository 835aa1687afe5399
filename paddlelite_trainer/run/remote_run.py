"""Brings what is newer at a remote into a run on this machine, verified, with the best ones so far."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from ..checkpoint.entry import Entry, entry_from_manifest
from ..checkpoint.filesystem import REAL
from ..checkpoint.remote import OwnCopies, Remote, RemoteCheckpoint, commit_of
from ..checkpoint.saved import read_manifest
from ..checkpoint.store import CheckpointStore
from ..errors import CheckpointCorruptError, ConfigurationError, RemoteError
from .directory import locked

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


def refuse_used(remote: Remote, there: Sequence[RemoteCheckpoint]) -> None:
    """Raise ConfigurationError where a run that begins afresh would be mixed with the one that is there."""
    if _patiently(lambda: remote.holds_any(there)):
        raise ConfigurationError(
            f"{remote.url} already holds a run's checkpoints, and this run begins afresh. To go on with that run pass "
            "ckpt_path='last'; for a fresh run choose another URL."
        )


def bring_newer(
    remote: Remote, there: Sequence[RemoteCheckpoint], *, newer_than: Entry | None, run_dir: Callable[[], Path]
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
            usable = _usable(remote, checkpoint)
            if usable == "yes":
                found = _bring(remote, checkpoint, run_dir(), findings)
                passed = [
                    f"Remote checkpoint {one.name} holds NaN or infinite values; it was passed over."
                    for one in unhealthy
                ]
                return Brought(found.entry, (*found.findings, *passed))
            if usable == "unhealthy":
                unhealthy.append(checkpoint)
        except CheckpointCorruptError as error:
            findings.append(f"Remote checkpoint {checkpoint.name} is damaged and was passed over. {error}")
    if unhealthy and newer_than is None:
        return _bring(remote, unhealthy[0], run_dir(), findings)
    if findings and newer_than is None:
        raise CheckpointCorruptError(
            f"There are checkpoints at {remote.url} and none of them can be used; for a fresh run choose another URL."
            + "".join(f"\n  - {finding}" for finding in findings)
        )
    return Brought(None, tuple(findings))


def _usable(remote: Remote, checkpoint: RemoteCheckpoint) -> Literal["yes", "no", "unhealthy"]:
    found = _patiently(lambda: remote.manifest(checkpoint))
    if found is None:
        return "no"  # a process died while it copied it
    entry = entry_from_manifest(Path(checkpoint.entry_name), found[1])
    if entry.info.get("weights_only"):
        return "no"
    return "yes" if entry.healthy else "unhealthy"


def _bring(remote: Remote, checkpoint: RemoteCheckpoint, run_dir: Path, findings: Sequence[str]) -> Brought:
    with locked(run_dir):
        store = CheckpointStore(run_dir)
        # What was the latest here stays until the next save: only then has the one that came proved to fit.
        latest = _each_once(checkpoint.entry_name, *store.pins().get("latest", ()))
        entry = _adopt(store, remote, checkpoint, {"latest": latest})
        try:
            names = _patiently(remote.names)
            findings = [*findings, *_bring_ranked(store, remote, names)]
            if names:  # else they were lost, and what bore them is not to be deleted
                own = OwnCopies(store.directory)
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
        remote.download(checkpoint, directory)

    return _patiently(lambda: store.adopt(checkpoint.entry_name, fill, pins))


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again a few times where the remote does not answer."""
    for attempt in range(1, ATTEMPTS):
        try:
            return ask()
        except RemoteError:
            time.sleep(FIRST_RETRY_SECONDS * 2 ** (attempt - 1) * secrets.SystemRandom().uniform(0.5, 1.0))
    return ask()
