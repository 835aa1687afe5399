"""ThroughputMonitor: samples and batches a second, and the share of the time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callback import batch_size_of
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments


class ThroughputMonitor(Callback):
    """Logs `samples_per_second`, `batches_per_second` and `data_wait_share` (0 to 1) of training.

    Each value is over the batches since the one before: `every_n_steps` optimizer steps (Trainer's log_every_n_steps
    where None), and what is left at an epoch's end. Validation, checkpoints and a fit's first batch, which compiles and
    warms up, do not count. `batch_size_fn` tells the samples of a batch; by default the first tensor's first axis. On
    an accelerator nothing is synchronised: over many steps launching keeps pace with computing.

        Trainer(callbacks=[ThroughputMonitor()])

    Args:
        batch_size_fn: the number of samples of a batch; None: the first axis of its first tensor.
        every_n_steps: optimizer steps between two values; None: the Trainer's `log_every_n_steps`.

    Raises:
        ConfigurationError: every_n_steps is no int >= 1.
    """

    @explains_unknown_arguments(
        {
            "length_fn": "batch_size_fn may count anything in a batch",
            "window_size": "pass every_n_steps=: each value is over the batches since the one before",
            "separator": "names are plain, as samples_per_second",
        }
    )
    def __init__(self, batch_size_fn: Callable[[Any], int] | None = None, *, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and (not isinstance(every_n_steps, int) or every_n_steps < 1):
            raise ConfigurationError(f"ThroughputMonitor(every_n_steps=...) must be an int >= 1, got {every_n_steps!r}")
        self.every_n_steps = every_n_steps
        self._batch_size = batch_size_fn or batch_size_of
        self._warm = False
        self._forget()

    def _forget(self) -> None:
        self._samples = self._batches = 0
        self._busy = self._waited = 0.0
        self._batch_ended: float | None = None

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._warm = False
        self._next_log = self._step_after(trainer)
        self._forget()

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        # What lies between two epochs is no waiting for data; opening the next one is.
        self._batch_ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        self._batch_started = time.perf_counter()
        if self._warm and self._batch_ended is not None:
            self._waited += self._batch_started - self._batch_ended

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if not self._warm:
            self._warm = True
        else:
            self._busy += now - self._batch_started
            self._batches += 1
            self._samples += self._batch_size(batch)
        if trainer.global_step >= self._next_log:  # where gradients accumulate, several batches see one step
            self._next_log = self._step_after(trainer)
            self._log(trainer)
        self._batch_ended = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self._batch_ended = time.perf_counter()

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        self._batch_ended = None  # the save takes its time before the next batch is asked for

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._log(trainer)

    def _step_after(self, trainer: Trainer) -> int:
        every = self.every_n_steps or trainer.log_every_n_steps
        return (trainer.global_step // every + 1) * every

    def _log(self, trainer: Trainer) -> None:
        seconds = self._busy + self._waited
        if not self._batches or seconds <= 0.0:
            return
        values = {
            "samples_per_second": self._samples / seconds,
            "batches_per_second": self._batches / seconds,
            "data_wait_share": self._waited / seconds,
        }
        for name, value in values.items():
            trainer.record(name, value)
        trainer.log_metrics(values)
        self._forget()
