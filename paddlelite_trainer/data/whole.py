"""Loaders of data that are given as they are: a dataset, arrays, a list of samples, and a batch size."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, ConfigurationTypeError
from ..machine.paddle_internals import loader_with_workers
from .module import DataModule


class Arrays(paddle.io.Dataset):
    """Samples of arrays that have as many rows each; sample i is the tuple of their rows i, of one array its row."""

    def __init__(self, arrays: Sequence[Any], *, is_one: bool) -> None:
        super().__init__()
        self._arrays = [_array(one) for one in arrays]
        self._is_one = is_one

    def __getitem__(self, index: int) -> Any:
        row = tuple(array[index] for array in self._arrays)
        return row[0] if self._is_one else row

    def __len__(self) -> int:
        return len(self._arrays[0])


class Samples(paddle.io.Dataset):
    """A list of samples."""

    def __init__(self, samples: Sequence[Any]) -> None:
        super().__init__()
        self._samples = samples

    def __getitem__(self, index: int) -> Any:
        return self._samples[index]

    def __len__(self) -> int:
        return len(self._samples)


def refuse_sizes(where: str, batch_size: Any, num_workers: Any) -> None:
    """Raise ConfigurationError for sizes that are none."""
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value is not None and (
            not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least
        ):
            raise ConfigurationError(f"{where}({name}=...) must be an int >= {least}, got {value!r}")


def loader_of(
    where: str,
    name: str,
    data: Any,
    batch_size: int | None,
    num_workers: int,
    datamodule: DataModule | None,
    *,
    shuffle: bool = False,
) -> Any:
    """A DataLoader of data that are no loader; without `batch_size` what was given, as it is.

    A dataset, a tuple of arrays or Tensors with as many rows each, one array, a list of samples, or a dict of these.
    `shuffle` holds where the samples can be asked for in any order.

    Raises:
        ConfigurationError, ConfigurationTypeError: it is a loader already, or nothing that has samples.
    """
    refuse_sizes(where, batch_size, num_workers)
    if batch_size is None:
        if num_workers:
            raise ConfigurationError(f"{where}(num_workers={num_workers}) needs batch_size= beside it, and a dataset")
        return data
    if datamodule is not None or isinstance(data, DataModule):
        raise ConfigurationError(
            f"{where}(batch_size={batch_size}) has no effect on a DataModule, which makes its loaders"
        )
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {
            key: loader_of(where, name, one, batch_size, num_workers, None, shuffle=shuffle)
            for key, one in data.items()
        }
    dataset = _dataset(where, name, data, batch_size)
    shuffles = shuffle and not isinstance(dataset, paddle.io.IterableDataset)
    return loader_with_workers(dataset, batch_size=batch_size, shuffle=shuffles, num_workers=num_workers)


def _dataset(where: str, name: str, data: Any, batch_size: int) -> Any:
    if isinstance(data, paddle.io.DataLoader):
        raise ConfigurationError(
            f"{where}({name}=<a DataLoader>, batch_size={batch_size}): a loader has its own batch size; leave one of "
            "the two out"
        )
    if isinstance(data, (np.ndarray, paddle.Tensor)):
        return Arrays([data], is_one=True)
    if isinstance(data, tuple) and data and all(isinstance(one, (np.ndarray, paddle.Tensor)) for one in data):
        rows = [one.shape[0] if len(one.shape) else None for one in data]
        if len(set(rows)) != 1 or rows[0] is None:
            raise ConfigurationError(
                f"{where}({name}=(...)): the arrays must have as many rows each, got shapes "
                f"{', '.join(str(list(one.shape)) for one in data)}"
            )
        return Arrays(data, is_one=False)
    if isinstance(data, list):
        if not data:
            raise ConfigurationError(f"{where}({name}=[]) has no samples")
        return Samples(data)
    if isinstance(data, (paddle.io.Dataset, paddle.io.IterableDataset)) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (str, bytes, tuple))
    ):
        return data
    raise ConfigurationTypeError(
        f"{where}({name}=..., batch_size={batch_size}) takes a paddle.io.Dataset, arrays as (X, Y), or a list of "
        f"samples, got a {type(data).__name__}"
    )


def _array(given: Any) -> Any:
    """A NumPy array, float64 in Paddle's default type."""
    array = given.numpy() if isinstance(given, paddle.Tensor) else given
    return array.astype(paddle.get_default_dtype()) if array.dtype == np.float64 else array
