"""Which checkpoints each pin holds, and how one save or one tag changes that."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CheckpointCorruptError
from .entry import parse_entry_name
from .manifest import unseal

PINS_FILE = "pins.json"
LATEST = "latest"
# Holds what is sound and committed, and yet in no record: nothing that might matter is deleted for a lost record.
RECOVERED = "recovered"
# A list of so many names is written whole; of a longer one what has changed in it.
SHORT_LIST = 16


@dataclass(frozen=True)
class Edit:
    """How the list of a pin's checkpoints has changed: names taken out of it, then names put in at their places."""

    less: tuple[str, ...]
    more: tuple[tuple[int, str], ...]

    def applied(self, names: Sequence[str]) -> tuple[str, ...]:
        """The list after it; of another list than it was made for, as near to that as it comes."""
        less = {*self.less, *(name for _, name in self.more if name in names)}
        after = [name for name in names if name not in less] if less else list(names)
        for place, name in self.more:
            after.insert(place, name)
        return tuple(after)

    def to_json(self) -> dict[str, Any]:
        return {"less": list(self.less), "more": [list(one) for one in self.more]}


def edit_between(before: tuple[str, ...], after: tuple[str, ...]) -> Edit | None:
    """What makes `after` of `before`; None where the list is short, or little of it stays, or its order has changed."""
    if len(after) <= SHORT_LIST:
        return None
    start, end = common_ends(before, after)
    less, more = before[start : len(before) - end], after[start : len(after) - end]
    if len(less) + len(more) > 2:
        old, new = set(less), set(more)
        placed = tuple((start + place, name) for place, name in enumerate(more) if name not in old)
        less = tuple(name for name in less if name not in new)
    else:
        placed = tuple((start + place, name) for place, name in enumerate(more))
    edit = Edit(less, placed)
    return edit if 2 * (len(less) + len(placed)) <= len(after) and edit.applied(before) == after else None


def common_ends(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, int]:
    """How many names two lists share at the beginning, and of the rest how many at the end."""
    start = _common_length(one, other)
    return start, _common_length(one[start:][::-1], other[start:][::-1])


def _common_length(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many of the first are the same; slices are compared, as a loop over names would take longer than the save."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


PinChange = Sequence[str] | Edit
"""All that a pin holds from then on, best first, or how that has changed; an empty list removes the pin."""


def gives(change: PinChange, entry: str) -> bool:
    """Whether a pin holds a checkpoint after the change that it did not hold before."""
    return any(entry == name for _, name in change.more) if isinstance(change, Edit) else entry in change


@dataclass(frozen=True)
class Pins:
    """The record of all pins at one moment; every change makes a new one.

    `sequence` counts commits: a checkpoint whose manifest has a later number was committed after this record was
    written, by a process that died between the two, and its manifest says what the record should have become.
    """

    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without_links: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    """All checkpoints there were when the record was written."""
    removed: frozenset[str] = frozenset()
    """Pins that are gone, and whose links perhaps are not yet."""
    sequence: int = 0
    changes: int = 0
    """How many of its changes were written each by itself, since the run began."""

    def with_pins(self, changes: Mapping[str, PinChange], *, links: bool = True) -> Pins:
        """Each named pin holds what is given; an empty list removes it; the others stay."""
        held, emptied = dict(self.held), []
        for name, change in changes.items():
            entries = change.applied(held.get(name, ())) if isinstance(change, Edit) else tuple(change)
            if entries:
                held[name] = entries
            else:
                held.pop(name, None)
                emptied.append(name)
        without_links = self.without_links.difference(changes)
        if not links:
            without_links |= frozenset(changes).difference(emptied)
        removed = self.removed.difference(changes).union(emptied)
        return replace(self, held=held, removed=removed, without_links=without_links)

    def without_entries(self, gone: Collection[str], newest_left: str | None) -> Pins:
        """No pin holds what is gone, nor is it known: put back by hand it counts as lost and found. `latest` then falls
        back to the newest left; other emptied pins go.
        """
        if not gone:
            return self
        held = {name: tuple(entry for entry in entries if entry not in gone) for name, entries in self.held.items()}
        if not held.get(LATEST, (newest_left,)) and newest_left:
            held[LATEST] = (newest_left,)
        kept = {name: entries for name, entries in held.items() if entries}
        removed = (self.removed | set(held)) - set(kept)
        without_links = self.without_links & set(kept)
        known = self.known.difference(gone)
        return replace(self, held=kept, removed=removed, without_links=without_links, known=known)

    def at(self, known: Iterable[str], sequence: int) -> Pins:
        return replace(self, known=frozenset(known), sequence=sequence)

    def of(self, entry: str) -> tuple[str, ...]:
        """The names of the pins that hold this checkpoint."""
        return tuple(name for name, entries in self.held.items() if entry in entries)

    def by_entry(self) -> dict[str, tuple[str, ...]]:
        """Checkpoint -> the names of the pins that hold it, as `of` gives them for one."""
        found: dict[str, list[str]] = {}
        for name, entries in self.held.items():
            for entry in dict.fromkeys(entries):
                found.setdefault(entry, []).append(name)
        return {entry: tuple(names) for entry, names in found.items()}

    def all_held(self) -> set[str]:
        return {entry for entries in self.held.values() for entry in entries}

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "sequence": self.sequence,
            "changes": self.changes,
            "pins": {name: list(entries) for name, entries in self.held.items()},
            "without_links": sorted(self.without_links),
            "known": sorted(self.known),
            "removed": sorted(self.removed),
        }


def parse_pins(data: bytes) -> Pins:
    """The record that was written.

    Raises:
        CheckpointCorruptError: the bytes are not those of a record.
    """
    record = unseal(data, PINS_FILE)
    try:
        held = {str(name): tuple(map(entry_of, entries)) for name, entries in record["pins"].items()}
        return Pins(
            held,
            frozenset(map(str, record["without_links"])),
            frozenset(map(entry_of, record["known"])),
            frozenset(map(str, record["removed"])),
            int(record["sequence"]),
            int(record.get("changes", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointCorruptError(f"{PINS_FILE} is no record of pins: {error!r}") from error


def changes_to_json(changes: Mapping[str, PinChange]) -> dict[str, Any]:
    return {name: one.to_json() if isinstance(one, Edit) else list(one) for name, one in changes.items()}


def parse_changes(record: Any) -> dict[str, PinChange]:
    """What `changes_to_json` gave: {pin: all that it holds, or how that has changed}.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: it gave no such thing.
    """
    return {str(name): _parse_change(one) for name, one in record.items()}


def _parse_change(record: Any) -> PinChange:
    if isinstance(record, dict):
        more = tuple((_place(place), entry_of(name)) for place, name in record["more"])
        return Edit(tuple(map(entry_of, record["less"])), more)
    if not isinstance(record, list):
        raise TypeError(f"{record!r} is no list of checkpoints")
    return tuple(map(entry_of, record))


def _place(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no place in a list")
    return value


def entry_of(name: Any) -> str:
    """The name of a checkpoint, one object for each, so that long lists of them are compared quickly."""
    if not isinstance(name, str) or parse_entry_name(name) is None:
        raise ValueError(f"{name!r} is no checkpoint's name")
    return sys.intern(name)
