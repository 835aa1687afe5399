"""Precision on the CPU, where Paddle has no AMP; tests/on_fake_gpu/test_precision.py has the rest."""

from __future__ import annotations

import dataclasses
import warnings
from collections import defaultdict, namedtuple
from typing import Any

import numpy as np
import paddle
import pytest

from paddlelite_trainer.errors import CheckpointMismatchError, ConfigurationError
from paddlelite_trainer.machine.device import resolve_device
from paddlelite_trainer.machine.precision import PRECISIONS, Precision, is_out_of_memory, parse_precision

CPU = resolve_device("cpu")
HALVES = ["16-mixed", "bf16-mixed", "16-true", "bf16-true"]


@pytest.mark.parametrize(
    ("given", "name"),
    [(32, "32-true"), ("32", "32-true"), (16, "16-mixed"), ("16", "16-mixed"), ("bf16", "bf16-mixed"), (64, "64-true")]
    + [(name, name) for name in PRECISIONS],
)
def test_lightnings_short_forms_mean_what_they_mean_there(given: str | int, name: str) -> None:
    assert parse_precision(given) == name
    assert Precision(given, CPU).requested == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("16-mixd", "got '16-mixd'. Did you mean '16-mixed'?"),
        ("fp16", "Did you mean '16-mixed'?"),
        ("bf16_true", "Did you mean 'bf16-true'?"),
        (8, "must be one of 32-true, 16-mixed"),
        (True, "got True"),
    ],
)
def test_an_unknown_precision_is_an_error_that_suggests_one(given: str | int, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Precision(given, CPU)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_on_the_cpu_is_float32_and_says_so_in_one_sentence(name: str) -> None:
    precision = Precision(name, CPU)
    half = "bfloat16" if name.startswith("bf16") else "float16"
    assert (precision.requested, precision.effective) == (name, "32-true")
    assert precision.note == (
        f"precision='{name}' has no effect on cpu, where Paddle {paddle.__version__} does not compute in {half}: "
        "this run computes in float32."
    )
    assert (precision.autocast, precision.scaler, precision.convert_input) == (None, None, None)
    assert precision.state_dict() == {}


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_on_the_cpu_neither_warns_nor_changes_the_module(name: str) -> None:
    layer = paddle.nn.Linear(2, 2)
    optimizer = paddle.optimizer.AdamW(parameters=layer.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precision = Precision(name, CPU)
        precision.prepare(layer, [optimizer])
        precision.backward(layer(paddle.ones([1, 2])).sum())
        precision.unscale(optimizer)
        assert precision.step(optimizer)
        precision.update()
    assert layer.weight.dtype == paddle.float32 and not optimizer._multi_precision


def test_float32_enters_nothing_converts_nothing_and_has_no_state() -> None:
    precision = Precision("32-true", CPU)
    assert (precision.effective, precision.note) == ("32-true", None)
    assert (precision.autocast, precision.scaler, precision.convert_input) == (None, None, None)
    assert precision.state_dict() == {}
    precision.load_state_dict({})


def test_float64_has_the_bits_of_the_hand_written_loop_and_keeps_every_object() -> None:
    def network() -> paddle.nn.Layer:
        paddle.seed(3)
        return paddle.nn.Sequential(paddle.nn.Linear(4, 8), paddle.nn.BatchNorm1D(8), paddle.nn.Linear(8, 1))

    inputs = [np.random.RandomState(step).randn(6, 4).astype("float32") for step in range(4)]

    by_hand = network()
    by_hand.to(dtype="float64")
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=by_hand.parameters())
    for array in inputs:
        (by_hand(paddle.to_tensor(array.astype("float64"))) ** 2).mean().backward()
        optimizer.step()
        optimizer.clear_grad()

    precision, layer = Precision("64-true", CPU), network()
    parameters = layer.parameters()
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=parameters)
    precision.prepare(layer, [optimizer])
    assert all(one is other for one, other in zip(parameters, layer.parameters()))
    assert precision.autocast is not None and precision.convert_input is not None
    for array in inputs:
        with precision.autocast():
            loss = (layer(precision.convert_input(paddle.to_tensor(array))) ** 2).mean()
        precision.backward(loss)
        assert precision.step(optimizer)
        optimizer.clear_grad()

    expected, actual = by_hand.state_dict(), layer.state_dict()
    assert all(value.dtype == paddle.float64 for value in actual.values())
    assert all(np.array_equal(expected[key].numpy(), actual[key].numpy()) for key in expected)


