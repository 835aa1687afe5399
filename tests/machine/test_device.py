"""Resolving accelerator= and devices= on a machine without an accelerator; tests/on_fake_gpu/ has the rest."""

from __future__ import annotations

from typing import Any

import paddle
import pytest

from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.machine.device import available_devices, resolve_device

needs_cpu_only = pytest.mark.skipif(list(available_devices()) != ["cpu"], reason="an accelerator is here")


@needs_cpu_only
def test_auto_is_the_cpu_where_nothing_else_is() -> None:
    device = resolve_device()
    device.activate()
    device.synchronize()
    assert (device.name, device.type, device.is_accelerator, device.memory_allocated()) == ("cpu", "cpu", False, None)
    assert paddle.ones([1]).place.is_cpu_place() and isinstance(device.place, paddle.CPUPlace)


def test_on_the_cpu_devices_is_only_a_number_of_processes() -> None:
    assert [resolve_device("cpu", 3, local_rank=rank).name for rank in range(3)] == ["cpu"] * 3


@needs_cpu_only
@pytest.mark.parametrize(
    ("accelerator", "said"),
    [
        ("gpu", "accelerator='gpu': no such device is here. This Paddle sees: cpu"),
        ("npu", "This Paddle sees: cpu"),
        ("cpuu", "Did you mean 'cpu'?"),
    ],
)
def test_an_accelerator_that_is_not_here_is_an_error_that_names_what_is(accelerator: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_device(accelerator)
    assert said in str(caught.value)


@needs_cpu_only
def test_a_missing_gpu_says_whether_paddle_or_the_machine_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for compiled, said in ((False, "install paddlepaddle-gpu"), (True, "No GPU is visible")):
        monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda compiled=compiled: compiled)
        monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
        with pytest.raises(ConfigurationError, match=said):
            resolve_device("gpu")


@pytest.mark.parametrize("devices", [0, -1, True, [], [-1], "a", "0,", 1.5, None])
def test_impossible_devices_are_an_error(devices: Any) -> None:
    with pytest.raises(ConfigurationError, match="devices must be"):
        resolve_device("cpu", devices)


def test_the_same_device_twice_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="names a device twice"):
        resolve_device("cpu", [0, 0])


def test_an_accelerator_that_is_not_a_string_is_an_error() -> None:
    with pytest.raises(ConfigurationTypeError, match="must be a string"):
        resolve_device(None)  # type: ignore[arg-type]
