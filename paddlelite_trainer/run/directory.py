"""Where a run lives, who may write there, and what its run.json says."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..checkpoint.entry import parse_entry_name
from ..checkpoint.filesystem import atomic_file
from ..checkpoint.links import CHECKPOINTS
from ..checkpoint.owner import MAIN, Owner, parse_owner
from ..errors import (
    CheckpointSaveError,
    ConfigurationError,
    RunLockedError,
    TrainerError,
)
from .whose import RUN_FILE, beginning, read_json

CONFIG_FILE = "config.yaml"
"""The whole configuration of a run that `paddlelite fit` has begun."""
CONFIG_HEAD = "# The configuration of this run, as `paddlelite fit` has it"
OUTCOMES = ("finished", "stopped", "failed", "interrupted")

_VERSION = re.compile(r"version_(\d+)")
_OWNER_WAIT_SECONDS = 0.5


# -- who may write ---------------------------------------------------------------------------------------------------
class RunDirectory:
    """A run's directory, which this process alone may write until `close`.

    The lock is the operating system's: it dies with this process however that dies, and processes forked from it
    (DataLoader workers) do not keep it. Reading a run takes no lock. Only rank 0 makes a RunDirectory.

        run = RunDirectory.create("runs")  # runs/version_0, or the next free number
        ...  # train, writing below run.path
        run.close("stopped: val_acc did not improve for 5 epochs")
    """

    def __init__(self, path: str | os.PathLike[str], *, fresh: bool = False, owner: Owner | None = None) -> None:
        """Lock an existing directory, one without checkpoints if `fresh`, and say in its run.json who runs there.

        `owner` is the run that it is where nothing in the directory says so.

        Raises:
            RunLockedError: another process holds it; the message names its pid and host.
            ConfigurationError: it is asked to be fresh, and holds checkpoints.
        """
        self.path = absolute(path)
        self.owner: Owner
        """The run, with the branch that it is on."""
        self.copied_from: Path | None = None
        """The directory that this one was found to be a copy of as this process began; a new run began with that."""
        self.goes_on: bool
        """Whether the run had begun before, in this process or another."""
        self._lock = _acquire(self.path)
        _held.add(self)
        try:
            if fresh and holds_checkpoints(self.path):
                raise ConfigurationError(
                    f"{self.path} already holds a run with checkpoints. To go on with it pass ckpt_path='last'; "
                    "for a fresh run choose another run_name, or move that directory away."
                )
            before = read_json(self.path / RUN_FILE)
            self.owner, self.copied_from = beginning(self.path, before, owner)
            self._record = {
                "id": self.owner.id,
                "branch": self.owner.branch,
                "ancestors": list(self.owner.ancestors),
                "path": str(self.path),
                "status": "running",
                "reason": None,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": _now(),
                "ended": None,
                "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
                "how_begun": how_begun(),
                "created": self.owner.begun,
                "sessions": int(before.get("sessions") or 0) + 1,
            }
            self.goes_on = before.get("id") == self.owner.id
            _write_json(self.path / RUN_FILE, self._record)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, TrainerError):
                raise CheckpointSaveError(f"cannot write the run directory {self.path}: {error}") from error
            raise

    @classmethod
    def create(cls, default_root_dir: str | os.PathLike[str], *, run_name: str | None = None) -> RunDirectory:
        """Lock a directory for a fresh run: `<root>/<run_name>`, or `<root>/version_<N>` with the next free number.

        Raises:
            ConfigurationError: `run_name` is no usable name, or a run of that name already has checkpoints.
            RunLockedError: a run of that name is running.
        """
        root = absolute(default_root_dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            if run_name is None:
                return cls(_make_next_version(root))
            path = _named_run(root, run_name)
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigurationError(f"cannot make a run directory below {root}: {error.filename} is a file") from error
        except OSError as error:
            raise CheckpointSaveError(f"cannot make a run directory below {root}: {error}") from error
        return cls(path, fresh=True)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], owner: Owner | None = None) -> RunDirectory:
        """Lock the directory of a run that goes on in place; `resolve` says which, and whose if nothing there does.

        Raises:
            RunLockedError: it is running.
        """
        return cls(path, owner=owner)

    @property
    def log_id(self) -> str:
        """The run's id for who logs it: of a branch with its name, since its points are others than those before."""
        return self.owner.id if self.owner.branch == MAIN else f"{self.owner.id}-{self.owner.branch}"

    def branch_off(self, step: int) -> Owner:
        """From here on the run is on a branch of its own, which left the one that it was on at `step`."""
        self.owner = self.owner.branching(step)
        self._record.update(branch=self.owner.branch)
        try:
            _write_json(self.path / RUN_FILE, self._record)
        except OSError as error:
            raise CheckpointSaveError(f"cannot write the run directory {self.path}: {error}") from error
        return self.owner

    def close(self, outcome: str | None = None) -> None:
        """Record how the run ended, if said, and let other processes write here; called twice it does nothing.

        `outcome` is "finished", "stopped", "failed" or "interrupted", and after that the reason:
        "failed: ValueError: no such key", "interrupted by SIGTERM".
        """
        if self not in _held:
            return
        if outcome is not None:
            status, reason = _split_outcome(outcome)
            self._record.update(status=status, reason=reason, ended=_now())
            try:
                _write_json(self.path / RUN_FILE, self._record)
            except OSError as error:
                # The run is over and its checkpoints are safe: a full disk must not replace the run's own outcome.
                warnings.warn(f"cannot record in {self.path / RUN_FILE} that the run {outcome}: {error}", stacklevel=2)
        _held.discard(self)
        self._lock.release(force=True)

    def drop_lock(self) -> None:
        """In a forked child: keep the run locked no longer than the parent does."""
        self._lock.drop()


