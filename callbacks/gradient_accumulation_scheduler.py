"""GradientAccumulationScheduler: another accumulation window from given epochs on."""

from __future__ import annotations

from collections.abc import Mapping

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError


class GradientAccumulationScheduler(Callback):
    """Sets `accumulate_grad_batches` by epoch: {0: 8, 4: 2} accumulates 8 batches in epochs 0 to 3, and 2 from epoch 4 on.

    `Trainer(accumulate_grad_batches={0: 8, 4: 2})` is the same without a callback.
    """

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        if not scheduling:
            raise ConfigurationError("GradientAccumulationScheduler needs {epoch: batches}, got an empty mapping")
        for epoch, batches in scheduling.items():
            if type(epoch) is not int or epoch < 0 or type(batches) is not int or batches < 1:
                raise ConfigurationError(
                    f"GradientAccumulationScheduler takes {{epoch >= 0: batches >= 1}} in integers, got {{{epoch!r}: {batches!r}}}"
                )
        self.scheduling = {0: 1, **scheduling}

    def going_to_accumulate_grad_batches(self) -> bool:
        return any(batches > 1 for batches in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """The window of an epoch, by its index."""
        return self.scheduling[max(start for start in self.scheduling if start <= epoch)]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        given = trainer._accumulation
        if given not in ({0: 1}, {0: self.scheduling[0]}, self.scheduling):
            raise ConfigurationError(
                f"Trainer(accumulate_grad_batches={given[0] if len(given) == 1 else given}) and a GradientAccumulationScheduler "
                "say different things; keep one"
            )
        # The whole schedule, and before a checkpoint's is compared with it.
        trainer._accumulation = dict(self.scheduling)
