"""Epochs: a run's history, its older epochs in files of their own, so that a checkpoint holds the newest alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.filesystem import REAL, atomic_file
from ..checkpoint.links import CHECKPOINTS, HISTORY
from ..checkpoint.manifest import seal, unseal
from ..checkpoint.state import decode_state, encode_state
from ..errors import CheckpointCorruptError, CheckpointSaveError

EPOCHS_A_FILE = 256
_NAME = re.compile(r"[0-9a-f]{32}\.json")


class Epochs:
    """What of a history a checkpoint holds itself: all of it up to 511 epochs, then the last 256 to 511.

    The others lie in `history/` in the run directory, 256 in a file that is never changed: it is named by the checksum
    of what it holds, and names the one before. So what an epoch's checkpoint writes does not grow with the epochs
    before. Copies that a run keeps elsewhere have these files too.
    """

    def __init__(self) -> None:
        self._files: list[str] = []

    def in_checkpoint(self, history: Sequence[Mapping[str, Any]], run_dir: Path) -> dict[str, Any]:
        """`history` and, where it is long, `history_before`, for a checkpoint; what came before is on the disk then.

        Raises:
            CheckpointSaveError: it could not be written there.
        """
        files = max(0, len(history) // EPOCHS_A_FILE - 1)
        while len(self._files) < files:
            start = len(self._files) * EPOCHS_A_FILE
            before = self._files[-1] if self._files else None
            try:
                self._files.append(_written(history[start : start + EPOCHS_A_FILE], before, run_dir / HISTORY))
            except OSError as error:
                failed = CheckpointSaveError(f"the history could not be written to {run_dir / HISTORY}: {error}")
                failed.errno = error.errno
                raise failed from error
        if not files:
            return {"history": history}
        older = files * EPOCHS_A_FILE
        return {
            "history": history[older:],
            "history_before": {"file": self._files[files - 1], "epochs": older},
        }


def _written(epochs: Sequence[Mapping[str, Any]], before: str | None, folder: Path) -> str:
    encoded, tensors = encode_state(list(epochs), HISTORY)
    assert not tensors, "a history holds numbers"
    data = seal({"format": 1, "before": before, "epochs": encoded})
    name = f"{data[12:44].decode('ascii')}.json"
    if not (folder / name).exists():
        is_new = not folder.exists()
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / name) as temporary:
            temporary.write_bytes(data)
        REAL.fsync_directory(folder)
        if is_new:
            REAL.fsync_directory(folder.parent)
    return name


def epochs_before(tree: Mapping[str, Any], checkpoint: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The epochs before those that a checkpoint holds itself, and a sentence where they cannot be found."""
    record = tree.get("history_before")
    if not record:
        return [], None
    folder = (
        checkpoint.parent.parent / HISTORY if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent / HISTORY
    )
    found: list[list[dict[str, Any]]] = []
    name, missing = record["file"], int(record["epochs"])
    try:
        while name is not None:
            if not _NAME.fullmatch(name):
                raise CheckpointCorruptError(f"{name!r} is no file of a history")
            part = unseal((folder / name).read_bytes(), str(folder / name))
            if part["sha256"][:32] != name[:32]:
                raise CheckpointCorruptError(f"{folder / name} is another file of a history")
            found.append(decode_state(part["epochs"], {}))
            missing -= len(found[-1])
            name = part["before"]
    except (OSError, CheckpointCorruptError, KeyError, TypeError) as error:
        return _joined(found), f"the first {missing} epochs of the history are not to be had: {error}"
    return _joined(found), None


def _joined(newest_first: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [epoch for part in reversed(newest_first) for epoch in part]
