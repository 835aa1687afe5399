"""Batches and random states, on the fake accelerator."""

from __future__ import annotations

from typing import Any

import fake_gpu
import numpy as np
import paddle
import pytest
from loaders import AugmentedStream, StatefulStream, augmented, noisy_collate, plain, read, source
from paddle.io import DataLoader, Dataset

from paddlelite_trainer.data.batch import move_to_device
from paddlelite_trainer.machine import rng
from paddlelite_trainer.machine.device import resolve_device


class Tensors(Dataset):
    """Makes its samples with Paddle, on whatever device is current."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return paddle.full([2], index, dtype="float32") + paddle.rand([2])


@pytest.fixture(autouse=True)
def on_the_accelerator() -> None:
    resolve_device("fake_gpu").activate()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_made_on_the_host_with_the_same_numbers(workers: int) -> None:
    paddle.set_device("cpu")
    expected = read(source(DataLoader(Tensors(), batch_size=2)), 0)
    resolve_device("fake_gpu").activate()
    batches = list(source(DataLoader(Tensors(), batch_size=2, num_workers=workers)).epoch(0))
    assert all(batch.place.is_cpu_place() for batch in batches)
    assert [plain(batch) for batch in batches] == expected
    assert paddle.zeros([1]).place.is_custom_place()


class OnTheDevice(Dataset):
    """Holds a Tensor of the accelerator, and tells where it finds it and what this process has asked of the device."""

    def __init__(self) -> None:
        self.held = paddle.arange(8, dtype="float32")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        asked = fake_gpu.memory_used() + fake_gpu.host_to_device_copies() + fake_gpu.device_to_host_copies()
        return self.held[index] + paddle.zeros([1])[0], int(self.held.place.is_cpu_place()), asked


def test_a_spawned_worker_finds_a_held_tensor_on_the_host_and_leaves_the_accelerator_alone() -> None:
    dataset = OnTheDevice()
    assert dataset.held.place.is_custom_place()
    batches = source(DataLoader(dataset, batch_size=4, num_workers=1), multiprocessing_context="spawn")
    held, on_host, asked = (np.concatenate(field) for field in zip(*read(batches, 0)))
    assert plain(held) == list(range(8))
    assert plain(on_host) == [1] * 8
    assert plain(asked) == [0] * 8
    assert dataset.held.place.is_custom_place()


def test_streams_are_read_on_the_host_too() -> None:
    batches = list(source(DataLoader(AugmentedStream(4), batch_size=2, collate_fn=noisy_collate)).epoch(0))
    assert all(field.place.is_cpu_place() for batch in batches for field in batch)
    assert len(list(source(DataLoader(StatefulStream(4), batch_size=2)).epoch(0))) == 2


def test_the_place_is_put_back_after_an_error() -> None:
    class Bad(Tensors):
        def __getitem__(self, index: int) -> Any:
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        list(source(DataLoader(Bad(), batch_size=2)).epoch(0))
    assert paddle.zeros([1]).place.is_custom_place()


def test_a_batch_is_moved_to_the_device_and_only_once() -> None:
    place = resolve_device("fake_gpu").place
    batch = next(iter(source(augmented()).epoch(0)))
    moved = move_to_device({"batch": batch, "name": "a", "array": np.zeros(2)}, place)
    assert all(field.place.is_custom_place() for field in moved["batch"])
    assert plain(moved["batch"]) == plain(batch)
    assert move_to_device(moved, place) is moved
    copies = fake_gpu.device_to_host_copies()
    move_to_device(moved, place)
    assert fake_gpu.device_to_host_copies() == copies
    back = move_to_device(moved, paddle.CPUPlace())
    assert plain(back["batch"]) == plain(batch)


def test_every_devices_generator_is_saved_and_restored() -> None:
    rng.seed_everything(3)
    assert {"cpu", "fake_gpu:0", "fake_gpu:3"} <= set(rng.random_states()["paddle"])
    states = rng.random_states()
    rng.seed_everything(4)
    assert rng.random_states()["paddle"]["fake_gpu:3"] != states["paddle"]["fake_gpu:3"]
    rng.set_random_states(states)
    assert rng.random_states()["paddle"]["fake_gpu:3"] == states["paddle"]["fake_gpu:3"]


def test_a_rank_that_has_another_device_of_the_same_kind_goes_on_with_its_own_numbers() -> None:
    try:
        paddle.set_device("fake_gpu:3")
        paddle.seed(1)
        paddle.rand([3])
        state = rng.random_states()
        expected = paddle.rand([3]).numpy().tolist()
        paddle.set_device("fake_gpu:0")
        paddle.seed(2)
        rng.set_random_states(state)
        assert rng.random_states()["paddle"]["fake_gpu:0"] == state["paddle"]["fake_gpu:3"]
        if not paddle.__version__.startswith("2."):  # there this device draws from the CPU's generator
            assert paddle.rand([3]).numpy().tolist() == expected
    finally:
        paddle.set_device("cpu")
