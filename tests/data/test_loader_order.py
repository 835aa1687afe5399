"""Map-style data: order and augmentation are a function of (seed, epoch, batch), for any sampler and worker count."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from loaders import (
    SEED,
    WORKERS,
    WORKERS_FORKED,
    WORKERS_SPAWNED_TOO,
    Augmented,
    Loader,
    augmented,
    ids,
    plain,
    read,
    source,
)
from paddle.io import BatchSampler, DataLoader, Dataset, DistributedBatchSampler, Sampler, WeightedRandomSampler

from paddlelite_trainer.data.source import BatchSource
from paddlelite_trainer.errors import ConfigurationError, DataError
from paddlelite_trainer.machine.rng import derive_seed, seed_everything

HERE = Path(__file__).parents[1]


class Shuffled(Sampler):
    """A user's sampler that keeps its generator in itself."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.generator_of_mine = np.random.RandomState(3)

    def __iter__(self) -> Iterator[int]:
        return iter(self.generator_of_mine.permutation(self.samples).tolist())

    def __len__(self) -> int:
        return self.samples


class Saveable(Shuffled):
    """The same, with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator_of_mine.get_state(legacy=False)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator_of_mine.set_state(state["state"])


class Endless(Sampler):
    """Random indices for ever, from NumPy's global generator; it has no length."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[int]:
        while True:
            yield int(np.random.randint(self.samples))


