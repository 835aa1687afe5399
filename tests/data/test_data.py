"""data.py: lists and iterables as sources, limits, errors that name the remedy, the move to a device, DataModule."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest
from loaders import (
    PROCESSES,
    WORKERS,
    WORKERS_FORKED_OR_KEPT,
    Augmented,
    AugmentedStream,
    Loader,
    StatefulStream,
    noisy_collate,
    plain,
    read,
    source,
)
from paddle.io import DataLoader, IterableDataset, get_worker_info

from paddlelite_trainer.data import batch as data
from paddlelite_trainer.data.batch import move_to_device
from paddlelite_trainer.data.module import DataModule
from paddlelite_trainer.data.source import BatchSource
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError, DataError

CPU = paddle.CPUPlace()
Point = namedtuple("Point", ["x", "y"])


class Reiterable:
    """A user's own loader: batches of numbers, with or without a length."""

    def __init__(self, batches: int, length: int | None = None) -> None:
        self.batches = batches
        if length is not None:
            self.length = length

    def __len__(self) -> int:
        return self.length  # AttributeError without one

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.batches):
            yield [number, float(np.random.rand())]


class StatefulLoader(Reiterable):
    """The same, resumable: it goes on where its state says, once."""

    def __init__(self, batches: int) -> None:
        super().__init__(batches)
        self.next_number = 0
        self.yielded: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        while self.next_number < self.batches:
            self.next_number += 1
            self.yielded.append(self.next_number - 1)
            yield [self.next_number - 1, float(np.random.rand())]
        self.next_number = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": [self.next_number]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_number = state["at"][0]


@dataclasses.dataclass(frozen=True)
class Sample:
    image: Any
    name: str


def moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every Tensor look as if it were elsewhere, and moving add 100."""
    monkeypatch.setattr(data, "is_on", lambda tensor, place: bool((tensor >= 100).all()))
    monkeypatch.setattr(data, "copied_to", lambda tensor, place: tensor + 100)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_a_list_yields_its_very_batches() -> None:
    batches = [(paddle.zeros([2]), "a"), {"x": 1}, object()]
    assert all(one is other for one, other in zip(source(batches).epoch(0), batches))


def test_a_list_knows_its_length_and_its_last_batch_from_every_start() -> None:
    batches = source((10, 11, 12, 13))
    assert batches.length == 4
    for start in range(5):
        seen = [(batch, batches.batches_done, batches.is_last) for batch in batches.epoch(0, start)]
        assert seen == [(10 + number, number + 1, number == 3) for number in range(start, 4)]


def test_a_list_is_divided_among_ranks() -> None:
    shares = [list(source(list(range(5)), rank=rank, world_size=2).epoch(0)) for rank in range(2)]
    assert shares == [[0, 2, 4], [1, 3, 0]]
    shares = [list(source(list(range(5)), rank=rank, world_size=2, stage="test").epoch(0)) for rank in range(2)]
    assert shares == [[0, 2, 4], [1, 3]]


def test_a_list_that_grows_is_read_to_its_new_end() -> None:
    batches = [1, 2]
    grown = source(batches)
    assert list(grown.epoch(0)) == [1, 2]
    batches.append(3)
    assert (grown.length, list(grown.epoch(1))) == (3, [1, 2, 3])


def test_a_list_that_shrank_below_the_position_is_an_error() -> None:
    with pytest.raises(DataError, match=r"train_dataloader has 2 batches, but 3 .* it shrank since the checkpoint"):
        list(source([1, 2]).epoch(0, 3))


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "count"), [(None, 10), (3, 3), (99, 10), (0, 0), (1.0, 10), (0.35, 3), (0.0, 0)])
@pytest.mark.parametrize("kind", ["list", "loader", "iterable"])
def test_a_limit_is_a_count_or_a_fraction(limit: Any, count: int, kind: str) -> None:
    loaders = {
        "list": list(range(10)),
        "loader": DataLoader(Augmented(10), batch_size=1),
        "iterable": Reiterable(10, length=10),
    }
    batches = source(loaders[kind], limit=limit)
    last = [batches.is_last for _ in batches.epoch(0)]
    assert batches.length == len(last) == count
    assert last == [False] * (count - 1) + [True] * (count > 0)


def test_a_limit_on_an_iterable_reads_no_further() -> None:
    class Counted(Reiterable):
        read = 0

        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                self.read += 1
                yield batch

    counted = Counted(10)
    assert len(list(source(counted, limit=3).epoch(0))) == 3
    assert counted.read == 3


@pytest.mark.parametrize(
    "loader", [Reiterable(3), DataLoader(AugmentedStream(), batch_size=2)], ids=["iterable", "IterableDataset"]
)
def test_a_fraction_of_an_unknown_length_is_refused(loader: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"a limit of 0.5 needs the number of batches.* give an int"):
        source(loader, limit=0.5)
    assert list(source(loader, limit=1.0).epoch(0))


def test_a_fraction_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"a limit of 0.01 of train_dataloader's 10 batches leaves none; .* 0.1$"
    ):
        list(source(list(range(10)), limit=0.01).epoch(0))


@pytest.mark.parametrize("limit", [-1, 1.5, -0.1, float("nan")])
def test_a_limit_out_of_range_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="the limit of train_dataloader must be an int >= 0"):
        source([1], limit=limit)


@pytest.mark.parametrize("limit", [True, "3"])
def test_a_limit_of_another_type_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigurationTypeError, match=r"must be an int or a float, got (bool|str)"):
        source([1], limit=limit)


# -- loaders that cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        ([], r"train_dataloader is empty: the list holds no batches"),
        (DataLoader(Augmented(0), batch_size=2), r"is empty: its dataset \(Augmented\) has no samples"),
        (
            DataLoader(Augmented(3), batch_size=4, drop_last=True),
            r"3 samples make no whole batch of 4, and drop_last=True drops the rest\. Lower batch_size",
        ),
        (Reiterable(0, length=0), r"is empty: len\(\) of the Reiterable is 0"),
    ],
    ids=["list", "dataset", "drop_last", "sized"],
)
def test_an_empty_loader_is_an_error_at_once(loader: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        source(loader)
    assert list(source(loader, limit=0).epoch(0)) == []


@pytest.mark.parametrize("settings", WORKERS)
def test_an_iterable_without_batches_is_an_error_when_it_is_read(settings: dict[str, Any]) -> None:
    for loader in (Reiterable(0), Loader(AugmentedStream(0), batch_size=2, **settings)):
        batches = source(loader)
        with pytest.raises(DataError, match=r"train_dataloader is empty: the \w+ yields no batch"):
            list(batches.epoch(0))
        batches.close()


def test_a_generator_is_read_once_and_its_end_is_named_in_the_next_epoch() -> None:
    batches = source(iter([1, 2, 3]))
    assert list(batches.epoch(0)) == [1, 2, 3]
    with pytest.raises(DataError, match=r"exhausted: it yielded nothing in epoch 1\. Pass a list of batches, a paddle"):
        list(batches.epoch(1))


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (3, r"must be a paddle.io.DataLoader, a list of batches or another .*also a list of DataLoaders.*got int"),
        ("abc", "got str"),
        (np.zeros([3, 2]), r"is an array of shape \[3, 2\], and no loader: pass paddle.io.DataLoader\("),
        (lambda: [1], "got function; call it"),
        (Augmented(), r"is a Dataset \(Augmented\), which yields samples, not batches; pass paddle.io.DataLoader\("),
        ([DataLoader(Augmented()), [1]], "is a list of DataLoaders and others"),
    ],
    ids=["int", "str", "array", "function", "dataset", "loaders"],
)
def test_what_is_no_loader_is_refused_by_type(loader: Any, text: str) -> None:
    with pytest.raises(ConfigurationTypeError, match=text):
        source(loader)


# -- iterables ---------------------------------------------------------------------------------------------------------


def test_every_start_of_a_plain_iterable_gives_the_rest_under_the_same_numbers() -> None:
    batches = source(Reiterable(6))
    epochs = [list(batches.epoch(epoch)) for epoch in range(2)]
    assert [batch[0] for batch in epochs[0]] == list(range(6))
    assert len({batch[1] for epoch in epochs for batch in epoch}) == 12
    for start in range(7):
        assert list(batches.epoch(1, start)) == epochs[1][start:]


def test_the_last_batch_of_an_iterable_is_known_while_it_is_handled() -> None:
    for loader in (Reiterable(3), Reiterable(3, length=9), Reiterable(3, length=2)):
        batches = source(loader)
        assert [(batches.batches_done, batches.is_last) for _ in batches.epoch(0)] == [
            (1, False),
            (2, False),
            (3, True),
        ]


@pytest.mark.parametrize("settings", WORKERS_FORKED_OR_KEPT)
def test_every_start_of_an_iterable_dataset_gives_the_rest(settings: dict[str, Any]) -> None:
    batches = source(Loader(AugmentedStream(), batch_size=3, collate_fn=noisy_collate, **settings))
    assert batches.length is None
    whole = [read(batches, epoch) for epoch in range(2)]
    assert len(whole[0]) == (14 if settings["num_workers"] else 7)  # each worker reads its own copy, as in Paddle
    drawn = [row[column] for epoch in whole for batch in epoch for row in [*batch[1], batch[2]] for column in range(3)]
    assert len(set(drawn)) == len(drawn)
    for start in range(len(whole[0]) + 1):
        assert read(batches, 1, start) == whole[1][start:]
    batches.close()


class Shared(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return iter(range(3) if info.id == 0 else range(100, 107))


@pytest.mark.parametrize("settings", PROCESSES)
def test_workers_of_an_iterable_dataset_that_share_it_out_end_unevenly_and_in_a_fixed_order(
    settings: dict[str, Any],
) -> None:
    batches = source(Loader(Shared(), batch_size=1, **settings))
    order = [0, 100, 1, 101, 2, 102, 103, 104, 105, 106]
    for start in (0, 3, 8):
        seen = [(batch.item(), batches.is_last) for batch in batches.epoch(0, start)]
        assert seen == [(number, number == 106) for number in order][start:]
    batches.close()


def test_an_iterable_dataset_is_batched_as_paddle_does() -> None:
    class Arrays(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter(np.arange(16).reshape(8, 2))

    for settings in ({"batch_size": 3}, {"batch_size": 3, "drop_last": True}, {"batch_size": None}):
        paddles = [plain(batch) for batch in DataLoader(Arrays(), **settings)]
        assert read(source(DataLoader(Arrays(), **settings)), 0) == paddles
        assert len(paddles) == {None: 8}.get(settings["batch_size"], 2 if "drop_last" in settings else 3)


def test_reading_again_is_reported() -> None:
    reports: list[tuple[int, int]] = []
    batches = source(DataLoader(AugmentedStream(), batch_size=3))
    list(batches.epoch(0, 4, on_replay=lambda done, total: reports.append((done, total))))
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_reading_again_for_long_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("paddlelite_trainer.data.iterables.time.monotonic", lambda: float(next(clock)))
    list(source(Reiterable(9)).epoch(0, 8))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train_dataloader: reading up to the position of the checkpoint, batch 2 of 8"
    assert len(lines) == 2


def test_an_iterable_that_shrank_is_an_error() -> None:
    for loader in (Reiterable(3), DataLoader(AugmentedStream(9), batch_size=3, num_workers=2)):
        batches = source(loader)
        with pytest.raises(
            DataError, match=r"train_dataloader ended after \d batches of epoch 0, of which 7 were done"
        ):
            list(batches.epoch(0, 7))


@pytest.mark.parametrize(
    "fresh",
    [lambda: StatefulLoader(6), lambda: DataLoader(StatefulStream(12), batch_size=2)],
    ids=["loader", "IterableDataset"],
)
def test_a_loader_with_a_state_goes_on_without_reading_again(fresh: Any) -> None:
    whole = source(fresh())
    states, epochs = [], []
    for epoch in range(2):
        epochs.append([])
        for batch in whole.epoch(epoch):
            epochs[-1].append(plain(batch))
            states.append(json.loads(json.dumps(whole.state_dict())))
    for epoch in range(2):
        for start in range(1, 7):
            loader = fresh()
            resumed = source(loader)
            resumed.load_state_dict(states[6 * epoch + start - 1])
            assert resumed.batches_done == start
            assert read(resumed, epoch, start) == epochs[epoch][start:]
            was_read = loader.dataset.read if isinstance(loader, DataLoader) else loader.yielded
            assert len(was_read) == (6 - start) * (2 if isinstance(loader, DataLoader) else 1)
            assert read(resumed, epoch + 1) == read(whole, epoch + 1)
        at_the_boundary = source(fresh())
        at_the_boundary.load_state_dict(states[6 * epoch + 5])
        assert read(at_the_boundary, epoch + 1) == read(whole, epoch + 1)


def test_the_state_of_every_source_is_plain() -> None:
    for loader in ([1, 2], DataLoader(Augmented()), Reiterable(2), StatefulLoader(2), DataLoader(AugmentedStream())):
        batches = source(loader)
        next(iter(batches.epoch(3)))
        state = json.loads(json.dumps(batches.state_dict()))
        assert (state["epoch"], state["batches_done"]) == (3, 1)
        again = source(loader)
        again.load_state_dict(state)
        assert again.batches_done == 1


def test_a_state_of_another_kind_of_loader_does_not_stand_in_the_way() -> None:
    batches = source([1, 2, 3])
    next(iter(batches.epoch(0)))
    for loader in (DataLoader(Augmented(3)), Reiterable(3)):
        resumed = source(loader)
        resumed.load_state_dict(batches.state_dict())
        assert len(list(resumed.epoch(0, 1))) == 2


def test_a_subclass_that_iterates_in_its_own_way_is_left_to_it() -> None:
    class Doubling(DataLoader):
        def __iter__(self) -> Iterator[Any]:
            return iter([2, 4])

    assert list(source(Doubling(Augmented())).epoch(0)) == [2, 4]


# -- device ------------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_there_is_returned_as_it_is() -> None:
    tensor = paddle.zeros([2])
    for batch in (tensor, [tensor, "a"], (tensor,), {"x": [tensor]}, Point(tensor, 1), Sample(tensor, "n"), "text", 3):
        assert move_to_device(batch, CPU) is batch


def test_every_nesting_is_moved_and_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    moves(monkeypatch)
    tensor, array = paddle.zeros([2]), np.zeros(2)
    named = defaultdict(list, x=tensor)
    moved = move_to_device([tensor, (tensor, "a"), Point(tensor, array), Sample({"i": tensor}, "n"), named, None], CPU)
    assert plain(moved[0]) == [100, 100]
    assert (type(moved[1]), plain(moved[1])) == (tuple, [[100, 100], "a"])
    assert (type(moved[2]), plain(moved[2].x), moved[2].y is array) == (Point, [100, 100], True)
    assert (type(moved[3]), plain(moved[3].image), moved[3].name) == (Sample, {"i": [100, 100]}, "n")
    assert (type(moved[4]), plain(moved[4]["x"]), moved[4]["new"]) == (defaultdict, [100, 100], [])
    assert moved[5] is None
    assert plain(tensor) == [0, 0]
    assert plain(move_to_device(OrderedDict(a=tensor), CPU)["a"]) == [100, 100]


def test_what_is_there_already_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    moves(monkeypatch)
    there = paddle.full([2], 100)
    moved = move_to_device({"there": there, "not": paddle.zeros([2])}, CPU)
    assert moved["there"] is there
    assert plain(moved["not"]) == [100, 100]


def test_an_object_that_moves_itself_is_asked_to() -> None:
    class Graph:
        def to(self, place: Any) -> str:
            return f"on {place}"

    assert move_to_device([Graph()], CPU) == ["on Place(cpu)"]


# -- DataModule --------------------------------------------------------------------------------------------------------


def test_a_data_module_has_lightnings_hooks_and_asks_for_nothing() -> None:
    module = DataModule()
    module.prepare_data()
    module.setup("fit")
    module.teardown("fit")
    assert module.trainer is None
    assert [module.train_dataloader(), module.val_dataloader(), module.test_dataloader()] == [None] * 3
    assert module.predict_dataloader() is None
    assert module.state_dict() == {}
    module.load_state_dict({})
    batch = [paddle.zeros([1])]
    assert module.on_before_batch_transfer(batch, 0) is batch
    assert module.transfer_batch_to_device(batch, CPU, 0) is batch
    assert module.on_after_batch_transfer(batch, 0) is batch


def test_a_data_module_whose_init_forgets_super_still_works() -> None:
    class Forgetful(DataModule):
        def __init__(self) -> None:
            self.batch_size = 3

    assert Forgetful().trainer is None


def test_a_source_keeps_the_loader_that_it_was_given() -> None:
    loader = [1]
    batches = BatchSource(loader, stage="train", seed=0)
    assert batches.loader is loader
    assert batches.name == "train_dataloader"
