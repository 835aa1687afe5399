"""Ranking: the checkpoints that a ModelCheckpoint calls best, in their order; one more costs what it changes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from paddlelite_trainer.checkpoint import Entry

Key = tuple[float, tuple[int, int]]
K = TypeVar("K")
M = TypeVar("M")


class Ranking:
    """What was read from the pins once, and what each checkpoint since has changed.

    It holds as long as the pin says what it was last given: `is_of` tells, and `read` begins anew.
    """

    def __init__(self, key: Callable[[Entry], Key], name: Callable[[Entry], str] | None) -> None:
        self._key, self._name = key, name
        self._given: tuple[str, ...] | None = None
        self._clear()

    def _clear(self) -> None:
        self._keys: list[Key] = []
        self._entries: list[Entry] = []
        self._names: list[str] = []
        self._of_step: dict[int, list[Entry]] = {}
        self._of_name: dict[str, list[tuple[Key, Entry]]] = {}
        """{a checkpoint's own name: those that bear it, best first}."""

    def is_of(self, held: tuple[str, ...]) -> bool:
        return self._given == held

    def read(self, entries: Iterable[Entry], held: tuple[str, ...]) -> None:
        """Begin with these, in whatever order, which the pin holds."""
        self._clear()
        for entry in sorted(entries, key=self._key):
            self._insert(len(self._entries), entry)
        self._given = held

    def place_of(self, candidate: Entry) -> int:
        """How many are better. The same step saved again holds the same weights: the newer one takes the place."""
        key = self._key(candidate)
        rivals = sum(self._key(entry) < key for entry in self._of_step.get(candidate.step, ()))
        return bisect_left(self._keys, key) - rivals

    def add(self, candidate: Entry, keep: int) -> list[Entry]:
        """Take in one that is among the best `keep`, below 0 all; returns those that it has pushed out."""
        dropped = list(self._of_step.get(candidate.step, ()))
        for entry in dropped:
            self._take_out(bisect_left(self._keys, self._key(entry)))
        self._insert(bisect_left(self._keys, self._key(candidate)), candidate)
        while 0 <= keep < len(self._entries):
            dropped.append(self._take_out(len(self._entries) - 1))
        self._given = tuple(self._names)
        return dropped

    @property
    def names(self) -> list[str]:
        """Of the checkpoints, best first."""
        return list(self._names)

    def named(self, changed: Sequence[Entry]) -> dict[str, list[str]]:
        """{own name: the checkpoints that bear it, best first}, so far as these have changed it."""
        return self._bearers(map(self._name, changed)) if self._name is not None else {}

    def all_named(self) -> dict[str, list[str]]:
        """The same for all of them."""
        return self._bearers(self._of_name)

    def _bearers(self, names: Iterable[str]) -> dict[str, list[str]]:
        found = {name: self._of_name.get(name, ()) for name in names}
        return {name: [entry.name for _, entry in bearers] for name, bearers in found.items() if bearers}

    def _insert(self, place: int, entry: Entry) -> None:
        self._keys.insert(place, self._key(entry))
        self._entries.insert(place, entry)
        self._names.insert(place, entry.name)
        self._of_step.setdefault(entry.step, []).append(entry)
        if self._name is not None:
            insort(self._of_name.setdefault(self._name(entry), []), (self._key(entry), entry), key=lambda one: one[0])

    def _take_out(self, place: int) -> Entry:
        entry = self._entries.pop(place)
        del self._keys[place], self._names[place]
        _discard(self._of_step, entry.step, entry)
        if self._name is not None:
            _discard(self._of_name, self._name(entry), (self._key(entry), entry))
        return entry


def _discard(groups: dict[K, list[M]], group: K, member: M) -> None:
    groups[group].remove(member)
    if not groups[group]:
        del groups[group]
