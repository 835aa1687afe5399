"""The checkpoints of one run: saved whole or not at all, found again verified, kept as long as a pin holds them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointSaveError,
    ConfigurationError,
)
from .commit import (
    LITTER,
    Commit,
    Plan,
    manifest_head,
    plan_files,
    save_error,
    snapshot,
)
from .entry import Entry, entry_name, parse_entry_name
from .filesystem import REAL, FileSystem, attempt, temporary_path
from .keeper import CheckpointKeeper
from .owner import Owner
from .parts import Others
from .pins import PINS_FILE, PinChange, Pins, gives
from .reader import QUARANTINE, SUPERSEDED
from .saved import inspect
from .writer import HostBuffer, choose_background


class CheckpointStore(CheckpointKeeper):
    """Saves, finds and deletes the checkpoints of one run directory. One writer at a time; any number of readers.

        store = CheckpointStore("runs/version_0")
        entry = store.candidate(step, epoch, {"val_acc": 0.91})
        store.save(step=step, epoch=epoch, metrics={"val_acc": 0.91}, files={"model.pdparams": model.state_dict()},
                   states={"trainer.json": state}, pins={"latest": [entry.name]})
        saved = store.read(store.newest())
        saved.tensors("model.pdparams"), saved.state("trainer.json")

    A checkpoint is committed by one rename; before it there is nothing, after it everything. Only the store writes
    below `checkpoints/`, and it deletes nothing that it did not make. Opened, it first finishes what a process that
    died left half done. Damaged checkpoints that `newest` passes over are moved to `checkpoints/.quarantine/`.
    """

    def __init__(self, run_dir: str | Path, *, owner: Owner | None = None, file_system: FileSystem = REAL) -> None:
        self.owner = owner
        """The run, on its present branch, that each save is of; None says nothing of it."""
        self.save_seconds: float | None = None
        """How long the last save's writing took; what `background="auto"` goes by."""
        self._buffer = HostBuffer()
        super().__init__(run_dir, file_system=file_system)

    # ---- saving ----

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
        newest = self._there.newest_revision(step)
        revision = 0 if newest is None else newest + 1
        try:
            while self._fs.exists(self.directory / entry_name(step, revision)):  # put there by somebody else
                revision += 1
        except OSError as error:
            raise save_error(self._fs, self.directory / entry_name(step, 0), 0, error, self._there.newest) from error
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
            owner=self.owner,
        )

    def belong_to(self, owner: Owner) -> None:
        """What is saved from here on is this owner's."""
        self.owner = owner

    def count_on_from(self, commit: int) -> None:
        """Count the next commit above this one, which was made elsewhere: what is newer has the higher number."""
        self._job.join()
        if commit > self._pins.sequence:
            self._write_record(replace(self._pins, sequence=commit))

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

    def settle(self) -> None:
        """Return when no save is under way; the error of one that failed stays for `wait` or the next save."""
        self._job.join()

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
        others: Others | None = None,
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

        The `others` write their parts of files, of which `files` has this process's, into the same directory meanwhile,
        and it is committed when all are durable.

        Raises:
            CheckpointSaveError: writing failed, and everything, pins included, is as it was before.
            UnserializableStateError: the state holds something that is not stored; nothing was written.
        """
        self._job.wait()
        entry = self.candidate(step, epoch, metrics, healthy=healthy, info=info)
        plan = plan_files(files, states)
        entry = replace(entry, nbytes=sum(layout.size for layout in plan.values()))
        changes, after = self._checked(pins, links, entry.name)
        held_by = self._there.in_order(pin for pin, change in changes.items() if gives(change, entry.name))
        is_whole = self._record.is_due_whole(len(self._there) + 1)
        said = pins if is_whole else changes
        record = manifest_head(entry, self._pins.sequence + 1, said, links, others)
        commit = partial(self._commit, entry, record, changes, after, is_whole)
        if others is not None:
            background = False  # they have no thread for it
        elif background == "auto":
            background = choose_background(entry.nbytes, self.save_seconds)
        if background:
            self._job.start(partial(commit, snapshot(plan, self._buffer), None))
        else:
            commit(plan, others)
        return replace(entry, pins=held_by)

    def _commit(
        self,
        entry: Entry,
        record: dict[str, Any],
        changes: Mapping[str, PinChange],
        after: Pins,
        is_whole: bool,
        plan: Plan,
        others: Others | None,
    ) -> None:
        started = time.perf_counter()
        staged = self._record.stage(
            self._pins,
            replace(after, sequence=record["sequence"]),
            changes,
            links=record["links"],
            known={*self._there.names(), entry.name} if is_whole else (),
            new=[entry.name],
            forgotten=self._forgotten,
            whole=is_whole,
        )
        there = self._there
        commit = Commit(
            self._fs,
            self.directory,
            entry,
            plan,
            record,
            newest_before=there.newest,
            known_before=there.names(),
            pins_before=there.pins,
            pins=self._record,
            staged=staged,
            others=others,
        )
        there.add(commit.carry_out())
        self._take_over(staged, changes, [entry.name])
        self.save_seconds = time.perf_counter() - started

    def adopt(self, name: str, fill: Callable[[Path], None], pins: Mapping[str, Sequence[str]]) -> Entry:
        """Commit a checkpoint that was written elsewhere, under the name it had there; `pins` are as in `save`.

        `fill` writes its files, durable when it returns, into the empty directory it is given. Every byte is verified
        before the commit. Another checkpoint of that name makes room: into quarantine if it is damaged, else it is set
        aside as superseded.

        Raises:
            CheckpointCorruptError: it is not what its manifest says, or not of that name; nothing has changed.
            CheckpointSaveError: writing failed.
        """
        self._job.join()
        temporary = temporary_path(self.directory, ".tmp", name)
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
            attempt(partial(self._fs.remove_tree, temporary))
            if isinstance(error, OSError) and not isinstance(error, CheckpointError):
                raise CheckpointSaveError(f"{name} could not be written to {self.directory}: {error}") from error
            raise
        self._there.add(replace(saved.entry, path=self.directory / name))
        sequence = max(self._pins.sequence, int(saved.manifest.get("sequence", 0)))
        changes, after = self._checked(pins, links=True)
        self._change_record(replace(after, sequence=sequence), changes, new=[name])
        return self._there[name]

    def empty_quarantine(self, dry_run: bool = False) -> list[Path]:
        """Delete the checkpoints that were set aside as damaged, and return where they were; a dry run only tells."""
        paths = self.quarantined()
        if not dry_run:
            for path in paths:
                self._fs.remove_tree(path)
        return paths

    def repair(self) -> None:
        """Put in order what is not a checkpoint: the record of pins where it is missing or torn, links, leftovers."""
        self._job.join()
        self._sweep()
        self._links.clean()
        self._load()
        listed = self._fs.listdir(self.directory)
        self._record.begin(listed)
        if len(self._there) or self._pins.removed or PINS_FILE in listed:
            self._write_record(self._pins)

    def quarantine(self, names: Iterable[str]) -> list[str]:
        """Move those of the named checkpoints that are damaged to `checkpoints/.quarantine/`; returns their names.

        One that cannot be read at all (no permission, a failing disk) stays: that is no proof against it.
        """
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
        self._job.join()
        limit = (step, revision if revision is not None else 10**9)
        newer = [entry for entry in self._there.entries() if entry.order > limit]
        self._set_aside([entry.name for entry in newer], SUPERSEDED)
        return newer

    # ---- what a reader does otherwise ----

    def _open(self) -> None:
        try:
            self._make_directories()
            self.repair()
        except OSError as error:
            raise CheckpointSaveError(f"{self.run_dir} cannot be written: {error}") from error

    def _search(
        self, prefer_healthy: bool, complete: bool
    ) -> tuple[Entry | None, dict[str, tuple[list[str], bool]], list[Entry]]:
        self._job.join()  # what is being saved counts
        return super()._search(prefer_healthy, complete)

    def _quarantined(self, name: str) -> bool:
        return self._set_aside([name], QUARANTINE)

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
            if LITTER.fullmatch(name):
                self._fs.remove_tree(self.directory / name)
