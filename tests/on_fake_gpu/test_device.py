"""Devices, on the fake accelerator."""

from __future__ import annotations

import fake_gpu
import paddle
import pytest

from paddlelite_trainer import Trainer
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.machine.device import available_devices, resolve_device


def test_auto_prefers_an_accelerator_that_is_not_cuda() -> None:
    device = resolve_device()
    assert available_devices() == {"fake_gpu": 4, "cpu": 1}
    assert (device.name, device.type, device.is_accelerator) == ("fake_gpu:0", "fake_gpu", True)
    assert isinstance(device.place, paddle.CustomPlace)


def test_the_cpu_can_be_asked_for_and_activate_switches() -> None:
    for accelerator in ("cpu", "fake_gpu"):
        resolve_device(accelerator).activate()
        assert paddle.ones([1]).place.is_cpu_place() == (accelerator == "cpu")


def test_synchronize_waits_for_the_device() -> None:
    before = fake_gpu.synchronizations()
    resolve_device().synchronize()
    assert fake_gpu.synchronizations() > before
    before = fake_gpu.synchronizations()
    resolve_device("cpu").synchronize()
    assert fake_gpu.synchronizations() == before


def test_allocated_memory_is_counted_where_paddle_counts_it() -> None:
    device = resolve_device()
    before = device.memory_allocated()
    if before is None:
        pytest.skip("this Paddle does not count the memory of custom devices")
    kept = paddle.zeros([1 << 16])
    assert device.memory_allocated() - before >= kept.numel().item() * 4


@pytest.mark.parametrize(
    ("devices", "names"),
    [("auto", [0, 1, 2]), (2, [0, 1]), ([3, 1], [3, 1]), ("3,1", [3, 1]), ("1", [0]), ((2,), [2])],
)
def test_each_process_takes_its_own_device(devices: object, names: list[int]) -> None:
    found = [resolve_device("fake_gpu", devices, local_rank=rank) for rank in range(len(names))]  # type: ignore[arg-type]
    assert [device.name for device in found] == [f"fake_gpu:{index}" for index in names]


def test_the_launchers_choice_of_device_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGS_selected_fake_gpus", "2")
    assert resolve_device("auto", "auto", local_rank=1).name == "fake_gpu:2"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fake_gpu", [0, 4]), "needs index 4, and 4 fake_gpu device"),
        (("auto", 5), "needs index 4"),
        (("fake_gpu:0", "auto"), r"pass accelerator='fake_gpu', devices=\[0\]"),
        (("fake_gpo", "auto"), r"This Paddle sees: fake_gpu \(4\), cpu. Did you mean 'fake_gpu'"),
        (("gpu", "auto"), "installed without CUDA"),
    ],
)
def test_a_device_that_is_not_here_is_an_error_that_names_what_is(arguments: tuple[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        resolve_device(*arguments)  # type: ignore[arg-type]


def test_more_devices_than_are_here_are_refused_before_processes_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("processes are started"))
    monkeypatch.setattr("sys.orig_argv", ["python", "train.py"])
    with pytest.raises(ConfigurationError, match=r"devices=8 on fake_gpu needs index 4, and 4 fake_gpu device\(s\)"):
        Trainer(accelerator="fake_gpu", devices=8, max_epochs=1)
    with pytest.raises(ConfigurationError, match=r"devices=\[0, 9\] on fake_gpu needs index 9"):
        Trainer(accelerator="auto", devices=[0, 9], max_epochs=1)


def test_more_processes_than_devices_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="start as many processes as devices"):
        resolve_device("fake_gpu", [0, 1], local_rank=2)
