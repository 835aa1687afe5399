"""Precision on a real GPU; the same runs pass on the fake accelerator, see tests/on_fake_gpu/."""

from __future__ import annotations

import paddle
import pytest
from amp_loops import Run, by_hand, by_precision

from paddlelite_trainer.machine.device import available_devices, resolve_device
from paddlelite_trainer.machine.precision import PRECISIONS, Precision, is_out_of_memory

pytestmark = pytest.mark.skipif("gpu" not in available_devices(), reason="no GPU that Paddle can use is here")


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    paddle.set_flags({"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1})
    resolve_device("gpu").activate()


def _skip_without(precision: str) -> None:
    found = Precision(precision, resolve_device("gpu"))
    if found.effective != precision:
        pytest.skip(found.note)


@pytest.mark.parametrize("inf_at", [None, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_step_has_the_bits_of_the_hand_written_loop(precision: str, accumulate: int, inf_at: int | None) -> None:
    _skip_without(precision)
    run = Run(precision, accumulate=accumulate, inf_at=inf_at, clip=0.5)
    assert by_hand(run) == by_precision(run)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_autocast_computes_in_the_half_type(precision: str) -> None:
    _skip_without(precision)
    autocast = Precision(precision, resolve_device("gpu")).autocast
    assert autocast is not None
    with autocast():
        product = paddle.matmul(paddle.ones([8, 8]), paddle.ones([8, 8]))
    assert product.dtype == (paddle.float16 if precision == "16-mixed" else paddle.bfloat16)


def test_allocated_memory_is_counted() -> None:
    device = resolve_device("gpu")
    before = device.memory_allocated()
    kept = paddle.zeros([1 << 20])
    after = device.memory_allocated()
    assert before is not None and after is not None and after - before >= kept.numel().item() * 4


def test_running_out_of_memory_is_recognised() -> None:
    with pytest.raises(Exception) as caught:
        paddle.zeros([1 << 42])
    assert is_out_of_memory(caught.value)
