"""The index batches of an epoch, cut from one array of indices, or dealt out to ranks, as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from paddle.io import BatchSampler, RandomSampler, SequenceSampler

from ..machine.paddle_internals import is_plain_sampler

_BLOCK = 256  # batches that are made at a time


class IndexBatches(Sequence[Any]):
    """Lists of ints, of `batch_size` indices each; eight bytes a sample where a list of lists takes fifty.

    `indices` is an array of ints or a range.
    """

    def __init__(self, indices: Any, batch_size: int, drop_last: bool) -> None:
        self.indices, self.batch_size, self.drop_last = indices, batch_size, drop_last

    def __len__(self) -> int:
        count = len(self.indices)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            start, stop, step = position.indices(len(self))
            if step != 1:
                return [self[number] for number in range(start, stop, step)]
            part = self.indices[start * self.batch_size : max(start, stop) * self.batch_size]
            return IndexBatches(part, self.batch_size, self.drop_last)
        start = int(range(len(self))[position]) * self.batch_size
        batch = self.indices[start : start + self.batch_size]
        return batch.tolist() if isinstance(batch, np.ndarray) else list(batch)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._blocks())  # no call of ours for a batch

    def _blocks(self) -> Iterator[list[list[int]]]:
        size, end = self.batch_size, len(self) * self.batch_size
        for first in range(0, end, _BLOCK * size):
            indices = self.indices[first : min(first + _BLOCK * size, end)]
            plain = indices.tolist() if isinstance(indices, np.ndarray) else list(indices)
            yield [plain[start : start + size] for start in range(0, len(plain), size)]


class Dealt(Sequence[Any]):
    """One rank's batches of all ranks', by their positions among them, which go round after `end` of them."""

    def __init__(self, batches: Sequence[Any], length: int, position: Callable[[int], int], end: int) -> None:
        self.batches, self.length, self.position, self.end = batches, length, position, end

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self.length))]
        return self.batches[self.position(range(self.length)[number]) % self.end]


def drawn_at_once(sampler: Any) -> IndexBatches | None:
    """What Paddle's own samplers would yield index by index, and the same use of NumPy's random numbers; else None.

    RandomSampler draws `np.random.choice(np.arange(n), n, replace=False)`, which is `np.random.permutation(n)`
    (paddle/io/dataloader/sampler.py, the same in 2.6 and 3.3).
    """
    if type(sampler) is not BatchSampler or not is_plain_sampler(sampler):
        return None
    inner = sampler.sampler
    if type(inner) is SequenceSampler:
        indices: Any = range(len(inner.data_source))
    elif type(inner) is RandomSampler and inner.generator is None and not inner.replacement:
        count = len(inner.data_source)
        if inner.num_samples != count:
            return None
        indices = np.random.permutation(count)
    else:
        return None
    return IndexBatches(indices, int(sampler.batch_size), bool(sampler.drop_last))
