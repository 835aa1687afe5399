"""DeviceStatsMonitor: memory and load of the process, the machine and its accelerators, logged beside the metrics."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments

_MEGA = 1e6


class DeviceStatsMonitor(Callback):
    """Logs what the process and the devices use, at the steps at which metrics are logged.

        Trainer(callbacks=[DeviceStatsMonitor()])

    By psutil, with `cpu_stats`: `system/process_memory_mb` (resident), `system/process_cpu_percent` since the last time
    (100 is one core busy), `system/memory_percent` of the machine. On an accelerator, as Paddle counts it:
    `device/memory_allocated_mb`, `device/memory_reserved_mb`, `device/memory_allocated_peak_mb`. On an NVIDIA GPU, if
    nvidia-ml-py is installed: `device/utilization_percent`, `device/memory_used_mb` (of all processes),
    `device/temperature_c`, `device/power_w`. They are rank 0's, go to the loggers alone, and between logging steps cost
    a comparison of numbers. Needs `pip install 'paddlelite_trainer[monitor]'`.

    Args:
        cpu_stats: log what psutil tells; None: where it is installed.
        every_n_steps: optimizer steps between two values; None: the Trainer's `log_every_n_steps`.

    Raises:
        ConfigurationError: every_n_steps is below 1, or cpu_stats is asked for without psutil.
    """

    @explains_unknown_arguments({})
    def __init__(self, cpu_stats: bool | None = None, *, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and (isinstance(every_n_steps, bool) or every_n_steps < 1):
            raise ConfigurationError(f"DeviceStatsMonitor(every_n_steps=...) must be >= 1, got {every_n_steps!r}")
        has_psutil = importlib.util.find_spec("psutil") is not None
        if cpu_stats and not has_psutil:
            raise ConfigurationError(
                "DeviceStatsMonitor(cpu_stats=True) needs psutil: pip install 'paddlelite_trainer[monitor]'"
            )
        self.cpu_stats = has_psutil if cpu_stats is None else cpu_stats
        self.every_n_steps = every_n_steps
        self._next_log = 0
        self._process: Any = None
        self._nvidia: _Nvidia | None = None

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._next_log = self._step_after(trainer)
        if self.cpu_stats:
            import psutil

            self._process = psutil.Process()
            self._process.cpu_percent()  # the first one begins the interval
        if paddle.get_device().startswith("gpu"):
            self._nvidia = _Nvidia.found(paddle.get_device())

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self._next_log:
            self._next_log = self._step_after(trainer)
            if trainer.is_global_zero:
                trainer.log_metrics(self.stats())

    def stats(self) -> dict[str, float]:
        """What is known now."""
        found: dict[str, float] = {}
        if self._process is not None:
            import psutil

            with self._process.oneshot():
                found["system/process_memory_mb"] = self._process.memory_info().rss / _MEGA
                found["system/process_cpu_percent"] = self._process.cpu_percent()
            found["system/memory_percent"] = psutil.virtual_memory().percent
        found.update(_of_paddle(paddle.get_device()))
        if self._nvidia is not None:
            found.update(self._nvidia.stats())
        return found

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._nvidia is not None:
            self._nvidia.close()
        self._process = self._nvidia = None

    def _step_after(self, trainer: Trainer) -> int:
        every = self.every_n_steps or trainer.log_every_n_steps
        return (trainer.global_step // every + 1) * every


def _of_paddle(device: str) -> dict[str, float]:
    """Paddle's own count of an accelerator's memory; 2.6 has it for GPUs alone, and nothing is counted of the CPU."""
    if device == "cpu":
        return {}
    owner: Any = paddle.device if hasattr(paddle.device, "memory_allocated") else paddle.device.cuda
    if owner is paddle.device.cuda and not device.startswith("gpu"):
        return {}
    names = {"allocated": "memory_allocated", "reserved": "memory_reserved", "allocated_peak": "max_memory_allocated"}
    return {f"device/memory_{word}_mb": getattr(owner, name)(device) / _MEGA for word, name in names.items()}


class _Nvidia:
    """One GPU as NVML sees it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle

    @classmethod
    def found(cls, device: str) -> _Nvidia | None:
        """The GPU that Paddle calls `gpu:<index>`; None without nvidia-ml-py or a driver.

        NVML counts all GPUs of the machine and CUDA those of CUDA_VISIBLE_DEVICES, so that variable is read.
        """
        if importlib.util.find_spec("pynvml") is None:
            return None
        pynvml: Any = importlib.import_module("pynvml")
        index = int(device.partition(":")[2] or 0)
        try:
            pynvml.nvmlInit()
            visible = _visible(index)
            if isinstance(visible, str):
                return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(visible.encode()))
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(visible))
        except (pynvml.NVMLError, ValueError):  # no driver, or one whose GPUs are others
            return None

    def stats(self) -> dict[str, float]:
        """What this GPU tells; some tell no temperature or power."""
        ask: dict[str, Callable[[], Any]] = {
            "utilization_percent": lambda: self.library.nvmlDeviceGetUtilizationRates(self.handle).gpu,
            "memory_used_mb": lambda: self.library.nvmlDeviceGetMemoryInfo(self.handle).used / _MEGA,
            "temperature_c": lambda: self.library.nvmlDeviceGetTemperature(self.handle, 0),
            "power_w": lambda: self.library.nvmlDeviceGetPowerUsage(self.handle) / 1000,
        }
        found = {}
        for name, answer in ask.items():
            try:
                found[f"device/{name}"] = float(answer())
            except self.library.NVMLError:
                continue
        return found

    def close(self) -> None:
        with contextlib.suppress(self.library.NVMLError):
            self.library.nvmlShutdown()


def _visible(index: int) -> int | str:
    """Which GPU of the machine CUDA calls `index`: a number, or where the variable has them, a UUID."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if index >= len(names):
        return index
    return int(names[index]) if names[index].isdigit() else names[index]
