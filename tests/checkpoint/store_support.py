"""What tests of the checkpoint store share: a run whose every byte says its step, file systems that misbehave."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlelite_trainer.checkpoint import CheckpointStore, Entry, FileSystem

# Every call that FileSystem hands to the operating system, and those of them that change something there.
CALLS = [
    "mkdir",
    "create",
    "write",
    "fsync",
    "close",
    "fsync_directory",
    "rename",
    "replace",
    "unlink",
    "rmdir",
    "symlink",
    "link",
    "listdir",
    "readlink",
    "lstat",
    "resolve",
    "read",
    "map",
    "free_space",
]
CHANGES = [
    "mkdir",
    "create",
    "write",
    "fsync",
    "close",
    "fsync_directory",
    "rename",
    "replace",
    "unlink",
    "rmdir",
    "symlink",
    "link",
]
ERRNOS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EINTR]


class HookedFileSystem(FileSystem):
    """The real one, with `before(name, args)` and `after(name, args, result)` called around every call."""

    def before(self, name: str, args: tuple[Any, ...]) -> None: ...

    def after(self, name: str, args: tuple[Any, ...], result: Any) -> None: ...


def _hook(name: str) -> Callable[..., Any]:
    real = getattr(FileSystem, name)

    def call(self: HookedFileSystem, *args: Any) -> Any:
        self.before(name, args)
        result = real(self, *args)
        self.after(name, args, result)
        return result

    return call


for _name in CALLS:
    setattr(HookedFileSystem, _name, _hook(_name))


class NthCallFails(HookedFileSystem):
    """Counts calls from `arm()` on, and raises `error_number` at the `fail_at`-th of them (from 1), or from it on."""

    def __init__(self, fail_at: int = 0, error_number: int = errno.EIO, *, from_then_on: bool = False) -> None:
        self.fail_at, self.error_number, self.from_then_on = fail_at, error_number, from_then_on
        self.armed = False
        self.calls: list[str] = []
        self.lock = threading.Lock()  # fsyncs run side by side

    def arm(self) -> NthCallFails:
        self.armed = True
        return self

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        if (
            self.armed and name != "close"
        ):  # closing is how a failure is cleaned up; it does not fail for its own reasons
            with self.lock:
                self.calls.append(name)
                number = len(self.calls)
            if number == self.fail_at or (self.from_then_on and number > self.fail_at):
                raise OSError(self.error_number, os.strerror(self.error_number), f"injected into {name}")


def files_of(step: int, size: int = 3) -> dict[str, dict[str, np.ndarray]]:
    """Weights and optimizer state every number of which is the step, so that a mixture of two steps shows."""
    weight = np.full((size, 2), step, np.float32)
    return {
        "model.pdparams": {"linear.weight": weight, "linear.bias": np.full(2, step, np.float64)},
        "optimizer.pdopt": {"linear.weight/moment1": weight * 1},
    }


def states_of(step: int) -> dict[str, Any]:
    return {
        "trainer.json": {"global_step": step, "history": [np.full(2, step)]},
        "rng-rank00000.json": {"seed": (step, None)},
    }


def save(store: CheckpointStore, step: int, pins: dict[str, list[str]] | None = None, **more: Any) -> Entry:
    """Save the little run at `step`; it becomes `latest`, and what else `pins` says, where "new" is its name."""
    entry = store.candidate(step, 0)
    pins = {name: [entry.name if held == "new" else held for held in names] for name, names in (pins or {}).items()}
    more.setdefault("files", files_of(step))
    more.setdefault("states", states_of(step))
    return store.save(step=step, epoch=0, pins={"latest": [entry.name], **pins}, **more)


def save_last(store: CheckpointStore, step: int, keep: int, **more: Any) -> Entry:
    """Save at `step`, and keep the last `keep` under the pin `last`."""
    older = [entry.name for entry in reversed(store.entries())][: keep - 1]
    return save(store, step, {"last": ["new", *older]}, **more)


def step_in(saved: Any) -> int:
    """The one step that every number of this checkpoint says."""
    arrays = [*saved.tensors("model.pdparams").values(), *saved.tensors("optimizer.pdopt").values()]
    state = saved.state("trainer.json")
    steps = {float(number) for array in [*arrays, *state["history"]] for number in array.flat}
    steps |= {state["global_step"], saved.state("rng-rank00000.json")["seed"][0], saved.entry.step}
    assert len(steps) == 1, f"a mixture of steps: {steps}"
    return int(steps.pop())


def leftovers(run_dir: Path) -> list[str]:
    """Temporary names of ours, anywhere in the run directory."""
    return [str(path) for path in run_dir.rglob("*") if path.name.startswith((".tmp-", ".trash-"))]


def links_of(run_dir: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in sorted(run_dir.iterdir()) if path.is_symlink()}


def assert_links_lead_somewhere(run_dir: Path) -> None:
    for name in links_of(run_dir):
        assert (run_dir / name).exists(), f"{name} -> {os.readlink(run_dir / name)} leads nowhere"


def in_child(function: Callable[[], None]) -> int:
    """Run `function` in a forked child and return its exit code (negative: the signal that ended it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child only touches files
        child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A directory in memory where there is one: for tests of many saves in which no power fails."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") and sys.platform == "linux" else None
    path = Path(tempfile.mkdtemp(prefix="checkpoint-test-", dir=parent))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def copy_run(source: Path, target: Path) -> None:
    """Put `target` into the state of `source`, links kept as links."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