def test_float64_input_is_converted_wherever_it_stands_in_a_batch() -> None:
    Pair = namedtuple("Pair", "x y")
    one, index = paddle.ones([1]), paddle.ones([1], "int64")
    convert = Precision("64-true", CPU).convert_input
    assert convert is not None
    batch = convert({"a": [one, (index, one)], "b": Pair(one, "text"), "c": None})
    assert batch["a"][0].dtype == batch["a"][1][1].dtype == batch["b"].x.dtype == paddle.float64
    assert batch["a"][1][0] is index and batch["c"] is None and batch["b"].y == "text"
    assert type(batch["a"]) is list and type(batch["a"][1]) is tuple and type(batch["b"]) is Pair


def test_float64_input_keeps_the_types_of_its_containers_and_goes_into_dataclasses() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sample:
        image: Any
        name: str

    convert = Precision("64-true", CPU).convert_input
    assert convert is not None
    batch = convert(defaultdict(list, {"z": Sample(paddle.ones([1]), "cat"), "a": 1}))
    assert type(batch) is defaultdict and batch.default_factory is list and list(batch) == ["z", "a"]
    assert batch["z"].image.dtype == paddle.float64 and batch["z"].name == "cat"


def test_new_tensors_are_float64_inside_its_context_and_float32_again_after_an_error() -> None:
    autocast = Precision("64-true", CPU).autocast
    assert autocast is not None
    with pytest.raises(KeyError), autocast():
        assert paddle.ones([1]).dtype == paddle.float64
        raise KeyError
    assert paddle.ones([1]).dtype == paddle.float32


def test_a_checkpoint_of_another_precision_is_refused_by_name() -> None:
    saved = {"precision": "16-mixed", "scaler": {}}
    with pytest.raises(CheckpointMismatchError) as caught:
        Precision("16-mixed", CPU).load_state_dict(saved)
    assert "precision: saved 16-mixed, now 32-true. precision='16-mixed' has no effect on cpu" in str(caught.value)
    with pytest.raises(CheckpointMismatchError, match="saved 32-true, now 64-true"):
        Precision("64-true", CPU).load_state_dict({})
    Precision("64-true", CPU).load_state_dict(Precision("64-true", CPU).state_dict())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"custom_white_list": ["matmul"]}, "custom_white_list or custom_black_list has no effect"),
        ({"scaler_options": {"incr_ratio": 4.0}}, "scaler_options has no effect"),
    ],
)
def test_settings_without_effect_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        Precision("32-true", CPU, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scaler_options": {"init_loss_scale": 2.0}}, "Did you mean 'init_loss_scaling'?"),
        (
            {"custom_white_list": {"a", "b"}, "custom_black_list": ["b"]},
            "in custom_white_list and in custom_black_list: b",
        ),
        ({"custom_black_list": "softmax"}, "custom_black_list must be a list"),
    ],
)
def test_wrong_settings_are_errors_at_once(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Precision("16-mixed", CPU, **settings)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_paddles_own_out_of_memory_error_is_recognised() -> None:
    with pytest.raises(MemoryError) as caught:
        paddle.zeros([1 << 46])
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (
            MemoryError("\n\nResourceExhaustedError: \n\nOut of memory error on GPU 0. Cannot allocate 9.0GB memory"),
            True,
        ),
        (OSError("(External) CUDA error(2), out of memory. [Hint: ...]"), True),
        (OSError("(External) CUBLAS error(3). CUBLAS_STATUS_ALLOC_FAILED"), True),
        (OSError("(External) CustomDevice error, the error code is : 2 (at device_manager.cc)"), True),
        (OSError("(External) CustomDevice error, the error code is : 1"), False),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(exception: BaseException, expected: bool) -> None:
    assert is_out_of_memory(exception) is expected
