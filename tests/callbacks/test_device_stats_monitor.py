"""DeviceStatsMonitor: what it logs and when, with the real psutil and NVML, and that a step between costs nothing."""

from __future__ import annotations

import csv
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import paddle
import psutil
import pytest
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of

from paddlelite_trainer import CSVLogger
from paddlelite_trainer.callbacks import DeviceStatsMonitor, device_stats_monitor
from paddlelite_trainer.errors import ConfigurationError

OF_PSUTIL = {"system/process_memory_mb", "system/process_cpu_percent", "system/memory_percent"}


def test_it_logs_at_the_steps_of_the_metrics_and_changes_nothing(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [DeviceStatsMonitor()]):
        module = Classifier()
        quiet_trainer(
            logger=CSVLogger(), default_root_dir=tmp_path, log_every_n_steps=2, seed=3, callbacks=callbacks
        ).fit(module, make_batches(5))
        ends.append(weights_of(module))
    assert same_weights(*ends)
    with next((tmp_path / "version_1").rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("system/process_memory_mb")]
    assert [int(row["step"]) for row in rows] == [2, 4]
    resident = psutil.Process().memory_info().rss / 1e6
    for row in rows:
        assert 0.3 * resident < float(row["system/process_memory_mb"]) < 3 * resident
        assert 0 < float(row["system/memory_percent"]) <= 100 and float(row["system/process_cpu_percent"]) >= 0
    assert not any(name.startswith("device/") for name in rows[0])  # on the CPU


def test_without_psutil_it_logs_what_else_there_is_or_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "psutil" else real(name))
    assert DeviceStatsMonitor().stats() == {}
    with pytest.raises(ConfigurationError, match=r"needs psutil: pip install 'paddlelite_trainer\[monitor\]'"):
        DeviceStatsMonitor(cpu_stats=True)
    with pytest.raises(ConfigurationError, match=r"every_n_steps=...\) must be >= 1, got 0"):
        DeviceStatsMonitor(every_n_steps=0)


def test_the_real_nvml_is_asked_and_no_driver_is_no_error() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert device_stats_monitor._Nvidia.found("gpu:0") is None
    else:
        found = device_stats_monitor._Nvidia.found("gpu:0")
        assert found is not None and found.stats()["device/memory_used_mb"] >= 0


class FakeNVML(types.ModuleType):
    """A driver with two GPUs, whose second tells no power."""

    class NVMLError(Exception):
        pass

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByIndex": lambda index: f"index {index}",
            "nvmlDeviceGetHandleByUUID": lambda uuid: f"uuid {uuid.decode()}",
            "nvmlDeviceGetUtilizationRates": lambda handle: types.SimpleNamespace(gpu=71),
            "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(used=3e9),
            "nvmlDeviceGetTemperature": lambda handle, sensor: 55,
            "nvmlDeviceGetPowerUsage": self.no_power,
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]

    def no_power(self, handle: str) -> float:
        raise self.NVMLError("not supported")


def test_a_gpu_is_the_one_that_cuda_calls_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML("pynvml"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for visible, device, handle in (
        (None, "gpu:1", "index 1"),
        ("3,5", "gpu:1", "index 5"),
        ("GPU-ab,GPU-cd", "gpu:0", "uuid GPU-ab"),
    ):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = device_stats_monitor._Nvidia.found(device)
        assert found is not None and found.handle == handle
    assert found.stats() == {
        "device/utilization_percent": 71,
        "device/memory_used_mb": 3000,
        "device/temperature_c": 55,
    }


def test_paddle_s_own_count_of_an_accelerator_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("memory_allocated", "memory_reserved", "max_memory_allocated")
    owner = paddle.device if hasattr(paddle.device, "memory_allocated") else paddle.device.cuda
    for factor, name in enumerate(names, 1):
        monkeypatch.setattr(owner, name, lambda device, factor=factor: factor * 1e6)
    assert device_stats_monitor._of_paddle("gpu:0") == {
        "device/memory_allocated_mb": 1,
        "device/memory_reserved_mb": 2,
        "device/memory_allocated_peak_mb": 3,
    }
    assert device_stats_monitor._of_paddle("cpu") == {}
