"""Log files of one kind in a folder, one for each process: their lengths, and how they are cut off there again."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path


class EventFiles:
    """Files named `<start>.<ten digits>.<rest>`, of which those that end in `OWN_SUFFIX` are ours to cut and delete."""

    OWN_SUFFIX = ".paddlelite"

    def __init__(self, folder: Path, start: str, viewer: str) -> None:
        self._folder, self._start, self._viewer = folder, start, viewer

    def own(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._start}.*{self.OWN_SUFFIX}"))

    def lengths(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.own()}

    def cut(self, lengths: Mapping[str, int]) -> None:
        """Bring every file back to its length; those that had none yet go."""
        files = self.own()
        for path in files:
            length = lengths.get(path.name)
            if length is None:
                path.unlink()
            elif path.stat().st_size > length:
                os.truncate(path, length)
        short = [path.name for path in files if path.exists() and path.stat().st_size < lengths[path.name]]
        lost = sorted({*short, *(lengths.keys() - {path.name for path in files})})
        if lost:
            warnings.warn(
                f"event files in {self._folder} are shorter than when the checkpoint was taken, or gone: "
                f"{', '.join(lost)}. {self._viewer}'s curves have a gap there.",
                stacklevel=2,
            )

    def new(self) -> Path:
        """A later name than all: viewers read files in the order of their names, whatever the clock says."""
        self._folder.mkdir(parents=True, exist_ok=True)
        place = self._start.count(".") + 1
        stamps = [int(path.name.split(".")[place]) for path in self.own()]
        stamp = max(int(time.time()), max(stamps, default=0) + 1)
        return self._folder / f"{self._start}.{stamp:010d}.{socket.gethostname()}{self.OWN_SUFFIX}"
