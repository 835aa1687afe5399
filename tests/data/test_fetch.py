"""One batch out of its samples: the same as Paddle's own functions make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle.io.dataloader.collate import default_collate_fn

from paddlelite_trainer.data.fetch import collate, to_tensors

RANDOM = np.random.RandomState(0)
ARRAYS = {
    "vectors": [RANDOM.randn(5).astype("float32") for _ in range(3)],
    "images": [RANDOM.randn(2, 3, 4) for _ in range(3)],
    "without items": [np.zeros((0, 3), "float32")] * 3,
    "without dimensions": [np.array(number) for number in range(3)],
    "columns first": [np.asfortranarray(RANDOM.randn(3, 4)) for _ in range(3)],
    "views with steps": [RANDOM.randn(6, 4)[::2, ::-1] for _ in range(3)],
    "of several types": [np.arange(3, dtype="int32"), np.arange(3, dtype="float16"), np.arange(3, dtype="int64")],
    "texts": [np.array(["a", "bc"]), np.array(["def", "g"])],
    "objects": [np.array([None, 1], dtype=object)] * 2,
    "masked": [np.ma.masked_array(np.arange(3), mask=[0, 1, 0])] * 2,
    "a number among them": [np.arange(1.0), 2.0],
}
SAMPLES = {
    **ARRAYS,
    **{f"{name} in tuples": [(value, index) for index, value in enumerate(values)] for name, values in ARRAYS.items()},
    **{f"{name} in dicts": [{"x": value, "y": 1.0} for value in values] for name, values in ARRAYS.items()},
    "numbers": [1, 2.5, True],
    "strings": ["a", "b"],
    "tensors": [(paddle.ones([2]), [np.float32(1), b"x"]), (paddle.zeros([2]), [np.float32(2), b"y"])],
    "nested": [(np.arange(2), [np.arange(3), {"z": np.arange(4)}])] * 2,
    "one sample": [(np.arange(3), 1)],
}


def spelled_out(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value), [spelled_out(item) for item in value]
    if isinstance(value, dict):
        return {key: spelled_out(item) for key, item in value.items()}
    if isinstance(value, paddle.Tensor):
        return "tensor", str(value.dtype), value.shape, value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype == object else value.tobytes()
        return type(value), str(value.dtype), value.shape, content
    return value


def collated(function: Any, samples: list[Any]) -> Any:
    try:
        return spelled_out(function(samples))
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_samples_are_collated_as_paddle_does(samples: list[Any]) -> None:
    assert collated(collate, samples) == collated(default_collate_fn, samples)


@pytest.mark.parametrize(
    "samples",
    [
        [np.zeros(3), np.zeros(4)],
        [np.zeros((2, 3)), np.zeros((3, 2))],
        [(np.zeros((2, 3)), 0), (np.zeros((4, 3)), 0), (np.zeros((0, 3)), 0)],
        [(1, 2), (1,)],
        [(np.zeros(3),), 5],
        [object()],
    ],
    ids=["lengths", "shapes of one size", "one dimension differs", "fields", "no tuple", "object"],
)
def test_samples_that_do_not_fit_together_are_the_error_that_paddle_gives(samples: list[Any]) -> None:
    kind, _ = expected = collated(default_collate_fn, samples)
    assert issubclass(kind, Exception)
    assert collated(collate, samples) == expected


TYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_are_what_paddle_makes_of_the_array(dtype: str) -> None:
    table = RANDOM.randint(0, 2, (4, 6)).astype(dtype)
    for array in (
        table,
        table.T,
        table[::2, ::-1],
        table[:0],
        table[0, 0:1].reshape(()),
        np.broadcast_to(table[0], (3, 6)),
    ):
        tensor, expected = to_tensors(array), paddle.to_tensor(array, place=paddle.CPUPlace())
        assert spelled_out(tensor) == spelled_out(expected)
        assert (tensor.stop_gradient, tensor.is_leaf, tensor.persistable) == (True, True, False)
        assert tensor.place.is_cpu_place()


def test_a_tensor_has_memory_of_its_own() -> None:
    array = np.arange(4.0)
    first, second = to_tensors([array, array])
    array[:] = 9
    first[:] = 5
    assert second.tolist() == [0, 1, 2, 3]
    first.stop_gradient = False
    (first * 2).sum().backward()
    assert first.grad.tolist() == [2, 2, 2, 2]


def test_a_tensor_of_the_dataset_brings_no_graph_along() -> None:
    weight = paddle.ones([2])
    weight.stop_gradient = False
    (tensor,) = to_tensors((weight * 3,))
    assert tensor.stop_gradient and tensor.tolist() == [3.0, 3.0]
