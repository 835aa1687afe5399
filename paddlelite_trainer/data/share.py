"""Share: which batches of an epoch a rank takes, from its start or from where another number of ranks had come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .index_batches import Dealt


@dataclass(frozen=True)
class Share:
    """Rank r of W takes batches r, r + W, ...; with `wraps`, going round again until shares are equal.

    Where an epoch was begun by another number of ranks, only what they had left is dealt out: from batch `first` of all
    ranks' on, which is each rank's `number`th, up to `end`. `number` is `first / W`, rounded up: as many as these ranks
    would have needed. So an epoch within which W changes, however often, has every batch once.
    """

    rank: int
    world_size: int
    wraps: bool
    first: int = 0
    number: int = 0
    end: int | None = None

    @property
    def whole(self) -> Share:
        """The same rank's share of an epoch from its start."""
        return replace(self, first=0, number=0, end=None)

    def count(self, total: int) -> int:
        """This rank's batches of the epoch, those done by other ranks before included."""
        left = (total if self.end is None else self.end) - self.first
        if self.wraps:
            return self.number + max(0, -(-left // self.world_size))
        return self.number + max(0, -(-(left - self.rank) // self.world_size))

    def of(self, batches: Sequence[Any]) -> Sequence[Any]:
        if self.world_size == 1 and self.first == 0:
            return batches
        length = len(batches)
        return Dealt(batches, self.count(length), self.position, length if self.end is None else self.end)

    def position(self, number: int) -> int:
        """Where this rank's batch `number` stands among all ranks' batches."""
        return self.done(number) + self.rank

    def done(self, number: int) -> int:
        """How many of all ranks' batches are done when each rank has done `number`."""
        return self.first + (number - self.number) * self.world_size

    def as_state(self) -> dict[str, Any]:
        return {"world_size": self.world_size, "first": self.first, "number": self.number, "end": self.end}

    def resumed(self, state: Mapping[str, Any] | None) -> Share:
        """This rank's share as it was saved by as many ranks."""
        if not state or state["first"] == 0:
            return self.whole
        assert state["world_size"] == self.world_size
        return replace(self, first=state["first"], number=state["number"], end=state["end"])

    def after(self, before: Share, number: int, end: int | None) -> Share:
        """What is left of an epoch of which `before`, of another number of ranks, had done `number` batches each."""
        first = before.done(number)
        if before.end is not None:
            end = before.end
        if end is not None:
            first = min(first, end)
        return replace(self, first=first, number=-(-first // self.world_size), end=end)
