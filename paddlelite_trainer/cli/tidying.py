"""Commands that put checkpoints in order: tag, prune and repair."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..checkpoint.entry import Entry
from ..checkpoint.links import CHECKPOINTS
from ..checkpoint.lookup import Found, State, checkpoint_at, listed, run_at, run_of, runs_at, state_of
from ..checkpoint.reader import QUARANTINE, CheckpointReader
from ..checkpoint.saved import resolve_checkpoint
from ..checkpoint.store import CheckpointStore
from ..errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError, ConfigurationError
from ..reporting.terminal import count, from_here, say, size
from ..run.directory import locked
from .output import FAILED, OK, PROBLEMS, done, print_json

# The names that a training moves by itself; see ModelCheckpoint.
MANAGED = re.compile(r"latest|best|best_.+|recent|epoch_\d+|imported-best|before-lr-drop-.+")


def tag(arguments: argparse.Namespace) -> int:
    name: str = arguments.name
    if arguments.remove:
        run = run_at(arguments.checkpoint)
        with locked(run):
            store = CheckpointStore(run)
            if name in store.pins():
                _refuse_managed(arguments)
            before = store.entries()
            store.untag(name)
            deleted = _gone(before, store)
        words = f"{name} is no longer a name in {from_here(run)}{_told(deleted)}"
        return done(arguments, words, run=run, removed=name, deleted=deleted)
    path = checkpoint_at(arguments.checkpoint)
    run = run_of(path)
    state, problems = state_of(path)
    if state != "sound":
        error = CheckpointCorruptError if state == "damaged" else CheckpointError
        raise error(f"{path} is {state} and was not tagged: {'; '.join(problems)}")
    with locked(run):
        store = CheckpointStore(run)
        held = store.pins().get(name, ())
        if held != (path.name,):
            _refuse_managed(arguments)
            if held and not arguments.move:
                raise ConfigurationError(f"{name!r} already names {', '.join(held)}; --move takes it from there")
        before = store.entries()
        store.tag(path.name, name)
        deleted = _gone(before, store)
    link = run / name if _leads_to(run / name, path) else None
    words = f"{path.name} is kept as {name}" + (f": {from_here(link)}" if link else ", and no link leads to it")
    return done(arguments, words + _told(deleted), run=run, checkpoint=path.name, tag=name, link=link, deleted=deleted)


def _refuse_managed(arguments: argparse.Namespace) -> None:
    if MANAGED.fullmatch(arguments.name) and not arguments.force:
        raise ConfigurationError(
            f"the run manages the name {arguments.name!r} itself, and what only it holds would be lost; choose a name "
            "of your own, or pass --force"
        )


def _gone(before: Sequence[Entry], store: CheckpointStore) -> list[str]:
    left = {entry.name for entry in store.entries()}
    return [entry.name for entry in before if entry.name not in left]


def _told(deleted: Sequence[str]) -> str:
    return "".join(f"; {name}, which no other name held, was deleted" for name in deleted)


def _leads_to(link: Path, checkpoint: Path) -> bool:
    try:
        return resolve_checkpoint(link) == checkpoint.resolve()
    except CheckpointNotFoundError:
        return False


def prune(arguments: argparse.Namespace) -> int:
    deleted: dict[Path, int] = {}
    for run in runs_at(arguments.path):
        # What is opened for writing puts itself in order, so the list is made before.
        with nullcontext() if arguments.dry_run else locked(run):
            reader = CheckpointReader(run)
            deleted |= {entry.path: entry.nbytes for entry in reader.unheld(superseded=arguments.superseded)}
            if arguments.quarantine:
                deleted |= {path: _bytes_in(path) for path in reader.quarantined()}
            if not arguments.dry_run:
                store = CheckpointStore(run)
                store.prune(superseded=arguments.superseded)
                if arguments.quarantine:
                    store.empty_quarantine()
    freed = sum(deleted.values())
    verb = "would delete" if arguments.dry_run else "deleted"
    lines = [f"{verb} {from_here(path)}  {size(nbytes)}" for path, nbytes in deleted.items()]
    lines.append(
        f"{count(len(deleted), 'checkpoint')}, {size(freed)}"
        if deleted
        else "nothing to delete: every checkpoint is held by a name"
    )
    return done(arguments, "\n".join(lines), dry_run=arguments.dry_run, deleted=list(deleted), bytes=freed)


def _bytes_in(path: Path) -> int:
    return sum(found.lstat().st_size for found in [path, *path.rglob("*")] if not found.is_dir())


def repair(arguments: argparse.Namespace) -> int:
    outcomes: list[dict[str, Any]] = []
    for run in runs_at(arguments.path):
        with locked(run):
            before = _links_and_leftovers(run)
            store = CheckpointStore(run)
            names: dict[State, list[str]] = {"sound": [], "damaged": [], "unreadable": []}
            for row in listed(Found(run, None), verify=True):
                names[row.state].append(row.name)
            # A run without any checkpoint would be started afresh by the next fit.
            moved = names["damaged"] if names["sound"] else []
            if moved:
                store.quarantine(moved)
                store.repair()
            after = _links_and_leftovers(run)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        found = {"damaged": names["damaged"], "moved": moved, "unreadable": names["unreadable"]}
        outcomes.append({"run": run, "changed": changed, **found})
    if arguments.json:
        print_json(outcomes)
    else:
        for outcome in outcomes:
            _tell_repaired(**outcome)
    damaged, unreadable = (any(outcome[what] for outcome in outcomes) for what in ("damaged", "unreadable"))
    return PROBLEMS if damaged else FAILED if unreadable else OK


def _tell_repaired(run: Path, changed: list[str], damaged: list[str], moved: list[str], unreadable: list[str]) -> None:
    say(f"{from_here(run)}: {'put in order: ' + ', '.join(changed) if changed else 'in order'}")
    if moved:
        say(f"  damaged, moved to {CHECKPOINTS}/{QUARANTINE}: {', '.join(moved)}", style="red")
    elif damaged:
        say(f"  damaged, and left where they are, for none is sound: {', '.join(damaged)}", style="red")
    if unreadable:
        as_they_are = "as it is" if len(unreadable) == 1 else "as they are"
        say(f"  cannot be read, left {as_they_are}: {', '.join(unreadable)}", style="red")


def _links_and_leftovers(run: Path) -> dict[str, str]:
    found = {}
    for path in run.iterdir():
        if path.is_symlink():
            found[path.name] = os.readlink(path)
        elif path.is_file() and path.name.startswith(".tmp-"):
            found[path.name] = "leftover"
    for path in (run / CHECKPOINTS).iterdir():
        if path.name.startswith((".tmp-", ".trash-")):
            found[f"{CHECKPOINTS}/{path.name}"] = "leftover"
        elif path.is_file():
            found[f"{CHECKPOINTS}/{path.name}"] = path.read_bytes().hex()
    return found
