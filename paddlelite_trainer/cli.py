"""The command `paddlelite`: looks at checkpoints, checks them and puts them in order; needs no Paddle."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import __version__
from .checkpoint.compare import compare
from .checkpoint.entry import Entry, entry_from_manifest, parse_entry_name
from .checkpoint.filesystem import REAL
from .checkpoint.links import CHECKPOINTS
from .checkpoint.lookup import (
    Found,
    Row,
    State,
    checkpoint_at,
    entry_at,
    find,
    has_weights_only,
    listed,
    names_in,
    run_at,
    run_of,
    runs_at,
    state_of,
)
from .checkpoint.reader import QUARANTINE, SUPERSEDED, CheckpointReader
from .checkpoint.remote import Remote, RemoteCheckpoint, fetch_checkpoint
from .checkpoint.safetensors_format import write_safetensors
from .checkpoint.saved import open_checkpoint, read_manifest, resolve_checkpoint
from .checkpoint.store import CheckpointStore
from .errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    RunLockedError,
)
from .reporting.terminal import Cell, age, count, say, seconds_since, size, table
from .run.directory import locked, read_run

OK, PROBLEMS, USAGE, NOT_FOUND, IN_USE, FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

EXIT_CODES = """\
exit codes:
  0  done, nothing wrong
  1  damage or differences were found
  2  the command line or a name is wrong
  3  nothing is there
  4  the run is in use by another process
  5  reading or writing failed
"""
EXAMPLES = """\
examples:
  paddlelite ckpt ls runs                           every checkpoint of every run
  paddlelite ckpt verify runs/version_3             check every byte
  paddlelite ckpt show runs/version_3/best          what the best checkpoint holds
  paddlelite ckpt diff runs/version_3/1200 runs/version_3/latest
  paddlelite ckpt tag runs/version_3/1200 before-finetune
  paddlelite ckpt export runs/version_3/best weights.safetensors
  paddlelite ckpt fetch s3://bucket/run --name best

