"""ModuleHooks: what a run calls of a Module besides its steps; each does nothing until it is written."""

from __future__ import annotations

from typing import Any

from .data.batch import move_to_device


class ModuleHooks:
    """Hooks of a Module; each is called after the callbacks' hook of the same name, on every rank."""

    def prepare_data(self) -> None:
        """Download and the like; on rank 0 alone."""

    def setup(self, stage: str) -> None:
        """Called first in a stage; `stage` is "fit", "validate", "test" or "predict"."""

    def teardown(self, stage: str) -> None:
        """Called last in a stage, after an error too."""

    def on_fit_start(self) -> None:
        """Called when everything is restored, before the sanity validation."""

    def on_fit_end(self) -> None:
        """Called when the fit is over, after `on_train_end`; not where a signal or an error ends it."""

    def on_sanity_check_start(self) -> None:
        """Called before the validation batches that are tried before the first epoch."""

    def on_sanity_check_end(self) -> None:
        """Called after the sanity check, whose metrics are dropped."""

    def on_already_over(self) -> None:
        """Called instead of everything else when a finished or stopped run is started again."""

    def on_train_start(self) -> None:
        """Called before the first epoch of this process, in a resumed run too."""

    def on_train_end(self) -> None:
        """Called after the last epoch; not where a signal or an error ends the training."""

    def on_train_epoch_start(self) -> None:
        """Called at an epoch's start; not again when a run resumes inside the epoch."""

    def on_train_epoch_resume(self) -> None:
        """Called in its place where a run resumes inside an epoch, before its data are read."""

    def on_train_epoch_end(self) -> None:
        """Called after an epoch's batches, its validation and its schedules; its metrics are there."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called with the batch on its device; return -1 to end the epoch here, with its validation."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after the step, with what `training_step` returned, detached from the graph."""

    def on_before_backward(self, loss: Any) -> None:
        """Called with the loss as `training_step` returned it, before it is divided by the window and scaled."""

    def on_after_backward(self) -> None:
        """Called after each batch's backward, with the gradients as they are so far."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Called at the end of an accumulation window with unscaled gradients, before they are clipped."""

    def on_before_zero_grad(self, optimizer: Any) -> None:
        """Called after the optimizer's step, before its gradients are dropped."""

    def on_validation_start(self) -> None:
        """Called before a validation, with gradients off and layers in eval mode."""

    def on_validation_end(self) -> None:
        """Called after a validation; layers are in their former modes afterwards."""

    def on_validation_epoch_start(self) -> None:
        """Called after `on_validation_start`, before the first loader is read."""

    def on_validation_epoch_end(self) -> None:
        """Called after the last batch of the last loader; what is logged here counts for this epoch."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called with the batch on its device; `dataloader_idx` counts the loaders, from 0."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called with what `validation_step` returned for the batch."""

    def on_test_start(self) -> None:
        """Called before a test, with gradients off and layers in eval mode."""

    def on_test_end(self) -> None:
        """Called after a test; layers are in their former modes afterwards."""

    def on_test_epoch_start(self) -> None:
        """Called after `on_test_start`, before the first loader is read."""

    def on_test_epoch_end(self) -> None:
        """Called after the last batch of the last loader; what is logged here counts for this epoch."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called with the batch on its device; `dataloader_idx` counts the loaders, from 0."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called with what `test_step` returned for the batch."""

    def on_predict_start(self) -> None:
        """Called before a prediction, with gradients off and layers in eval mode."""

    def on_predict_end(self) -> None:
        """Called after a prediction; layers are in their former modes afterwards."""

    def on_predict_epoch_start(self) -> None:
        """Called after `on_predict_start`, before the first loader is read."""

    def on_predict_epoch_end(self) -> None:
        """Called after the last batch of the last loader."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called with the batch on its device; `dataloader_idx` counts the loaders, from 0."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called with what `predict_step` returned for the batch."""

    def on_exception(self, exception: BaseException) -> None:
        """Called when anything raises, before the exception leaves the Trainer."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what else must survive; nested dicts, lists, numbers, strings, bytes, arrays and tensors."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what on_save_checkpoint added, before loaders, optimizers and weights: layers may still be added.

        Called by `fit`, `validate`, `test` and `predict` with a checkpoint of ours, and by `load_from_checkpoint`.
        """

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it is moved to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Override where a batch holds objects of your own that must move."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device: mixup, cutmix, augmentation."""
        return batch
