"""Which checkpoint a `ckpt_path` means: on this machine, then at the remotes that the run is copied to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..checkpoint.entry import Entry, entry_from_manifest
from ..checkpoint.filesystem import REAL
from ..checkpoint.foreign_files import locate, url_scheme
from ..checkpoint.links import CHECKPOINTS
from ..checkpoint.owner import MAIN, Owner
from ..checkpoint.reader import CheckpointReader
from ..checkpoint.remote import Names, Remote, RemoteCheckpoint
from ..checkpoint.saved import SavedCheckpoint, read_manifest, resolve_checkpoint
from ..errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConfigurationTypeError,
    RemoteError,
    did_you_mean,
)
from . import remote_run
from .directory import absolute, new_run, numbered_runs, read_run, subdirectories
from .whose import refuse_others, standing_of

_SUFFIXES = (".pdparams", ".pdopt")


@dataclass(frozen=True)
class Resolution:
    """What a `ckpt_path` means: where the run goes on, from which checkpoint, and one line that says so.

    `run_dir` is the run to go on with in place; None asks for a fresh directory. `entry` is the checkpoint to restore;
    None where `fresh` is true.
    """

    run_dir: Path | None
    entry: Entry | None
    fresh: bool
    message: str
    opened: SavedCheckpoint | None = None
    """The checkpoint, open, where finding it has verified it already; it does not travel to other processes."""
    findings: tuple[str, ...] = ()
    """A sentence for each newer checkpoint that was passed over."""
    damaged: tuple[str, ...] = ()
    """Names of those of them that are damaged."""
    owner: Owner | None = None
    """Whose run it is, where the remote knows."""
    commits_elsewhere: int = 0
    """The highest number of a commit at the remotes."""
    leaves_a_branch: bool = False
    """Whether the remotes hold what the run leaves behind if it goes on from `entry`."""
    came_from: str = ""
    """Where a checkpoint that is only looked at was brought from, to be told behind its path."""

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.run_dir, self.entry, self.fresh, self.message, None, self.findings, self.damaged)
        return Resolution, (*fields, self.owner, self.commits_elsewhere, self.leaves_a_branch, self.came_from)


@dataclass(frozen=True)
class RemoteCopies:
    """Where a callback copies checkpoints to, and what it says about a start at which the remote does not answer."""

    remote: Remote
    if_unreachable: Literal["raise", "local"]
    logs: bool = False
    """Whether logs are copied too, and brought where a checkpoint is."""


def copies_of(callbacks: Sequence[object]) -> list[RemoteCopies]:
    """Of those callbacks that have a `remote`."""
    copies = [
        RemoteCopies(remote, getattr(callback, "if_unreachable", "raise"), bool(getattr(callback, "logs", False)))
        for callback in callbacks
        if isinstance(remote := getattr(callback, "remote", None), Remote)
    ]
    urls = [one.remote.url for one in copies]
    for url in urls:
        if urls.count(url) > 1:
            raise ConfigurationError(
                f"{urls.count(url)} callbacks copy to {url}, and each would take the other's names away. "
                "Name all that is to be copied in one, or give each a URL of its own."
            )
    return copies


def resolve(
    ckpt_path: str | os.PathLike[str] | None,
    remotes: Sequence[RemoteCopies] = (),
    *,
    default_root_dir: str | os.PathLike[str],
    run_name: str | None = None,
) -> Resolution:
    """Find the checkpoint that `ckpt_path` means, here and at the remotes.

    Without remotes it writes nothing and takes no lock. Of the remotes "last" means what is the newest here and there;
    what is newer there is brought into the run's store, verified and committed. A run that begins afresh is refused a
    remote that holds a run already, since the two would be mixed.

    "last" and a run's path choose by verifying every byte; for the others that is left to who opens the checkpoint.

    - None: a fresh run.
    - "last" or "latest": the newest sound checkpoint of the newest run that has any. A fresh run where no checkpoint
      exists yet, so that one command starts and restarts a job.
    - "best": the best checkpoint of that run, by its recorded metric.
    - a path: a checkpoint, a run, or a link such as `runs/version_3/best`, with or without .pdparams.
    - any other name: the newest checkpoint tagged so.

    The newest run is the `version_<N>` of the highest number; `run_name` (a path below the root, or an absolute one)
    says which run instead. The run that the checkpoint belongs to goes on in place, unless `run_name` names another.

    Raises:
        CheckpointNotFoundError: nothing is there; the message lists what is near.
        CheckpointCorruptError: checkpoints are there, here or at a remote, and none of them verifies.
        RemoteError: a remote does not answer, and its callback does not say to go on with what is here.
        ConfigurationError: "best" where nothing, or more than one thing, was monitored.
    """
    if not remotes:
        return _resolve_here(ckpt_path, default_root_dir, run_name)
    local: Resolution | None = None
    broken: CheckpointCorruptError | None = None
    missing: CheckpointNotFoundError | None = None
    try:
        local = _resolve_here(ckpt_path, default_root_dir, run_name)
    except CheckpointCorruptError as error:  # a remote may have a sound one
        broken = error
    except CheckpointNotFoundError as error:  # a remote may have one of that name
        missing = error
    for copies in remotes:
        try:
            there = remote_run.contents(copies.remote)
            record = remote_run.names_of(copies.remote)
            if local is not None and local.run_dir is not None:
                remote_run.refuse_another_s(copies.remote, there, record, local.run_dir)
            if os.fspath(ckpt_path or "") in ("last", "latest"):
                before = local.entry if local is not None else None
                brought = _bring_newer(copies.remote, there, record, local, default_root_dir, run_name)
                local, broken = (local, broken) if brought is None else (brought, None)
                if local is not None and local.run_dir is not None and local.entry != before:
                    found = remote_run.bring_logs_of(copies.remote, local.run_dir, all_of_them=copies.logs)
                    local = _with_findings(local, *found)
            if missing is not None and local is None:
                local = _bring_named(
                    copies.remote, there, record, os.fspath(ckpt_path or ""), default_root_dir, run_name
                )
            if local is not None and local.run_dir is None:
                remote_run.refuse_used(copies.remote, there, record)
            elif local is not None:
                local = _seen_from_there(local, copies.remote, there, record)
        except CheckpointCorruptError as error:  # of this remote; another one may have a sound one
            broken = broken or error
        except RemoteError as error:
            if copies.if_unreachable == "raise":
                raise RemoteError(
                    "The remote copies cannot be reached, and there may be a newer checkpoint among them than here. "
                    f"{error}. RemoteCopy(..., if_unreachable='local') goes on without them."
                ) from error
            if local is not None:
                local = _with_findings(local, f"The remote copies cannot be reached; going on without them. {error}")
    if broken is not None:
        raise broken
    if local is None:
        assert missing is not None
        urls = ", ".join(copies.remote.url for copies in remotes)
        raise CheckpointNotFoundError(f"{missing} Nor is there any at {urls}.") from missing
    return local


def _bring_named(
    remote: Remote,
    there: Sequence[RemoteCheckpoint],
    record: Names,
    name: str,
    default_root_dir: str | os.PathLike[str],
    run_name: str | None,
) -> Resolution | None:
    """Where the run goes on from the checkpoint of that name at the remote; None where there is none."""
    if not there or _looks_like_path(name):
        return None
    try:
        checkpoint = remote.find(name)
    except CheckpointNotFoundError:
        return None
    run_dir = _resolve_here("last", default_root_dir, run_name).run_dir
    if run_dir is not None:
        remote_run.refuse_another_s(remote, there, record, run_dir)
    entry = remote_run.bring_named(remote, checkpoint, record, run_dir or new_run(default_root_dir, run_name))
    found = _resolve_here(entry.path, default_root_dir, run_name)
    return replace(found, message=f"{found.message}, brought from {remote.url}")


def look(
    ckpt_path: str | os.PathLike[str],
    remotes: Sequence[RemoteCopies],
    *,
    default_root_dir: str | os.PathLike[str],
    run_name: str | None = None,
) -> Resolution:
    """As `resolve`, for who looks at a checkpoint only: a remote is asked where this machine has none.

    What comes from there is kept below `<default_root_dir>/fetched`.
    """
    try:
        local = _resolve_here(ckpt_path, default_root_dir, run_name)
        if local.entry is not None:
            return local
    except CheckpointNotFoundError:
        if _looks_like_path(os.fspath(ckpt_path)):
            raise
        local = None
    for copies in remotes:
        try:
            entry = remote_run.fetched(copies.remote, os.fspath(ckpt_path), absolute(default_root_dir) / "fetched")
        except RemoteError:
            if copies.if_unreachable == "raise":
                raise
            continue
        if entry is not None:
            came_from = f", brought from {copies.remote.url}"
            return Resolution(None, entry, False, f"{entry.path}{came_from}", came_from=came_from)
    return local or _resolve_here(ckpt_path, default_root_dir, run_name)


def _bring_newer(
    remote: Remote,
    there: Sequence[RemoteCheckpoint],
    record: Names,
    local: Resolution | None,
    default_root_dir: str | os.PathLike[str],
    run_name: str | None,
) -> Resolution | None:
    """Where the run goes on once what is newer at the remote is here; None where no sound one is here or there."""
    here = local.entry if local is not None else None
    run_dir = local.run_dir if local is not None else None

    @cache  # one directory, also where several are tried
    def place() -> Path:
        return run_dir or new_run(default_root_dir, run_name)

    brought = remote_run.bring_newer(remote, there, record, newer_than=here, run_dir=place)
    if brought.entry is None:
        return None if local is None else _with_findings(local, *brought.findings)
    found = _resolve_here(brought.entry.path, default_root_dir, run_name)
    message = f"{found.message}, brought from {remote.url}"
    return _with_findings(replace(found, message=message), *brought.findings)


def _seen_from_there(local: Resolution, remote: Remote, there: Sequence[RemoteCheckpoint], record: Names) -> Resolution:
    """The same, with whose it is, what its next commit is counted above, and whether it leaves a branch."""
    assert local.run_dir is not None and local.entry is not None
    owner = remote_run.refuse_another_s(remote, there, record, local.run_dir)
    past = remote_run.past_at(remote, there, record, local.entry)
    message = local.message
    if past.other_branches:
        others = (f"{branch} up to {newest.entry_name}" for branch, newest in sorted(past.other_branches.items()))
        message += f"; other branches at {remote.url}: {', '.join(others)}"
    return replace(
        local,
        message=message,
        owner=local.owner or owner,
        commits_elsewhere=max(local.commits_elsewhere, past.commit),
        leaves_a_branch=local.leaves_a_branch or past.is_left,
    )


def _with_findings(resolution: Resolution, *findings: str) -> Resolution:
    return replace(resolution, findings=(*resolution.findings, *findings))


def _resolve_here(
    ckpt_path: str | os.PathLike[str] | None,
    default_root_dir: str | os.PathLike[str],
    run_name: str | None,
) -> Resolution:
    """What `ckpt_path` means on this machine."""
    root = absolute(default_root_dir)
    if ckpt_path is None:
        return Resolution(None, None, True, "fresh run")
    if not isinstance(ckpt_path, (str, os.PathLike)):
        raise ConfigurationTypeError(
            f"ckpt_path must be None, 'last', 'best', a tag or a path, got {ckpt_path!r} ({type(ckpt_path).__name__})"
        )
    text = os.fspath(ckpt_path)
    if not text:
        raise ConfigurationError(
            "ckpt_path is empty, as of a variable that is not set. Pass None for a fresh run, or 'last' to go on."
        )
    scheme = url_scheme(text)
    if scheme in ("http", "https", "ftp"):
        raise ConfigurationError(f"ckpt_path={text!r} is a URL: download it first and pass the path of the file.")
    if scheme is not None:
        raise ConfigurationError(
            f"ckpt_path={text!r} is a URL. To go on with the run there add RemoteCopy({text!r}) to the callbacks "
            f"and pass ckpt_path='last'; `paddlelite ckpt fetch {text}` brings one checkpoint here."
        )
    named = _run_at(default_root_dir, run_name) if run_name is not None else None
    runs = [named] if named else [path for _, path in sorted(numbered_runs(root), reverse=True)]
    if text in ("last", "latest"):
        return _resolve_last(root, named, runs)
    if text == "best":
        return _resolve_best(root, runs)
    found = _resolve_path(text, named) or (None if _looks_like_path(text) else _resolve_pin(text, runs))
    if found is None:
        _refuse_foreign(absolute(text))
        raise CheckpointNotFoundError(_not_found_message(text, root, runs))
    return found


def _resolve_last(root: Path, named: Path | None, runs: Sequence[Path]) -> Resolution:
    for run in runs:
        found = _newest_of(run)
        if found is not None:
            return found
    message = f"no checkpoint in {named or root} yet: fresh run"
    others = sorted(path.name for path in subdirectories(root) if (path / CHECKPOINTS).is_dir() and path not in runs)
    if others and named is None:
        message += f" (runs with names go on by run_name=: {', '.join(others)})"
    return Resolution(None, None, True, message)


def _newest_of(run: Path) -> Resolution | None:
    reader = CheckpointReader(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the findings are told with the resolution
        # Weights only, where there is nothing else: who wants to go on from them is told so.
        entry = reader.newest(complete=True) or reader.newest()
    return None if entry is None else _continue(run, entry, reader.read(entry), reader)


def _resolve_best(root: Path, runs: Sequence[Path]) -> Resolution:
    for run in runs:
        reader = CheckpointReader(run)
        if reader.entries():
            return _continue(run, _best_of(reader))
        reader.newest()  # raises where there are checkpoints, all of them damaged
    raise CheckpointNotFoundError(f"ckpt_path='best': there is no checkpoint in {root} yet")


def _best_of(reader: CheckpointReader) -> Entry:
    pins = reader.pins()
    ranked = ["best"] if "best" in pins else sorted(pin for pin in pins if pin.startswith("best_"))
    if len(ranked) > 1:
        raise ConfigurationError(
            f"ckpt_path='best' could mean any of {', '.join(ranked)} in {reader.run_dir}: "
            f"pass the one you mean, as ckpt_path={ranked[0]!r}"
        )
    if not ranked:
        raise ConfigurationError(
            f"ckpt_path='best': nothing was monitored in {reader.run_dir} where a checkpoint was saved, so none is "
            "the best. Train with ModelCheckpoint(monitor=...), or pass ckpt_path='last'."
        )
    return reader.first_of_pin(ranked[0])


def _resolve_pin(pin: str, runs: Sequence[Path]) -> Resolution | None:
    for run in runs:
        reader = CheckpointReader(run)
        if pin in reader.pins():
            return _continue(run, reader.first_of_pin(pin))
    return None


def _resolve_path(text: str, named: Path | None) -> Resolution | None:
    path = absolute(text)
    try:
        directory = resolve_checkpoint(Path(text).expanduser())
    except CheckpointNotFoundError:
        if (path / CHECKPOINTS).is_dir():
            found = _newest_of(path)
            if found is None:
                raise CheckpointNotFoundError(f"the run {path} has no checkpoint yet") from None
            return found
        if not path.exists():
            return None
        _refuse_foreign(path)
        runs = [name for _, name in sorted(numbered_runs(path))] if path.is_dir() else []
        if runs:
            raise CheckpointNotFoundError(
                f"{path} holds runs and is none itself. Pass one of them, such as {str(runs[-1])!r}, or "
                f"Trainer(default_root_dir={str(path)!r}) and ckpt_path='last'."
            ) from None
        raise CheckpointNotFoundError(
            f"{path} is neither a checkpoint nor a run. load_weights(layer, path) loads other programs' weights."
        ) from None
    entry = entry_from_manifest(directory, read_manifest(directory, REAL))
    run = directory.parent.parent if directory.parent.name == CHECKPOINTS else None
    if run is not None and (named is None or named == run):
        return _continue(run, entry)
    return Resolution(None, entry, False, f"fresh run from {entry.path} (step {entry.step}, epoch {entry.epoch})")


def _refuse_foreign(path: Path) -> None:
    """Raise for what another program saved there, with the way to use it; return where there is nothing of the kind."""
    try:
        what = str(locate(path).weights)
    except CheckpointNotFoundError:
        return
    except (CheckpointError, ConfigurationError) as error:
        what = f"{path}: {error}"
    raise CheckpointNotFoundError(
        f"{path} is a checkpoint of another program, and ckpt_path takes those of this trainer ({what}). "
        "In a fit pass it as init_from: init_from=path takes its weights, "
        "init_from=InitFrom(path, training_state=True) its optimizer and epoch too. "
        "For validate, test and predict call load_weights(module, path) before."
    )


def _continue(
    run: Path, entry: Entry, opened: SavedCheckpoint | None = None, searched: CheckpointReader | None = None
) -> Resolution:
    refuse_others(run, [entry], standing_of(run).owner)
    findings = tuple(searched.findings) if searched is not None else ()
    info = read_run(run)
    told = info is not None and info.status not in ("running", "killed") and not findings
    state = f", {info}" if told else ""
    branch = f", branch {entry.owner.branch}" if entry.owner is not None and entry.owner.branch != MAIN else ""
    message = f"going on with {run} from {entry.name} (step {entry.step}, epoch {entry.epoch}{branch}{state})"
    return Resolution(run, entry, False, message, opened, findings, tuple(searched.damaged) if searched else ())


def _not_found_message(text: str, root: Path, runs: Sequence[Path]) -> str:
    words = {"last", "latest", "best"}
    for run in runs[:1]:
        words.update(CheckpointReader(run).pins())
    path = absolute(text)
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    near = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    if _looks_like_path(text):
        suggestion = did_you_mean(path.name, near) if parent == path.parent else ""
        listing = f"{parent} holds {_some(near)}." if near else f"{parent} is empty."
        return f"no checkpoint at {path}.{suggestion} {listing}"
    suggestion = did_you_mean(text, words) or did_you_mean(text, near)
    return (
        f"ckpt_path={text!r} is neither a path nor a tag of a run in {root}.{suggestion} "
        f"Known here: {', '.join(sorted(words))}; or pass a path to a checkpoint or a run."
    )


def _some(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _looks_like_path(text: str) -> bool:
    return os.sep in text or "/" in text or text.endswith(_SUFFIXES)


def _run_at(default_root_dir: str | os.PathLike[str], run_name: str) -> Path:
    # Joined as written, links unresolved: what os.path.relpath led away from the root leads back.
    return Path(os.path.normpath(Path(default_root_dir).expanduser().absolute() / run_name)).resolve()
