"""Resolving accelerator= and devices= on a machine without an accelerator; tests/on_fake_gpu/ has the rest."""

from __future__ import annotations

from typing import Any

import paddle
import pytest

from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.machine import ranks
from paddlelite_trainer.machine.device import available_devices, resolve_device
from paddlelite_trainer.machine.strategy import Strategy

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


class _Started(Exception):
    pass


@needs_cpu_only
@pytest.mark.parametrize(
    ("devices", "starts"), [(2, 2), ("2", 2), ([0, 1], 2), ("0,1", 2), ([0, 3], 2), ((0, 1, 2), 3), (1, 0), ("auto", 0)]
)
def test_on_the_cpu_every_form_of_devices_starts_so_many_processes(
    devices: Any, starts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def execv(program: str, command: list[str]) -> None:
        raise _Started(command)

    monkeypatch.setattr(ranks.os, "execv", execv)
    monkeypatch.setattr(ranks, "_is_main", lambda script: True)
    monkeypatch.setattr(ranks.sys, "orig_argv", ["python", "train.py"])
    monkeypatch.setenv("PYTHONWARNINGS", "")
    if not starts:
        ranks.launch_if_several("auto", devices, Strategy("auto"), tmp_path)
        return
    with pytest.raises(_Started) as started:
        ranks.launch_if_several("auto", devices, Strategy("auto"), tmp_path)
    command = started.value.args[0]
    assert command[command.index("--nproc_per_node") + 1] == str(starts) and "--devices" not in command


@pytest.mark.parametrize(("devices", "said"), [(2.5, "devices must be"), ({}, "devices must be"), (10**6, "at most")])
def test_devices_that_cannot_be_started_are_an_error_before_anything_is(
    devices: Any, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(ranks.os, "execv", lambda *_: pytest.fail("started"))
    with pytest.raises(ConfigurationError, match=said):
        ranks.launch_if_several("cpu", devices, Strategy("auto"), tmp_path)
