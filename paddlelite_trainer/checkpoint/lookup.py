"""What a path on the command line means: a directory of runs, a run, or one checkpoint of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigurationError, did_you_mean
from .entry import Entry, entry_from_manifest, parse_entry_name
from .filesystem import REAL
from .links import CHECKPOINTS
from .parts import PARTS
from .reader import CheckpointReader
from .saved import inspect, read_manifest, resolve_checkpoint


@dataclass(frozen=True)
class Found:
    """A run, or one checkpoint by itself."""

    path: Path
    checkpoint: Path | None

    @property
    def is_run(self) -> bool:
        return self.checkpoint is None


# What load_weights opens by itself.
WEIGHT_FILES = (".pdparams", ".safetensors")
State = Literal["sound", "damaged", "unreadable", "unknown"]


@dataclass(frozen=True)
class Row:
    """One checkpoint as `ls` and `verify` tell of it; `entry` is None where its manifest cannot be used."""

    run: Path
    path: Path
    entry: Entry | None
    pins: tuple[str, ...]
    state: State
    """`unreadable`: no permission or a failing disk, which proves nothing against it; `unknown`: not looked at."""
    problems: list[str]
    weights_only: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def verified(self) -> bool | None:
        """Whether every byte is what was written; None where that is not known."""
        return {"sound": True, "damaged": False}.get(self.state)


def listed(found: Found, *, verify: bool) -> Iterator[Row]:
    """The checkpoints found, oldest first, those with a damaged manifest too; with `verify` every byte is checked."""
    reader = CheckpointReader(found.path)
    pins_of = reader.pins_by_checkpoint()
    if found.checkpoint is None:
        paths = [found.path / CHECKPOINTS / name for name in names_in(found.path / CHECKPOINTS)]
    else:
        paths = [found.checkpoint]
    for path in paths:
        in_run = path.parent == found.path / CHECKPOINTS
        pins = pins_of.get(path.name, ()) if in_run else ()
        row = _look_at(found.path, path, pins)
        if verify:
            state, problems = state_of(path)
            row = replace(row, state=state, problems=problems)
        if row.problems and found.is_run and not path.exists():
            continue  # deleted meanwhile by the process that trains
        yield row


def _look_at(run: Path, path: Path, pins: tuple[str, ...]) -> Row:
    """What the manifest alone says."""
    try:
        manifest = read_manifest(path, REAL)
        entry = entry_from_manifest(path, manifest, pins)
    except CheckpointCorruptError as error:
        return Row(run, path, None, pins, "damaged", [str(error)])
    except OSError as error:
        return Row(run, path, None, pins, "unreadable", [f"{path} cannot be read: {error}"])
    if parse_entry_name(path.name) and entry.name != path.name:
        problem = f"the directory is named {path.name}, its manifest is that of {entry.name}"
        return Row(run, path, None, pins, "damaged", [problem])
    return Row(run, path, entry, pins, "unknown", [], weights_only=has_weights_only(manifest))


def has_weights_only(manifest: dict[str, Any]) -> bool:
    """Whether a training cannot go on from the checkpoint; older ones do not say so and have no optimizer."""
    return bool(manifest["info"].get("weights_only")) or not any(
        "optimizer.pdopt" in manifest.get(key, {}) for key in ("files", PARTS)
    )


def state_of(path: Path) -> tuple[State, list[str]]:
    """Read every byte of a checkpoint: whether it is sound, and what is wrong."""
    saved, problems, content_is_wrong = inspect(path, REAL)
    return "sound" if saved else "damaged" if content_is_wrong else "unreadable", problems


def entry_at(path: Path, manifest: dict[str, Any]) -> Entry:
    """The checkpoint's description with the names that hold it."""
    entry = entry_from_manifest(path, manifest)
    if path.parent.name != CHECKPOINTS:
        return entry
    pins = CheckpointReader(path.parent.parent).pins()
    return replace(entry, pins=tuple(name for name, held in pins.items() if path.name in held))


def find(text: str) -> list[Found]:
    """The run, the runs below the directory, or the one checkpoint that a path means."""
    if not text:
        raise ConfigurationError("the path of a run or a checkpoint is empty; for the present directory pass .")
    path = Path(text).expanduser().absolute()
    if _is_run(path):
        return [Found(path, None)]
    checkpoint = _one_checkpoint(path)
    if checkpoint is not None:
        return [Found(run_of(checkpoint) if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent, checkpoint)]
    if path.is_dir():
        runs = [run for depth in ("*", "*/*") for run in path.glob(f"{depth}/{CHECKPOINTS}") if run.is_dir()]
        if runs:
            return [Found(run.parent, None) for run in sorted(runs, key=natural_order)]
        raise CheckpointNotFoundError(f"no run and no checkpoint in {path}")
    raise CheckpointNotFoundError(_not_found_message(path))


def _is_run(path: Path) -> bool:
    try:
        return (path / CHECKPOINTS).is_dir()
    except PermissionError:
        return False  # perhaps a checkpoint whose directory may not be looked into


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
    newest = CheckpointReader(found[0].path).newest(prefer_healthy=False)
    if newest is None:
        raise CheckpointNotFoundError(f"the run {found[0].path} has no checkpoint yet")
    return newest.path


def _one_checkpoint(path: Path) -> Path | None:
    try:
        return resolve_checkpoint(path)
    except CheckpointNotFoundError:
        pass
    except PermissionError:
        if parse_entry_name(path.resolve().name):
            return path.resolve()  # one whose directory may not be looked into
        raise
    if parse_entry_name(path.name) and path.is_dir():
        return path  # one whose manifest is gone
    if not (path.parent / CHECKPOINTS).is_dir():
        return None
    # RUN/STEP, and RUN/NAME where the name has no link or one to a checkpoint without a manifest.
    revisions = [name for name in names_in(path.parent / CHECKPOINTS) if str(_step_of(name)) == path.name]
    if revisions:
        return path.parent / CHECKPOINTS / revisions[-1]
    try:
        return CheckpointReader(path.parent).first_of_pin(path.name).path
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


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Sorts version_9 before version_10."""
    parts: list[tuple[int, int | str]] = []
    for part in path.parts:
        head = part.rstrip("0123456789")
        parts += [(1, head), (0, int(part[len(head) :] or -1))]
    return parts


def _not_found_message(path: Path) -> str:
    if path.suffix in WEIGHT_FILES and path.is_file():
        return (
            f"{path} is a file of bare weights and no checkpoint of a run. load_weights(layer, path) and "
            "fit(init_from=path) open it"
        )
    if path.exists():
        return f"{path} is no run and no checkpoint"
    parent = path.parent
    if (parent / CHECKPOINTS).is_dir():
        reader = CheckpointReader(parent)
        steps = dict.fromkeys(map(_step_of, names_in(parent / CHECKPOINTS)))
        near = [*map(str, steps), *reader.pins()]
    else:
        near = sorted(entry.name for entry in parent.iterdir() if entry.name[0] != ".") if parent.is_dir() else []
    listing = f" {parent} holds {', '.join(near[:12])}{' ...' if len(near) > 12 else ''}." if near else ""
    return f"no run and no checkpoint at {path}.{did_you_mean(path.name, near)}{listing}"
