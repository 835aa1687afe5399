"""DataModule: all data of a project in one place."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import paddle

from ..errors import CheckpointError, ConfigurationError, ConfigurationTypeError, did_you_mean
from ..hyperparameters import HyperParameters, constructed, keep
from ..machine.paddle_internals import loader_with_workers
from .batch import move_to_device

DataModuleType = TypeVar("DataModuleType", bound="DataModule")


class DataModule:
    """All data of a project in one place: download, split, loaders. Names, order and meaning are Lightning's.

    The least that one writes:

        class Digits(DataModule):
            def setup(self, stage):
                self.train, self.val = split(load())

            def train_dataloader(self):
                return paddle.io.DataLoader(self.train, batch_size=64, shuffle=True)
    """

    trainer: Any = None  # while a Trainer uses it; only the Trainer writes it

    hparams_name: str | None = None
    """The argument that was given to `save_hyperparameters` whole: a dict, Namespace or dataclass."""
    _logs_hparams: bool = True

    @functools.cached_property
    def hparams(self) -> HyperParameters:
        """What `save_hyperparameters` has kept, and what was set since; it is in every checkpoint."""
        return HyperParameters()

    @functools.cached_property
    def hparams_initial(self) -> HyperParameters:
        """As `save_hyperparameters` was given them, whatever `hparams` becomes."""
        return HyperParameters()

    @property
    def hparams_to_log(self) -> dict[str, Any]:
        """What loggers are given, beside the module's; nothing after `save_hyperparameters(logger=False)`."""
        return dict(self.hparams) if self._logs_hparams else {}

    def save_hyperparameters(self, *names: Any, ignore: str | Collection[str] = (), logger: bool = True) -> None:
        """As `Module.save_hyperparameters`: keep the arguments of `__init__` in `self.hparams` and in checkpoints."""
        self.hparams_name = keep(self, inspect.currentframe(), names, ignore)
        self._logs_hparams = self._logs_hparams and logger

    @classmethod
    def from_datasets(
        cls: type[DataModuleType],
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **arguments: Any,
    ) -> DataModuleType:
        """A datamodule of these datasets; `arguments` go to `__init__`.

        Args:
            train_dataset: a dataset, a list or dict of several; shuffled where it has a length.
            val_dataset: a dataset, or a list of several.
            test_dataset: likewise.
            predict_dataset: likewise.
            batch_size: samples in a batch, of each process.
            num_workers: processes that read; 0: this one.

        Raises:
            ConfigurationError, ConfigurationTypeError: no loader can be made of what was given.
        """
        _refuse_unknown(cls, arguments)
        _refuse_sizes(batch_size, num_workers)
        made = cls(**arguments)
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for stage, dataset in given.items():
            if dataset is not None:
                _refuse_no_dataset(f"{stage}_dataset", dataset)
                loader = functools.partial(_loaders, dataset, stage == "train", batch_size, num_workers)
                vars(made)[f"{stage}_dataloader"] = loader
        return made

    @classmethod
    def load_from_checkpoint(
        cls: type[DataModuleType], checkpoint_path: str | Path, *, map_location: Any = None, **arguments: Any
    ) -> DataModuleType:
        """A datamodule built from a checkpoint's hyper-parameters, `arguments` winning over them, with its state.

        `map_location` is accepted for Lightning's sake: nothing of a datamodule is on a device.

        Raises:
            CheckpointNotFoundError, CheckpointCorruptError; CheckpointError: it holds weights alone.
        """
        from ..run.weights import state_at

        saved = state_at(checkpoint_path)
        if saved is None:
            raise CheckpointError(
                f"{checkpoint_path} holds weights alone, no datamodule: pass a checkpoint's directory"
            )
        kept = saved.get("datamodule_hyper_parameters") or {"values": {}, "name": None}
        made = constructed(cls, kept["values"], kept["name"], arguments)
        if saved.get("datamodule"):
            made.load_state_dict(saved["datamodule"])
        return made

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


def _refuse_unknown(cls: type[DataModule], arguments: dict[str, Any]) -> None:
    known = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in arguments:
        if name not in known:
            meant = did_you_mean(name, [*inspect.signature(cls.from_datasets).parameters, *known])
            raise ConfigurationTypeError(f"{cls.__name__}.from_datasets has no argument {name!r}.{meant}")


def _refuse_sizes(batch_size: Any, num_workers: Any) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_int or value < least:
            kind = ConfigurationError if is_int else ConfigurationTypeError
            raise kind(f"from_datasets({name}=...) must be an int >= {least}, got {value!r}")


def _refuse_no_dataset(name: str, given: Any) -> None:
    if isinstance(given, (list, tuple, dict)):
        for one in given.values() if isinstance(given, dict) else given:
            _refuse_no_dataset(name, one)
    elif isinstance(given, (str, bytes)) or not (hasattr(given, "__getitem__") or hasattr(given, "__iter__")):
        raise ConfigurationTypeError(
            f"from_datasets({name}=...) must be a dataset, or a list or dict of them, got {given!r}"
        )


def _loaders(dataset: Any, is_training: bool, batch_size: int, num_workers: int) -> Any:
    if isinstance(dataset, (list, tuple)):
        return [_loaders(one, is_training, batch_size, num_workers) for one in dataset]
    if isinstance(dataset, dict):
        return {name: _loaders(one, is_training, batch_size, num_workers) for name, one in dataset.items()}
    shuffles = is_training and not isinstance(dataset, paddle.io.IterableDataset)
    return loader_with_workers(dataset, batch_size=batch_size, shuffle=shuffles, num_workers=num_workers)


HOOKS = frozenset(name for name, value in vars(DataModule).items() if callable(value) and not name.startswith("_"))
