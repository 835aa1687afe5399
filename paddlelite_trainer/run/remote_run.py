"""Which checkpoint a run goes on from where it has remote copies: this machine's, or a newer one that is brought here first."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ..checkpoint.entry import Entry, entry_from_manifest
from ..checkpoint.filesystem import REAL
from ..checkpoint.remote import OwnCopies, Remote, RemoteCheckpoint, commit_of
from ..checkpoint.saved import read_manifest
from ..checkpoint.store import CheckpointStore
from ..errors import CheckpointCorruptError, ConfigurationError, RemoteError
from .directory import Resolution, locked, new_run, resolve_ckpt_path

if TYPE_CHECKING:
    from ..callback import Callback

T = TypeVar("T")
ATTEMPTS = 4
FIRST_RETRY_SECONDS = 1.0
# What later checkpoints are ranked against, and so has to be on this machine's disk.
RANKED_AGAINST = ("best", "imported-best", "early-stopping-best")


@dataclass(frozen=True)
class RemoteCopies:
    """Where a callback copies checkpoints to, and what it says about a start at which the remote does not answer."""

    remote: Remote
    if_unreachable: Literal["raise", "local"]


def copies_of(callbacks: Sequence[Callback]) -> list[RemoteCopies]:
    """Of those callbacks that have a `remote`."""
    copies = [
        RemoteCopies(remote, getattr(callback, "if_unreachable", "raise"))
        for callback in callbacks
        if isinstance(remote := getattr(callback, "remote", None), Remote)
    ]
    urls = [one.remote.url for one in copies]
    for url in urls:
        if urls.count(url) > 1:
            raise ConfigurationError(
                f"{urls.count(url)} callbacks copy to {url}, and each would take the other's names away. "
                "Name all that is to be copied in one, or give each a URL of its own."
            )
    return copies


def resolve_with_remotes(
    ckpt_path: str | os.PathLike[str] | None,
    remotes: Sequence[RemoteCopies],
    *,
    default_root_dir: Path,
    run_name: str | None,
) -> Resolution:
    """What `ckpt_path` means, as `resolve_ckpt_path`, with "last" meaning the newest here and at every remote.

    What is newer at a remote is brought into the run's store, verified and committed there. A run that begins afresh is
    refused a remote that holds a run already, since the two would be mixed.

    Raises:
        RemoteError: a remote does not answer, and its callback does not say to go on with what is here.
        CheckpointCorruptError: there are checkpoints, here or there, and none of them is sound.
    """
    local, broken = _local(ckpt_path, default_root_dir, run_name, tolerant=bool(remotes))
    for copies in remotes:
        remote = copies.remote
        try:
            there = _patiently(remote.prepare)
            if os.fspath(ckpt_path or "") in ("last", "latest"):
                brought = _bring_newer(remote, there, local, default_root_dir, run_name)
                local, broken = (local, broken) if brought is None else (brought, None)
            if local is not None and local.run_dir is None:
                _refuse_used(remote, there)
        except CheckpointCorruptError as error:  # of this remote; another one may have a sound one
            broken = broken or error
        except RemoteError as error:
            if copies.if_unreachable == "raise":
                raise RemoteError(
                    f"The remote copies cannot be reached, and there may be a newer checkpoint among them than here. {error}. "
                    "RemoteCopy(..., if_unreachable='local') goes on without them."
                ) from error
            if local is not None:
                local = _with_finding(local, f"The remote copies cannot be reached; going on without them. {error}")
    if broken is not None:
        raise broken
    assert local is not None
    return local


def _refuse_used(remote: Remote, there: Sequence[RemoteCheckpoint]) -> None:
    if _patiently(lambda: remote.holds_any(there)):
        raise ConfigurationError(
            f"{remote.url} already holds a run's checkpoints, and this run begins afresh. To go on with that run pass "
            "ckpt_path='last'; for a fresh run choose another URL."
        )


def _local(
    ckpt_path: str | os.PathLike[str] | None, root: Path, run_name: str | None, *, tolerant: bool
) -> tuple[Resolution | None, CheckpointCorruptError | None]:
    try:
        return resolve_ckpt_path(ckpt_path, default_root_dir=root, run_name=run_name), None
    except CheckpointCorruptError as error:
        if not tolerant:
            raise
        return None, error


def _bring_newer(
    remote: Remote, there: Sequence[RemoteCheckpoint], local: Resolution | None, root: Path, run_name: str | None
) -> Resolution | None:
    """Bring the newest sound checkpoint that is newer than the local one; None where the local one is to be taken."""
    here = -1
    if local is not None and local.entry is not None:
        here = commit_of(read_manifest(local.entry.path, REAL))
    newer = [one for one in there if one.commit > here]
    findings: list[str] = []
    unhealthy: list[RemoteCheckpoint] = []
    run_dir = local.run_dir if local is not None else None

    def bring(checkpoint: RemoteCheckpoint) -> Resolution:
        nonlocal run_dir
        run_dir = run_dir or new_run(root, run_name)
        return _brought(remote, checkpoint, run_dir, root, run_name, findings)

    for checkpoint in newer:
        try:
            usable = _usable(remote, checkpoint)
            if usable == "yes":
                found = bring(checkpoint)
                passed = [
                    f"Remote checkpoint {one.name} holds NaN or infinite values; it was passed over."
                    for one in unhealthy
                ]
                return _with_finding(found, *passed)
            if usable == "unhealthy":
                unhealthy.append(checkpoint)
        except CheckpointCorruptError as error:
            findings.append(f"Remote checkpoint {checkpoint.name} is damaged and was passed over. {error}")
    if unhealthy and (local is None or local.entry is None):
        return bring(unhealthy[0])
    if findings and (local is None or local.entry is None):
        raise CheckpointCorruptError(
            f"There are checkpoints at {remote.url} and none of them can be used; for a fresh run choose another URL."
            + "".join(f"\n  - {finding}" for finding in findings)
        )
    return None if local is None else _with_finding(local, *findings)


def _usable(remote: Remote, checkpoint: RemoteCheckpoint) -> Literal["yes", "no", "unhealthy"]:
    found = _patiently(lambda: remote.manifest(checkpoint))
    if found is None:
        return "no"  # a process died while it copied it
    entry = entry_from_manifest(Path(checkpoint.entry_name), found[1])
    if entry.info.get("weights_only"):
        return "no"
    return "yes" if entry.healthy else "unhealthy"


def _brought(
    remote: Remote,
    checkpoint: RemoteCheckpoint,
    run_dir: Path,
    root: Path,
    run_name: str | None,
    findings: Sequence[str],
) -> Resolution:
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
    found = resolve_ckpt_path(entry.path, default_root_dir=root, run_name=run_name)
    return _with_finding(replace(found, message=f"{found.message}, brought from {remote.url}"), *findings)


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


def _with_finding(resolution: Resolution, *findings: str) -> Resolution:
    return replace(resolution, findings=(*resolution.findings, *findings))


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again a few times where the remote does not answer."""
    for attempt in range(1, ATTEMPTS):
        try:
            return ask()
        except RemoteError:
            time.sleep(FIRST_RETRY_SECONDS * 2 ** (attempt - 1) * secrets.SystemRandom().uniform(0.5, 1.0))
    return ask()