class _Lock(FileLock):
    """A lock whose copy in a forked child can be let go without releasing what the parent holds."""

    def drop(self) -> None:
        try:
            context = self._context
            descriptor, context.lock_file_fd = context.lock_file_fd, None
        except AttributeError:  # another filelock keeps it elsewhere
            return
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError:
                pass


def new_run(default_root_dir: str | os.PathLike[str], run_name: str | None = None) -> Path:
    """Make the directory that a run of this name, or the next number, lives in, and hold no lock on it.

    For a run that comes from elsewhere and goes on here.
    """
    root = absolute(default_root_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if run_name is None:
            return _make_next_version(root)
        path = _named_run(root, run_name)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointSaveError(f"cannot make a run directory below {root}: {error}") from error
    return path


def _split_outcome(outcome: str) -> tuple[str, str | None]:
    match = re.fullmatch(rf"({'|'.join(OUTCOMES)})\b:?\s*(.*)", outcome, re.DOTALL)
    if match is None:
        raise ConfigurationError(f"a run's outcome begins with {', '.join(OUTCOMES)}, got {outcome!r}")
    return match[1], match[2] or None


_held: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run's lock for a moment, to change what is in it while nobody trains; run.json stays as it is.

    Raises:
        RunLockedError: another process holds it.
    """
    lock = _acquire(absolute(path))
    try:
        yield
    finally:
        lock.release(force=True)


def _acquire(path: Path) -> _Lock:
    lock = _Lock(path / ".lock", thread_local=False)
    try:
        # A worker forked in the very moment in which its parent was killed lets go only when it next runs.
        lock.acquire(timeout=0.3, poll_interval=0.02)
    except Timeout:
        raise RunLockedError(_locked_message(path)) from None
    except OSError as error:
        raise CheckpointSaveError(f"cannot lock the run directory {path}: {error}") from error
    return lock


def _locked_message(path: Path) -> str:
    # The holder writes run.json right after it has the lock: give it that moment rather than name the run before.
    deadline = time.monotonic() + _OWNER_WAIT_SECONDS
    info = read_run(path)
    while (info is None or info.status != "running") and time.monotonic() < deadline:
        time.sleep(0.02)
        info = read_run(path)
    who = f"process {info.pid} on {info.host}" if info and info.status == "running" else "another process"
    return (
        f"{path} is in use by {who}. Two runs cannot write one directory: wait for it or stop it, or start this run "
        "with another run_name or default_root_dir."
    )


def _forget_locks_after_fork() -> None:
    # flock belongs to the open file, which a forked child shares: without this a worker that outlives a killed parent
    # would keep the run locked. Closing the child's descriptor releases nothing that the parent holds; releasing would.
    for run in list(_held):
        run.drop_lock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks_after_fork)


def _make_next_version(root: Path) -> Path:
    number = max((number for number, _ in numbered_runs(root)), default=-1) + 1
    while True:
        path = root / f"version_{number}"
        try:
            path.mkdir()  # of two processes that want one number, mkdir lets one succeed
            return path
        except FileExistsError:
            number += 1


def _named_run(root: Path, run_name: str) -> Path:
    """The directory of the run `run_name` below `root`."""
    parts = Path(run_name).parts if run_name and "\0" not in run_name else ()
    if not parts or ".." in parts or Path(run_name).is_absolute():
        raise ConfigurationError(f"run_name must name a directory below {root}, got {run_name!r}")
    if any(len(os.fsencode(part)) > 255 for part in parts):
        raise ConfigurationError(f"run_name={run_name[:60]!r}... is longer than a directory's name can be (255 bytes)")
    return root / run_name


# -- what a run says of itself ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RunInfo:
    """What a run's run.json says.

    `status` is "running" or how the run ended: "finished", "stopped", "failed", "interrupted", or "killed" where it
    says running and its process is gone from this machine.
    """

    status: str
    reason: str | None
    pid: int
    host: str
    started: str
    ended: str | None
    command: str
    sessions: int
    owner: Owner | None = None
    """None of a run that no version with ids has gone on with."""

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, which knows whether its process lives."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        if self.status == "running":
            return f"running (process {self.pid} on {self.host} since {self.started})"
        # One line: it stands in headings and notes. What an exception said in full is in run.json.
        reason = next(iter(str(self.reason or "").strip().splitlines()), "")
        return f"{self.status}: {reason}" if reason else self.status


def read_run(path: str | os.PathLike[str]) -> RunInfo | None:
    """What is recorded of the run in `path`, or None where there is no readable run.json. Takes no lock."""
    record = read_json(Path(path) / RUN_FILE)
    try:
        status, pid, host = record["status"], int(record["pid"]), str(record["host"])
        if status == "running" and host == socket.gethostname() and not _is_alive(pid):
            status = "killed"
        return RunInfo(
            status=status,
            reason=record["reason"],
            pid=pid,
            host=host,
            started=str(record["started"]),
            ended=record["ended"],
            command=str(record["command"]),
            sessions=int(record["sessions"]),
            owner=parse_owner({**record, "begun": record.get("created"), "branch": record.get("branch") or MAIN}),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _is_alive(pid: int) -> bool:
    if os.name != "posix" or pid <= 0:  # elsewhere signal 0 is no question but a signal
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def how_begun() -> dict[str, Any]:
    """For run.json: how this process was started, so that another can be started like it."""
    return {
        "command": [sys.executable, *_launcher(), *sys.orig_argv[1:]],
        "directory": os.getcwd(),
        "environment": {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
    }


def _launcher() -> list[str]:
    """Paddle's launcher, where it was started by hand with this script; its processes know only their own command."""
    processes = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    if processes == "1" or os.environ.get("PADDLELITE_LAUNCHED") == "1":
        return []
    return ["-m", "paddle.distributed.launch", "--nproc_per_node", processes]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` in one step: a reader sees the old content or the new."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.chmod(0o644)


def holds_checkpoints(path: Path) -> bool:
    """Whether a run has checkpoints, sound or not."""
    try:
        return any(parse_entry_name(name) for name in os.listdir(path / CHECKPOINTS))
    except (FileNotFoundError, NotADirectoryError):
        return False


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` without links and relative parts, so that a later chdir or a moved link changes nothing."""
    return Path(path).expanduser().resolve()


def numbered_runs(root: Path) -> Iterator[tuple[int, Path]]:
    """The directories `version_<N>` below `root`, each with its number."""
    for path in subdirectories(root):
        match = _VERSION.fullmatch(path.name)
        if match is not None:
            yield int(match[1]), path


def subdirectories(root: Path) -> list[Path]:
    """Those of a directory that may not be there."""
    try:
        return [path for path in root.iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
