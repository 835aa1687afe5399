"""Turns sample indices into one collated batch, as Paddle's DataLoader does, with errors that name the sample."""

from __future__ import annotations

import copyreg
import io
import numbers
import pickle
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
import paddle
from paddle.io import DataLoader

from ..errors import add_note
from ..machine.signals import WAITS_FOR_DATA

try:
    from paddle.io.dataloader.collate import default_collate_fn, default_convert_fn
except ImportError:  # moved in some builds; both are re-exported here
    from paddle.io.dataloader.dataloader_iter import default_collate_fn, default_convert_fn

core: Any = paddle.base.core  # its stubs know only what one build has
_DenseTensor = getattr(core, "DenseTensor", None) or core.LoDTensor  # Paddle 2.6 has it under the second name

END: Any = object()  # what a fetcher returns when its dataset has no more samples
CPU = core.CPUPlace()
_ARRAYS, _SHAPE = {np.ndarray}, attrgetter("shape")
_SUPPORTED_KINDS = frozenset("biufc")


class MapFetcher:
    """Fetches by index. `indices` is a list of them, or one index where the loader has `batch_size=None`."""

    def __init__(self, loader: DataLoader) -> None:
        self.dataset = loader.dataset
        self.collate_fn: Callable[[Any], Any] = loader.collate_fn or (
            collate if loader.auto_collate_batch else default_convert_fn
        )
        self.makes_batches = bool(loader.auto_collate_batch)

    def __call__(self, indices: Any) -> Any:
        dataset = self.dataset
        index = indices
        try:
            if self.makes_batches:
                samples = []
                for index in indices:
                    samples.append(dataset[index])
            else:
                samples = dataset[index]
        except Exception as error:
            add_note(error, f"raised by sample {index!r} of {type(dataset).__name__}")
            raise
        try:
            return self.collate_fn(samples)
        except Exception as error:
            add_note(error, f"raised while collating samples {_shortened(indices)} of {type(dataset).__name__}")
            raise


# Only here: what an iterable has begun to yield cannot be taken back.
WAITS_FOR_DATA.add(MapFetcher.__call__.__code__)


class IterableFetcher:
    """Fetches the next samples of an IterableDataset; returns END when there are none."""

    def __init__(self, loader: DataLoader) -> None:
        self.dataset = loader.dataset
        self.batch_size: int | None = loader.batch_size if loader.auto_collate_batch else None
        self.drop_last = bool(loader.drop_last)
        self.collate_fn: Callable[[Any], Any] = loader.collate_fn or (
            collate if loader.auto_collate_batch else default_convert_fn
        )
        self.samples_read = 0
        self.drawn = 0
        """Samples of the batch that was read last."""
        self._iterator = iter(self.dataset)

    def __call__(self, _indices: Any = None) -> Any:
        samples = self.read()
        if samples is END:
            return END
        try:
            return self.collate_fn(samples)
        except Exception as error:
            add_note(error, f"raised while collating {self._where()}")
            raise

    def read(self) -> Any:
        """The next batch's samples, not collated: enough to pass over a batch."""
        try:
            if self.batch_size is None:
                sample = next(self._iterator, END)
                self.samples_read += 1
                return sample
            samples = []
            for sample in islice(self._iterator, self.batch_size):
                samples.append(sample)
                self.samples_read += 1
        except Exception as error:
            add_note(error, f"raised by {self._where()}")
            raise
        if not samples or (self.drop_last and len(samples) < self.batch_size):
            return END
        self.drawn = len(samples)
        return samples

    def _where(self) -> str:
        return f"{type(self.dataset).__name__} after {self.samples_read} samples"


def collate(samples: Sequence[Any]) -> Any:
    """What Paddle's default_collate_fn gives, in half the time where samples are made of arrays of one shape."""
    kind = type(samples[0])
    if kind is np.ndarray:
        return _stack(samples)
    if (kind is tuple or kind is list) and len(set(map(len, samples))) == 1:
        fields = []
        for field in zip(*samples):
            fields.append(_stack(field))
        return fields
    return default_collate_fn(samples)


def _stack(values: Sequence[Any]) -> Any:
    if set(map(type, values)) == _ARRAYS and len(shapes := set(map(_SHAPE, values))) == 1:
        (shape,) = shapes
        if shape:
            return np.concatenate(values).reshape(len(values), *shape)  # np.stack makes a view of each first
    return default_collate_fn(values)


def to_tensors(batch: Any) -> Any:
    """The batch with its arrays as Tensors on the host; tuples become lists, as in Paddle's DataLoader.

    Arrays that Paddle has no dtype for (text, objects, uint32, uint64) stay arrays.
    """
    if isinstance(batch, np.ndarray):
        return to_tensor(batch)
    if isinstance(batch, paddle.Tensor):
        return batch if batch.stop_gradient else batch.detach()
    if isinstance(batch, (str, bytes, numbers.Number)):
        return batch
    if isinstance(batch, Sequence):
        fields = []
        for field in batch:
            fields.append(to_tensors(field))
        return fields
    if isinstance(batch, Mapping):
        return {key: to_tensors(field) for key, field in batch.items()}
    return batch


def to_arrays(batch: Any) -> Any:
    """The batch in a form that can be pickled with its arrays out of band, for the way out of a worker process."""
    if isinstance(batch, paddle.Tensor):
        return batch.numpy()
    if isinstance(batch, (np.ndarray, str, bytes, numbers.Number)):
        return batch
    if isinstance(batch, Sequence):
        return [to_arrays(field) for field in batch]
    if isinstance(batch, Mapping):
        return {key: to_arrays(field) for key, field in batch.items()}
    return batch if batch is None else _Whole(batch)


class _Whole:
    """Pickles an object that we know nothing of by itself, so that its arrays are its own and not views of a slot."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, protocol=5)
        pickler.dispatch_table = {**copyreg.dispatch_table, paddle.Tensor: reduce_tensor}  # type: ignore[attr-defined]
        pickler.dump(self.value)
        return pickle.loads, (stream.getvalue(),)


def reduce_tensor(tensor: Any) -> tuple[Any, ...]:
    """For a pickle of which the Tensor comes out on the host."""
    return to_tensor, (tensor.numpy(),)


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """A Tensor on the host with a copy of the array; the array's copy where Paddle has no such dtype."""
    dtype = array.dtype
    if dtype.kind not in _SUPPORTED_KINDS or (dtype.kind == "u" and dtype.itemsize > 2):
        return array.copy()
    # Copied, never shared: Paddle's own memory is 64-byte aligned, NumPy's is not, and results may depend on it.
    # As Paddle's DataLoader makes its Tensors: a quarter of what the constructor of Tensor takes.
    dense = _DenseTensor()
    dense.set(array, CPU)
    (tensor,) = core.eager.read_next_tensor_list([dense])
    return tensor


def _shortened(indices: Any) -> str:
    text = repr(indices)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(indices)} in all)"
