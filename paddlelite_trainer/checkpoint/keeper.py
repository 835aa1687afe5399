"""Keeps the checkpoints that pins hold and deletes the others: what follows from a change of pins, or a crash in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointNotFoundError, CheckpointSaveError, ConfigurationError, did_you_mean
from .entry import Entry
from .filesystem import REAL, FileSystem, temporary_path
from .links import check_pin_name
from .pins import Edit, PinChange, Pins, edit_between, gives
from .reader import CheckpointReader
from .record import Staged
from .writer import BackgroundJob

Watcher = Callable[[Collection[str], Sequence[Entry]], None]


class CheckpointKeeper(CheckpointReader):
    """The part of a store that sets pins, and brings record, links and deletions up to them. It saves nothing."""

    def __init__(self, run_dir: str | Path, *, file_system: FileSystem = REAL) -> None:
        self._job = BackgroundJob()
        self._unsettled: set[str] | None = None
        """Pins whose links may not be as they should; None: all of them."""
        self._forgotten: list[str] = []
        """Checkpoints that are gone since the record of the pins was last changed."""
        self._watchers: list[Watcher] = []
        self._protected: dict[object, frozenset[str]] = {}
        super().__init__(run_dir, file_system=file_system)

    # ---- pins ----

    def set_pins(self, pins: Mapping[str, Sequence[str]], *, links: bool = True) -> None:
        """Each named pin holds exactly these checkpoints, as in `save`; what no pin holds any more is deleted."""
        self._job.join()
        changes, after = self._checked(pins, links)
        self._change_record(after, changes, links=links)

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
            self._settle()
            for entry in aside:
                self._fs.remove_tree(entry.path)
        return [*aside, *victims]

    # ---- beside the run: who copies its checkpoints ----

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` after every commit and every change of pins, before anything is deleted for it.

        It is handed the names of the pins that have changed, and the new checkpoints. It is called in the thread that
        saves, must be quick and must not raise.
        """
        self._watchers.append(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.remove(watcher)

    def protect(self, owner: object, names: Collection[str]) -> None:
        """Delete none of these checkpoints, whatever the pins say, until their owner names others or none.

        It ends with this process. What was protected alone is deleted at the next save, or by `prune`.
        """
        self._protected[owner] = frozenset(names)

    def _tell_watchers(self, changed: Collection[str], new: Sequence[str]) -> None:
        for watcher in list(self._watchers):
            watcher(changed, [self._there[name] for name in new])

    # ---- the record of the pins ----

    def _checked(
        self, pins: Mapping[str, Sequence[str]], links: bool, candidate: str | None = None
    ) -> tuple[dict[str, PinChange], Pins]:
        """How the pins change, those alone that do, and what they are then."""
        given: dict[str, tuple[str, ...]] = {}
        changes: dict[str, PinChange] = {}
        of_list: dict[int, tuple[tuple[str, ...], PinChange, tuple[str, ...]]] = {}  # one list may be given for many
        for name, entries in pins.items():
            check_pin_name(name)
            if isinstance(entries, str):
                raise ConfigurationError(f"Pin {name!r} takes a list of checkpoint names, got the str {entries!r}")
            before = self._pins.held.get(name, ())
            names, change, made_from = of_list.get(id(entries), ((), (), None))
            if made_from is None or made_from != before:
                names = tuple(entries)
                change = edit_between(before, names) or names
                of_list[id(entries)] = names, change, before
            self._require_there(name, change, candidate)
            given[name] = names
            if names != before or (name in self._pins.without_links) is links:
                changes[name] = change
        if candidate and not any(gives(change, candidate) for change in changes.values()):
            raise ConfigurationError(
                f"No pin holds {candidate}, so it would be deleted at once; name it in one of pins={dict(pins)!r}"
            )
        return changes, self._pins.with_pins(given, links=links)

    def _require_there(self, pin: str, change: PinChange, candidate: str | None) -> None:
        for entry in (name for _, name in change.more) if isinstance(change, Edit) else change:
            if entry not in self._there and entry != candidate:
                existing = [*self._there.names(), *filter(None, [candidate])]
                raise ConfigurationError(
                    f"Pin {pin!r} names {entry!r}, which is no checkpoint.{did_you_mean(entry, existing)}"
                )

    def _change_record(
        self, after: Pins, changes: Mapping[str, PinChange], *, links: bool = True, new: Sequence[str] = ()
    ) -> None:
        """Let the record of the pins say what they are `after` these changes, durably, and do what follows."""
        known = self._there.names()
        staged = self._record.stage(
            self._pins,
            after,
            changes,
            links=links,
            known=known,
            new=new,
            forgotten=self._forgotten,
            whole=self._record.is_due_whole(len(self._there)),
        )
        self._carry_out(staged, changes, new)

    def _write_record(self, pins: Pins) -> None:
        """Write the record anew, whatever it says now."""
        self._unsettled = None
        changed = [*self._pins.held, *pins.held]
        self._carry_out(self._record.stage(self._pins, pins, {}, links=True, known=self._there.names()), changed)

    def _carry_out(self, staged: Staged, changed: Iterable[str], new: Sequence[str] = ()) -> None:
        try:
            self._record.write(staged)
            self._fs.fsync_directory(self.directory)
        except OSError as error:
            self._record.undo(staged, self._pins, self._there.names())
            raise CheckpointSaveError(f"The pins of {self.run_dir} could not be changed: {error}") from error
        self._take_over(staged, changed, new)

    def _take_over(self, staged: Staged, changed: Iterable[str], new: Sequence[str] = ()) -> None:
        """A change of the record is made: what follows from it."""
        self._record.confirm(staged)
        self._forgotten.clear()
        before, after = self._pins, staged.after
        changed = dict.fromkeys(changed)  # in the order that new pins come in
        self._there.hold(after, changed)
        if self._unsettled is not None:
            relinked = before.without_links ^ after.without_links
            first = {name for name in changed if before.held.get(name, ())[:1] != after.held.get(name, ())[:1]}
            self._unsettled |= first | (changed.keys() & relinked)
        self._tell_watchers(changed, new)
        self._settle()

    # ---- what follows from the pins: links and deletions; all of it can be done again later ----

    def _settle(self) -> None:
        """Bring links and deletions up to what the pins say; what has failed is tried again the next time."""
        try:
            self._update_links()
            self._retire(self._unheld())
            self._there.hold(replace(self._pins, removed=frozenset()), ())  # their links are gone
            self._unsettled = set()
            self._record.sweep()
        except OSError as error:
            warnings.warn(
                f"The checkpoints in {self.run_dir} are safe, but their links could not be brought up to date, or old "
                f"ones not be deleted: {error}. The next save tries again.",
                stacklevel=2,
            )

    def _update_links(self) -> None:
        pins = self._pins
        changed = set(pins.held) if self._unsettled is None else self._unsettled
        for name in sorted(pins.removed | (pins.without_links & changed)):
            self._links.remove(name)
        for name in sorted(changed - pins.without_links):
            first = next(iter(pins.held.get(name, ())), None)
            if first is not None and first in self._there:
                self._links.point(name, first, self._fs.listdir(self.directory / first))
        self._links.sync()  # before anything is deleted: no link may come back that leads to it

    def _unheld(self) -> list[Entry]:
        """The committed checkpoints that nothing protects."""
        protected = list(self._protected.values())
        return [entry for entry in super()._unheld() if not any(entry.name in names for names in protected)]

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
            self._there.drop(gone)
            self._forgotten += gone
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
        self._there.drop(names)
        newest_left = self._there.newest
        self._write_record(self._pins.without_entries(set(names), newest_left.name if newest_left else None))
        return True

    # ---- what a reader does otherwise ----

    def _look(self) -> None:
        """Nobody else changes anything: what is known is what is there."""

    def _held_by(self, pin: str) -> tuple[str, ...]:
        return self._pins.held.get(pin, ())


def _copy_suffixes() -> Iterable[str]:
    yield ""
    number = 1
    while True:
        yield f".{number}"
        number += 1
