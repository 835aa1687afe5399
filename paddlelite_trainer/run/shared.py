"""Whether all ranks see what rank 0 has written: machines of one job need one file system for a run."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from .whose import RUN_FILE, read_json

if TYPE_CHECKING:
    from ..machine.ranks import Ranks

WAIT_SECONDS = 20.0  # a file system over the network shows what is new elsewhere after some seconds
LOOK_SECONDS = 0.5


def refuse_unshared(ranks: Ranks, path: Path, what: str) -> None:
    """Return when every rank sees the run or checkpoint in `path` as rank 0 does; every rank calls it.

    `what` is what rank 0 has done with it, as in "has made".

    Raises:
        ConfigurationError: some do not; the same on all ranks, with their names and the remedy.
    """
    if ranks.world_size == 1:
        return
    expected = ranks.on_rank_zero(lambda: mark_of(path))
    deadline = time.monotonic() + WAIT_SECONDS
    seen = mark_of(path)
    while seen != expected and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        seen = mark_of(path)
    everyones = ranks.gather_object((seen, socket.gethostname()))
    blind = [f"rank {rank} on {host}" for rank, (mark, host) in enumerate(everyones) if mark != expected]
    if not blind:
        return
    finds_another = any(mark is not None and mark != expected for mark, _ in everyones)
    raise ConfigurationError(
        f"the ranks do not see the same files: {', '.join(blind)} "
        f"{'sees something else in' if finds_another else 'cannot find'} {path}, which rank 0 on {everyones[0][1]} "
        f"{what}. All machines of a job need one file system for its runs (NFS, Lustre, a shared volume): name a "
        "directory on it, Trainer(default_root_dir='/shared/runs'). A relative one goes from where each process was "
        "started."
    )


def mark_of(path: Path) -> str | None:
    """Tells this run or checkpoint from what lies in the same place elsewhere; None: it is not here."""
    try:
        os.listdir(path.parent)  # so that a network's file system looks again for what was not there
        manifest = path / "manifest.json"
        if manifest.exists():
            return hashlib.sha256(manifest.read_bytes()).hexdigest()
        return str(read_json(path / RUN_FILE)["id"])
    except (OSError, KeyError, ValueError, TypeError):
        return None
