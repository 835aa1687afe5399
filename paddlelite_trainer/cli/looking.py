"""Commands that look at checkpoints: ls, show, verify and diff."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.compare import compare
from ..checkpoint.entry import Entry, entry_from_manifest
from ..checkpoint.filesystem import REAL
from ..checkpoint.links import CHECKPOINTS
from ..checkpoint.lookup import Row, State, checkpoint_at, entry_at, find, has_weights_only, listed, names_in, state_of
from ..checkpoint.reader import QUARANTINE, SUPERSEDED
from ..checkpoint.remote import Remote, RemoteCheckpoint
from ..checkpoint.saved import open_checkpoint, read_manifest
from ..errors import CheckpointCorruptError, CheckpointNotFoundError
from ..reporting.terminal import Cell, age, count, from_here, say, seconds_since, size, table
from ..run.directory import read_run
from .output import (
    OK,
    PROBLEMS,
    cells_of,
    code_of,
    entry_json,
    metrics_of,
    print_json,
    row_json,
    short,
    state_json,
    tensor_counts,
)


def ls(arguments: argparse.Namespace) -> int:
    if "://" in arguments.path:
        return _ls_remote(arguments)
    found = find(arguments.path)
    rows = [row for run in found for row in listed(run, verify=not arguments.no_verify)]
    if arguments.json:
        return print_json([row_json(row) for row in rows])
    for index, run in enumerate(found):
        if index:
            say("")
        info = read_run(run.path) if run.is_run else None
        say(from_here(run.path) + (f"  {info}" if info else ""), style="bold")
        mine = [row for row in rows if row.run == run.path]
        if mine:
            table(
                ["step", "epoch", "metrics", "size", "kept as", "verified", "age"],
                [cells_of(row) for row in mine],
                right=(0, 1, 3, 6),
            )
        else:
            say("  no checkpoints")
        for folder, what in ((QUARANTINE, "damaged, set aside"), (SUPERSEDED, "superseded, set aside")):
            aside = names_in(run.path / CHECKPOINTS / folder) if run.is_run else []
            if aside:
                say(f"  {what} in {CHECKPOINTS}/{folder}: {', '.join(aside)}")
    return OK


def _ls_remote(arguments: argparse.Namespace) -> int:
    """What the manifests say; a remote's other bytes are checked when they are fetched."""
    remote = Remote(arguments.path)
    names = remote.names()
    rows = []
    for checkpoint in reversed(remote.checkpoints()):
        kept_as = tuple(name for name, held in names.items() if checkpoint in held)
        row = _remote_row(remote, checkpoint, kept_as)
        if row is not None:
            rows.append(row)
    if not rows:
        raise CheckpointNotFoundError(f"no checkpoint at {remote.url}")
    if arguments.json:
        return print_json([row_json(row) | {"run": remote.url, "path": f"{remote.url}/{row.name}"} for row in rows])
    say(remote.url, style="bold")
    heading = ["step", "epoch", "metrics", "size", "kept as", "age"]
    table(heading, [_remote_cells(row) for row in rows], right=(0, 1, 3, 5))
    return OK


def _remote_row(remote: Remote, checkpoint: RemoteCheckpoint, pins: tuple[str, ...]) -> Row | None:
    place = Path(checkpoint.entry_name)
    try:
        found = remote.manifest(checkpoint)
    except CheckpointCorruptError as error:
        return Row(place, place, None, pins, "damaged", [str(error)])
    if found is None:
        return None  # never completed
    entry = entry_from_manifest(place, found[1], pins)
    return Row(place, place, entry, pins, "unknown", [], weights_only=has_weights_only(found[1]))


def _remote_cells(row: Row) -> list[Cell]:
    *cells, _, since = cells_of(row)
    return [*cells, since if row.entry else "DAMAGED"]


def verify(arguments: argparse.Namespace) -> int:
    rows = [row for path in arguments.path for run in find(path) for row in listed(run, verify=True)]
    states = [row.state for row in rows]
    if arguments.json:
        print_json([row_json(row) for row in rows])
    else:
        for row in rows:
            word = "ok" if row.state == "sound" else row.state
            say(f"{word:10} {from_here(row.path)}", style="red" if row.problems else None)
            for problem in row.problems:
                say(f"           {problem}")
        unreadable = states.count("unreadable")
        say(
            f"{count(len(rows), 'checkpoint')}, {states.count('damaged')} damaged"
            + (f", {unreadable} unreadable" if unreadable else "")
        )
    return code_of(*states)


