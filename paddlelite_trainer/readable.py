"""What people and callbacks read of a Trainer: counters, lengths, callbacks, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError

if TYPE_CHECKING:
    from .callback import Callback
    from .data.source import BatchSource
    from .machine.ranks import Ranks
    from .machine.signals import SignalWatch
    from .progress import Progress
    from .reporting.loggers import Logger


class Readable:
    """Lightning's names for the state of a Trainer, which alone writes it; settable are `should_stop` and `accumulate_grad_batches`."""

    progress: Progress
    ranks: Ranks
    model: Any
    callbacks: list[Callback]
    loggers: list[Logger]
    max_epochs: int | None
    max_steps: int
    state: str | None
    num_sanity_val_steps: int
    signals: SignalWatch
    validating: bool
    testing: bool
    predicting: bool
    _accumulation: dict[int, int]
    _run_path: Path | None
    _stop_reason: str | None
    _stopped_for_good: bool
    _train_source: BatchSource | None
    _val_sources: list[BatchSource]
    _sources_in_use: Sequence[BatchSource]

    @property
    def current_epoch(self) -> int:
        return self.progress.current_epoch

    @property
    def global_step(self) -> int:
        return self.progress.global_step

    @property
    def should_stop(self) -> bool:
        return self._stop_reason is not None

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self._stop_reason, self._stopped_for_good = ("trainer.should_stop was set" if value else None), True

    @property
    def accumulation_schedule(self) -> dict[int, int]:
        """{first epoch: accumulation window from there on}."""
        return dict(self._accumulation)

    def _window_of(self, epoch: int) -> int:
        return self._accumulation[max(first for first in self._accumulation if first <= epoch)]

    @property
    def accumulate_grad_batches(self) -> int:
        """The accumulation window of the running epoch; set it to a number, or to {first epoch: number}."""
        return self._window_of(self.progress.current_epoch)

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int | Mapping[int, int]) -> None:
        self._accumulation = dict(value) if isinstance(value, Mapping) else {0: value}

    @property
    def run_dir(self) -> Path | None:
        """Where this run's checkpoints, logs and curves are; None before fit and where nothing is written."""
        return self._run_path

    @property
    def log_dir(self) -> Path | None:
        return self.run_dir

    @property
    def logger(self) -> Logger | None:
        return self.loggers[0] if self.loggers else None

    @property
    def checkpoint_callback(self) -> Any:
        return self._first("ModelCheckpoint")

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        return self._all("ModelCheckpoint")

    @property
    def early_stopping_callback(self) -> Any:
        return self._first("EarlyStopping")

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        return self._all("EarlyStopping")

    @property
    def progress_bar_callback(self) -> Any:
        return self._first("ProgressBar")

    @property
    def num_training_batches(self) -> int | float:
        length = self._train_source.length if self._train_source is not None else None
        return float("inf") if length is None else length

    @property
    def num_val_batches(self) -> list[int | float]:
        return _lengths(self._sources_in_use if self.validating and self.state == "validate" else self._val_sources)

    @property
    def num_test_batches(self) -> list[int | float]:
        return _lengths(self._sources_in_use if self.testing else ())

    @property
    def num_predict_batches(self) -> list[int | float]:
        return _lengths(self._sources_in_use if self.predicting else ())

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        wanted = self.num_sanity_val_steps
        return [length if wanted < 0 else min(length, wanted) for length in _lengths(self._val_sources)]

    @property
    def train_dataloader(self) -> Any:
        """The training loader that was passed, or that the module or datamodule gave."""
        return self._train_source.loader if self._train_source is not None else None

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader, a list of several, or None."""
        loaders = [source.loader for source in self._val_sources]
        return None if not loaders else loaders[0] if len(loaders) == 1 else loaders

    @property
    def evaluating(self) -> bool:
        return self.validating or self.testing

    @property
    def num_devices(self) -> int:
        """Devices of this job on this machine: one for each process."""
        return self.ranks.local_size

    @property
    def received_sigterm(self) -> bool:
        return self.signals.received is not None and self.signals.received.name == "SIGTERM"

    @property
    def is_last_batch(self) -> bool:
        return self._train_source is not None and self._train_source.is_last

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps that the whole fit will take; infinite where that cannot be known."""
        if self._train_source is None and self.model is not None:
            raise ConfigurationError("estimated_stepping_batches is known from configure_optimizers on")
        steps: float = float("inf")
        if self.max_epochs is not None and self.max_epochs >= 0 and self.num_training_batches != float("inf"):
            steps = 0
            for epoch in range(self.max_epochs):
                window = self._window_of(epoch)
                steps += -(-int(self.num_training_batches) // window)
        if self.max_steps >= 0:
            steps = min(steps, self.max_steps)
        return steps if steps == float("inf") else int(steps)

    @property
    def global_rank(self) -> int:
        return self.ranks.rank

    @property
    def local_rank(self) -> int:
        return self.ranks.local_rank

    @property
    def world_size(self) -> int:
        return self.ranks.world_size

    @property
    def is_global_zero(self) -> bool:
        return self.ranks.is_zero

    @property
    def lightning_module(self) -> Any:
        return self.model

    def _first(self, class_name: str) -> Any:
        return next(iter(self._all(class_name)), None)

    def _all(self, class_name: str) -> list[Any]:
        # By name, so that the engine does not import callbacks/.
        return [
            callback
            for callback in self.callbacks
            if any(base.__name__ == class_name for base in type(callback).__mro__)
        ]


def _lengths(sources: Sequence[BatchSource]) -> list[int | float]:
    return [float("inf") if source.length is None else source.length for source in sources]
