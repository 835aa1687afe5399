"""DataModule: all data of a project in one place."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from ..hyperparameters import HyperParameters, arguments_of_init
from .batch import move_to_device


class DataModule:
    """All data of a project in one place: download, split, loaders. Names, order and meaning are Lightning's.

    >>> class Digits(DataModule):
    ...     def setup(self, stage):
    ...         self.train, self.val = split(load())
    ...     def train_dataloader(self):
    ...         return paddle.io.DataLoader(self.train, batch_size=64, shuffle=True)
    """

    trainer: Any = None  # while a Trainer uses it; only the Trainer writes it

    def save_hyperparameters(self, *names: Any, ignore: str | Collection[str] = ()) -> None:
        """Keep the arguments of `__init__`, all or those named, in `self.hparams`."""
        self.hparams = HyperParameters(arguments_of_init(self, inspect.currentframe(), names, ignore))

    def prepare_data(self) -> None:
        """Download or write to disk; called on one process only, so assign nothing to self here."""

    def setup(self, stage: str) -> None:
        """Build datasets; called on every process, with stage "fit", "validate", "test" or "predict"."""

    def train_dataloader(self) -> Any:
        """The loader for fit, or None."""

    def val_dataloader(self) -> Any:
        """The loader (or list of loaders) for validation, or None."""

    def test_dataloader(self) -> Any:
        """The loader (or list of loaders) for test, or None."""

    def predict_dataloader(self) -> Any:
        """The loader (or list of loaders) for predict, or None."""

    def teardown(self, stage: str) -> None:
        """Clean up; called on every process at the end of the stage."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this object."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; called after `setup` and before loaders are asked for."""

    def on_exception(self, exception: BaseException) -> None:
        """Called when anything was raised in a run that uses this object, before `teardown`."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch while it is on the host."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Move a batch to the device; override for types that `move_to_device` does not know."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch when it is on the device."""
        return batch


HOOKS = frozenset(name for name, value in vars(DataModule).items() if callable(value) and not name.startswith("_"))
