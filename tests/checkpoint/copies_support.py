"""What the tests of remote copies share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remote_support import (
    below,
)
from store_support import step_in

from paddlelite_trainer.checkpoint import CheckpointStore, Copier, Remote, open_checkpoint
from paddlelite_trainer.checkpoint.manifest import MANIFEST
from paddlelite_trainer.checkpoint.remote import (
    RemoteCheckpoint,
    fetch_checkpoint,
)


def copying(store: CheckpointStore, remote: Remote | str, **more: Any) -> Copier:
    more.setdefault("is_wanted", lambda name: True)
    more.setdefault("tell", lambda message: None)
    return Copier(store, Remote(remote) if isinstance(remote, str) else remote, **more)


def copy_now(store: CheckpointStore, remote: Remote | str, *, releases: bool = True, **more: Any) -> None:
    """One pass of a Copier, in this thread; it gives the lease back, unless it is to be as of a process that died."""
    one = copying(store, remote, **more)
    one._look()
    one._catch_up()
    if releases:
        one._lease.release()
    store.protect(one, ())


def copied(url: str) -> dict[int, RemoteCheckpoint]:
    """Step -> the remote checkpoint that has a manifest, each of which is shown to be whole."""
    remote = Remote(url)
    return {step_of(remote, one): one for one in remote.checkpoints() if f"{one.name}/{MANIFEST}" in below(url)}


def step_of(remote: Remote, checkpoint: RemoteCheckpoint) -> int:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return step_in(open_checkpoint(fetch_checkpoint(remote, checkpoint, Path(folder)).path))


def named(url: str) -> dict[str, list[str]]:
    return {name: [one.entry_name for one in held] for name, held in Remote(url).names().items()}
