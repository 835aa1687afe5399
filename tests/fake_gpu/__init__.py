"""A fake accelerator for tests: Paddle sees a device that is not the CPU; it takes g++ and no hardware.

Outside, in an ordinary test: `run_pytest(path, ...)` builds the plugin if need be (it skips the test where that is
impossible) and runs test files in one process of their own, in which the device exists. Plugins are loaded while Paddle
is imported, so no process that has imported Paddle can get one.

Inside, in tests/on_fake_gpu/: `device_to_host_copies()`, `set_memory_limit(bytes)` and the other counters.

Several: `launch(script, ..., ranks=2)` runs a script in a process for each device under Paddle's launcher. They talk by
shared memory, and sum in rank order, so every run has the same bits; `collectives()` and `bytes_sent()` count.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_gpu.cc")
COLLECTIVES = Path(__file__).with_name("fake_ccl.h")
ROOT = SOURCE.parents[2]
LIBRARY = "libfake_gpu.so"
UNLIMITED = 1 << 30


def build() -> Path:
    """Directory that holds the plugin built for this interpreter's Paddle; built once, kept outside the source tree."""
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        pytest.skip("the fake accelerator needs g++ on x86-64 Linux")
    command = [compiler, *_flags(_paddle_directory())]
    sources = SOURCE.read_bytes() + COLLECTIVES.read_bytes()
    key = hashlib.sha256(sources + " ".join(command).encode() + _paddle_version()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir(), f"fake_gpu-{os.getuid()}", key)
    if not (directory / LIBRARY).exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            # 2.6 wheels leave this header out, and keep a oneDNN handle, the size of a shared_ptr, in DenseTensor.
            missing = Path(scratch, "missing/paddle/phi/core/dense_tensor.inl")
            missing.parent.mkdir(parents=True)
            missing.write_text("protected: std::shared_ptr<void> onednn_handle_;\n")
            built = Path(scratch, LIBRARY)
            subprocess.run([*command, "-o", str(built)], check=True, cwd=scratch)
            directory.mkdir(exist_ok=True)
            built.replace(directory / LIBRARY)  # two processes may build at once; either result will do
    return directory


def environment(**settings: str) -> dict[str, str]:
    """Environment of a process in which the device exists; `settings` are the plugin's own, see fake_gpu.cc."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "CUSTOM_DEVICE_ROOT": str(build()),
        "FAKE_GPU_COUNT": "4",
        "FLAGS_use_stride_kernel": "0",  # 2.6 has no strided tensors on custom devices
        "GLOG_minloglevel": "2",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **settings,
    }


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `arguments` where the device exists."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment(**settings), cwd=ROOT, capture_output=True, text=True, check=False)


def run_pytest(*paths: Path, **settings: str) -> None:
    """Run the tests at `paths` where the device exists, and fail with their report if any of them fails."""
    __tracebackhide__ = True
    done = run("-m", "pytest", "-p", "no:cacheprovider", "-rs", *map(str, paths), **settings)
    if done.returncode != 0:
        pytest.fail(f"on the fake accelerator:\n{done.stdout[-20000:]}{done.stderr[-4000:]}", pytrace=False)
    print(done.stdout)


def launch(
    script: Path, *arguments: str, log_dir: Path, ranks: int = 2, timeout: float = 150.0, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run `script` under Paddle's launcher, a process for each of so many devices; the logs of all are in `log_dir`.

    A rank waits 60 s for a collective of the others, then it fails. Rank 0's output is in what is returned.
    """
    devices = ",".join(map(str, range(ranks)))
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--devices", devices]
    command += ["--log_dir", str(log_dir), str(script), *arguments]
    backend = {"PADDLE_DISTRI_BACKEND": "xccl", "PADDLE_XCCL_BACKEND": "fake_gpu"}  # 2.6 does not find it by itself
    variables = environment(**backend, **{"FAKE_GPU_CCL_TIMEOUT": "60", **settings})
    return subprocess.run(
        command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
    )


def collectives() -> int:
    """Calls of collectives so far in this process: each all_reduce, gathering, broadcast, send and receive is one."""
    return int(_library().fake_gpu_collectives())


def bytes_sent() -> int:
    """Bytes that this process has given to collectives so far."""
    return int(_library().fake_gpu_bytes_sent())


def device_to_host_copies() -> int:
    """Copies from the device to the host so far; each one makes a real accelerator wait."""
    return int(_library().fake_gpu_device_to_host_copies())


def host_to_device_copies() -> int:
    return int(_library().fake_gpu_host_to_device_copies())


def synchronizations() -> int:
    """Explicit waits for the device, a stream or an event so far."""
    return int(_library().fake_gpu_synchronizations())


def memory_used(device: int = 0) -> int:
    """Bytes that Paddle's allocator holds on the device, its cache included."""
    return int(_library().fake_gpu_memory_used(device))


def set_memory_limit(bytes: int) -> None:
    """Let allocations on a device fail that would take its memory beyond `bytes`."""
    _library().fake_gpu_set_memory_limit(bytes)


@contextlib.contextmanager
def memory_limit(bytes: int) -> Iterator[None]:
    set_memory_limit(bytes)
    try:
        yield
    finally:
        set_memory_limit(UNLIMITED)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.path.join(os.environ["CUSTOM_DEVICE_ROOT"], LIBRARY))
    counters = ["host_to_device_copies", "device_to_host_copies", "synchronizations", "collectives", "bytes_sent"]
    for name in (*counters, "memory_used"):
        getattr(library, f"fake_gpu_{name}").restype = ctypes.c_uint64
    library.fake_gpu_set_memory_limit.argtypes = [ctypes.c_uint64]
    return library


def _paddle_directory() -> Path:
    spec = importlib.util.find_spec("paddle")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _paddle_version() -> bytes:
    return (_paddle_directory() / "version/__init__.py").read_bytes()


def _flags(paddle: Path) -> list[str]:
    include = paddle / "include"
    has_all_headers = (include / "paddle/phi/core/dense_tensor.inl").exists()
    libraries = ["libs/libphi_core.so", "libs/libphi.so", "libs/libcommon.so", "base/libpaddle.so"]
    return [
        *["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-w", "-DPADDLE_WITH_CUSTOM_DEVICE"],
        "-DPADDLE_WITH_CUSTOM_KERNEL" if has_all_headers else "-Imissing",
        *[f"-I{directory}" for directory in (include, include / "third_party", sysconfig.get_paths()["include"])],
        str(SOURCE),
        *["-Wl,--no-as-needed", *(str(paddle / library) for library in libraries if (paddle / library).exists())],
        "-Wl,--allow-shlib-undefined",
    ]
