"""Samplers that keep something over epochs: a resumed run has the undisturbed run's batches, or is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from loaders import augmented, ids, plain, read, source

from paddlelite_trainer.data.source import BatchSource
from paddlelite_trainer.errors import DataError


class Remembers:
    """A batch sampler of 20 samples in batches of 4; without a length where `length` is None."""

    def __init__(self, length: int | None = 5) -> None:
        self.length, self.kept, self.drawn = length, list(range(20)), 0
        self.generator_of_mine = np.random.RandomState(4)
        self.iterated = 0

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("no length")
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        self.iterated += 1
        order = self.order()
        return iter([order[start : start + 4] for start in range(0, 20, 4)])

    def order(self) -> list[int]:
        raise NotImplementedError


class ShufflesAgain(Remembers):
    def order(self) -> list[int]:
        random.Random(len(self.kept)).shuffle(self.kept)
        return list(self.kept)


class Counts(Remembers):
    def order(self) -> list[int]:
        self.drawn += 1
        return random.Random(self.drawn).sample(range(20), 20)


class OwnGenerator(Remembers):
    def order(self) -> list[int]:
        return list(self.generator_of_mine.permutation(20).tolist())


class GoesOn(Remembers):
    """Draws as it is read: the next epoch begins where this one was left."""

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(5):
            self.drawn += 1
            yield random.Random(self.drawn).sample(range(20), 4)


class SetEpochButAddsUp(ShufflesAgain):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self) -> list[int]:
        random.Random(self.epoch).shuffle(self.kept)
        return list(self.kept)


SAMPLERS = [ShufflesAgain, Counts, OwnGenerator, GoesOn, SetEpochButAddsUp]


def over(sampler: Any, **settings: Any) -> BatchSource:
    return source(augmented(batch_sampler=sampler), **settings)


def states_of_three_epochs(batches: BatchSource) -> tuple[list[Any], list[Any]]:
    epochs, states = [], []
    for epoch in range(3):
        seen = []
        for batch in batches.epoch(epoch):
            seen.append(plain(batch))
            states.append((epoch, len(seen), batches.state_dict()))
        epochs.append(seen)
    return epochs, states


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("length", [5, None])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_position_is_gone_back_to_and_the_epochs_after_it_are_the_same(
    kind: type[Remembers], length: int | None, limit: int | None
) -> None:
    epochs, states = states_of_three_epochs(over(kind(length), limit=limit))
    for epoch, done, state in states:
        resumed = over(kind(length), limit=limit)
        resumed.load_state_dict(state)
        if done < len(epochs[epoch]):
            assert read(resumed, epoch, done) == epochs[epoch][done:]
            state = resumed.state_dict()
        for later in range(epoch + 1, 3):
            assert read(resumed, later) == epochs[later]
        if epoch == 0 and done < 3:  # resumed twice
            again = over(kind(length), limit=limit)
            again.load_state_dict(state)
            assert read(again, 1) == epochs[1]


@pytest.mark.parametrize("length", [5, None])
def test_a_sampler_that_had_been_drawn_before_is_refused_at_an_epochs_end(length: int | None) -> None:
    sampler = Counts(length)
    _, states = states_of_three_epochs(over(sampler))
    resumed = over(sampler)
    resumed.load_state_dict(states[4][2])
    with pytest.raises(DataError, match=r"Counts draws another order for epoch 0 than before.*load_state_dict"):
        list(resumed.epoch(1))


@pytest.mark.parametrize("length", [5, None])
def test_going_back_loads_no_data(length: int | None) -> None:
    _, states = states_of_three_epochs(over(OwnGenerator(length)))
    resumed = over(OwnGenerator(length))
    resumed.load_state_dict(states[9][2])
    dataset = resumed.loader.dataset
    dataset.loaded.clear()
    next(iter(resumed.epoch(2)))
    assert len(dataset.loaded) == 4


def test_an_undisturbed_run_draws_once_an_epoch() -> None:
    sampler = OwnGenerator()
    states_of_three_epochs(over(sampler))
    assert sampler.iterated == 3


def test_an_epoch_read_once_more_does_not_ask_the_sampler() -> None:
    sampler = OwnGenerator()
    batches = over(sampler)
    expected = ids(batches, 0)
    again = over(sampler)
    again.go_along_with(batches)
    assert (ids(again, 0), sampler.iterated) == (expected, 1)


def test_an_epoch_left_early_is_left_there_again() -> None:
    def left_early(batches: BatchSource) -> None:
        for batch in batches.epoch(0):
            if batches.batches_done == 2:
                break
            del batch

    undisturbed = over(GoesOn(None))
    left_early(undisturbed)
    state = undisturbed.state_dict()
    expected = read(undisturbed, 1)
    resumed = over(GoesOn(None))
    resumed.load_state_dict(state)
    assert read(resumed, 1) == expected
