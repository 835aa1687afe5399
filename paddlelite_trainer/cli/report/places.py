"""Where runs are: every run below the paths of a command line, with or without checkpoints, each with a short name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...checkpoint.links import CHECKPOINTS
from ...checkpoint.lookup import natural_order
from ...errors import CheckpointNotFoundError, ConfigurationError
from ...reporting.train_log import TRAIN_LOG
from ...run.journal import JOURNAL
from ...run.whose import RUN_FILE
from .curves import METRICS

_OF_A_RUN = (RUN_FILE, JOURNAL, METRICS, TRAIN_LOG, CHECKPOINTS)
_DEEPEST = 5  # a run_name may have folders of its own


def runs_below(paths: Sequence[str]) -> list[Path]:
    """The runs that are meant, in natural order below each path, none twice.

    Raises:
        CheckpointNotFoundError: a path has none, or is not there.
    """
    found: dict[Path, None] = {}
    for text in paths:
        if not text:
            raise ConfigurationError("the path of a run is empty; for the present directory pass .")
        path = Path(text).expanduser().absolute()
        runs = [path] if is_run(path) else sorted(_search(path, _DEEPEST), key=natural_order)
        if not runs:
            owner = next((parent for parent in path.parents if is_run(parent)), None)
            if owner is None or not path.exists():
                raise CheckpointNotFoundError(f"no run {'in' if path.is_dir() else 'at'} {path}")
            runs = [owner]  # a checkpoint, or a file of the run
        found.update(dict.fromkeys(Path(os.path.abspath(run)) for run in runs))
    return list(found)


def is_run(path: Path) -> bool:
    """Whether a fit, a logger or a store has written here."""
    try:
        return any((path / name).exists() for name in _OF_A_RUN) and path.is_dir()
    except OSError:
        return False


def _search(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."]
    except OSError:
        return
    for path in inside:
        if path.is_symlink():
            continue  # or a link to a folder above would go round
        if is_run(path):
            yield path
        elif depth > 1:
            yield from _search(path, depth - 1)


def names_of(runs: Sequence[Path]) -> list[str]:
    """What tells the runs apart: their paths from the folder that all lie in."""
    if len(runs) == 1:
        return [runs[0].name]
    common = os.path.commonpath([run.parent for run in runs])
    return [os.path.relpath(run, common) for run in runs]
