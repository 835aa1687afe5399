"""Which Paddle device a process computes on; everything that is not the CPU is an accelerator, never CUDA alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import paddle
from paddle.base import core

from ..errors import ConfigurationError, ConfigurationTypeError, did_you_mean
from .signals import launched_by_paddle

THREADS_VARIABLE = "PADDLELITE_CPU_THREADS"
LARGE = 1_000_000  # parameters from which on a CPU operator is worth several threads


def refuse_static_mode(what: str) -> None:
    """Raise ConfigurationError where paddle.enable_static() is in force, in which nothing can be trained step by step.

    `what` begins the sentence.
    """
    if not paddle.in_dynamic_mode():
        raise ConfigurationError(
            f"{what} needs dynamic mode, and paddle.enable_static() is in force: call paddle.disable_static() before."
        )


@dataclass(frozen=True)
class Device:
    """One device. `name` is Paddle's ("cpu", "gpu:0", "npu:1"), `type` the part before the colon."""

    type: str
    index: int
    place: Any

    @property
    def name(self) -> str:
        return f"{self.type}:{self.index}" if self.is_accelerator else self.type

    @property
    def is_accelerator(self) -> bool:
        return self.type != "cpu"

    def activate(self) -> None:
        """Make this the device on which Paddle creates tensors and runs operators from here on."""
        paddle.set_device(self.name)

    def synchronize(self) -> None:
        """Wait until everything queued on the device has run; returns at once on the CPU."""
        if self.is_accelerator:
            paddle.device.synchronize(self.name)

    def memory_allocated(self) -> int | None:
        """Bytes of tensors on the device, or None where Paddle does not count them (the CPU; custom devices in 2.6)."""
        if not self.is_accelerator:
            return None
        if hasattr(paddle.device, "memory_allocated"):
            return int(paddle.device.memory_allocated(self.name))
        return int(paddle.device.cuda.memory_allocated(self.name)) if self.type == "gpu" else None

    def memory(self) -> int | None:
        """Bytes of memory that the device has, or None where Paddle does not tell (all but NVIDIA's and AMD's)."""
        if self.type != "gpu":
            return None
        return int(paddle.device.cuda.get_device_properties(self.index).total_memory)


def resolve_device(
    accelerator: str = "auto", devices: int | str | Sequence[int] = "auto", local_rank: int = 0
) -> Device:
    """The device of this process: of `accelerator`'s devices the one at `local_rank`.

    Args:
        accelerator: "auto" (gpu, then xpu, then a custom device, then cpu: the first that is here), "cpu", "gpu",
            "xpu", "npu" or the name of any custom device that Paddle has a plugin for.
        devices: "auto" or a number: this process takes number `local_rank`. A list of indices, or "0,2": its entry
            `local_rank`. On the CPU it is only the number of processes.
        local_rank: this process's number among those on this machine, from 0.

    Raises:
        ConfigurationError, ConfigurationTypeError: no such device is here; the message names those that are.
    """
    here = available_devices()
    kind = _accelerator_type(accelerator, here)
    indices = indices_of(devices)
    if kind == "cpu":
        return Device("cpu", 0, paddle.CPUPlace())
    if indices is None:
        # paddle.distributed.launch tells each process its device through this variable.
        launched = os.environ.get(f"FLAGS_selected_{kind}s", "").split(",")[0]
        indices = [int(launched)] * (local_rank + 1) if launched.isdigit() else list(range(local_rank + 1))
    if local_rank >= len(indices):
        raise ConfigurationError(
            f"devices={devices!r} names {len(indices)} of them, and this is process {local_rank} of this machine: "
            "start as many processes as devices"
        )
    _refuse_missing(devices, kind, indices, here)
    return Device(kind, indices[local_rank], _place(kind, indices[local_rank]))


def accelerator_type(accelerator: str) -> str:
    """The kind of device that is meant, as it is here; raises as `resolve_device` does."""
    return _accelerator_type(accelerator, available_devices())


def refuse_missing_devices(accelerator: str, devices: int | str | Sequence[int]) -> None:
    """Raise ConfigurationError where one of the devices that are asked for is not here, before processes are started
    for them."""
    here = available_devices()
    kind, indices = _accelerator_type(accelerator, here), indices_of(devices)
    if indices is None:
        return
    if kind != "cpu":
        _refuse_missing(devices, kind, indices, here)
    elif len(indices) > (most := 16 * (os.cpu_count() or 4)):
        raise ConfigurationError(
            f"devices={devices!r} on the CPU starts {len(indices)} processes, each with a Paddle of its own, and this "
            f"machine has {os.cpu_count()} cores: at most {most} are started"
        )


def _refuse_missing(devices: object, kind: str, indices: Sequence[int], here: dict[str, int]) -> None:
    missing = sorted({index for index in indices if index >= here[kind]})
    if missing:
        raise ConfigurationError(
            f"devices={devices!r} on {kind} needs index {missing[0]}, and {here[kind]} {kind} device(s) are here. "
            f"This Paddle sees: {_described(here)}"
        )