def show(arguments: argparse.Namespace) -> int:
    path = checkpoint_at(arguments.checkpoint)
    manifest = read_manifest(path, REAL)
    entry = entry_at(path, manifest)
    state, problems = state_of(path)
    files = {
        name: {"bytes": record["size"], "sha256": record["sha256"]}
        | ({"tensors": record["tensors"]} if "tensors" in record else {})
        for name, record in manifest["files"].items()
    }
    if arguments.json:
        record = entry_json(entry) | {
            "weights_only": has_weights_only(manifest),
            "info": entry.info,
            "versions": manifest.get("versions", {}),
            "files": files,
        }
        print_json(record | state_json(state, problems))
        return code_of(state)
    table(["", ""], _facts(path, entry, manifest, state), heading=False)
    for problem in problems:
        say(f"  {problem}", style="red")
    say("")
    table(
        ["file", "size", "tensors", "elements"],
        [[name, size(record["bytes"]), *tensor_counts(record.get("tensors"))] for name, record in files.items()],
        right=(1, 2, 3),
    )
    if arguments.tensors:
        _tell_tensors(files)
    return code_of(state)


def _facts(path: Path, entry: Entry, manifest: dict[str, Any], state: State) -> list[list[Cell]]:
    facts: dict[str, Any] = {
        "checkpoint": from_here(path),
        "step": entry.step,
        "epoch": entry.epoch,
        "metrics": metrics_of(entry.metrics) or "none",
        "kept as": list(entry.pins) or "nothing",
        "holds": "weights only" if has_weights_only(manifest) else "weights and the state to go on from",
        "healthy": "yes" if entry.healthy else "no: NaN or infinite values",
        "verified": "yes" if state == "sound" else state,
        "created": f"{entry.created} ({age(seconds_since(entry.created))} ago)",
        "written by": [f"{name} {version}" for name, version in _versions(manifest, entry).items()],
    }
    cells: list[list[Cell]] = [
        [name, value if isinstance(value, list) else short(value)] for name, value in facts.items()
    ]
    told_already = {*_versions(manifest, entry), "weights_only"}
    cells += [[f"info.{name}", short(value)] for name, value in entry.info.items() if name not in told_already]
    return cells


def _tell_tensors(files: dict[str, Any]) -> None:
    for name, record in files.items():
        if record.get("tensors"):
            say("")
            rows = [[tensor, dtype, str(shape), size(nbytes)] for tensor, dtype, shape, _, nbytes in record["tensors"]]
            table([name, "type", "shape", "size"], rows, right=(3,))


def _versions(manifest: dict[str, Any], entry: Entry) -> dict[str, str]:
    """Of all that wrote the checkpoint; the store knows of no Paddle, a Trainer adds its version."""
    recorded = {name: str(version) for name, version in manifest.get("versions", {}).items()}
    return recorded | {name: str(entry.info[name]) for name in (*recorded, "paddle") if name in entry.info}


def diff(arguments: argparse.Namespace) -> int:
    first, second = open_checkpoint(checkpoint_at(arguments.first)), open_checkpoint(checkpoint_at(arguments.second))
    differences = list(compare(first, second))
    if arguments.json:
        print_json(
            {
                "first": first.entry.path,
                "second": second.entry.path,
                "differences": [asdict(one) for one in differences],
            }
        )
        return PROBLEMS if differences else OK
    say(f"A  {from_here(first.entry.path)}\nB  {from_here(second.entry.path)}")
    limit = len(differences) if arguments.all else 8
    for where in dict.fromkeys(one.where for one in differences):
        here = [one for one in differences if one.where == where]
        say("")
        rows = []
        for one in here[:limit]:
            same_kind = one.largest is not None
            second_cell = "same shape and type" if same_kind else short(one.second)
            rows.append([one.name, short(one.first), second_cell, f"{one.largest:.3g}" if same_kind else ""])
        has_tensors = any(one.largest is not None for one in here)
        table(
            [where, "A", "B", "largest difference"][: 4 if has_tensors else 3],
            [row[: 4 if has_tensors else 3] for row in rows],
        )
        if len(here) > limit:
            say(f"  and {len(here) - limit} more (--all lists them)")
    say(f"\n{count(len(differences), 'difference')}" if differences else "no difference")
    return PROBLEMS if differences else OK
