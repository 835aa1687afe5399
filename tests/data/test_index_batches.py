"""The order of a large dataset is one array, and the same order as Paddle's samplers give index by index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from paddle.io import BatchSampler, DataLoader, Dataset, RandomSampler, SequenceSampler

from paddlelite_trainer.data.index_batches import Dealt, IndexBatches, drawn_at_once
from paddlelite_trainer.data.order import Order
from paddlelite_trainer.data.share import Share


class Numbered(Dataset):  # type: ignore[misc]
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (7, 3), (9, 3), (2, 5), (1000, 7)])
def test_the_batches_and_the_random_numbers_used_are_paddle_s(
    count: int, batch_size: int, shuffle: bool, drop_last: bool
) -> None:
    sampler = BatchSampler(Numbered(count), shuffle=shuffle, batch_size=batch_size, drop_last=drop_last)
    np.random.seed(5)
    expected, after = list(sampler), np.random.rand()
    np.random.seed(5)
    drawn = drawn_at_once(sampler)
    assert drawn is not None
    assert (list(drawn), np.random.rand()) == (expected, after)
    assert len(drawn) == len(expected)
    assert all(type(index) is int for batch in drawn for index in batch)
    assert list(drawn[1:]) == expected[1:]
    assert drawn[::2] == expected[::2]
    assert [drawn[-1]] == expected[-1:] if expected else not len(drawn)


class Mine(RandomSampler):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    "inner",
    [
        RandomSampler(Numbered(9), replacement=True),
        RandomSampler(Numbered(9), generator=iter(range(9))),
        Mine(Numbered(9)),
    ],
)
def test_what_is_not_known_is_asked_index_by_index(inner: Any) -> None:
    assert drawn_at_once(BatchSampler(sampler=inner, batch_size=2)) is None


def test_a_batch_sampler_of_a_class_of_its_own_is_asked_too() -> None:
    class Own(BatchSampler):  # type: ignore[misc]
        pass

    assert drawn_at_once(Own(sampler=SequenceSampler(Numbered(4)), batch_size=2)) is None


def test_a_rank_s_share_is_cut_when_it_is_asked_for() -> None:
    batches = IndexBatches(range(10), 2, drop_last=False)
    share = Share(rank=1, world_size=2, wraps=True).of(batches)
    assert isinstance(share, Dealt)
    assert list(share) == [[2, 3], [6, 7], [0, 1]]
    assert share[1:] == [[6, 7], [0, 1]]


def test_an_order_of_ten_million_samples_is_eighty_megabytes_at_most() -> None:
    loader = DataLoader(Numbered(10_000_000), batch_size=64, shuffle=True)
    order = Order(loader, share=Share(0, 1, wraps=True), seed=1, name="train_dataloader")
    batches = order.of_epoch(0, 100)
    assert isinstance(batches, IndexBatches)
    assert batches.indices.nbytes == 80_000_000
    assert isinstance(batches[100:], IndexBatches)