def available_devices() -> dict[str, int]:
    """{device type: how many are here}, in the order in which "auto" prefers them; the CPU last."""
    here: dict[str, int] = {}
    if paddle.is_compiled_with_cuda():
        here["gpu"] = int(paddle.device.cuda.device_count())
    if paddle.is_compiled_with_xpu():
        here["xpu"] = int(paddle.base.core.get_xpu_device_count())
    for name in paddle.device.get_available_custom_device():  # ["npu:0", "npu:1"], or ["npu"] where there is one
        kind = name.partition(":")[0]
        here[kind] = here.get(kind, 0) + 1
    return {kind: count for kind, count in here.items() if count} | {"cpu": 1}


def _accelerator_type(accelerator: str, here: dict[str, int]) -> str:
    if not isinstance(accelerator, str):
        raise ConfigurationTypeError(f"accelerator must be a string such as 'auto' or 'gpu', got {accelerator!r}")
    if accelerator == "auto":
        return next(iter(here))
    if accelerator in here:
        return accelerator
    kind, colon, index = accelerator.partition(":")
    message = f"accelerator={accelerator!r}: no such device is here. This Paddle sees: {_described(here)}."
    meant = {"cuda": "gpu"}.get(kind, kind)
    if colon and index.isdigit():
        message = f"accelerator={accelerator!r} names one device: pass accelerator={meant!r}, devices=[{int(index)}]."
        message += "" if meant in here else f" This Paddle sees: {_described(here)}."
    elif meant != kind:
        message += f" Paddle calls it {meant!r}."
    elif accelerator == "gpu" and paddle.is_compiled_with_cuda():
        message += f" No GPU is visible to it (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r})."
    elif accelerator == "gpu":
        message += f" Paddle {paddle.__version__} is installed without CUDA: install paddlepaddle-gpu in its place."
    else:
        message += did_you_mean(accelerator, ["auto", *here])
    raise ConfigurationError(message)


def indices_of(devices: int | str | Sequence[int]) -> list[int] | None:
    """The indices asked for, or None for "auto"."""
    wanted: Any = devices
    if wanted == "auto":
        return None
    if isinstance(wanted, str) and all(part.strip().isdigit() for part in wanted.split(",")):
        wanted = [int(part) for part in wanted.split(",")] if "," in wanted else int(wanted)
    if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1:
        return list(range(wanted))
    if isinstance(wanted, (list, tuple)) and wanted and all(type(index) is int and index >= 0 for index in wanted):
        if len(set(wanted)) < len(wanted):
            raise ConfigurationError(f"devices={devices!r} names a device twice")
        return list(wanted)
    raise ConfigurationError(f"devices must be 'auto', a number >= 1 or a list of indices >= 0, got {devices!r}")


def _place(kind: str, index: int) -> Any:
    if kind == "gpu":
        return paddle.CUDAPlace(index)
    if kind == "xpu":
        return paddle.XPUPlace(index)
    return paddle.CustomPlace(kind, index)


def _described(here: dict[str, int]) -> str:
    return ", ".join(kind if kind == "cpu" else f"{kind} ({count})" for kind, count in here.items())


# -- CPU threads -----------------------------------------------------------------------------------------------------


def use_cpu_threads(threads: int | Literal["auto"], saved: int | None = None, *, parameters: int = LARGE) -> int:
    """Set how many threads an operator on the CPU may use in this process, and return the number.

    "auto" is the number that the checkpoint was made with (`saved`), since some operators, convolutions among them,
    round otherwise with another number of threads; else PADDLELITE_CPU_THREADS, else OMP_NUM_THREADS, where the process
    was started with one; else 1 for a model of fewer than a million `parameters`, whose operators are too short to
    share; else the cores this process may use, divided among the processes of this job on this machine. On two cores,
    two threads halve a product of 1500 x 1500 matrices and slow a step of a small MLP by up to a half. Paddle's own
    default is 1.
    """
    number = (saved or _threads_asked_for()) if threads == "auto" else threads
    if number is None:
        number = 1 if parameters < LARGE else max(1, available_cores() // _local_processes())
    core.set_num_threads(number)
    return number


def available_cores() -> int:
    """Cores this process may use: its affinity, or the share of them that its container is allowed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _threads_asked_for() -> int | None:
    ours = os.environ.get(THREADS_VARIABLE, "")
    if ours:
        if not ours.isdecimal() or int(ours) < 1:
            raise ConfigurationError(f"the environment's {THREADS_VARIABLE} must be a number >= 1, got {ours!r}")
        return int(ours)
    # Paddle writes OMP_NUM_THREADS=1 into os.environ when imported; what the process was started with is in /proc.
    try:
        environment = Path("/proc/self/environ").read_bytes()
    except OSError:
        value = os.environ.get("OMP_NUM_THREADS", "1")
        return int(value) if value.isdigit() and value != "1" else None
    for entry in environment.split(b"\0"):
        if entry.startswith(b"OMP_NUM_THREADS=") and entry[16:].isdigit() and not launched_by_paddle():
            return int(entry[16:])
    return None


def _local_processes() -> int:
    return int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
