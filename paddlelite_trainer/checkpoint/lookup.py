"""What a path on the command line means: a directory of runs, a run, or one checkpoint of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigurationError, did_you_mean
from .entry import Entry, entry_from_manifest, parse_entry_name
from .filesystem import REAL
from .links import CHECKPOINTS
from .saved import read_manifest, resolve_checkpoint
from .store import CheckpointStore


@dataclass(frozen=True)
class Found:
    """A run, or one checkpoint by itself."""

    path: Path
    checkpoint: Path | None

    @property
    def is_run(self) -> bool:
        return self.checkpoint is None


@dataclass(frozen=True)
class Row:
    """One checkpoint as `ls` and `verify` tell of it; `entry` is None where its manifest is damaged."""

    run: Path
    path: Path
    entry: Entry | None
    problems: list[str]
    verified: bool | None

    @property
    def name(self) -> str:
        return self.path.name


def listed(found: Found, *, verify: bool) -> Iterator[Row]:
    """The checkpoints found, oldest first, those with a damaged manifest too; with `verify` every byte is checked."""
    store = CheckpointStore(found.path, read_only=True)
    entries = {entry.name: entry for entry in store.entries()}
    names = names_in(found.path / CHECKPOINTS)
    for path in [found.path / CHECKPOINTS / name for name in names] if found.checkpoint is None else [found.checkpoint]:
        entry = entries.get(path.name) if path.parent == found.path / CHECKPOINTS else _entry_or_none(path)
        problems = store.verify(entry or path.name) if verify and (entry or found.is_run) else []
        if entry is None and not problems:
            problems = ["its manifest is missing or damaged"]
        yield Row(found.path, path, entry, problems, not problems if verify or problems else None)


def _entry_or_none(path: Path) -> Entry | None:
    try:
        return entry_at(path, read_manifest(path, REAL))
    except CheckpointCorruptError:
        return None


def entry_at(path: Path, manifest: dict[str, Any]) -> Entry:
    """The checkpoint's description with the names that hold it."""
    entry = entry_from_manifest(path, manifest)
    if path.parent.name != CHECKPOINTS:
        return entry
    pins = CheckpointStore(path.parent.parent, read_only=True).pins()
    return replace(entry, pins=tuple(name for name, held in pins.items() if path.name in held))


def find(text: str) -> list[Found]:
    """The run, the runs below the directory, or the one checkpoint that a path means."""
    path = Path(text).expanduser().absolute()
    if (path / CHECKPOINTS).is_dir():
        return [Found(path, None)]
    checkpoint = _one_checkpoint(path)
    if checkpoint is not None:
        return [Found(run_of(checkpoint) if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent, checkpoint)]
    if path.is_dir():
        runs = [run for depth in ("*", "*/*") for run in path.glob(f"{depth}/{CHECKPOINTS}") if run.is_dir()]
        if runs:
            return [Found(run.parent, None) for run in sorted(runs, key=_natural)]
        raise CheckpointNotFoundError(f"no run and no checkpoint in {path}")
    raise CheckpointNotFoundError(_not_found_message(path))


def runs_at(text: str) -> list[Path]:
    """The run, or the runs below the directory, that a path means."""
    found = find(text)
    for one in found:
        if not one.is_run:
            raise ConfigurationError(f"{text} is a checkpoint; name its run {one.path}")
    return [one.path for one in found]


def run_at(text: str) -> Path:
    """The one run that a path means; a checkpoint means its run."""
    found = find(text)
    if len(found) > 1:
        raise ConfigurationError(f"{text} has {len(found)} runs; name one of them, such as {found[-1].path}")
    return found[0].path


def checkpoint_at(text: str) -> Path:
    """The directory of the one checkpoint that a path means; for a run its newest sound one."""
    found = find(text)
    if len(found) > 1:
        raise ConfigurationError(f"{text} has {len(found)} runs; name one of them, such as {found[-1].path}/latest")
    if found[0].checkpoint is not None:
        return found[0].checkpoint
    newest = CheckpointStore(found[0].path, read_only=True).newest(prefer_healthy=False)
    if newest is None:
        raise CheckpointNotFoundError(f"the run {found[0].path} has no checkpoint yet")
    return newest.path


def _one_checkpoint(path: Path) -> Path | None:
    try:
        return resolve_checkpoint(path)
    except CheckpointNotFoundError:
        pass
    if parse_entry_name(path.name) and path.is_dir():
        return path  # one whose manifest is gone
    if not (path.parent / CHECKPOINTS).is_dir():
        return None
    # RUN/STEP, and RUN/NAME where the name has no link or one to a checkpoint without a manifest.
    revisions = [name for name in names_in(path.parent / CHECKPOINTS) if str(_step_of(name)) == path.name]
    if revisions:
        return path.parent / CHECKPOINTS / revisions[-1]
    try:
        return CheckpointStore(path.parent, read_only=True).first_of_pin(path.name).path
    except CheckpointNotFoundError:
        return None


def _step_of(name: str) -> int | None:
    order = parse_entry_name(name)
    return order[0] if order else None


def run_of(checkpoint: Path) -> Path:
    """The run that a checkpoint's directory lies in."""
    if checkpoint.parent.name != CHECKPOINTS:
        raise ConfigurationError(f"{checkpoint} does not belong to a run")
    return checkpoint.parent.parent


def names_in(folder: Path) -> list[str]:
    """The checkpoints' names in a directory, oldest first."""
    orders = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        order = parse_entry_name(path.name.split(".")[0])  # a second one set aside is called step-000000001.1
        if order is not None and path.is_dir():
            orders[path.name] = order
    return sorted(orders, key=lambda name: orders[name])


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts version_9 before version_10."""
    parts: list[tuple[int, int | str]] = []
    for part in path.parts:
        head = part.rstrip("0123456789")
        parts += [(1, head), (0, int(part[len(head) :] or -1))]
    return parts


def _not_found_message(path: Path) -> str:
    parent = path.parent
    if (parent / CHECKPOINTS).is_dir():
        store = CheckpointStore(parent, read_only=True)
        near = [*map(str, dict.fromkeys(entry.step for entry in store.entries())), *store.pins()]
    else:
        near = sorted(entry.name for entry in parent.iterdir() if entry.name[0] != ".") if parent.is_dir() else []
    listing = f" {parent} holds {', '.join(near[:12])}{' ...' if len(near) > 12 else ''}." if near else ""
    return f"no run and no checkpoint at {path}.{did_you_mean(path.name, near)}{listing}"
