"""Checks that need no Paddle: memory that processes share, and the disk that checkpoints go to."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ..checkpoint.filesystem import REAL
from .finding import Finding, failed

SAVE_BYTES, SAVES = 1 << 20, 15
SLOW_SYNC_MS = 200.0
LITTLE_SPACE = 1 << 30


def check_shared_memory() -> Finding:
    """Loader workers here need unnamed shared memory; Paddle's own, and NCCL, need room in /dev/shm."""
    check = "shared memory"
    numbers: dict[str, Any] = {"memfd": True, "dev_shm_mb": None}
    try:
        os.close(os.memfd_create("doctor"))
    except (OSError, AttributeError):
        numbers["memfd"] = False
    try:
        free = shutil.disk_usage("/dev/shm").free
        numbers["dev_shm_mb"] = free >> 20
    except OSError:
        free = 0
    if not numbers["memfd"]:
        remedy = "use num_workers=0, or a system that has memfd_create (Linux 3.17, glibc 2.27)"
        return Finding(check, "failed", "loader workers cannot share memory: no memfd_create", remedy, numbers)
    if free < 64 << 20:
        remedy = "start the container with --shm-size=1g or --ipc=host; loader workers of a Trainer do not need it"
        return Finding(
            check, "warning", f"dev/shm has {free >> 20} MB, which NCCL may find too little", remedy, numbers
        )
    return Finding(check, "ok", f"workers can share memory; dev/shm has {free >> 20} MB free", numbers=numbers)


def check_disk(directory: Path) -> Finding:
    """How long a small checkpoint takes to be on the disk for sure: write, sync, rename, sync of the directory."""
    check = "disk"
    try:
        with tempfile.TemporaryDirectory(prefix=".paddlelite-doctor-", dir=directory) as scratch:
            milliseconds = [_one_save(Path(scratch), number) for number in range(SAVES)]
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return failed(check, error)
    median, most = statistics.median(milliseconds), max(milliseconds)
    numbers = {"sync_ms": round(median, 2), "slowest_ms": round(most, 2), "free_gb": round(free / 2**30, 1)}
    words = f"1 MB is safe on the disk after {median:.1f} ms (slowest {most:.0f}); {free / 2**30:.0f} GB free"
    if median > SLOW_SYNC_MS:
        remedy = "save less often (ModelCheckpoint), or in the background: Trainer(async_checkpoint=True)"
        return Finding(check, "warning", words, remedy, numbers)
    if free < LITTLE_SPACE:
        return Finding(check, "warning", words, "make room: a checkpoint needs three times the weights' size", numbers)
    return Finding(check, "ok", words, numbers=numbers)


def _one_save(directory: Path, number: int) -> float:
    began = time.perf_counter()
    with (directory / "new").open("wb") as file:
        file.write(os.urandom(SAVE_BYTES))
        file.flush()
        os.fsync(file.fileno())
    os.replace(directory / "new", directory / f"saved-{number % 2}")
    REAL.fsync_directory(directory)
    return (time.perf_counter() - began) * 1e3
