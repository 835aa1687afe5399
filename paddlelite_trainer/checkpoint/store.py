"""The checkpoints of one run: saved whole or not at all, found again verified, kept as long as a pin holds them."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    ConfigurationError,
    UnserializableStateError,
    did_you_mean,
)
from .entry import Entry, entry_from_manifest, entry_name, parse_entry_name
from .filesystem import REAL, FileSystem
from .format import Layout, lay_out, lay_out_bytes
from .links import CHECKPOINTS, Links, check_pin_name
from .manifest import FORMAT_VERSION, MANIFEST, is_file_name, seal
from .pins import PINS_FILE, RECOVERED, Pins, parse_pins
from .saved import FOLLOW_ATTEMPTS, TENSORS, SavedCheckpoint, inspect, open_checkpoint, read_manifest
from .state import encode_state
from .tensors import is_tensor, why_not_stored
from .writer import FSYNC_EARLY_BYTES, BackgroundJob, HostBuffer, choose_background, run_together, write_layout

QUARANTINE = ".quarantine"
SUPERSEDED = ".superseded"
_LITTER = re.compile(r"\.(?:tmp|trash)-(?:step-\d{9,18}(?:-r\d{1,9})?|pins)-[0-9a-f]{8}")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class CheckpointStore:
    """Saves, finds and deletes the checkpoints of one run directory. One writer at a time; any number of readers.

        store = CheckpointStore("runs/version_0")
        entry = store.candidate(step, epoch, {"val_acc": 0.91})
        store.save(step=step, epoch=epoch, metrics={"val_acc": 0.91}, files={"model.pdparams": model.state_dict()},
                   states={"trainer.json": state}, pins={"latest": [entry.name]})
        saved = store.read(store.newest())
        saved.tensors("model.pdparams"), saved.state("trainer.json")

    A checkpoint is committed by one rename; before it there is nothing, after it everything. Only the store writes
    below `checkpoints/`, and it deletes nothing that it did not make. Opened for writing, it first finishes what a
    process that died left half done. With `read_only` it changes nothing and sees what another process writes.
    """

    def __init__(self, run_dir: str | Path, *, file_system: FileSystem = REAL, read_only: bool = False) -> None:
        self.findings: list[str] = []
        """Why the last `newest` did not return the very newest: a sentence for each checkpoint passed over."""
        self.damaged: list[str] = []
        """Names of those that the last `newest` passed over because they are damaged."""
        self.run_dir = Path(os.path.abspath(run_dir))
        self.directory = self.run_dir / CHECKPOINTS
        self.read_only = read_only
        self.save_seconds: float | None = None
        """How long the last save's writing took; what `background="auto"` goes by."""
        self._fs = file_system
        self._links = Links(self.run_dir, file_system)
        self._job = BackgroundJob()
        self._buffer = HostBuffer()
        self._opened: SavedCheckpoint | None = None  # what newest() has just verified, for read()
        self._manifests: dict[tuple[str, int, int], dict[str, Any]] = {}  # by name, inode and time; a reader's cache
        self._entries: tuple[Entry, ...] = ()
        self._pins = Pins()
        self._recorded_last = Pins()  # a reader's, with the checkpoints that are gone
        self._is_settled = False
        self._watchers: list[Callable[[], None]] = []
        self._protected: dict[object, frozenset[str]] = {}
        if read_only:
            self._load()
            return
        try:
            self._make_directories()
            self.repair()
        except OSError as error:
            raise CheckpointSaveError(f"{self.run_dir} cannot be written: {error}") from error

    # ---- looking ----

    def entries(self) -> list[Entry]:
        """The committed checkpoints, oldest first; one that is being saved in the background is not yet among them."""
        if self.read_only:
            self._load()
        return list(self._entries)

    def by_pin(self, name: str) -> list[Entry]:
        """The checkpoints that a pin holds, in its order (best first); none for a name that is no pin."""
        entries = {entry.name: entry for entry in self.entries()}
        return [entries[held] for held in self._pins.held.get(name, ()) if held in entries]

    def first_of_pin(self, name: str) -> Entry:
        """The checkpoint that a pin holds first, its best; never another in its place.

        Raises:
            CheckpointNotFoundError: there is no such pin.
            CheckpointCorruptError: its first checkpoint is damaged or gone; the message names it and the sound rest.
            OSError: whether it is there cannot be read.
        """
        before: tuple[str, ...] = ()
        for _ in range(FOLLOW_ATTEMPTS):
            entries = {entry.name: entry for entry in self.entries()}
            held = (self._recorded_last if self.read_only else self._pins).held.get(name, ())
            if held and held[0] in entries:
                return entries[held[0]]
            if held == before:  # else it was looked at while its writer moved it on
                break
            before = held
        if not held:
            raise CheckpointNotFoundError(
                f"There is no pin {name!r} in {self.run_dir}.{did_you_mean(name, self._pins.held)}"
            )
        path, problem = self.directory / held[0], "it is gone"
        if self._fs.exists(path):
            try:
                entry_from_manifest(path, read_manifest(path, self._fs))
                problem = f"its manifest is that of another: {path / MANIFEST}"
            except CheckpointCorruptError as error:
                problem = f"it is damaged: {error}"
        rest = ", ".join(other for other in held[1:] if not self.verify(other))
        raise CheckpointCorruptError(
            f"{self.run_dir / name} means {held[0]}, and {problem}. "
            + (f"Sound among the others that {name!r} holds: {rest}." if rest else f"{name!r} holds no other.")
        )

    def pins(self) -> dict[str, tuple[str, ...]]:
        """Pin -> names of the checkpoints it holds."""
        self.entries()
        return dict(self._pins.held)

    def candidate(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float] | None = None,
        *,
        healthy: bool = True,
        info: Mapping[str, Any] | None = None,
    ) -> Entry:
        """The entry that a save of this would make now: its name and order are decided, its size is not."""
        try:
            orders = [order for order in map(parse_entry_name, self._names()) if order is not None]
        except OSError as error:
            raise self._save_error(entry_name(step, 0), 0, error) from error
        revisions = [revision for taken, revision in orders if taken == step]
        revision = max(revisions, default=-1) + 1
        name = entry_name(step, revision)
        if step < 0 or parse_entry_name(name) is None:
            raise ConfigurationError(f"step must be an int between 0 and 10**18, got {step!r}")
        return Entry(
            name=name,
            path=self.directory / name,
            step=step,
            revision=revision,
            epoch=epoch,
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            healthy=healthy,
            pins=(),
            nbytes=0,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            info=dict(info or {}),
        )

    def newest(self, *, prefer_healthy: bool = True, complete: bool = False) -> Entry | None:
        """The newest checkpoint every byte of which verifies; None when there are none at all.

        Damaged ones are moved to `checkpoints/.quarantine/`, with a warning that names them and the one used instead.
        With `prefer_healthy` an older healthy one goes before an unhealthy newest, with a warning too. With `complete`
        those that hold weights only are passed over: one cannot go on from them.

        Raises:
            CheckpointCorruptError: there are checkpoints and none of them verifies; nothing is moved.
            CheckpointError: none of them can be read (no permission, a failing disk).
        """
        self.findings = []
        self._job.join()
        for _ in range(FOLLOW_ATTEMPTS):
            if self.read_only:
                self._load()
            chosen, damaged, unhealthy = self._search(prefer_healthy, complete)
            # A reader beside a writer may have looked at one that was being deleted; then there is a newer one.
            if all(self._fs.exists(self.directory / name) for name in damaged):
                break
        if chosen is None and unhealthy:
            chosen = unhealthy[0]
            unhealthy = []
        if chosen is None:
            if damaged:
                report = "".join(f"\n  - {name}: {'; '.join(problems)}" for name, (problems, _) in damaged.items())
                if not any(content_is_wrong for _, content_is_wrong in damaged.values()):
                    raise CheckpointError(
                        f"There are checkpoints in {self.directory} and none of them can be read.{report}"
                    )
                raise CheckpointCorruptError(
                    f"There are checkpoints in {self.directory} and none of them can be used; "
                    f"move them away to start afresh.{report}"
                )
            return None
        self.damaged = list(damaged)
        for name, (problems, content_is_wrong) in damaged.items():
            moved = content_is_wrong and not self.read_only and self._set_aside([name], QUARANTINE)
            where = f" It was moved to {CHECKPOINTS}/{QUARANTINE}/." if moved else ""
            self.findings.append(f"Checkpoint {name} is damaged; using {chosen.name}. {'; '.join(problems)}.{where}")
        if unhealthy:
            names = ", ".join(entry.name for entry in unhealthy)
            self.findings.append(
                f"Checkpoint {names} holds NaN or infinite values; using {chosen.name}, the newest healthy one."
            )
        for finding in self.findings:
            warnings.warn(finding, stacklevel=2)
        return self._refreshed(chosen)

    def _search(
        self, prefer_healthy: bool, complete: bool
    ) -> tuple[Entry | None, dict[str, tuple[list[str], bool]], list[Entry]]:
        """The newest that will do, and what was passed over: the damaged with their problems, and the unhealthy."""
        damaged: dict[str, tuple[list[str], bool]] = {}
        unhealthy: list[Entry] = []
        for name in self._names_newest_first():
            saved, problems, content_is_wrong = inspect(self.directory / name, self._fs, self._pins.of(name))
            if saved is None:
                damaged[name] = (problems, content_is_wrong)
            elif complete and saved.entry.info.get("weights_only"):
                continue
            elif prefer_healthy and not saved.entry.healthy:
                unhealthy.append(saved.entry)
            else:
                self._opened = saved
                return saved.entry, damaged, unhealthy
        return None, damaged, unhealthy

    def verify(self, entry: Entry | str) -> list[str]:
        """Every problem of a checkpoint, each byte checked against the manifest; empty when it is sound."""
        return inspect(self._directory_of(entry), self._fs)[1]

    def read(self, entry_or_path: Entry | str | Path) -> SavedCheckpoint:
        """Open a checkpoint for reading, verified in the same pass.

        Raises:
            CheckpointNotFoundError: it is not there.
            CheckpointCorruptError: its bytes are not what was written.
        """
        if isinstance(entry_or_path, Entry):
            opened, self._opened = self._opened, None
            if (
                opened is not None
                and opened.entry.path == entry_or_path.path
                and opened.entry.sha256 == entry_or_path.sha256
            ):
                return opened
        path = entry_or_path.path if isinstance(entry_or_path, Entry) else entry_or_path
        saved = open_checkpoint(path, file_system=self._fs)
        saved.entry = replace(saved.entry, pins=self._pins.of(saved.entry.name))
        return saved

    # ---- saving ----

    @property
    def busy(self) -> bool:
        """Whether a background save is under way."""
        return self._job.busy

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            CheckpointSaveError: the last background save failed; raised once.
        """
        self._job.wait()

    def close(self) -> None:
        """Wait for the background save and let go of the host memory; raises as `wait` does."""
        self._opened = None
        try:
            self._job.wait()
        finally:
            self._buffer = HostBuffer()

    def save(
        self,
        *,
        step: int,
        epoch: int,
        files: Mapping[str, Mapping[str, Any]],
        states: Mapping[str, Any],
        pins: Mapping[str, Sequence[str]],
        metrics: Mapping[str, float] | None = None,
        healthy: bool = True,
        info: Mapping[str, Any] | None = None,
        background: bool | Literal["auto"] = False,
        links: bool = True,
    ) -> Entry:
        """Write one checkpoint; a crash at any moment leaves it whole or not at all, and the others as they were.

        `files` are flat dicts of tensors, each written as a Paddle file; `states` are trees as `encode_state` takes
        them. After the commit each pin in `pins` holds exactly the named checkpoints, best first, the new one by the
        name that `candidate` gave; `[]` removes a pin; other pins stay. Checkpoints that no pin holds are deleted,
        but for the newest healthy one while all newer ones are unhealthy. `links=False` makes no links for these
        pins.

        With `background` the state is copied to host memory before this returns, and written by a thread; the next
        save, `wait` and `close` wait for it and raise its error. `"auto"` decides by the state's size and the last
        save's duration.

        Raises:
            CheckpointSaveError: writing failed, and everything, pins included, is as it was before.
            UnserializableStateError: the state holds something that is not stored; nothing was written.
        """
        self._require_writer()
        self._job.wait()
        entry = self.candidate(step, epoch, metrics, healthy=healthy, info=info)
        plan = _plan(files, states)
        entry = replace(entry, nbytes=sum(layout.size for layout in plan.values()))
        record = _manifest_head(entry, self._pins.sequence + 1, pins, links)
        after = self._checked(pins, links, entry.name)
        if background == "auto":
            background = choose_background(entry.nbytes, self.save_seconds)
        if background:
            plan = self._snapshot(plan)
            self._job.start(partial(self._commit, entry, plan, record, after))
        else:
            self._commit(entry, plan, record, after)
        return replace(entry, pins=after.of(entry.name))

    def _commit(self, entry: Entry, plan: Mapping[str, Layout], record: dict[str, Any], after: Pins) -> None:
        started = time.perf_counter()
        temporary, staged_pins = self._temporary(".tmp", entry.name), self._temporary(".tmp", "pins")
        after = after.at({known.name for known in (*self._entries, entry)}, record["sequence"])
        pins_reached = False
        try:
            self._require_space(entry, plan)
            self._fs.mkdir(temporary)
            manifest = self._write_all(temporary, plan, record, staged_pins, after)
            self._fs.rename(temporary, entry.path)
            self._fs.fsync_directory(self.directory)  # committed
            pins_reached = True
            self._fs.replace(staged_pins, self.directory / PINS_FILE)
        except BaseException as error:
            free = self._free_space()  # before what was written makes room again
            self._undo(entry, [temporary, staged_pins], pins_reached)
            if isinstance(error, OSError) and not isinstance(error, CheckpointError):
                raise self._save_error(entry.name, _space_for(plan), error, free) from error
            raise
        before, self._pins = self._pins, after
        committed = replace(entry, sha256=_sha256_of(manifest))
        self._entries = self._with_pins((*self._entries, committed))
        self._tell_watchers()
        self._settle(before)
        self.save_seconds = time.perf_counter() - started

    def _write_all(
        self, temporary: Path, plan: Mapping[str, Layout], record: dict[str, Any], staged_pins: Path, pins: Pins
    ) -> bytes:
        """Write a checkpoint's files, its manifest last, and the pins that will go with it; all of it durable on return."""
        with ExitStack() as open_files:

            def create(path: Path) -> int:
                descriptor = self._fs.create(path)
                open_files.callback(self._fs.close, descriptor)
                return descriptor

            descriptors = [create(temporary / name) for name in plan]
            written = []
            for descriptor, layout in zip(descriptors, plan.values()):
                written.append(write_layout(self._fs, descriptor, layout))
                open_files.callback(written[-1].stored)  # no hashing goes on after an error
            syncs = [partial(self._fs.fsync, descriptor) for descriptor in descriptors]
            if sum(layout.size for layout in plan.values()) >= FSYNC_EARLY_BYTES:
                run_together(syncs)  # while the hashes are computed
                syncs = []
            record["files"] = {name: file.stored().to_json() for name, file in zip(plan, written)}
            manifest = seal(record)
            for path, data in ((temporary / MANIFEST, manifest), (staged_pins, seal(pins.to_json()))):
                descriptor = create(path)
                self._fs.write(descriptor, data)
                syncs.append(partial(self._fs.fsync, descriptor))
            run_together([*syncs, partial(self._fs.fsync_directory, temporary)])
        return manifest

    def _undo(self, entry: Entry, temporary: list[Path], pins_reached: bool) -> None:
        if pins_reached:
            self._attempt(partial(self._write_pins, self._pins))
        trash = self._temporary(".trash", entry.name)
        self._attempt(partial(self._fs.rename, entry.path, trash))  # there only if the rename was reached
        for path in (*temporary, trash):
            self._attempt(partial(self._fs.remove_tree, path))

    def _snapshot(self, plan: Mapping[str, Layout]) -> dict[str, Layout]:
        tensors = [piece for layout in plan.values() for piece in layout.pieces if not isinstance(piece, bytes)]
        copies = iter(self._buffer.snapshot(tensors))
        return {
            name: replace(
                layout, pieces=[piece if isinstance(piece, bytes) else next(copies) for piece in layout.pieces]
            )
            for name, layout in plan.items()
        }

    def _require_space(self, entry: Entry, plan: Mapping[str, Layout]) -> None:
        free, needed = self._fs.free_space(self.directory), _space_for(plan)
        if free < needed:
            raise OSError(errno.ENOSPC, f"{_size(needed)} are needed and {_size(free)} are free")

    def _free_space(self) -> int | None:
        try:
            return self._fs.free_space(self.directory)
        except OSError:
            return None

    def _save_error(self, name: str, nbytes: int, error: OSError, free: int | None = None) -> CheckpointSaveError:
        why = error.strerror or str(error)
        if error.errno in _DISK_FULL and "are needed" not in why:
            left = "an unknown number of bytes" if free is None else _size(free)
            why += f": {_size(nbytes)} are needed and {left} were free"
        if error.errno in _DISK_FULL:
            why += "; delete something there, keep fewer checkpoints, or choose another directory"
        if not self._entries:
            older = "There is none before it."
        elif self._is_gone(self._entries[-1].path):
            older = f"The newest before it, {self._entries[-1].name}, is not where it was: somebody else removed it."
        else:
            older = f"The checkpoints before it are intact, the newest is {self._entries[-1].name}."
        failed = CheckpointSaveError(f"Checkpoint {name} was not saved in {self.directory}: {why}. {older}")
        failed.errno = error.errno
        return failed

    def _is_gone(self, path: Path) -> bool:
        try:
            return not self._fs.exists(path)
        except OSError:  # a disk that cannot tell
            return False

    def adopt(self, name: str, fill: Callable[[Path], None], pins: Mapping[str, Sequence[str]]) -> Entry:
        """Commit a checkpoint that was written elsewhere, under the name it had there; `pins` are as in `save`.

        `fill` writes its files, durable when it returns, into the empty directory it is given. Every byte is verified
        before the commit. Another checkpoint of that name makes room: into quarantine if it is damaged, else it is set
        aside as superseded.

        Raises:
            CheckpointCorruptError: it is not what its manifest says, or not of that name; nothing has changed.
            CheckpointSaveError: writing failed.
        """
        self._require_writer()
        self._job.join()
        temporary = self._temporary(".tmp", name)
        try:
            self._fs.mkdir(temporary)
            fill(temporary)
            self._fs.fsync_directory(temporary)
            saved, problems, _ = inspect(temporary, self._fs)
            if saved is None or saved.entry.name != name:
                problems = problems or [f"its manifest is that of {saved.entry.name if saved else 'no checkpoint'}"]
                raise CheckpointCorruptError(f"{name} is damaged: {'; '.join(problems)}")
            if self._fs.exists(self.directory / name):
                self._set_aside([name], QUARANTINE if self._is_wrong(name) else SUPERSEDED)
            self._fs.rename(temporary, self.directory / name)
            self._fs.fsync_directory(self.directory)  # committed
        except BaseException as error:
            self._attempt(partial(self._fs.remove_tree, temporary))
            if isinstance(error, OSError) and not isinstance(error, CheckpointError):
                raise CheckpointSaveError(f"{name} could not be written to {self.directory}: {error}") from error
            raise
        entry = replace(saved.entry, path=self.directory / name)
        self._entries = self._with_pins((*self._entries, entry))
        sequence = max(self._pins.sequence, int(saved.manifest.get("sequence", 0)))
        self._record(self._checked(pins, links=True).at({known.name for known in self._entries}, sequence))
        return self._refreshed(entry)

    # ---- beside the run: who copies its checkpoints ----

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` after every commit and every change of pins, before anything is deleted for it.

        It is called in the thread that saves, must be quick and must not raise.
        """
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        self._watchers.remove(watcher)

    def protect(self, owner: object, names: Collection[str]) -> None:
        """Delete none of these checkpoints, whatever the pins say, until their owner names others or none.

        It ends with this process. What was protected alone is deleted at the next save, or by `prune`.
        """
        self._protected[owner] = frozenset(names)

    def _tell_watchers(self) -> None:
        for watcher in list(self._watchers):
            watcher()

    # ---- pins ----

    def set_pins(self, pins: Mapping[str, Sequence[str]], *, links: bool = True) -> None:
        """Each named pin holds exactly these checkpoints, as in `save`; what no pin holds any more is deleted."""
        self._require_writer()
        self._job.join()
        self._record(self._checked(pins, links))

    def tag(self, entry: Entry | str, name: str) -> None:
        """Keep a checkpoint under a name of the user's own until `untag`."""
        self.set_pins({name: [entry.name if isinstance(entry, Entry) else entry]})

    def untag(self, name: str) -> None:
        """Take a pin away; a checkpoint that no other pin holds is deleted.

        Raises:
            CheckpointNotFoundError: there is no such pin.
        """
        if name not in self._pins.held:
            raise CheckpointNotFoundError(
                f"There is no pin {name!r} in {self.run_dir}.{did_you_mean(name, self._pins.held)}"
            )
        self.set_pins({name: []})

    def prune(self, dry_run: bool = False, *, superseded: bool = False) -> list[Entry]:
        """Delete the checkpoints that no pin holds, and return them; a dry run only tells.

        `superseded` adds what `set_aside_after` has moved away.
        """
        self._job.join()
        victims = self._unheld()
        aside = self._set_aside_entries() if superseded else []
        if not dry_run:
            self._require_writer()
            self._settle(self._pins)
            for entry in aside:
                self._fs.remove_tree(entry.path)
        return [*aside, *victims]

    def empty_quarantine(self, dry_run: bool = False) -> list[Path]:
        """Delete the checkpoints that were set aside as damaged, and return where they were; a dry run only tells."""
        folder = self.directory / QUARANTINE
        names = self._fs.listdir(folder) if self._fs.exists(folder) else []
        # The second of one name that was set aside is called step-000000001.1.
        paths = [folder / name for name in sorted(names) if parse_entry_name(name.split(".")[0])]
        if not dry_run:
            self._require_writer()
            for path in paths:
                self._fs.remove_tree(path)
        return paths

    def repair(self) -> None:
        """Put in order what is not a checkpoint: the record of pins where it is missing or torn, links, leftovers."""
        self._require_writer()
        self._job.join()
        self._sweep()
        self._links.clean()
        self._load()
        if self._entries or self._pins.removed or self._fs.exists(self.directory / PINS_FILE):
            self._record(self._pins)

    def quarantine(self, names: Iterable[str]) -> list[str]:
        """Move those of the named checkpoints that are damaged to `checkpoints/.quarantine/`; returns their names.

        One that cannot be read at all (no permission, a failing disk) stays: that is no proof against it.
        """
        self._require_writer()
        self._job.join()
        wrong = [name for name in names if self._fs.exists(self.directory / name) and self._is_wrong(name)]
        self._set_aside(wrong, QUARANTINE)
        return wrong

    def _is_wrong(self, name: str) -> bool:
        saved, _, content_is_wrong = inspect(self.directory / name, self._fs)
        return saved is None and content_is_wrong

    def set_aside_after(self, step: int, revision: int | None = None) -> list[Entry]:
        """Move all checkpoints newer than this one to `checkpoints/.superseded/`, and return them as they were.

        For a run that goes on from an older checkpoint: what follows is no longer its past. Pins let go of them;
        `latest` falls back to the newest that is left. `revision` None means every revision of the step stays.
        """
        self._require_writer()
        self._job.join()
        limit = (step, revision if revision is not None else 10**9)
        newer = [entry for entry in self._entries if entry.order > limit]
        self._set_aside([entry.name for entry in newer], SUPERSEDED)
        return newer

    def _checked(self, pins: Mapping[str, Sequence[str]], links: bool, candidate: str | None = None) -> Pins:
        existing = {entry.name for entry in self._entries} | ({candidate} if candidate else set())
        for name, entries in pins.items():
            check_pin_name(name)
            if isinstance(entries, str):
                raise ConfigurationError(f"Pin {name!r} takes a list of checkpoint names, got the str {entries!r}")
            for entry in entries:
                if entry not in existing:
                    raise ConfigurationError(
                        f"Pin {name!r} names {entry!r}, which is no checkpoint.{did_you_mean(entry, existing)}"
                    )
        after = self._pins.with_pins(pins, links=links)
        if candidate and candidate not in after.all_held():
            raise ConfigurationError(
                f"No pin holds {candidate}, so it would be deleted at once; name it in one of pins={dict(pins)!r}"
            )
        return after

    def _record(self, pins: Pins) -> None:
        try:
            self._write_pins(pins)
            self._fs.fsync_directory(self.directory)
        except OSError as error:
            self._attempt(partial(self._write_pins, self._pins))
            raise CheckpointSaveError(f"The pins of {self.run_dir} could not be changed: {error}") from error
        before, self._pins = self._pins, pins
        self._entries = self._with_pins(self._entries)
        self._tell_watchers()
        self._settle(None if pins is before else before)

    def _write_pins(self, pins: Pins) -> None:
        temporary = self._temporary(".tmp", "pins")
        try:
            self._fs.write_file(temporary, seal(pins.to_json()))
            self._fs.replace(temporary, self.directory / PINS_FILE)
        except BaseException:
            self._attempt(partial(self._fs.remove_tree, temporary))
            raise

    # ---- what follows from the pins: links and deletions; all of it can be done again later ----

    def _settle(self, before: Pins | None = None) -> None:
        """Links and deletions as the pins say; of pins that are as they were `before`, when all was settled, nothing is looked at."""
        unsettled, self._is_settled = not self._is_settled, False
        try:
            self._update_links(None if unsettled else before)
            self._retire(self._unheld())
            self._pins = replace(self._pins, removed=frozenset())  # their links are gone
            self._is_settled = True
        except OSError as error:
            warnings.warn(
                f"The checkpoints in {self.run_dir} are safe, but their links could not be brought up to date, or old "
                f"ones not be deleted: {error}. The next save tries again.",
                stacklevel=2,
            )

    def _update_links(self, before: Pins | None) -> None:
        entries = {entry.name: entry for entry in self._entries}
        same_as_before = before.held if before is not None else {}
        linked_no_more = self._pins.without_links - (before.without_links if before is not None else frozenset())
        for name in sorted(self._pins.removed | linked_no_more):
            self._links.remove(name)
        for name, held in self._pins.held.items():
            if same_as_before.get(name) == held and before is not None and name not in before.without_links:
                continue
            if name not in self._pins.without_links and held[0] in entries:
                self._links.point(name, held[0], self._fs.listdir(self.directory / held[0]))
        self._links.sync()  # before anything is deleted: no link may come back that leads to it

    def _unheld(self) -> list[Entry]:
        """The committed checkpoints that nothing protects."""
        held = self._pins.all_held().union(*list(self._protected.values()))
        healthy = [entry for entry in self._entries if entry.healthy]
        last_healthy = healthy[-1].name if healthy else None
        return [entry for entry in self._entries if entry.name not in held and entry.name != last_healthy]

    def _retire(self, victims: list[Entry]) -> None:
        if not victims:
            return
        trash = []
        for entry in victims:
            trash.append(self._temporary(".trash", entry.name))
            self._fs.rename(entry.path, trash[-1])
            self._entries = tuple(kept for kept in self._entries if kept.name != entry.name)
        self._fs.fsync_directory(self.directory)  # nor a checkpoint's name above a half-deleted directory
        for path in trash:
            self._fs.remove_tree(path)

    def _set_aside(self, names: list[str], folder: str) -> bool:
        """Move checkpoints into a hidden folder, and take them out of the pins."""
        if not names:
            return False
        target = self.directory / folder
        if not self._fs.exists(target):
            self._fs.mkdir(target)
        taken = set(self._fs.listdir(target))
        for name in names:
            copy = next(free for free in (f"{name}{suffix}" for suffix in _copy_suffixes()) if free not in taken)
            self._fs.rename(self.directory / name, target / copy)
        self._fs.fsync_directory(target)
        self._entries = tuple(entry for entry in self._entries if entry.name not in names)
        newest_left = self._entries[-1].name if self._entries else None
        self._record(self._pins.without_entries(names, newest_left))
        return True

    # ---- opening ----

    def _make_directories(self) -> None:
        missing = []
        path = self.directory
        while not self._fs.exists(path):
            missing.append(path)
            path = path.parent
        for path in reversed(missing):
            self._fs.mkdir(path)
            self._fs.fsync_directory(path.parent)

    def _sweep(self) -> None:
        """Delete what a process that died left half written or half deleted."""
        for name in self._fs.listdir(self.directory):
            if _LITTER.fullmatch(name):
                self._fs.remove_tree(self.directory / name)

    def _load(self) -> None:
        """Read manifests and pins; where they disagree, take what the process that died was about to do."""
        manifests: dict[str, dict[str, Any]] = {}
        entries = []
        for name in self._names():
            try:
                manifest = self._manifest_of(name)
                entry = entry_from_manifest(self.directory / name, manifest)
            except (CheckpointCorruptError, OSError):
                continue  # not committed, or damaged: newest() reports and quarantines it
            if entry.name == name:
                manifests[name] = manifest
                entries.append(entry)
        self._manifests = {key: found for key, found in self._manifests.items() if key[0] in manifests}
        self._pins = self._reconciled(manifests)
        self._entries = self._with_pins(entries)

    def _manifest_of(self, name: str) -> dict[str, Any]:
        if not self.read_only:
            return read_manifest(self.directory / name, self._fs)
        status = self._fs.lstat(self.directory / name / MANIFEST)
        key = (name, status.st_ino, status.st_mtime_ns)
        if key not in self._manifests:
            self._manifests[key] = read_manifest(self.directory / name, self._fs)
        return self._manifests[key]

    def _reconciled(self, manifests: Mapping[str, dict[str, Any]]) -> Pins:
        recorded = self._recorded_pins()
        pins = recorded or Pins()
        existing = set(self._names())
        for name, manifest in sorted(manifests.items(), key=lambda item: int(item[1].get("sequence", 0))):
            sequence = int(manifest.get("sequence", 0))
            if name not in pins.known and (recorded is None or sequence == pins.sequence + 1):
                changes = {
                    pin: [held for held in entries if held in existing] for pin, entries in manifest["pins"].items()
                }
                pins = pins.with_pins(changes, links=bool(manifest["links"])).at(pins.known | {name}, sequence)
        if recorded is None and manifests:
            pins = pins.with_pins(
                {
                    pin: [entry]
                    for pin, entry in self._links.found().items()
                    if entry in existing and pin not in pins.held
                }
            )
        lost = [
            name for name in manifests if name not in pins.all_held() and (recorded is None or name not in pins.known)
        ]
        if lost:
            pins = pins.with_pins({RECOVERED: [*pins.held.get(RECOVERED, ()), *lost]})
        self._recorded_last = pins
        gone = pins.all_held() - existing
        newest_left = max(manifests, key=lambda name: parse_entry_name(name) or (0, 0), default=None)
        return pins.without_entries(gone, newest_left).at(existing, pins.sequence)

    def _recorded_pins(self) -> Pins | None:
        path = self.directory / PINS_FILE
        try:
            return parse_pins(self._fs.read(path))
        except FileNotFoundError:
            return None
        except CheckpointCorruptError as error:
            warnings.warn(
                f"The record of pins was rebuilt from the checkpoints and links in {self.run_dir}: {error}",
                stacklevel=4,
            )
            return None

    # ---- helpers ----

    def _attempt(self, function: Callable[[], None]) -> None:
        """Clean up after an error, which counts for more than what may go wrong here; opening the store cleans up too."""
        try:
            function()
        except OSError:
            pass

    def _require_writer(self) -> None:
        if self.read_only:
            raise CheckpointError(f"The checkpoints of {self.run_dir} are open for reading only")

    def _names(self) -> list[str]:
        try:
            return [name for name in self._fs.listdir(self.directory) if parse_entry_name(name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _names_newest_first(self) -> list[str]:
        return sorted(self._names(), key=lambda name: parse_entry_name(name) or (0, 0), reverse=True)

    def _with_pins(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        pinned = [replace(entry, pins=self._pins.of(entry.name)) for entry in entries]
        return tuple(sorted(pinned, key=lambda entry: entry.order))

    def _refreshed(self, entry: Entry) -> Entry:
        return replace(entry, pins=self._pins.of(entry.name))

    def _directory_of(self, entry: Entry | str) -> Path:
        return entry.path if isinstance(entry, Entry) else self.directory / entry

    def _temporary(self, kind: str, name: str) -> Path:
        return self.directory / f"{kind}-{name}-{secrets.token_hex(4)}"

    def _set_aside_entries(self) -> list[Entry]:
        found = []
        folder = self.directory / SUPERSEDED
        for name in sorted(self._fs.listdir(folder)) if self._fs.exists(folder) else []:
            try:
                found.append(entry_from_manifest(folder / name, read_manifest(folder / name, self._fs)))
            except CheckpointCorruptError:
                continue
        return found


def _plan(files: Mapping[str, Mapping[str, Any]], states: Mapping[str, Any]) -> dict[str, Layout]:
    """Every file of a checkpoint, laid out; nothing of the tensors is read yet."""
    plan: dict[str, Layout] = {}
    for file, tensors in files.items():
        _require_file_name(file, ".pdparams", ".pdopt", ".pdema")
        for name, value in tensors.items():
            if not isinstance(name, str) or not is_tensor(value):
                raise UnserializableStateError(
                    f"{file}[{name!r}] is a {type(value).__qualname__}; it takes {{str: array or Tensor}}"
                )
            reason = why_not_stored(value)
            if reason:
                raise UnserializableStateError(f"{file}[{name!r}] {reason}, which a checkpoint does not store")
        plan[file] = lay_out(tensors)
    state_tensors: dict[str, Any] = {}
    for file, tree in states.items():
        _require_file_name(file, ".json")
        encoded, tensors = encode_state(tree, file)
        state_tensors |= tensors
        plan[file] = lay_out_bytes(json.dumps(encoded, allow_nan=False).encode("ascii"))
    if state_tensors:
        plan[TENSORS] = lay_out(state_tensors)
    return plan


def _require_file_name(name: str, *suffixes: str) -> None:
    if not is_file_name(name) or not name.endswith(suffixes) or name == TENSORS:
        raise ConfigurationError(
            f"A checkpoint's file is named like model{suffixes[0]}, got {name!r} ({TENSORS} is its own)"
        )


def _manifest_head(entry: Entry, sequence: int, pins: Mapping[str, Sequence[str]], links: bool) -> dict[str, Any]:
    info, tensors = encode_state(entry.info, "info")
    if tensors:
        raise UnserializableStateError(f"info holds arrays ({', '.join(tensors)}); put them into a state")
    from .. import __version__

    return {
        "format": FORMAT_VERSION,
        "name": entry.name,
        "step": entry.step,
        "revision": entry.revision,
        "epoch": entry.epoch,
        "sequence": sequence,
        "created": entry.created,
        "healthy": entry.healthy,
        "metrics": encode_state(entry.metrics, "metrics")[0],
        "pins": {name: list(entries) for name, entries in pins.items()},
        "links": links,
        "versions": {"paddlelite_trainer": __version__, "numpy": np.__version__, "python": platform.python_version()},
        "info": info,
    }


def _sha256_of(manifest: bytes) -> str:
    return manifest[12:76].decode("ascii")


def _space_for(plan: Mapping[str, Layout]) -> int:
    """Bytes on the disk at most: whole blocks of each file, of the manifest (some 300 bytes a tensor) and of the directory."""
    tensors = sum(len(layout.blocks or {}) for layout in plan.values())
    sizes = [*(layout.size for layout in plan.values()), 4096 + 300 * tensors, 4096, 4096]
    return sum(-(-size // 4096) * 4096 for size in sizes)


def _size(nbytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} bytes"


def _copy_suffixes() -> Iterable[str]:
    yield ""
    number = 1
    while True:
        yield f".{number}"
        number += 1