A checkpoint is named by its directory, by a link such as RUN/best or RUN/latest.pdparams, or as RUN/STEP.
"""
# The names that a training moves by itself; see ModelCheckpoint.
MANAGED = re.compile(r"latest|best|best_.+|recent|epoch_\d+|imported-best|before-lr-drop-.+")
FILES = {"model": "model.pdparams", "ema": "ema.pdparams", "optimizer": "optimizer.pdopt"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        with _warnings_in_one_line():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # `paddlelite ckpt ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except CheckpointNotFoundError as error:
        return _fail(error, NOT_FOUND)
    except CheckpointCorruptError as error:
        return _fail(error, PROBLEMS)
    except RunLockedError as error:
        return _fail(error, IN_USE)
    except ConfigurationError as error:
        return _fail(error, USAGE)
    except (CheckpointError, OSError) as error:
        return _fail(error, FAILED)


def _fail(error: object, code: int) -> int:
    what, *problems = str(error).split("\n  - ")
    print(f"paddlelite: {what}" + (f" {'; '.join(problems)}" if problems else ""), file=sys.stderr)
    return code


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    told = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:  # a command looks at a run more than once
            told.add(str(message))
            print(f"paddlelite: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _parser() -> argparse.ArgumentParser:
    def subparser(
        parent: Any, name: str, help: str, run: Any = None, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = parent.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if run is not None:
            parser.set_defaults(run=run)
        return parser

    def with_json(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON for programs instead of a table for people")

    parser = argparse.ArgumentParser(prog="paddlelite", description="Works on runs of paddlelite_trainer.")
    parser.add_argument("--version", action="version", version=f"paddlelite {__version__}")
    parser.epilog = "See `paddlelite ckpt --help`."
    groups = parser.add_subparsers(metavar="ckpt", required=True)
    group = subparser(groups, "ckpt", "list, check and handle checkpoints", epilog=f"{EXAMPLES}\n{EXIT_CODES}")
    commands = group.add_subparsers(metavar="COMMAND", required=True)

    ls = subparser(commands, "ls", "list the checkpoints of a run, or of all runs below a directory", _ls)
    ls.add_argument(
        "path",
        nargs="?",
        default="runs",
        help="a run, a directory of runs, a checkpoint, or the URL of remote copies (default: runs)",
    )
    ls.add_argument("--no-verify", action="store_true", help="do not read the files to check them")
    with_json(ls)

    show = subparser(commands, "show", "show what one checkpoint holds", _show)
    show.add_argument("checkpoint", help="a checkpoint; a run means its newest")
    show.add_argument("--tensors", action="store_true", help="list every tensor")
    with_json(show)

    verify = subparser(commands, "verify", "check every byte of checkpoints; exit code 1 if any is damaged", _verify)
    verify.add_argument(
        "path", nargs="*", default=["runs"], help="checkpoints, runs or directories of runs (default: runs)"
    )
    with_json(verify)

    diff = subparser(commands, "diff", "tell what differs between two checkpoints; exit code 1 if anything does", _diff)
    diff.add_argument("first")
    diff.add_argument("second")
    diff.add_argument("--all", action="store_true", help="list every difference, not the first few of each file")
    with_json(diff)

    tag = subparser(commands, "tag", "keep a checkpoint under a name of your own, or take such a name away", _tag)
    tag.add_argument("checkpoint", help="the checkpoint, or with --remove its run")
    tag.add_argument("name", help="the tag, which becomes a link in the run directory")
    choice = tag.add_mutually_exclusive_group()
    choice.add_argument("--move", action="store_true", help="take the name from the checkpoint that has it")
    choice.add_argument(
        "--remove", action="store_true", help="take the name away; a checkpoint that no other holds is deleted"
    )
    tag.add_argument("--force", action="store_true", help="also a name that the run manages itself, such as best")
    with_json(tag)

    prune = subparser(commands, "prune", "delete the checkpoints that no name holds", _prune)
    prune.add_argument("path", help="a run, or a directory of runs")
    prune.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")
    prune.add_argument(
        "--superseded", action="store_true", help="also those set aside when a run went on from an older one"
    )
    prune.add_argument("--quarantine", action="store_true", help="also those set aside as damaged")
    with_json(prune)

    export = subparser(
        commands, "export", "write one checkpoint's tensors as .safetensors, or as a bare .pdparams or .pdopt", _export
    )
    export.add_argument("checkpoint", help="a checkpoint; a run means its newest")
    export.add_argument("output", help="the file to write, its suffix says the format")
    export.add_argument(
        "--what",
        choices=tuple(FILES),
        help="which tensors (default: those that the output's suffix means; the model's for .safetensors)",
    )
    export.add_argument("--force", action="store_true", help="replace an existing file")
    with_json(export)

    fetch = subparser(commands, "fetch", "bring a checkpoint from its remote copy, every byte of it checked", _fetch)
    fetch.add_argument("url", help="where RemoteCopy put the run's checkpoints, such as s3://bucket/run")
    fetch.add_argument("dest", nargs="?", default=".", help="the directory to put it in (default: the present one)")
    fetch.add_argument(
        "--name", default="latest", help="latest (default), best, a tag, a step, or a checkpoint's name as ls shows it"
    )
    with_json(fetch)

    repair = subparser(
        commands,
        "repair",
        "rebuild a run's links and its record of names, move damaged checkpoints to quarantine, and delete leftovers",
        _repair,
    )
    repair.add_argument("path", help="a run, or a directory of runs")
    with_json(repair)
    return parser


# -- the commands ----------------------------------------------------------------------------------------------------
def _ls(arguments: argparse.Namespace) -> int:
    if "://" in arguments.path:
        return _ls_remote(arguments)
    found = find(arguments.path)
    rows = [row for run in found for row in listed(run, verify=not arguments.no_verify)]
    if arguments.json:
        return _print_json([_row_json(row) for row in rows])
    for index, run in enumerate(found):
        if index:
            say("")
        info = read_run(run.path) if run.is_run else None
        say(f"{run.path}" + (f"  {info}" if info else ""), style="bold")
        mine = [row for row in rows if row.run == run.path]
        if mine:
            table(
                ["step", "epoch", "metrics", "size", "kept as", "verified", "age"],
                [_cells(row) for row in mine],
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
        return _print_json([_row_json(row) | {"run": remote.url, "path": f"{remote.url}/{row.name}"} for row in rows])
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
    *cells, _, since = _cells(row)
    return [*cells, since if row.entry else "DAMAGED"]


def _fetch(arguments: argparse.Namespace) -> int:
    remote = Remote(arguments.url)
    checkpoint = remote.find(arguments.name)
    entry = fetch_checkpoint(remote, checkpoint, Path(arguments.dest).expanduser().absolute())
    words = f"{checkpoint.name} of {remote.url} is now {entry.path}, {size(entry.nbytes)}, every byte checked"
    return _done(arguments, words, url=remote.url, checkpoint=checkpoint.name, path=entry.path, bytes=entry.nbytes)


def _verify(arguments: argparse.Namespace) -> int:
    rows = [row for path in arguments.path for run in find(path) for row in listed(run, verify=True)]
    states = [row.state for row in rows]
    if arguments.json:
        _print_json([_row_json(row) for row in rows])
    else:
        for row in rows:
            word = "ok" if row.state == "sound" else row.state
            say(f"{word:10} {row.path}", style="red" if row.problems else None)
            for problem in row.problems:
                say(f"           {problem}")
        unreadable = states.count("unreadable")
        say(
            f"{count(len(rows), 'checkpoint')}, {states.count('damaged')} damaged"
            + (f", {unreadable} unreadable" if unreadable else "")
        )
    return _code_of(*states)


def _code_of(*states: State) -> int:
    return PROBLEMS if "damaged" in states else FAILED if "unreadable" in states else OK


def _show(arguments: argparse.Namespace) -> int:
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
        record = _entry_json(entry) | {
            "weights_only": has_weights_only(manifest),
            "info": entry.info,
            "versions": manifest.get("versions", {}),
            "files": files,
        }
        _print_json(record | _state_json(state, problems))
        return _code_of(state)
    facts: dict[str, Any] = {
        "checkpoint": str(path),
        "step": entry.step,
        "epoch": entry.epoch,
        "metrics": _metrics(entry.metrics) or "none",
        "kept as": list(entry.pins) or "nothing",
        "holds": "weights only" if has_weights_only(manifest) else "weights and the state to go on from",
        "healthy": "yes" if entry.healthy else "no: NaN or infinite values",
        "verified": "yes" if state == "sound" else state,
        "created": f"{entry.created} ({age(seconds_since(entry.created))} ago)",
        "written by": [f"{name} {version}" for name, version in _versions(manifest, entry).items()],
    }
    cells: list[list[Cell]] = [
        [name, value if isinstance(value, list) else _short(value)] for name, value in facts.items()
    ]
    told_already = {*_versions(manifest, entry), "weights_only"}
    cells += [[f"info.{name}", _short(value)] for name, value in entry.info.items() if name not in told_already]
    table(["", ""], cells, heading=False)
    for problem in problems:
        say(f"  {problem}", style="red")
    say("")
    table(
        ["file", "size", "tensors", "elements"],
        [[name, size(record["bytes"]), *_tensor_counts(record.get("tensors"))] for name, record in files.items()],
        right=(1, 2, 3),
    )
    if arguments.tensors:
        for name, record in files.items():
            if record.get("tensors"):
                say("")
                rows = [
                    [tensor, dtype, str(shape), size(nbytes)] for tensor, dtype, shape, _, nbytes in record["tensors"]
                ]
                table([name, "type", "shape", "size"], rows, right=(3,))
    return _code_of(state)


def _versions(manifest: dict[str, Any], entry: Entry) -> dict[str, str]:
    """Of all that wrote the checkpoint; the store knows of no Paddle, a Trainer adds its version."""
    recorded = {name: str(version) for name, version in manifest.get("versions", {}).items()}
    return recorded | {name: str(entry.info[name]) for name in (*recorded, "paddle") if name in entry.info}


def _diff(arguments: argparse.Namespace) -> int:
    first, second = open_checkpoint(checkpoint_at(arguments.first)), open_checkpoint(checkpoint_at(arguments.second))
    differences = list(compare(first, second))
    if arguments.json:
        _print_json(
            {
                "first": first.entry.path,
                "second": second.entry.path,
                "differences": [asdict(one) for one in differences],
            }
        )
        return PROBLEMS if differences else OK
    say(f"A  {first.entry.path}\nB  {second.entry.path}")
    limit = len(differences) if arguments.all else 8
    for where in dict.fromkeys(one.where for one in differences):
        here = [one for one in differences if one.where == where]
        say("")
        rows = []
        for one in here[:limit]:
            same_kind = one.largest is not None
            second_cell = "same shape and type" if same_kind else _short(one.second)
            rows.append([one.name, _short(one.first), second_cell, f"{one.largest:.3g}" if same_kind else ""])
        has_tensors = any(one.largest is not None for one in here)
        table(
            [where, "A", "B", "largest difference"][: 4 if has_tensors else 3],
            [row[: 4 if has_tensors else 3] for row in rows],
        )
        if len(here) > limit:
            say(f"  and {len(here) - limit} more (--all lists them)")
    say(f"\n{count(len(differences), 'difference')}" if differences else "no difference")
    return PROBLEMS if differences else OK


def _tag(arguments: argparse.Namespace) -> int:
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
        return _done(
            arguments, f"{name} is no longer a name in {run}{_told(deleted)}", run=run, removed=name, deleted=deleted
        )
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
    words = f"{path.name} is kept as {name}" + (f": {link}" if link else ", and no link leads to it")
    return _done(arguments, words + _told(deleted), run=run, checkpoint=path.name, tag=name, link=link, deleted=deleted)


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


def _prune(arguments: argparse.Namespace) -> int:
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
    lines = [f"{verb} {path}  {size(nbytes)}" for path, nbytes in deleted.items()]
    lines.append(
        f"{count(len(deleted), 'checkpoint')}, {size(freed)}"
        if deleted
        else "nothing to delete: every checkpoint is held by a name"
    )
    return _done(arguments, "\n".join(lines), dry_run=arguments.dry_run, deleted=list(deleted), bytes=freed)


def _bytes_in(path: Path) -> int:
    return sum(found.lstat().st_size for found in [path, *path.rglob("*")] if not found.is_dir())


def _export(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output).expanduser()
    what = _what_to_export(output, arguments.what)
    if output.exists() and not arguments.force:
        raise ConfigurationError(f"{output} exists; --force replaces it")
    if not output.parent.is_dir():
        raise CheckpointError(f"{output} cannot be written: there is no directory {output.parent}")
    saved = open_checkpoint(checkpoint_at(arguments.checkpoint))
    file = FILES[what]
    if file not in saved.files:
        raise CheckpointNotFoundError(f"{saved.entry.path} has no {file}; it has {', '.join(saved.files)}")
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        if output.suffix == ".safetensors":
            tensors = saved.tensors(file)
            write_safetensors(temporary, tensors, {name: saved.dtype_of(file, name) for name in tensors})
        else:
            shutil.copyfile(saved.entry.path / file, temporary)  # it is a bare Paddle file already
        os.replace(temporary, output)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed, free = saved.manifest["files"][file]["size"], shutil.disk_usage(output.parent).free
            why += f": about {size(needed)} are needed; {size(free)} were free when it failed"
        raise CheckpointError(f"{output} cannot be written: {why}") from error
    finally:
        temporary.unlink(missing_ok=True)
    nbytes = output.stat().st_size
    words = f"{file} of {saved.entry.path} written to {output}, {size(nbytes)}"
    return _done(arguments, words, checkpoint=saved.entry.path, output=output, bytes=nbytes)


def _what_to_export(output: Path, asked: str | None) -> str:
    """Which of FILES; a suffix says what a file holds, so weights are not written as .pdopt nor an optimizer as .pdparams."""
    suffixes = {"model": (".safetensors", ".pdparams"), "ema": (".safetensors", ".pdparams", ".pdema")}
    suffixes["optimizer"] = (".safetensors", ".pdopt")
    if output.suffix not in {suffix for those in suffixes.values() for suffix in those}:
        raise ConfigurationError(
            "the output's suffix says the format: .safetensors, .pdparams for weights, .pdopt for the optimizer; "
            f"got {output.name!r}"
        )
    what = asked or {".pdopt": "optimizer", ".pdema": "ema"}.get(output.suffix, "model")
    if output.suffix not in suffixes[what]:
        raise ConfigurationError(
            f"--what {what} is written to a file that ends in {' or '.join(suffixes[what])}, got {output.name!r}"
        )
    return what


def _repair(arguments: argparse.Namespace) -> int:
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
        _print_json(outcomes)
    else:
        for outcome in outcomes:
            _tell_repaired(**outcome)
    damaged, unreadable = (any(outcome[what] for outcome in outcomes) for what in ("damaged", "unreadable"))
    return PROBLEMS if damaged else FAILED if unreadable else OK


def _tell_repaired(run: Path, changed: list[str], damaged: list[str], moved: list[str], unreadable: list[str]) -> None:
    say(f"{run}: {'put in order: ' + ', '.join(changed) if changed else 'in order'}")
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


# -- output ----------------------------------------------------------------------------------------------------------
def _done(arguments: argparse.Namespace, words: str, **record: Any) -> int:
    if arguments.json:
        return _print_json(record)
    say(words)
    return OK


def _print_json(value: Any) -> int:
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))
    return OK


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings "nan" and "inf"."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _row_json(row: Row) -> dict[str, Any]:
    step, revision = parse_entry_name(row.name) or (None, None)
    record = (
        _entry_json(row.entry)
        if row.entry
        else {"name": row.name, "path": row.path, "step": step, "revision": revision, "pins": row.pins}
    )
    return {"run": row.run, **record, "weights_only": row.weights_only, **_state_json(row.state, row.problems)}


def _state_json(state: State, problems: list[str]) -> dict[str, Any]:
    verified = {"sound": True, "damaged": False}.get(state)
    return {"verified": verified, "unreadable": state == "unreadable", "problems": problems}


def _cells(row: Row) -> list[Cell]:
    verified = {"sound": "yes", "damaged": "DAMAGED", "unreadable": "unreadable", "unknown": "-"}[row.state]
    step, revision = parse_entry_name(row.name) or (row.name, 0)
    label = f"{step}-r{revision}" if revision else str(step)
    if row.entry is None:
        return [label, "?", "?", "?", row.pins or "?", verified, "?"]
    notes = [] if row.entry.healthy else ["(not finite)"]
    notes += ["(weights only)"] if row.weights_only else []
    since = age(seconds_since(row.entry.created))
    return [
        label,
        str(row.entry.epoch),
        [*_metrics(row.entry.metrics), *notes],
        size(row.entry.nbytes),
        row.pins,
        verified,
        since,
    ]


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": entry.path,
        "step": entry.step,
        "revision": entry.revision,
        "epoch": entry.epoch,
        "metrics": entry.metrics,
        "healthy": entry.healthy,
        "pins": entry.pins,
        "bytes": entry.nbytes,
        "created": entry.created,
    }


def _metrics(metrics: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in metrics.items()]


def _short(value: Any) -> str:
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _tensor_counts(tensors: list[Any] | None) -> list[str]:
    if tensors is None:
        return ["", ""]
    return [str(len(tensors)), f"{sum(math.prod(shape) for _, _, shape, _, _ in tensors):,}"]


if __name__ == "__main__":
    sys.exit(main())
