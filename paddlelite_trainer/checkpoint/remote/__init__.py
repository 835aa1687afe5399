"""Checkpoints at a remote, an object store or whatever fsspec reaches: data first, the manifest next, names last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    ConfigurationError,
    RemoteError,
    did_you_mean,
)
from ..entry import Entry, entry_from_manifest
from ..filesystem import REAL, FileSystem
from ..links import check_pin_name
from ..manifest import MANIFEST, parse_files, seal, unseal
from ..owner import Owner, parse_owner
from ..pins import parse_changes
from ..saved import inspect
from .names import Names, branch_of, parse_names, rebuilt
from .objects import Objects
from .place import RemoteCheckpoint, commit_of, parse_remote_name, remote_name_of

__all__ = [
    "Names",
    "OwnCopies",
    "Remote",
    "RemoteCheckpoint",
    "branch_of",
    "commit_of",
    "fetch_checkpoint",
    "parse_remote_name",
    "remote_name_of",
]

NAMES_FILE = "names.json"
NAMES_COPY = "names-copy.json"
MAX_REMOTE_MANIFEST_BYTES = 256 << 20
DOWNLOAD_CHUNK_BYTES = 16 << 20


class Remote:
    """The copies of one run's checkpoints below a URL. One process writes, any number read.

        <url>/
          step-000001200.c7.0123456789abcdef/    a checkpoint; its manifest.json comes last and makes it one
            model.pdparams optimizer.pdopt trainer.json ... manifest.json
          names.json names-copy.json             whose run it is, {name: [remote checkpoints, best first]}, its branches
          writer.json                            who copies here at this moment

    Nothing is ever renamed there, and no file of a checkpoint is written again with other bytes.
    What is read is trusted in nothing: a manifest goes through the same checks as one on the local disk, every byte is
    verified, and no pickle is run.
    """

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None = None, *, objects: Objects | None = None
    ) -> None:
        self.objects = objects or Objects(url, storage_options)
        self.url = self.objects.url

    # ---- looking ----

    def checkpoints(self) -> list[RemoteCheckpoint]:
        """What bears a checkpoint's name, newest first; whether it is whole is not looked at."""
        found = [parsed for name in self.objects.contents() if (parsed := parse_remote_name(name))]
        return sorted(found, key=lambda one: one.order, reverse=True)

    def names(self) -> dict[str, list[RemoteCheckpoint]]:
        """Which checkpoints bear which name, best first."""
        return dict(self.record().held)

    def record(self) -> Names:
        """What names.json says. Where it is lost or damaged: what its copy and all manifests say."""
        found = self._names_in(NAMES_FILE)
        if found is not None:
            return found
        there = self.checkpoints()
        before = self._names_in(NAMES_COPY) if there else None
        return rebuilt(before, self._manifests(there)) if there else Names()

    def owner(self, record: Names, there: Sequence[RemoteCheckpoint]) -> Owner | None:
        """The run that the URL is for; by the newest checkpoints where names.json has not come to say it."""
        if record.owner is not None:
            return record.owner
        for manifest in self._manifests(there[:2]):
            owner = parse_owner(manifest.get("run"))
            if owner is not None:
                return owner
        return None

    def refusal(
        self, owner: Owner | None, own: OwnCopies, there: Sequence[RemoteCheckpoint], record: Names
    ) -> str | None:
        """Why the run of this owner may not copy here, or go on from here; None where it may.

        A run from before runs had an id is known by its checkpoints: of two, one that both know is enough.
        """
        if not self.holds_any(there):
            return None
        theirs = self.owner(record, there)
        if theirs is not None and owner is not None:
            return None if theirs.is_of(owner) else f"it holds {theirs}, up to {there[0].entry_name}; this is {owner}"
        if any(one in own for one in there):
            return None
        whose = "a run without an id" if theirs is None else str(theirs)
        mine = "a run without an id" if owner is None else str(owner)
        return f"it holds {whose}, up to {there[0].entry_name}, none of whose checkpoints is known here; this is {mine}"

    def _names_in(self, key: str) -> Names | None:
        try:
            return parse_names(self._read_small(key), f"{self.url}/{key}")
        except (FileNotFoundError, CheckpointCorruptError):
            return None

    def _manifests(self, there: Sequence[RemoteCheckpoint]) -> list[dict[str, Any]]:
        """Of those that are complete; a damaged one names nothing."""
        found = []
        for checkpoint in there:
            try:
                sound = self.manifest(checkpoint)
            except CheckpointCorruptError:
                continue
            if sound is not None:
                found.append(sound[1])
        return found

    def manifest(self, checkpoint: RemoteCheckpoint) -> tuple[bytes, dict[str, Any]] | None:
        """A checkpoint's manifest, checked, as bytes and as JSON; None where the checkpoint was never completed.

        Raises:
            CheckpointCorruptError: it is altered, that of another checkpoint, or claims what no checkpoint has.
        """
        what = f"{self.url}/{checkpoint.name}/{MANIFEST}"
        try:
            data = self._read_small(f"{checkpoint.name}/{MANIFEST}")
        except FileNotFoundError:
            return None
        manifest = unseal(data, what)
        entry = entry_from_manifest(Path(checkpoint.entry_name), manifest)
        parse_files(manifest)
        if remote_name_of(manifest) != checkpoint:
            raise CheckpointCorruptError(f"{what} is that of another checkpoint: {entry.name}, {entry.sha256[:16]}")
        try:
            for pin in parse_changes(manifest["pins"]):
                check_pin_name(pin)
        except (ConfigurationError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointCorruptError(f"{what} names what no checkpoint is kept under: {error}") from error
        return data, manifest

    def find(self, name: str = "latest") -> RemoteCheckpoint:
        """What a name means: the first that it holds, a branch's or a step's newest, for "latest" the newest of all.

        Raises:
            CheckpointNotFoundError: there is none.
        """
        there = self.checkpoints()
        record = self.record()
        names = record.held
        if name == "best" and name not in names:
            ranked = [other for other in names if other.startswith("best_")]
            name = ranked[0] if len(ranked) == 1 else name
        if name in ("latest", "last"):
            found = [one for one in there if self.is_complete(one)][:1]
        elif name in names:
            found = names[name][:1]
        elif name in record.branches:
            found = [record.branches[name]]
        else:
            wanted = {name, f"step-{int(name):09d}" if name.isdecimal() and name.isascii() else name}
            steps = [one for one in there if wanted & {one.name, one.entry_name, one.entry_name.partition("-r")[0]}]
            found = [one for one in steps if self.is_complete(one)][:1]
        if not found:
            known = sorted({*names, *record.branches, "latest", *(one.entry_name for one in there)})
            holds = f" It has {', '.join(known)}." if there else " It has no checkpoint."
            raise CheckpointNotFoundError(f"{self.url} has no {name!r}.{did_you_mean(name, known)}{holds}")
        return found[0]

    def is_complete(self, checkpoint: RemoteCheckpoint) -> bool:
        """Whether the manifest is there, sound or not."""
        return MANIFEST in self.objects.contents(checkpoint.name)

    def holds_any(self, checkpoints: Sequence[RemoteCheckpoint]) -> bool:
        """Whether one of them is complete, against what a process left that died while it copied."""
        return any(map(self.is_complete, checkpoints))

    # ---- reading ----

    def download(
        self,
        checkpoint: RemoteCheckpoint,
        directory: Path,
        file_system: FileSystem = REAL,
        asked: Callable[[Callable[[], Any]], Any] = lambda ask: ask(),
    ) -> Entry:
        """Write a checkpoint's files into an empty directory, durably, each no larger than its manifest says.

        What came is not yet verified: `open_checkpoint` and `CheckpointStore.adopt` do that. Each question to the
        remote goes through `asked`, which may ask again: what fails now and then costs a piece, not all that has come.

        Raises:
            CheckpointCorruptError: the manifest, a file or a part of one is missing, or impossible.
            CheckpointSaveError: there is no room for it here.
            RemoteError: the remote does not answer.
        """
        found = asked(lambda: self.manifest(checkpoint))
        if found is None:
            raise CheckpointCorruptError(f"{self.url}/{checkpoint.name} has no manifest: it was never completed")
        data, manifest = found
        files = parse_files(manifest)
        needed, free = sum(file.size for file in files.values()), file_system.free_space(directory)
        if needed > free:
            raise CheckpointSaveError(
                f"{self.url}/{checkpoint.name} says that it has {needed} bytes; {free} are free in {directory}"
            )
        for name, file in files.items():
            self._download_file(f"{checkpoint.name}/{name}", file.size, directory / name, file_system, asked)
        file_system.write_file(directory / MANIFEST, data)
        return entry_from_manifest(directory, manifest)

    def _download_file(
        self, key: str, size: int, path: Path, file_system: FileSystem, asked: Callable[[Callable[[], Any]], Any]
    ) -> None:
        descriptor = file_system.create(path)
        try:
            there = asked(lambda: self.objects.size(key))
            if there is not None and there != size:
                raise CheckpointCorruptError(f"{self.url}/{key} has {there} bytes, it was written with {size}")
            for start in range(0, size, DOWNLOAD_CHUNK_BYTES):
                end = min(start + DOWNLOAD_CHUNK_BYTES, size)
                chunk = asked(partial(self.objects.read, key, start, end))
                if len(chunk) != end - start:
                    raise CheckpointCorruptError(f"{self.url}/{key} ends before its {size} bytes")
                file_system.write(descriptor, chunk)
            file_system.fsync(descriptor)
        except FileNotFoundError as error:
            raise CheckpointCorruptError(f"{self.url}/{key} is missing") from error
        finally:
            file_system.close(descriptor)

    def _read_small(self, key: str) -> bytes:
        size = self.objects.size(key)
        if size is not None and size > MAX_REMOTE_MANIFEST_BYTES:
            raise CheckpointCorruptError(f"{self.url}/{key} has {size} bytes, which is too much for such a file")
        return self.objects.read(key)

    # ---- writing ----

    def upload(self, directory: Path, go_on: Callable[[], bool] = lambda: True) -> RemoteCheckpoint | None:
        """Copy a committed checkpoint, verified on the way: all data files, then the manifest.

        What is there is left, so that an attempt goes on where the one before broke off. None where `go_on`, asked
        before each file, says no.

        Raises:
            CheckpointCorruptError: the local checkpoint is damaged, and nothing of it was copied.
            FileNotFoundError: the local checkpoint is gone.
            RemoteError: the remote does not answer, or holds something else than was written.
        """
        saved, problems, _ = inspect(directory, REAL)
        if saved is None:
            if not directory.exists():
                raise FileNotFoundError(directory)
            raise CheckpointCorruptError(f"{directory} is damaged and was not copied: {'; '.join(problems)}")
        checkpoint = remote_name_of(saved.manifest)
        manifest = (directory / MANIFEST).read_bytes()
        sizes = {name: file.size for name, file in parse_files(saved.manifest).items()}
        there = self.objects.contents(checkpoint.name)
        if not _missing({MANIFEST: len(manifest), **sizes}, there):
            return checkpoint
        for name in sizes:
            # The place is named by the checksum of all its bytes: what is there whole, from an attempt before, is it.
            if there.get(name) == sizes[name]:
                continue
            if not go_on():
                return None
            self.objects.put_file(directory / name, f"{checkpoint.name}/{name}")
        missing = _missing(sizes, self.objects.contents(checkpoint.name))
        if missing:
            raise RemoteError(f"{self.url}/{checkpoint.name}: {', '.join(missing)} did not arrive whole")
        if not go_on():
            return None
        self._put_checked(f"{checkpoint.name}/{MANIFEST}", manifest)
        return checkpoint

    def write_names(self, names: Names) -> None:
        """Replace names.json, and then its copy: one of the two is whole at any time."""
        data = seal(names.to_json())
        self._put_checked(NAMES_FILE, data)
        if names.held:
            self._put_checked(NAMES_COPY, data)

    def _put_checked(self, key: str, data: bytes) -> None:
        self.objects.put(key, data)
        there = self.objects.size(key)
        if there not in (None, len(data)):
            raise RemoteError(f"{self.url}/{key}: {there} bytes are there, {len(data)} were written")

    def delete(self, checkpoint: RemoteCheckpoint) -> None:
        """Delete a checkpoint: the manifest first, so that it does not exist from then on."""
        self.objects.delete(f"{checkpoint.name}/{MANIFEST}")
        for name in self.objects.contents(checkpoint.name):
            self.objects.delete(f"{checkpoint.name}/{name}")
        self.objects.delete_folder(checkpoint.name)

    def prepare(self) -> list[RemoteCheckpoint]:
        """The checkpoints there; where there has been nothing yet, a first names.json shows that one may write."""
        there = self.checkpoints()
        if not there:
            self.write_names(Names())
        return there


def _missing(sizes: Mapping[str, int], there: Mapping[str, int | None]) -> list[str]:
    """What is not there in its size; some remotes tell no sizes."""
    return [name for name, size in sizes.items() if name not in there or there[name] not in (None, size)]


class OwnCopies:
    """Which checkpoints at remotes are this run's, over all its processes: a file beside its own checkpoints.

    What is not in it is never deleted, so a line that is lost to a crash costs room and no checkpoint.
    """

    FILE = ".copies.txt"

    def __init__(self, checkpoints: Path) -> None:
        self._path = checkpoints / self.FILE
        try:
            self._known = set(self._path.read_text(encoding="utf-8").splitlines())
        except OSError:
            self._known = set()

    def add(self, entry_name: str, digest: str) -> None:
        line = f"{entry_name} {digest}"
        if line in self._known:
            return
        self._known.add(line)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:  # a full disk
            self._known.discard(line)

    def __contains__(self, checkpoint: RemoteCheckpoint) -> bool:
        return f"{checkpoint.entry_name} {checkpoint.digest}" in self._known


def fetch_checkpoint(
    remote: Remote,
    checkpoint: RemoteCheckpoint,
    folder: Path,
    asked: Callable[[Callable[[], Any]], Any] = lambda ask: ask(),
) -> Entry:
    """Download one checkpoint to `folder/<its name>`, verified; a crash leaves nothing under that name.

    Raises:
        ConfigurationError: something of that name is there. CheckpointCorruptError: what came is damaged.
    """
    target = folder / checkpoint.entry_name
    if target.exists() or target.is_symlink():
        raise ConfigurationError(f"{target} exists already: move it away, or name another directory")
    temporary = folder / f".tmp-{checkpoint.entry_name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        remote.download(checkpoint, temporary, asked=asked)
        saved, problems, _ = inspect(temporary, REAL)
        if saved is None:
            raise CheckpointCorruptError(f"{remote.url}/{checkpoint.name} is damaged: {'; '.join(problems)}")
        REAL.fsync_directory(temporary)
        temporary.rename(target)
        REAL.fsync_directory(folder)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointSaveError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return entry_from_manifest(target, saved.manifest)
