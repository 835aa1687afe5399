"""Batches: what a user's loader yields, with a position to resume from, seeding, sharding and the move to a device."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import numbers
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import paddle
from paddle.io import DataLoader, Dataset, IterableDataset

from .errors import ConfigurationError, ConfigurationTypeError
from .hyperparameters import HyperParameters, arguments_of_init
from .order import Share
from .rng import derive_seed
from .streams import IterableLoaderStream, IterableStream, ListStream, MapStream, Replay, ReplayReport, Stream

if TYPE_CHECKING:
    from .prefetch import Prefetch

Stage = Literal["train", "validate", "test", "predict"]


class DataModule:
    """All data of a project in one place: download, split, loaders. Names, order and meaning are Lightning's.

    >>> class Digits(DataModule):
    ...     def setup(self, stage):
    ...         self.train, self.val = split(load())
    ...     def train_dataloader(self):
    ...         return paddle.io.DataLoader(self.train, batch_size=64, shuffle=True)
    """

    trainer: Any = None  # while a Trainer uses it; only the Trainer writes it

    def save_hyperparameters(self, *names: str, ignore: str | Collection[str] = ()) -> None:
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
        """Take back what `state_dict` returned."""

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


class BatchSource:
    """The batches of one loader, each a function of (seed, epoch, position), so that any position can be gone back to.

    loader: a paddle.io.DataLoader, a list or tuple of batches, or any iterable of batches.
    limit: at most so many batches of an epoch (int), or that fraction of them (float; 1.0 is all).

    With `world_size` W, rank r takes batches r, r+W, ... of a list or of a map-style DataLoader. For "train" the
    shares are made equal by going round again; for the other stages nothing is repeated, so that each sample counts
    once, and ranks may differ by one batch. A DistributedBatchSampler is used as it is. What an IterableDataset or
    another iterable yields is not divided: it must yield this rank's share by itself.

    With a `prefetch` that is on, and a loader whose next batch can be had without running anybody's code earlier than
    without it, batches come on the device; everything else stays the same.

    Only the iterator of `epoch` writes `batches_done` and `is_last`; both are valid while a batch is being handled.
    """

    def __init__(
        self,
        loader: Any,
        *,
        stage: Stage,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        limit: int | float | None = None,
        name: str = "train_dataloader",
        prefetch: Prefetch | None = None,
    ) -> None:
        _check_limit(limit, name)
        share = Share(rank, world_size, wraps=stage == "train")
        if stage != "train":
            seed = derive_seed(seed, name)  # or validation would draw the numbers of the first training epoch
        self._stream = _stream_for(loader, share=share, seed=seed, limit=limit, name=name)
        self._stream.prefetch = prefetch if self._stream.can_look_ahead else None
        self.loader = loader
        self.name = name

    @property
    def prefetch(self) -> Prefetch | None:
        """What copies batches ahead, where this loader's can be."""
        return self._stream.prefetch

    @property
    def length(self) -> int | None:
        """Batches of an epoch for this rank, or None where the loader cannot tell."""
        return self._stream.length

    @property
    def is_last(self) -> bool:
        """Whether the batch being handled is the epoch's last."""
        return self._stream.is_last

    @property
    def batches_done(self) -> int:
        """Batches of this epoch handed out so far, the one being handled included."""
        return self._stream.batches_done

    def epoch(self, epoch: int, start_batch: int = 0, on_replay: Replay | None = None) -> Iterator[Any]:
        """Yield this rank's batches of an epoch from `start_batch` on, as Paddle's DataLoader gives them, on the host.

        Skipped map-style batches are not loaded. Other iterables without a state of their own are read again up to
        `start_batch`; `on_replay(done, total)` is called meanwhile (default: rank 0 prints a line every few seconds).

        Raises:
            DataError: the loader is empty, exhausted, shorter than start_batch, not the one that was resumed from,
                or one of its workers died. What the dataset, sampler or collate_fn raises comes through as it is.
        """
        return self._stream.epoch(epoch, start_batch, on_replay or self._report_replay())

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch being handled, and the loader's own state where it has one."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `epoch` go on from a saved position; it must be asked for with that position."""
        self._stream.load_state_dict(state)

    def close(self) -> None:
        """End worker processes and threads; safe at any time and more than once."""
        self._stream.close()

    def _report_replay(self) -> Replay:
        return ReplayReport(self.name) if self._stream.share.rank == 0 else lambda done, total: None


def move_to_device(batch: Any, place: Any) -> Any:
    """The batch with its Tensors on place; itself, unchanged, if they are there.

    Goes into lists, tuples, namedtuples, mappings and dataclasses, and keeps their types. An object with a method `to`
    is asked to move itself; arrays and other things stay.
    """
    if _is_there(batch, place):
        return batch
    return _moved(batch, place)


