"""Which checkpoints each pin holds, in one small file that is replaced whole."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Pins:
    """The record of all pins at one moment; every change makes a new one.

    `sequence` counts commits: a checkpoint whose manifest has a later number was committed after this record was
    written, by a process that died between the two, and its manifest says what the record should have become.
    """

    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without_links: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    """Pins that are gone, and whose links perhaps are not yet."""
    sequence: int = 0

    def with_pins(self, changes: Mapping[str, Sequence[str]], *, links: bool = True) -> Pins:
        """Each named pin holds exactly the given checkpoints; an empty list removes it; the others stay."""
        held = {**self.held, **{name: tuple(entries) for name, entries in changes.items()}}
        without_links = self.without_links.difference(changes) | (frozenset() if links else frozenset(changes))
        return self._of(held, without_links)

    def without_entries(self, gone: Collection[str], newest_left: str | None) -> Pins:
        """No pin holds what is gone, nor is it known: put back by hand it counts as lost and found. `latest` then falls
        back to the newest left; other emptied pins go.
        """
        held = {name: tuple(entry for entry in entries if entry not in gone) for name, entries in self.held.items()}
        if not held.get(LATEST, (newest_left,)) and newest_left:
            held[LATEST] = (newest_left,)
        return replace(self._of(held, self.without_links), known=self.known.difference(gone))

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

    def _of(self, held: Mapping[str, tuple[str, ...]], without_links: frozenset[str]) -> Pins:
        kept = {name: entries for name, entries in held.items() if entries}
        removed = (self.removed | set(held)) - set(kept)
        return replace(self, held=kept, removed=removed, without_links=without_links & set(kept))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "sequence": self.sequence,
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
        held = {str(name): tuple(map(_entry, entries)) for name, entries in record["pins"].items()}
        return Pins(
            held,
            frozenset(map(str, record["without_links"])),
            frozenset(map(_entry, record["known"])),
            frozenset(map(str, record["removed"])),
            int(record["sequence"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointCorruptError(f"{PINS_FILE} is no record of pins: {error!r}") from error


def _entry(name: Any) -> str:
    if not isinstance(name, str) or parse_entry_name(name) is None:
        raise ValueError(f"{name!r} is no checkpoint's name")
    return name
