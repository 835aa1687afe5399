"""BasePredictionWriter: writes what `predict` finds, batch by batch or all at its end."""

from __future__ import annotations

from typing import Any, Literal

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callback import overridden
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments


class BasePredictionWriter(Callback):
    """Override `write_on_batch_end`, `write_on_epoch_end` or both, as `write_interval` says.

        class ToFiles(BasePredictionWriter):
            def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
                paddle.save(prediction, f"rank_{trainer.global_rank}/{dataloader_idx}/{batch_idx}.pd")

        Trainer(callbacks=[ToFiles("batch")]).predict(module, loader, return_predictions=False)

    On several ranks each writes its own. Which samples a batch holds is not told: `batch_indices` is always None.

    Args:
        write_interval: "batch", "epoch" or "batch_and_epoch"; the latter two keep all predictions until the end.

    Raises:
        ConfigurationError: write_interval is none of these.
    """

    @explains_unknown_arguments({})
    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        if write_interval not in ("batch", "epoch", "batch_and_epoch"):
            raise ConfigurationError(
                "BasePredictionWriter(write_interval=...) must be 'batch', 'epoch' or 'batch_and_epoch', got "
                f"{write_interval!r}"
            )
        self.interval = write_interval
        self._predictions: list[list[Any]] = []  # of each loader

    def write_on_batch_end(
        self,
        trainer: Trainer,
        module: Module,
        prediction: Any,
        batch_indices: None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write what predict_step returned for one batch."""
        raise NotImplementedError

    def write_on_epoch_end(self, trainer: Trainer, module: Module, predictions: list[Any], batch_indices: None) -> None:
        """Write what predict_step returned for all batches; a list of lists where there are several loaders."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._predictions = []
        for word in ("batch", "epoch") if stage == "predict" else ():
            if word in self.interval and overridden(self, f"write_on_{word}_end", BasePredictionWriter) is None:
                raise ConfigurationError(
                    f"{type(self).__name__}(write_interval={self.interval!r}) needs write_on_{word}_end: write it, or "
                    "pass another write_interval"
                )

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if "batch" in self.interval:
            self.write_on_batch_end(trainer, module, outputs, None, batch, batch_idx, dataloader_idx)
        if "epoch" in self.interval:
            while len(self._predictions) <= dataloader_idx:
                self._predictions.append([])
            self._predictions[dataloader_idx].append(outputs)

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if "epoch" in self.interval:
            predictions, self._predictions = self._predictions, []
            one = predictions[0] if len(predictions) == 1 else predictions
            self.write_on_epoch_end(trainer, module, one, None)
