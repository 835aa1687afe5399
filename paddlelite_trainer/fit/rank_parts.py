"""RankParts: what each rank writes of a checkpoint beside rank 0, where optimizers or weights are sharded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.parts import Whole, part_name, write_parts
from ..errors import CheckpointSaveError

if TYPE_CHECKING:
    from ..checkpoint.manifest import StoredFile
    from ..machine.ranks import Ranks


class RankParts:
    """One save's parts. Rank 0 writes its own with all else, and is the store's `others`; the rest `take_part`.

    `mine` is {file: {tensor: this rank's}}; `cut` {file: {tensor: whole shape}} of what is cut over the ranks.
    """

    def __init__(
        self,
        ranks: Ranks,
        mine: Mapping[str, Mapping[str, Any]],
        cut: Mapping[str, Mapping[str, tuple[int, ...]]],
    ) -> None:
        self.ranks = ranks
        self.mine = {part_name(file, ranks.rank): tensors for file, tensors in mine.items()}
        self.wholes = {
            file: Whole(tuple(part_name(file, rank) for rank in range(ranks.world_size)), cut.get(file, {}))
            for file in mine
        }
        self._has_begun = self._has_asked = False

    def take_part(self) -> None:
        """On every rank but 0: write the parts where and when rank 0 says so; a collective, as `begin` and `written`.

        What goes wrong is raised on all ranks by the save.
        """
        directory: Path | None = self.ranks.broadcast_object(None)
        if directory is None:
            return
        try:
            found: Any = write_parts(directory, self.mine)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        self.ranks.gather_object(found)

    def begin(self, directory: Path | None) -> None:
        self._has_begun = True
        self._has_asked = directory is None
        self.ranks.broadcast_object(directory)

    def written(self) -> dict[str, StoredFile]:
        self._has_asked = True
        stored: dict[str, StoredFile] = {}
        for rank, found in enumerate(self.ranks.gather_object(None)):
            if isinstance(found, str):
                raise CheckpointSaveError(
                    f"the checkpoint was not saved: rank {rank} could not write its part: {found}"
                )
            stored.update(found or {})
        return stored

    def give_up(self) -> None:
        if not self._has_begun:
            self.begin(None)
        elif not self._has_asked:
            self._has_asked = True
            self.ranks.gather_object(None)
