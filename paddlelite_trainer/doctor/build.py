"""Checks of this build of Paddle: what is installed, which devices it sees, and whether it has kernels for them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from .. import __version__
from ..machine.device import Device, available_devices, resolve_device
from .finding import Finding

F = paddle.nn.functional
TYPES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""{type: how far a result may be from float64's, relative to its largest entry}"""


def checks(quick: bool) -> Iterator[tuple[str, Callable[[], Finding]]]:
    yield "versions", check_versions
    yield "device", check_device
    for name in TYPES:
        yield f"kernels in {name}", lambda name=name: check_kernels(name)  # type: ignore[misc]


def check_versions() -> Finding:
    numbers = {
        "python": platform.python_version(),
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "cuda": paddle.version.cuda() if paddle.is_compiled_with_cuda() else None,
        "cudnn": paddle.version.cudnn() if paddle.is_compiled_with_cuda() else None,
    }
    words = f"paddlelite_trainer {__version__}, Paddle {paddle.__version__}, NumPy {np.__version__}, "
    words += f"Python {platform.python_version()}"
    words += f", CUDA {numbers['cuda']}, cuDNN {numbers['cudnn']}" if numbers["cuda"] else ""
    major = int(paddle.__version__.split(".")[0])
    if major == 2 and int(np.__version__.split(".")[0]) >= 2:
        return Finding("versions", "failed", words, "Paddle 2.6 needs NumPy 1: pip install 'numpy<2'", numbers)
    return Finding("versions", "ok", words, numbers=numbers)


def check_device() -> Finding:
    device, here = resolve_device(), {kind: count for kind, count in available_devices().items() if kind != "cpu"}
    numbers: dict[str, Any] = {"device": device.name, "accelerators": here}
    if not device.is_accelerator:
        if Path("/proc/driver/nvidia/version").exists():
            remedy = "install paddlepaddle-gpu (Paddle's own site has the line for your CUDA) instead of paddlepaddle"
            if paddle.is_compiled_with_cuda():
                remedy = "let the container or job see the GPUs (--gpus all; CUDA_VISIBLE_DEVICES)"
            words = "the machine has an NVIDIA driver, and this Paddle sees no GPU"
            return Finding("device", "failed", words, remedy, numbers)
        return Finding("device", "ok", "no accelerator is here: the checks run on the CPU", numbers=numbers)
    words = ", ".join(f"{count} x {kind}" for kind, count in here.items())
    if device.type == "gpu":
        about = paddle.device.cuda.get_device_properties(device.index)
        numbers["names"] = sorted({paddle.device.cuda.get_device_name(index) for index in range(here["gpu"])})
        numbers["capability"], numbers["memory_gb"] = f"{about.major}.{about.minor}", about.total_memory >> 30
        words += f": {', '.join(numbers['names'])}, compute capability {numbers['capability']}, "
        words += f"{numbers['memory_gb']} GB"
    return Finding("device", "ok", words, numbers=numbers)


def check_kernels(name: str) -> Finding:
    """What a training step needs, forward and backward, in one type, beside NumPy in float64."""
    check, device = f"kernels in {name}", resolve_device()
    device.activate()
    broken = {}
    for operation, run in OPERATIONS.items():
        try:
            off = _how_far(run, name)
        except Exception as error:
            broken[operation] = " ".join(str(error).split())[-160:] or type(error).__name__
            continue
        if not off <= TYPES[name]:
            broken[operation] = f"is {off:.1e} off"
    numbers = {"tried": list(OPERATIONS), "broken": broken}
    if not broken:
        words = f"{', '.join(OPERATIONS)} compute on {device.name}, forward and backward"
        return Finding(check, "ok", words, numbers=numbers)
    words = f"on {device.name} these do not compute: {', '.join(broken)} ({next(iter(broken.values()))})"
    if name != "float32":
        return Finding(check, *_of_half_types(device, words, name), numbers)  # type: ignore[arg-type]
    remedy = (
        "this Paddle has no kernels for this device: install a build for its compute capability (the paddlepaddle-gpu "
        "on PyPI, 2.6.2, has 6.1, 7.0, 7.5, 8.0 and 8.6; newer ones are on Paddle's own index)"
    )
    return Finding(check, "failed", words, remedy, numbers)


def _of_half_types(device: Device, words: str, name: str) -> tuple[str, str, str]:
    if not device.is_accelerator:
        return "not possible here", f"the CPU does not compute in {name}", ""
    short = "'16-mixed'" if name == "float16" else "'bf16-mixed'"
    return "warning", words, f"a layer that needs them fails with precision={short}: use another precision"


def _how_far(run: Callable[..., Any], name: str) -> float:
    numbers = np.random.RandomState(0)
    expected = _loss_and_gradients(run, np.random.RandomState(0), "float64", on_cpu=True)
    actual = _loss_and_gradients(run, numbers, name, on_cpu=False)
    return max(
        float(np.max(np.abs(one - other)) / (np.max(np.abs(other)) + 1e-3)) for one, other in zip(actual, expected)
    )


def _loss_and_gradients(run: Callable[..., Any], numbers: Any, name: str, *, on_cpu: bool) -> list[Any]:
    place = paddle.CPUPlace() if on_cpu else None

    def tensor(*shape: int) -> Any:
        made = numbers.randn(*shape).astype("float32") * 0.5
        return paddle.to_tensor(made, dtype=name, place=place, stop_gradient=False)

    previous = paddle.get_device()
    if on_cpu:
        paddle.set_device("cpu")
    try:
        inputs, result = run(tensor)
        loss = result.astype("float32" if not on_cpu else "float64").sum()
        loss.backward()
        found = [result, *(one.grad for one in inputs)]
        return [one.astype("float32" if not on_cpu else "float64").numpy() for one in found]
    finally:
        paddle.set_device(previous)


def _matmul(tensor: Any) -> Any:
    inputs = [tensor(16, 32), tensor(32, 24)]
    return inputs, paddle.matmul(*inputs)


def _convolution(tensor: Any) -> Any:
    inputs = [tensor(2, 3, 8, 8), tensor(4, 3, 3, 3)]
    return inputs, F.conv2d(*inputs, padding=1)


def _layer_norm(tensor: Any) -> Any:
    inputs = [tensor(8, 16)]
    return inputs, F.layer_norm(inputs[0], 16) * tensor(8, 16).detach()


def _softmax(tensor: Any) -> Any:
    inputs = [tensor(8, 16)]
    return inputs, F.softmax(inputs[0]) * tensor(8, 16).detach()


def _activation(tensor: Any) -> Any:
    inputs = [tensor(8, 16)]
    return inputs, F.gelu(inputs[0])


OPERATIONS: dict[str, Callable[..., Any]] = {
    "matmul": _matmul,
    "convolution": _convolution,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "gelu": _activation,
}
