"""Saved: a checkpoint opened for resuming, and the seed that it decides on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointMismatchError
from ..run.weights import TRAINER

if TYPE_CHECKING:
    from ..checkpoint import Entry, SavedCheckpoint


@dataclass(frozen=True)
class Saved:
    """A checkpoint opened for resuming, its trainer part decoded."""

    entry: Entry
    checkpoint: SavedCheckpoint
    tree: dict[str, Any]

    @property
    def ranks(self) -> int:
        """How many ranks it was saved by."""
        return int(self.tree["run"]["world_size"])

    def of_rank(self, rank: int) -> dict[str, Any]:
        """What differs between ranks, as this one saved it."""
        return dict(self.checkpoint.state(file_of_rank(rank)))


def file_of_rank(rank: int) -> str:
    """The file of a checkpoint that holds what is a rank's own."""
    return f"rng-rank{rank:05d}.json"


def open_saved(entry: Entry, opened: SavedCheckpoint | None = None) -> Saved:
    """Open and verify the checkpoint that a fit resumes from, unless it is `opened` already.

    Raises:
        CheckpointMismatchError: it holds weights only.
    """
    from ..checkpoint import open_checkpoint

    checkpoint = opened if opened is not None else open_checkpoint(entry.path)
    tree = checkpoint.state(TRAINER)
    if tree.get("weights_only"):
        raise CheckpointMismatchError(
            f"{entry.path} holds weights only, so a run cannot go on from it exactly. "
            f"Start a fresh run with init_from={str(entry.path)!r}, or resume from another checkpoint."
        )
    return Saved(checkpoint.entry, checkpoint, tree)


def agreed_seed(given: int | None, saved: Saved) -> int:
    """The run's seed; a different one asked for now is refused, since every batch would change."""
    seed: int = saved.tree["seed"]
    if given is not None and given != seed:
        fresh = f"start a fresh run with init_from={str(saved.entry.path)!r}"
        raise CheckpointMismatchError(
            "the checkpoint does not fit this run:",
            [f"seed: saved {seed}, now {given}. Pass seed={seed} or none, or {fresh}"],
        )
    return seed
