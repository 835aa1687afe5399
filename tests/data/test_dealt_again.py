"""An epoch that one number of ranks begins and others go on with: every batch once, in the order of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from loaders import Augmented, AugmentedStream, augmented, noisy_collate, plain, source
from paddle.io import BatchSampler, DataLoader, DistributedBatchSampler, RandomSampler

from paddlelite_trainer.data.combined import CombinedLoader
from paddlelite_trainer.errors import DataError

EPOCH = 3
Make = Callable[[int, int], Any]
"""A loader, for a rank of so many."""


class WithoutLength(BatchSampler):
    """Random batches whose number nobody knows beforehand."""

    def __init__(self, samples: int) -> None:
        self.of = BatchSampler(sampler=RandomSampler(range(samples)), batch_size=3)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.of

    def __len__(self) -> int:
        raise TypeError("no length")


def shuffled(rank: int, ranks: int) -> Any:
    return augmented(dataset=Augmented(23), batch_size=2)


def distributed(rank: int, ranks: int) -> Any:
    dataset = Augmented(23)
    sampler = DistributedBatchSampler(dataset, 3, num_replicas=ranks, rank=rank, shuffle=True)
    return augmented(dataset=dataset, batch_sampler=sampler)


LOADERS: dict[str, Make] = {
    "a list": lambda rank, ranks: [[[number]] for number in range(11)],
    "shuffled": shuffled,
    "by workers": lambda rank, ranks: augmented(dataset=Augmented(23), batch_size=2, num_workers=2),
    "a sampler without length": lambda rank, ranks: augmented(dataset=Augmented(23), batch_sampler=WithoutLength(23)),
    "two loaders": lambda rank, ranks: CombinedLoader({"short": shuffled(rank, ranks), "long": list(range(14))}),
}


class Job:
    """So many ranks read an epoch, as far as they are asked to, and their states are kept."""

    def __init__(self, make: Make, ranks: int, states: Sequence[Any] = (), before: int = 0, **settings: Any) -> None:
        self.sources = [source(make(rank, ranks), rank=rank, world_size=ranks, **settings) for rank in range(ranks)]
        self.start = 0
        for rank, one in enumerate(self.sources):
            if before == ranks:
                one.load_state_dict(states[rank])
            elif before:
                assert one.why_not_dealt_again(states[0], before) is None
                one.load_state_dict(one.dealt_again(states[0], before))
            self.start = one.batches_done

    def read(self, rows: int | None) -> list[Any]:
        """The next batches in global order."""
        iterators = [one.epoch(EPOCH, self.start) for one in self.sources]
        found: list[Any] = []
        while rows is None or rows > 0:
            read = [next(iterator, None) for iterator in iterators]
            row = [plain(batch) for batch in read if batch is not None]
            if not row:
                break
            found += row
            rows = None if rows is None else rows - 1
        assert rows is not None or not found or all(one.is_last for one in self.sources)
        assert len({one.length for one in self.sources}) == 1
        return found

    def end(self) -> list[Any]:
        states = [one.state_dict() for one in self.sources]
        for one in self.sources:
            one.close()
        return states


def in_turn(make: Make, turns: Sequence[tuple[int, int | None]], **settings: Any) -> list[Any]:
    """What jobs of so many ranks read, one after the other, of one epoch: (ranks, rows; None is the rest)."""
    found: list[Any] = []
    states: list[Any] = []
    before = 0
    for ranks, rows in turns:
        job = Job(make, ranks, states, before, **settings)
        found += job.read(rows)
        states, before = job.end(), ranks
    return found


def whole(make: Make, **settings: Any) -> list[Any]:
    return in_turn(make, [(1, None)], **settings)


TURNS = [
    *([(2, rows), (4, None)] for rows in range(7)),
    *([(4, rows), (2, None)] for rows in range(4)),
    *([(2, rows), (1, None)] for rows in range(7)),
    *([(1, rows), (3, None)] for rows in range(12)),
    [(2, 1), (4, 1), (1, 2), (2, None)],
    [(2, 1), (3, 1), (3, 1), (2, None)],
]


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if kind != "by workers"])
def test_an_epoch_has_every_batch_once_whatever_numbers_of_ranks_read_it(kind: str) -> None:
    expected = whole(LOADERS[kind])
    for turns in TURNS:
        found = in_turn(LOADERS[kind], turns)
        assert found[: len(expected)] == expected, turns
        assert len(found) < len(expected) + max(ranks for ranks, _ in turns), turns  # equal shares go round


def test_workers_fetch_the_same() -> None:
    expected = whole(shuffled)
    assert in_turn(LOADERS["by workers"], [(2, 2), (3, 1), (1, None)]) == expected


@pytest.mark.parametrize("limit", [5, 0.5])
def test_a_limit_of_batches_ends_the_epoch_where_it_would_have_ended(limit: int | float) -> None:
    expected = in_turn(shuffled, [(2, None)], limit=limit)
    for ranks in (1, 4, 3):
        for rows in range(1, len(expected) // 2 + 1):
            found = in_turn(shuffled, [(2, rows), (ranks, None)], limit=limit)
            assert found[: len(expected)] == expected
            assert len(found) < len(expected) + ranks


def test_a_distributed_batch_sampler_keeps_the_order_of_those_who_began_the_epoch() -> None:
    for began in (1, 2, 4):
        expected = in_turn(distributed, [(began, None)])
        for ranks in (1, 2, 3, 4):
            for rows in range(1, len(expected) // began + 1):
                found = in_turn(distributed, [(began, rows), (ranks, None)])
                assert found[: len(expected)] == expected, (began, ranks, rows)
                assert len(found) < len(expected) + ranks


def test_the_epoch_after_is_dealt_out_from_its_start() -> None:
    for make in (shuffled, distributed):
        job = Job(make, 2)
        job.read(1)
        job = Job(make, 3, job.end(), 2)
        job.read(None)
        expected = Job(make, 3)
        for one, other in zip(job.sources, expected.sources):
            one.begin_whole()
            assert one.length == other.length
            assert [plain(batch) for batch in one.epoch(EPOCH + 1)] == [plain(b) for b in other.epoch(EPOCH + 1)]


def test_what_is_read_in_order_and_samplers_of_users_own_are_not_dealt_again() -> None:
    class OwnWay(DistributedBatchSampler):
        pass

    def own_way(rank: int, ranks: int) -> Any:
        dataset = Augmented(12)
        return augmented(dataset=dataset, batch_sampler=OwnWay(dataset, 3, num_replicas=ranks, rank=rank))

    def words(make: Make) -> str | None:
        job = Job(make, 2)
        job.read(1)
        return source(make(0, 4), rank=0, world_size=4).why_not_dealt_again(job.end()[0], 2)

    stream = DataLoader(AugmentedStream(), batch_size=2, collate_fn=noisy_collate)
    assert "is read in order, by each rank for itself" in (words(lambda rank, ranks: stream) or "")
    assert "OwnWay divides the samples among processes by itself" in (words(own_way) or "")
    cycle = CombinedLoader([[1, 2, 3], [4]], mode="max_size_cycle")
    assert "begins its shorter loaders anew" in (words(lambda rank, ranks: cycle) or "")


def test_another_order_is_an_error_for_other_ranks_too() -> None:
    for make in (shuffled, distributed):
        job = Job(make, 2)
        job.read(1)
        states = job.end()
        other = augmented(dataset=Augmented(23), batch_size=2, shuffle=False)
        if make is distributed:
            dataset = Augmented(21)
            other = augmented(
                dataset=dataset,
                batch_sampler=DistributedBatchSampler(dataset, 3, num_replicas=4, rank=0, shuffle=True),
            )
        one = source(other, rank=0, world_size=4)
        one.load_state_dict(one.dealt_again(states[0], 2))
        with pytest.raises(DataError, match="draws another order for epoch 3"):
            next(one.epoch(EPOCH, one.batches_done))