def needs_only_copies(batch: Any, place: Any) -> bool:
    """Whether some Tensor of the batch is not on place, and moving it runs no code but Paddle's."""
    return _is_plain(batch) and not _is_there(batch, place)


def nbytes(batch: Any) -> int:
    """Bytes of the Tensors in nested lists, tuples and dicts."""
    if isinstance(batch, paddle.Tensor):
        return int(batch.element_size() * batch.size)
    fields = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return sum(map(nbytes, fields))


def batch_size_of(batch: Any) -> int:
    """The first dimension of the batch's first Tensor or array; 1 if it has none."""
    leaf = _first_leaf(batch)
    if leaf is None or len(leaf.shape) == 0:
        return 1
    return int(leaf.shape[0])


def _stream_for(loader: Any, **settings: Any) -> Stream:
    name = settings["name"]
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        if isinstance(loader.dataset, IterableDataset):
            return IterableLoaderStream(loader, **settings)
        return MapStream(loader, **settings)
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise ConfigurationTypeError(
            f"{name} is a Dataset ({type(loader).__name__}), which yields samples, not batches; "
            "pass paddle.io.DataLoader(dataset, batch_size=...)"
        )
    if isinstance(loader, Sequence) and not isinstance(loader, (str, bytes)):
        if any(isinstance(item, DataLoader) for item in loader):
            raise ConfigurationTypeError(f"{name} is a {type(loader).__name__} of DataLoaders; pass one loader")
        return ListStream(loader, **settings)
    if isinstance(loader, (str, bytes, Mapping, paddle.Tensor, np.ndarray)) or not isinstance(loader, Iterable):
        hint = "; call it" if callable(loader) else ""
        raise ConfigurationTypeError(
            f"{name} must be a paddle.io.DataLoader, a list of batches or another iterable of batches, "
            f"got {type(loader).__name__}{hint}"
        )
    return IterableStream(loader, **settings)


def _check_limit(limit: int | float | None, name: str) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise ConfigurationTypeError(f"the limit of {name} must be an int or a float, got {type(limit).__name__}")
    if limit < 0 or (isinstance(limit, float) and not limit <= 1.0):
        raise ConfigurationError(
            f"the limit of {name} must be an int >= 0 (batches) or a float from 0.0 to 1.0 (a fraction), got {limit}"
        )


def _is_there(batch: Any, place: Any) -> bool:
    if isinstance(batch, paddle.Tensor):
        return _is_on(batch, place)
    if isinstance(batch, (list, tuple)):
        for item in batch:  # noqa: SIM110  a generator would cost more than the check
            if not _is_there(item, place):
                return False
        return True
    if isinstance(batch, Mapping):
        for item in batch.values():  # noqa: SIM110
            if not _is_there(item, place):
                return False
        return True
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return all(_is_there(getattr(batch, field.name), place) for field in dataclasses.fields(batch))
    return not callable(getattr(batch, "to", None))


def _is_plain(batch: Any) -> bool:
    kind = type(batch)
    if kind is list or kind is tuple:
        return all(_is_plain(item) for item in batch)
    if kind is dict:
        return all(_is_plain(item) for item in batch.values())
    return batch is None or isinstance(batch, (paddle.Tensor, np.ndarray, str, bytes, numbers.Number))


def _moved(batch: Any, place: Any) -> Any:
    if isinstance(batch, paddle.Tensor):
        return batch if _is_on(batch, place) else _copied_to(batch, place)
    if isinstance(batch, tuple):
        items = [_moved(item, place) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, list):
        copied = copy.copy(batch)
        copied[:] = [_moved(item, place) for item in batch]
        return copied
    if isinstance(batch, Mapping):
        items_by_key = {key: _moved(item, place) for key, item in batch.items()}
        if not isinstance(batch, dict):
            return type(batch)(items_by_key)  # type: ignore[call-arg]
        copied_dict = copy.copy(batch)  # a defaultdict keeps its factory
        copied_dict.update(items_by_key)
        return copied_dict
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        clone = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(clone, field.name, _moved(getattr(batch, field.name), place))  # frozen ones too
        return clone
    if callable(getattr(batch, "to", None)):
        return batch.to(place)
    return batch


def _is_on(tensor: Any, place: Any) -> bool:
    return bool(tensor.place._equals(place))


def _copied_to(tensor: Any, place: Any) -> Any:
    return tensor._copy_to(place, True)


def _first_leaf(batch: Any) -> Any:
    if isinstance(batch, (paddle.Tensor, np.ndarray)):
        return batch
    items: Iterable[Any]
    if isinstance(batch, (list, tuple)):
        items = batch
    elif isinstance(batch, Mapping):
        items = batch.values()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        items = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    else:
        return None
    for item in items:
        leaf = _first_leaf(item)
        if leaf is not None:
            return leaf
    return None
