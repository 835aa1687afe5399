"""GradientAccumulationScheduler: another accumulation window from given epochs on."""

from __future__ import annotations

from collections.abc import Mapping

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments


class GradientAccumulationScheduler(Callback):
    """Sets `accumulate_grad_batches` by epoch: {0: 8, 4: 2} accumulates 8 batches in epochs 0 to 3, then 2.

    `Trainer(accumulate_grad_batches={0: 8, 4: 2})` is the same without a callback.

    Args:
        scheduling: {epoch, from 0: batches that are accumulated from there on}.

    Raises:
        ConfigurationError: scheduling is empty, or not of epochs >= 0 and batches >= 1.
    """

    @explains_unknown_arguments({})
    def __init__(self, scheduling: Mapping[int, int]) -> None:
        if not scheduling:
            raise ConfigurationError("GradientAccumulationScheduler needs {epoch: batches}, got an empty mapping")
        for epoch, batches in scheduling.items():
            if type(epoch) is not int or epoch < 0 or type(batches) is not int or batches < 1:
                raise ConfigurationError(
                    "GradientAccumulationScheduler takes {epoch >= 0: batches >= 1} in integers, "
                    f"got {{{epoch!r}: {batches!r}}}"
                )
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether any epoch has a window of more than one batch."""
        return any(batches > 1 for batches in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """The window of an epoch, by its index."""
        return self.scheduling[max(start for start in self.scheduling if start <= epoch)]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        if not module.automatic_optimization and self.going_to_accumulate_grad_batches():
            raise ConfigurationError(
                "GradientAccumulationScheduler would have no effect: with automatic_optimization = False the "
                "optimizers' steps are yours. Leave it out, and in training_step call optimizer.step() after as many "
                "batches as you want."
            )
        # In a second fit of one Trainer the window is still that of the epoch where the first ended.
        expected = (1, self.get_accumulate_grad_batches(0), self.get_accumulate_grad_batches(trainer.current_epoch))
        if trainer.accumulate_grad_batches not in expected:
            raise ConfigurationError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) and a "
                "GradientAccumulationScheduler say different things; keep one"
            )
        trainer.accumulate_grad_batches = self.scheduling  # the whole of it, before a checkpoint's is compared with it
