"""Surroundings: what people and callbacks read of the callbacks, the data and the ranks of a Trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .data.source import lengths
from .errors import ConfigurationError
from .fit.evaluation import Evaluation
from .fit.fit import Fit
from .settings import Settings

if TYPE_CHECKING:
    from .callback import Callback
    from .data.module import DataModule
    from .data.source import BatchSource
    from .machine.device import Device
    from .machine.ranks import Ranks


class Surroundings(Settings):
    """What a fit or an evaluation has around it; asked of the one on top of `_running`, or of the last fit."""

    callbacks: list[Callback]
    ranks: Ranks
    device: Device
    model: Any = None
    datamodule: DataModule | None = None
    _fit: Fit
    _running: list[Fit | Evaluation]
    _last: Fit | Evaluation

    # -- callbacks -----------------------------------------------------------------------------------------------------
    @property
    def checkpoint_callback(self) -> Any:
        """The first ModelCheckpoint, or None."""
        return self._first("ModelCheckpoint")

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """Every ModelCheckpoint, in the order of the list."""
        return self._all("ModelCheckpoint")

    @property
    def early_stopping_callback(self) -> Any:
        """The first EarlyStopping, or None."""
        return self._first("EarlyStopping")

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """Every EarlyStopping, in the order of the list."""
        return self._all("EarlyStopping")

    @property
    def progress_bar_callback(self) -> Any:
        """The ProgressBar, or None."""
        return self._first("ProgressBar")

    # -- data ----------------------------------------------------------------------------------------------------------
    @property
    def num_training_batches(self) -> int | float:
        """Of an epoch; of data that cannot tell `limit_train_batches`, or infinite."""
        return lengths([self._fit.data.train], self.limit_train_batches)[0] if self._fit.data is not None else math.inf

    @property
    def num_val_batches(self) -> list[int | float]:
        """Of each validation loader, after `limit_val_batches`; infinite where it cannot tell."""
        return lengths(self._sources("validate") or self._val_sources, self.limit_val_batches)

    @property
    def enable_validation(self) -> bool:
        """Whether the fit has validation data, and the module a step for it."""
        return self._fit.validates

    @property
    def num_test_batches(self) -> list[int | float]:
        """Of each test loader, while `test` runs; infinite where it cannot tell."""
        return lengths(self._sources("test"), self.limit_test_batches)

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Of each loader, while `predict` runs; infinite where it cannot tell."""
        return lengths(self._sources("predict"), self.limit_predict_batches)

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Of each validation loader in the sanity check."""
        wanted = self.num_sanity_val_steps
        found = lengths(self._val_sources, self.limit_val_batches)
        return [length if wanted < 0 else min(length, wanted) for length in found]

    @property
    def train_dataloader(self) -> Any:
        """The training loader that was passed, or that the module or datamodule gave."""
        return self._fit.data.train.loader if self._fit.data is not None else None

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader, a list of several, or None."""
        loaders = [source.loader for source in self._val_sources]
        return None if not loaders else loaders[0] if len(loaders) == 1 else loaders

    @property
    def test_dataloaders(self) -> Any:
        """The test loader, a list of several, or None; while `test` runs."""
        return self._evaluated_loaders("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The loader of `predict`, a list of several, or None; while it runs."""
        return self._evaluated_loaders("predict")

    def _evaluated_loaders(self, stage: str) -> Any:
        loaders = [source.loader for source in self._sources(stage)]
        return None if not loaders else loaders[0] if len(loaders) == 1 else loaders

    @property
    def limit_train_batches(self) -> int | float | None:
        """As it was set: batches, or the share of an epoch; None for all."""
        return self.limits["train"]

    @property
    def limit_val_batches(self) -> int | float | None:
        """As it was set: batches, or the share of a validation; None for all."""
        return self.limits["validate"]

    @property
    def limit_test_batches(self) -> int | float | None:
        """As it was set: batches, or the share of a test; None for all."""
        return self.limits["test"]

    @property
    def limit_predict_batches(self) -> int | float | None:
        """As it was set: batches, or the share of the data; None for all."""
        return self.limits["predict"]

    @property
    def is_last_batch(self) -> bool:
        """Whether the present training batch is the epoch's last."""
        return self._fit.data is not None and self._fit.data.train.is_last

    @property
    def prefetches_to_device(self) -> bool | None:
        """Whether the next training batch is copied to the device beside the step; None while it is measured."""
        prefetch = self._fit.data.train.prefetch if self._fit.data is not None else None
        return False if prefetch is None else prefetch.is_on

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps that the whole fit will take; infinite where that cannot be known.

        Raises:
            ConfigurationError: it is asked for before the data are there, which they are in `configure_optimizers`.
        """
        if self._fit.data is None and self.model is not None:
            raise ConfigurationError("estimated_stepping_batches is known from configure_optimizers on")
        steps: float = float("inf")
        batches = self.num_training_batches
        if self.max_epochs is not None and self.max_epochs >= 0 and batches != float("inf"):
            steps = sum(-(-int(batches) // self.window_of(epoch)) for epoch in range(self.max_epochs))
        if self.max_steps >= 0:
            steps = min(steps, self.max_steps)
        return steps if steps == float("inf") else int(steps)

    # -- ranks ---------------------------------------------------------------------------------------------------------
    @property
    def num_devices(self) -> int:
        """Devices of this job on this machine: one for each process."""
        return self.ranks.local_size

    @property
    def device_ids(self) -> list[int]:
        """The index of this process's device."""
        return [self.device.index]

    @property
    def num_nodes(self) -> int:
        """Machines of this job."""
        return -(-self.ranks.world_size // self.ranks.local_size)

    @property
    def node_rank(self) -> int:
        """Which of the machines this is."""
        return self.ranks.rank // self.ranks.local_size

    @property
    def received_sigterm(self) -> bool:
        """Whether SIGTERM has come: the step is finished, the state saved, and the process ends with code 75."""
        return self._fit.stopping.signals.received is not None and self._fit.stopping.signals.received.name == "SIGTERM"

    @property
    def global_rank(self) -> int:
        """Which of all processes this is, from 0."""
        return self.ranks.rank

    @property
    def local_rank(self) -> int:
        """Which of the processes on this machine this is, from 0."""
        return self.ranks.local_rank

    @property
    def world_size(self) -> int:
        """How many processes train together."""
        return self.ranks.world_size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.ranks.is_zero

    @property
    def lightning_module(self) -> Any:
        """The module that was fitted or evaluated last; Lightning's name for `model`."""
        return self.model

    # -- how -----------------------------------------------------------------------------------------------------------
    @property
    def _evaluation(self) -> Evaluation | None:
        """The evaluation at work, a fit's own validation included."""
        if not self._running:
            return None
        top = self._running[-1]
        found = top if isinstance(top, Evaluation) else top.evaluation
        return found if found is not None and found.is_at_work else None

    @property
    def _val_sources(self) -> Sequence[BatchSource]:
        return self._fit.data.val if self._fit.data is not None else ()

    def _sources(self, stage: str) -> Sequence[BatchSource]:
        evaluation = self._evaluation
        return evaluation.sources if evaluation is not None and evaluation.stage == stage else ()

    def _first(self, class_name: str) -> Any:
        return next(self._of_class(class_name), None)

    def _all(self, class_name: str) -> list[Any]:
        return list(self._of_class(class_name))

    def _of_class(self, class_name: str) -> Iterator[Any]:
        # By name, so that the engine does not import callbacks/.
        for callback in self.callbacks:
            if any(base.__name__ == class_name for base in type(callback).__mro__):
                yield callback
