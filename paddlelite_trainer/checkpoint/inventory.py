"""Inventory: the checkpoints of a run in order, each with the pins that hold it; a change costs what it changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from .entry import Entry, entry_name
from .pins import Pins, common_ends


class Inventory:
    """Only the reader or store that owns it changes it. Who asks for all entries gets a list of his own."""

    def __init__(self, entries: Iterable[Entry] = (), pins: Pins | None = None) -> None:
        self.pins = Pins() if pins is None else pins
        self._place = {name: place for place, name in enumerate(self.pins.held)}
        self._next_place = len(self._place)
        held = self.pins.by_entry()
        found = (
            entry if entry.pins == held.get(entry.name, ()) else replace(entry, pins=held.get(entry.name, ()))
            for entry in entries
        )
        self._entries = {entry.name: entry for entry in sorted(found, key=lambda entry: entry.order)}
        self._unheld = {name for name, entry in self._entries.items() if not entry.pins}
        self._revisions = {entry.step: entry.revision for entry in self._entries.values()}

    def entries(self) -> list[Entry]:
        """Oldest first."""
        return list(self._entries.values())

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    @property
    def newest(self) -> Entry | None:
        return next(reversed(self._entries.values()), None)

    def newest_revision(self, step: int) -> int | None:
        return self._revisions.get(step)

    def in_order(self, pins: Iterable[str]) -> tuple[str, ...]:
        """Names of pins in the order that they came in; those that are new are the last."""
        return tuple(sorted(pins, key=lambda pin: self._place.get(pin, self._next_place)))

    def unheld(self) -> list[Entry]:
        """The checkpoints that no pin holds, but for the newest healthy one; oldest first."""
        if not self._unheld:
            return []
        newest_first: Iterator[Entry] = reversed(self._entries.values())
        healthy = next((entry.name for entry in newest_first if entry.healthy), None)
        found = [self._entries[name] for name in self._unheld if name != healthy]
        return sorted(found, key=lambda entry: entry.order)

    # ---- changes ----

    def add(self, entry: Entry) -> None:
        """Take in a checkpoint that the pins do not hold yet."""
        newest, entries = self.newest, dict(self._entries)
        entries[entry.name] = replace(entry, pins=())
        if newest is not None and entry.order < newest.order:
            entries = {one.name: one for one in sorted(entries.values(), key=lambda one: one.order)}
        self._entries = entries
        self._unheld.add(entry.name)
        self._revisions[entry.step] = max(entry.revision, self._revisions.get(entry.step, 0))

    def drop(self, names: Iterable[str]) -> None:
        """Checkpoints are gone."""
        entries = dict(self._entries)
        for name in names:
            gone = entries.pop(name, None)
            self._unheld.discard(name)
            if gone is not None and self._revisions[gone.step] == gone.revision:
                left = [older for older in range(gone.revision) if entry_name(gone.step, older) in entries]
                self._revisions.update({gone.step: left[-1]}) if left else self._revisions.pop(gone.step)
        self._entries = entries

    def hold(self, pins: Pins, changed: Collection[str]) -> None:
        """The pins are these from now on; all but the `changed` ones hold what they held."""
        before, self.pins = self.pins.held, pins
        if not changed:
            return
        entries = dict(self._entries)
        for pin in changed:
            if pin not in pins.held:
                self._place.pop(pin, None)
            elif pin not in self._place:
                self._place[pin] = self._next_place
                self._next_place += 1
            was, now = before.get(pin, ()), pins.held.get(pin, ())
            if was is not now:
                self._hold_otherwise(entries, pin, was, now)
        self._entries = entries

    def _hold_otherwise(self, entries: dict[str, Entry], pin: str, was: tuple[str, ...], now: tuple[str, ...]) -> None:
        start, end = common_ends(was, now)
        old, new = set(was[start : len(was) - end]), set(now[start : len(now) - end])
        for name in old ^ new:
            entry = entries.get(name)
            if entry is None:
                continue
            pins = tuple(other for other in entry.pins if other != pin)
            if name in new:
                pins = self.in_order((*pins, pin))
            entries[name] = replace(entry, pins=pins)
            (self._unheld.discard if pins else self._unheld.add)(name)