class OfEpoch(Sampler):
    """Begins with its epoch's number."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([self.epoch, 8, 9])

    def __len__(self) -> int:
        return 3


def in_batches(sampler: Any, batch_size: int = 3) -> BatchSampler:
    return BatchSampler(sampler=sampler, batch_size=batch_size)


@pytest.fixture(scope="module")
def reference() -> list[Any]:
    batches = source(augmented())
    return [read(batches, epoch) for epoch in range(3)]


def test_an_epoch_is_a_permutation_and_epochs_differ(reference: list[Any]) -> None:
    orders = [[index for batch in epoch for index in batch[0]] for epoch in reference]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_no_two_samples_or_batches_draw_the_same_numbers(reference: list[Any]) -> None:
    for column in range(3):
        drawn = [row[column] for epoch in reference for batch in epoch for row in [*batch[1], batch[2]]]
        assert len(set(drawn)) == 3 * (20 + 7)


@pytest.mark.parametrize("workers", WORKERS_SPAWNED_TOO)
def test_every_start_gives_the_rest_of_the_epoch(workers: dict[str, Any], reference: list[Any]) -> None:
    batches = source(augmented(**workers))
    for epoch in (2, 0, 1):
        for start in range(8):
            assert read(batches, epoch, start) == reference[epoch][start:]
            assert batches.batches_done == 7
    batches.close()


@pytest.mark.parametrize("workers", WORKERS)
def test_a_fresh_process_draws_the_same(workers: dict[str, Any], reference: list[Any]) -> None:
    code = (
        "import json, sys, loaders; from loaders import *\n"
        f"seed_noise = np.random.rand(7); print(json.dumps(read(source(augmented(**{workers})), 1, 2)))"
    )
    env = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "PYTHONHASHSEED": "4"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == reference[1][2:]


@pytest.mark.parametrize("workers", WORKERS)
def test_the_main_process_draws_the_same_whatever_the_workers_do(workers: dict[str, Any]) -> None:
    def numbers(settings: dict[str, Any]) -> list[Any]:
        seed_everything(1)
        batches = source(augmented(**settings))
        drawn = [
            (random.random(), random.gauss(0, 1), np.random.randn(), paddle.rand([1]).item()) for _ in batches.epoch(0)
        ]
        return [*drawn, random.random(), np.random.rand(), paddle.rand([1]).item()]

    assert numbers(workers) == numbers({"num_workers": 0})


@pytest.mark.parametrize("workers", WORKERS)
def test_an_epoch_broken_off_does_not_disturb_the_next(workers: dict[str, Any], reference: list[Any]) -> None:
    batches = source(augmented(**workers))
    for stop_after in range(4):
        for number, _ in enumerate(batches.epoch(0)):
            if number == stop_after:
                break
        assert read(batches, 1) == reference[1]
    batches.close()


def test_the_order_is_what_a_hand_written_loop_draws() -> None:
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    np.random.seed(derive_seed(SEED, "order", 2))
    by_hand = [plain(batch[0]) for batch in loader.batch_sampler for batch in [[np.array(batch)]]]
    assert [plain(batch[0]) for batch in source(loader).epoch(2)] == by_hand


@pytest.mark.parametrize("samples", [1, 7, 8, 9])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_cut_as_paddles_batch_sampler_cuts_them(samples: int, drop_last: bool) -> None:
    loader = DataLoader(Augmented(samples), batch_size=4, drop_last=drop_last)
    by_paddle = list(loader.batch_sampler)
    if by_paddle:
        assert [plain(batch[0]) for batch in source(loader).epoch(0)] == by_paddle
    else:
        with pytest.raises(DataError, match="drop_last=True"):
            source(loader)


def test_another_seed_gives_another_order_and_other_numbers(reference: list[Any]) -> None:
    other = read(source(augmented(), seed=6), 0)
    assert [batch[0] for batch in other] != [batch[0] for batch in reference[0]]
    assert not {row[0] for batch in other for row in batch[1]} & {row[0] for batch in reference[0] for row in batch[1]}


def test_validation_draws_other_numbers_than_training() -> None:
    loader = augmented(shuffle=False)
    train, val = source(loader), source(loader, stage="validate", name="val_dataloader")
    assert read(train, 0)[0][1] != read(val, 0)[0][1]


def test_skipped_batches_are_not_loaded() -> None:
    dataset = Augmented(30_000)
    batches = source(augmented(dataset=dataset))
    assert len(ids(batches, 0, 9_990)) == 30
    assert len(dataset.loaded) == 30


def test_length_last_and_done_tell_the_position() -> None:
    batches = source(augmented())
    assert batches.length == 7
    seen = [(batches.batches_done, batches.is_last) for _ in batches.epoch(0, 4)]
    assert seen == [(5, False), (6, False), (7, True)]


@pytest.mark.parametrize("workers", WORKERS)
def test_last_is_known_with_a_limit(workers: dict[str, Any], reference: list[Any]) -> None:
    batches = source(augmented(**workers), limit=3)
    seen = [(plain(batch), batches.is_last) for batch in batches.epoch(0)]
    assert seen == [(batch, number == 2) for number, batch in enumerate(reference[0][:3])]
    batches.close()


def test_a_position_at_the_end_yields_nothing() -> None:
    assert read(source(augmented()), 0, 7) == []


def test_a_position_beyond_the_end_is_an_error() -> None:
    with pytest.raises(DataError, match="train_dataloader has 7 batches, but 8 of this epoch were done before: it shr"):
        list(source(augmented()).epoch(0, 8))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("sampler", ["weighted", "weighted-list", "subset", "drop-last", "batch-size-none"])
def test_every_start_with_other_samplers(sampler: str, workers: dict[str, Any]) -> None:
    def loader(**settings: Any) -> DataLoader:
        if sampler == "batch-size-none":
            return Loader(Augmented(8), batch_size=None, **settings)
        if sampler == "drop-last":
            return augmented(drop_last=True, **settings)
        inner = {
            "weighted": lambda: WeightedRandomSampler(np.arange(1.0, 21.0), 20),
            "weighted-list": lambda: WeightedRandomSampler([1.0] * 20, 20),
            "subset": lambda: paddle.io.SubsetRandomSampler(list(range(5, 20))),
        }[sampler]()
        return augmented(batch_sampler=in_batches(inner), **settings)

    if sampler == "subset" and not hasattr(paddle.io, "SubsetRandomSampler"):
        pytest.skip("this Paddle has no SubsetRandomSampler")
    whole = source(loader())
    epochs = [read(whole, epoch) for epoch in range(2)]
    assert whole.length == len(epochs[0]) == {"drop-last": 6, "subset": 5, "batch-size-none": 8}.get(sampler, 7)
    batches = source(loader(**workers))
    for start in (0, 1, 4):
        assert read(batches, 1, start) == epochs[1][start:]
    batches.close()


def test_set_epoch_is_called_before_the_order_is_drawn() -> None:
    batches = source(augmented(batch_sampler=in_batches(OfEpoch())))
    assert [ids(batches, epoch) for epoch in (0, 5)] == [[0, 8, 9], [5, 8, 9]]


@pytest.mark.parametrize("sampler_class", [Shuffled, Saveable])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_sampler_that_keeps_its_order_in_itself_goes_on(sampler_class: type[Shuffled], epoch: int) -> None:
    def fresh() -> BatchSource:
        return source(augmented(batch_sampler=in_batches(sampler_class(20))))

    whole = fresh()
    for earlier in range(epoch):
        read(whole, earlier)
    rest, states = [], []
    for batch in whole.epoch(epoch):
        rest.append(plain(batch))
        states.append(whole.state_dict())
    following = read(whole, epoch + 1)
    for start, state in enumerate(states, start=1):
        resumed = fresh()
        resumed.load_state_dict(state)
        assert read(resumed, epoch, start) == rest[start:]
        assert read(resumed, epoch + 1) == following
    at_the_boundary = fresh()
    at_the_boundary.load_state_dict(states[-1])
    assert read(at_the_boundary, epoch + 1) == following


def test_a_sampler_that_somebody_else_iterated_too_is_found_again() -> None:
    sampler = Shuffled(20)
    whole = source(augmented(batch_sampler=in_batches(sampler)))
    read(whole, 0)
    list(sampler)
    expected = read(whole, 1)
    next(iter(whole.epoch(1, 3)))
    resumed = source(augmented(batch_sampler=in_batches(Shuffled(20))))
    resumed.load_state_dict(whole.state_dict())
    assert read(resumed, 1, 4) == expected[4:]


def test_the_same_epoch_again_is_the_same_though_the_sampler_moved_on() -> None:
    batches = source(augmented(batch_sampler=in_batches(Shuffled(20))))
    first = read(batches, 0)
    assert read(batches, 0, 3) == first[3:]


@pytest.mark.parametrize("change", ["batch size", "seed", "dataset", "shuffle"])
def test_a_changed_order_inside_an_epoch_is_refused_and_allowed_at_its_end(change: str) -> None:
    before = source(augmented())
    next(iter(before.epoch(1)))
    state = before.state_dict()

    def after() -> BatchSource:
        settings = {
            "batch size": {"batch_size": 4},
            "dataset": {"dataset": Augmented(22)},
            "shuffle": {"shuffle": False},
        }
        batches = source(augmented(**settings.get(change, {})), seed=6 if change == "seed" else SEED)
        batches.load_state_dict(state)
        return batches

    with pytest.raises(DataError, match="draws another order for epoch 1 than before the checkpoint"):
        read(after(), 1, 1)
    assert read(after(), 2)


@pytest.mark.parametrize("workers", WORKERS)
def test_an_endless_sampler_is_drawn_as_needed(workers: dict[str, Any]) -> None:
    def fresh(**settings: Any) -> BatchSource:
        return source(augmented(batch_sampler=in_batches(Endless(20)), **settings), limit=6)

    reference = read(fresh(), 1)
    assert len(reference) == 6
    batches = fresh(**workers)
    assert batches.length is None
    seen = [(plain(batch), batches.is_last) for batch in batches.epoch(1, 2)]
    assert seen == [(batch, number == 5) for number, batch in enumerate(reference)][2:]
    batches.close()


def test_an_endless_sampler_without_a_limit_goes_on_and_on() -> None:
    batches = source(augmented(batch_sampler=in_batches(Endless(20))))
    iterator = batches.epoch(0)
    assert [batches.is_last for _, _ in zip(range(50), iterator)] == [False] * 50


def test_a_sampler_that_yields_more_than_its_length_warns() -> None:
    class Understated(OfEpoch):
        def __len__(self) -> int:
            return 1

    batches = source(augmented(batch_sampler=in_batches(Understated(), batch_size=1)))
    with pytest.warns(UserWarning, match=r"yields more batches than its len\(\), 1; the rest is not used"):
        assert ids(batches, 0) == [0]


def test_a_sampler_that_yields_less_than_its_length_ends_there() -> None:
    class Overstated(OfEpoch):
        def __len__(self) -> int:
            return 30

    batches = source(augmented(batch_sampler=in_batches(Overstated(), batch_size=1)))
    assert [batches.is_last for _ in batches.epoch(0)] == [False, False, True]


@pytest.mark.parametrize("workers", WORKERS_FORKED)
def test_two_ranks_train_on_every_sample_exactly_once_across_a_resume(workers: dict[str, Any]) -> None:
    for stop in range(4):
        seen: Counter[int] = Counter()
        for rank in range(2):
            before = source(augmented(dataset=Augmented(24), **workers), rank=rank, world_size=2)
            iterator = before.epoch(1)
            for _ in range(stop):
                seen.update(plain(next(iterator)[0]))
            state = before.state_dict()
            before.close()
            after = source(augmented(dataset=Augmented(24), **workers), rank=rank, world_size=2)
            after.load_state_dict(state)
            seen.update(ids(after, 1, stop))
            after.close()
        assert seen == Counter(range(24))


def test_ranks_draw_different_numbers_and_the_batches_of_one_process() -> None:
    whole = read(source(augmented()), 0)
    shares = [read(source(augmented(), rank=rank, world_size=2), 0) for rank in range(2)]
    assert shares[0] == whole[0::2]
    assert shares[1][:3] == whole[1::2]


def test_training_shares_are_equal_by_going_round_again_and_evaluation_repeats_nothing() -> None:
    def share(stage: str, rank: int) -> list[int]:
        loader = augmented(batch_size=1, shuffle=False, dataset=Augmented(5))
        batches = source(loader, stage=stage, rank=rank, world_size=3)
        drawn = ids(batches, 0)
        assert batches.length == len(drawn)
        return drawn

    assert [share("train", rank) for rank in range(3)] == [[0, 3], [1, 4], [2, 0]]
    assert [share("validate", rank) for rank in range(3)] == [[0, 3], [1, 4], [2]]


def test_a_distributed_batch_sampler_is_not_divided_again() -> None:
    shares = []
    for rank in range(2):
        dataset = Augmented(20)
        sampler = DistributedBatchSampler(dataset, 3, num_replicas=2, rank=rank, shuffle=True)
        batches = source(augmented(dataset=dataset, batch_sampler=sampler), rank=rank, world_size=2)
        assert batches.length == 4
        epochs = [ids(batches, epoch) for epoch in range(2)]
        assert epochs[0] != epochs[1]
        assert ids(batches, 0, 2) == epochs[0][6:]
        shares.append(epochs[1])
    assert sorted(shares[0] + shares[1]) == list(range(20))


def test_a_distributed_batch_sampler_of_another_world_is_refused() -> None:
    dataset = Augmented(20)
    sampler = DistributedBatchSampler(dataset, 3, num_replicas=4, rank=1)
    with pytest.raises(ConfigurationError, match="is process 1 of 4, but this is process 1 of 2"):
        source(augmented(dataset=dataset, batch_sampler=sampler), rank=1, world_size=2)


class Mixed(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": np.full([2, 2], index, "float32"),
            "label": index,
            "name": f"sample {index}",
            "nested": [paddle.to_tensor([index]), {"weight": 0.5 * index}],
            "half": paddle.to_tensor([index], dtype="bfloat16"),
        }


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_what_paddles_own_loader_gives(workers: dict[str, Any]) -> None:
    def described(batch: Any) -> Any:
        if isinstance(batch, paddle.Tensor):
            return (
                str(batch.dtype),
                batch.shape,
                batch.astype("float32").tolist(),
                batch.stop_gradient,
                str(batch.place),
            )
        if isinstance(batch, dict):
            return {key: described(item) for key, item in batch.items()}
        if isinstance(batch, (list, tuple)):
            return type(batch).__name__, [described(item) for item in batch]
        return batch

    paddles = [described(batch) for batch in DataLoader(Mixed(), batch_size=2)]
    batches = source(Loader(Mixed(), batch_size=2, **workers))
    assert [described(batch) for batch in batches.epoch(0)] == paddles
    batches.close()


def collate_to_what_paddle_has_not(samples: list[Any]) -> tuple[Any, ...]:
    numbers = np.array(samples)
    return np.array(["a", "b"]), numbers.astype("uint32"), np.zeros([0, 3]), None, {1: ()}, numbers[::-1]


@pytest.mark.parametrize("workers", WORKERS)
def test_what_paddle_has_no_type_for_stays_as_it_is(workers: dict[str, Any]) -> None:
    batches = source(Loader(list(range(24)), batch_size=2, collate_fn=collate_to_what_paddle_has_not, **workers))
    letters, unsigned, nothing, none, nested, reverse = list(batches.epoch(0))[1]
    batches.close()
    assert letters.tolist() == ["a", "b"]
    assert (unsigned.dtype, unsigned.tolist()) == (np.uint32, [2, 3])
    assert (type(nothing), list(nothing.shape)) == (paddle.Tensor, [0, 3])
    assert none is None
    assert nested == {1: []}
    assert reverse.tolist() == [3, 2]


@pytest.mark.parametrize("workers", WORKERS)
def test_an_object_of_the_users_passes_whole(workers: dict[str, Any]) -> None:
    batches = source(Loader(list(range(24)), batch_size=2, collate_fn=Pair, **workers))
    pairs = list(batches.epoch(0))
    batches.close()
    expected = [[first, first + 1] for first in range(0, 24, 2)]
    assert [pair.array.tolist() for pair in pairs] == expected
    assert [pair.tensor.tolist() for pair in pairs] == expected


class Pair:
    def __init__(self, samples: list[int]) -> None:
        self.array = np.array(samples)
        self.tensor = paddle.to_tensor(samples)


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_keep_their_values_while_later_ones_are_fetched(workers: dict[str, Any]) -> None:
    batches = source(Loader([np.full([1000], index) for index in range(40)], batch_size=1, **workers))
    kept = list(batches.epoch(0))
    batches.close()
    assert [int(batch[0, 0]) for batch in kept] == list(range(40))
    assert all(bool((batch == batch[0, 0]).all()) for batch in kept)


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_may_grow_and_shrink_from_one_to_the_next(workers: dict[str, Any]) -> None:
    sizes = [10, 200_000, 3, 0, 70_000, 1]
    batches = source(Loader([np.arange(size) for size in sizes], batch_size=1, **workers))
    assert [batch.tolist() for batch in batches.epoch(0)] == [[list(range(size))] for size in sizes]
    batches.close()
