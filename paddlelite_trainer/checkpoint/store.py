"""The checkpoints of one run: saved whole or not at all, found again verified, kept as long as a pin holds them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    ConfigurationError,
    did_you_mean,
)
from .commit import (
    LITTER,
    Commit,
    Plan,
    attempt,
    manifest_head,
    plan_files,
    save_error,
    snapshot,
    temporary_path,
    write_pins,
)
from .entry import Entry, entry_name, parse_entry_name
from .filesystem import REAL, FileSystem
from .links import check_pin_name
from .owner import Owner
from .parts import Others
from .pins import PINS_FILE, Pins
from .reader import QUARANTINE, SUPERSEDED, CheckpointReader
from .saved import inspect
from .writer import BackgroundJob, HostBuffer, choose_background


class CheckpointStore(CheckpointReader):
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
        self._job = BackgroundJob()
        self._buffer = HostBuffer()
        self._is_settled = False
        self._watchers: list[Callable[[], None]] = []
        self._protected: dict[object, frozenset[str]] = {}
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
        try:
            taken = [parse_entry_name(name) for name in self._names(entry_name(step, 0))]
        except OSError as error:
            raise save_error(self._fs, self.directory / entry_name(step, 0), 0, error, self._entries) from error
        revisions = [order[1] for order in taken if order is not None and order[0] == step]
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
            owner=self.owner,
        )

    def belong_to(self, owner: Owner) -> None:
        """What is saved from here on is this owner's."""
        self.owner = owner

    def count_on_from(self, commit: int) -> None:
        """Count the next commit above this one, which was made elsewhere: what is newer has the higher number."""
        self._job.join()
        if commit > self._pins.sequence:
            self._record(self._pins.at({known.name for known in self._entries}, commit))

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
        record = manifest_head(entry, self._pins.sequence + 1, pins, links, others)
        after = self._checked(pins, links, entry.name)
        if others is not None:
            background = False  # they have no thread for it
        elif background == "auto":
            background = choose_background(entry.nbytes, self.save_seconds)
        if background:
            plan = snapshot(plan, self._buffer)
            self._job.start(partial(self._commit, entry, plan, record, after, None))
        else:
            self._commit(entry, plan, record, after, others)
        return replace(entry, pins=after.of(entry.name))

    def _commit(self, entry: Entry, plan: Plan, record: dict[str, Any], after: Pins, others: Others | None) -> None:
        started = time.perf_counter()
        before = self._pins
        after = after.at({known.name for known in (*self._entries, entry)}, record["sequence"])
        commit = Commit(self._fs, self.directory, entry, plan, record, self._entries, before, after, others)
        committed = commit.carry_out()
        self._pins = after
        self._entries = self._with_pins((*self._entries, committed))
        self._tell_watchers()
        self._settle(before)
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
            self._settle(self._pins)
            for entry in aside:
                self._fs.remove_tree(entry.path)
        return [*aside, *victims]

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
        if self._entries or self._pins.removed or self._fs.exists(self.directory / PINS_FILE):
            self._record(self._pins)

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
            write_pins(self._fs, self.directory, pins)
            self._fs.fsync_directory(self.directory)
        except OSError as error:
            attempt(partial(write_pins, self._fs, self.directory, self._pins))
            raise CheckpointSaveError(f"The pins of {self.run_dir} could not be changed: {error}") from error
        before, self._pins = self._pins, pins
        self._entries = self._with_pins(self._entries)
        self._tell_watchers()
        self._settle(None if pins is before else before)

    # ---- what follows from the pins: links and deletions; all of it can be done again later ----

    def _settle(self, before: Pins | None = None) -> None:
        """Bring links and deletions up to what the pins say.

        Where all was settled `before`, pins that are as they were then are not looked at.
        """
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
        protected = frozenset().union(*list(self._protected.values()))
        return [entry for entry in super()._unheld() if entry.name not in protected]

    def _retire(self, victims: list[Entry]) -> None:
        if not victims:
            return
        trash: list[Path] = []
        gone: set[str] = set()
        try:
            for entry in victims:
                trash.append(temporary_path(self.directory, ".trash", entry.name))
                self._fs.rename(entry.path, trash[-1])
                gone.add(entry.name)
        finally:
            self._entries = tuple(kept for kept in self._entries if kept.name not in gone)
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
        gone = set(names)
        self._entries = tuple(entry for entry in self._entries if entry.name not in gone)
        newest_left = self._entries[-1].name if self._entries else None
        self._record(self._pins.without_entries(gone, newest_left))
        return True

    # ---- what a reader does otherwise ----

    def _open(self) -> None:
        try:
            self._make_directories()
            self.repair()
        except OSError as error:
            raise CheckpointSaveError(f"{self.run_dir} cannot be written: {error}") from error

    def _look(self) -> None:
        """Nobody else changes anything: what is known is what is there."""

    def _held_by(self, pin: str) -> tuple[str, ...]:
        return self._pins.held.get(pin, ())

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


def _copy_suffixes() -> Iterable[str]:
    yield ""
    number = 1
    while True:
        yield f".{number}"
        number += 1
