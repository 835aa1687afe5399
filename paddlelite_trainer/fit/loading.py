"""Loading: a stage's loaders as BatchSources, and a batch's way to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..data.batch import move_to_device
from ..data.combined import are_several_loaders
from ..data.module import DataModule
from ..data.prefetch import Prefetch
from ..data.source import BatchSource, Stage
from ..module import Module, is_written
from .steps import STEPS, step_of

if TYPE_CHECKING:
    from ..machine.device import Device
    from ..machine.precision import Precision
    from ..machine.ranks import Ranks
    from ..settings import Settings

METHODS = {
    "train": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
_TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class Loading:
    """Turns what the user has, loaders or methods that give them, into sources of batches on the device."""

    def __init__(
        self,
        module: Module,
        datamodule: DataModule | None,
        settings: Settings,
        ranks: Ranks,
        device: Device,
        precision: Precision,
        seed: int = 0,
    ) -> None:
        self.module, self.datamodule, self.settings = module, datamodule, settings
        self.ranks, self.device, self.precision = ranks, device, precision
        self.seed = seed
        self.timed: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None

    def use_seed(self, seed: int) -> None:
        self.seed = seed

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let the sources and preparations made from here on be timed."""
        self.timed = timed

    def sources(self, stage: Stage, given: Any) -> list[BatchSource]:
        """Of the loaders given, or of the datamodule's or module's method; none where there are none."""
        method = METHODS[stage]
        if given is None:
            for owner, base in ((self.datamodule, DataModule), (self.module, Module)):
                if owner is not None and getattr(getattr(owner, method), "__func__", None) is not getattr(base, method):
                    given = getattr(owner, method)()
                    break
        limit = self.settings.limits[stage]
        if given is None:
            return []
        loaders = list(given) if stage != "train" and are_several_loaders(given) else [given]
        if limit == 0:
            return []
        if is_written(self.module, STEPS[stage]):
            step_of(self.module, stage, len(loaders))  # what cannot be called is refused before anything runs
        found = [
            BatchSource(
                loader,
                stage=stage,
                seed=self.seed,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                limit=limit,
                name=method if len(loaders) == 1 else f"{method}[{index}]",
                prefetch=self._new_prefetch(),
                look_ahead=self.settings.look_ahead or stage != "train",
                keep_float64=self.precision.effective == "64-true",
                multiprocessing_context=self.settings.multiprocessing_context,
            )
            for index, loader in enumerate(loaders)
        ]
        if self.timed is not None:
            for source in found:
                source.time_with(self.timed, "waiting for data")
        return found

    def preparation(self, source: BatchSource, dataloader_idx: int = 0) -> Callable[[Any], Any] | None:
        """The way of a batch to the device, or None where there is nothing to do."""
        prepare = self._preparation(source, dataloader_idx)
        if prepare is None or self.timed is None:
            return prepare
        return self.timed("batches to the device", prepare)

    def _preparation(self, source: BatchSource, dataloader_idx: int) -> Callable[[Any], Any] | None:
        owner, convert = self.owner_of_transfers(), self.precision.convert_input
        place = self.device.place
        if owner is None:
            if not self.device.is_accelerator:
                return convert
            prefetch = source.prefetch
            move = prefetch.move if prefetch is not None else lambda batch: move_to_device(batch, place)
            return move if convert is None else lambda batch: convert(move(batch))

        def prepare(batch: Any) -> Any:
            batch = owner.on_before_batch_transfer(batch, dataloader_idx)
            batch = owner.transfer_batch_to_device(batch, place, dataloader_idx)
            if convert is not None:
                batch = convert(batch)
            return owner.on_after_batch_transfer(batch, dataloader_idx)

        return prepare

    def owner_of_transfers(self) -> Any:
        """The datamodule or module that has a hook of a batch's transfer overridden, or None."""
        datamodule = self.datamodule
        if datamodule is not None and any(
            getattr(type(datamodule), name, None) is not getattr(DataModule, name, None) for name in _TRANSFERS
        ):
            return datamodule
        return self.module if any(is_written(self.module, name) for name in _TRANSFERS) else None

    def _new_prefetch(self) -> Prefetch | None:
        wanted = self.settings.prefetch_to_device
        if (
            wanted is False
            or not self.settings.look_ahead
            or not self.device.is_accelerator
            or self.owner_of_transfers() is not None
        ):
            return None
        return Prefetch(wanted, self.device)

    def why_no_prefetch(self) -> str:
        owner = self.owner_of_transfers()
        if not self.device.is_accelerator:
            return "on the CPU there is nothing to copy"
        if not self.settings.look_ahead:
            return "look_ahead=False reads no batch before the step is done"
        if owner is not None:
            return f"{type(owner).__name__} moves its batches by hooks of its own"
        return "only lists of batches, iterables, and DataLoaders with num_workers of 1 or more are read ahead"
