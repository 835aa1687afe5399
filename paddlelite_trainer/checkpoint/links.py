"""Every pin as links in the run directory, so that `latest.pdparams` is always a file that any Paddle tool opens."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import warnings
from collections.abc import Collection
from pathlib import Path

from ..errors import ConfigurationError
from .entry import parse_entry_name
from .filesystem import FileSystem

CHECKPOINTS = "checkpoints"
HISTORY = "history"
"""Where a run has the older epochs of its history, without which a resumed run has a gap there."""
# Suffix beside a pin's name -> the file of the checkpoint that it leads to.
SUFFIXES = {".pdparams": "model.pdparams", ".pdopt": "optimizer.pdopt", ".pdema": "ema.pdparams"}
_MANAGED = re.compile(
    r"latest|last|best|best_.*|recent|recovered|imported-best|early-stopping-best|epoch_\d+|before-lr-drop-.*"
)
_TEMPORARY = re.compile(r"\.tmp-link-[0-9a-f]{8}")
_NO_LINKS_HERE = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# What else lies in a run directory.
_RESERVED = {CHECKPOINTS, "run.json", "metrics.csv", "hparams.json", "profile.txt", "train.log", "paddle_profile"}
_MAX_POINTER_BYTES = 4096


def check_pin_name(name: str) -> None:
    """Raise ConfigurationError unless `name` can be a file name on every system, with a suffix after it."""
    if not isinstance(name, str) or not name:
        problem = "must be a non-empty str"
    elif name.startswith(".") or name != name.strip() or name.endswith("."):
        problem = "must not begin with '.' or space, nor end with them"
    elif re.search(r'[<>:"/\\|?*\x00-\x1f\x7f]', name):
        problem = 'must not contain any of <>:"/\\|?* or a control character'
    elif len(os.fsencode(name)) > 200:
        problem = "must be at most 200 bytes long"
    elif name.isdecimal():
        problem = "must not be a bare number, which means a step"
    elif (
        name in _RESERVED or name.endswith(tuple(SUFFIXES)) or name.startswith("events.out.") or parse_entry_name(name)
    ):
        problem = (
            f"must not be {' or '.join(sorted(_RESERVED))}, begin with events.out., be a checkpoint's own name, "
            f"or end in {', '.join(SUFFIXES)}"
        )
    else:
        return
    raise ConfigurationError(f"The name of a pin becomes a file name in the run directory: it {problem}, got {name!r}")


def is_managed(name: str) -> bool:
    """Whether a run gives this name to checkpoints and takes it away again, or it means something as a ckpt_path."""
    return bool(_MANAGED.fullmatch(name))


def check_tag(name: str) -> None:
    """Raise ConfigurationError unless `name` can be a tag of the user's own."""
    check_pin_name(name)
    if is_managed(name):
        raise ConfigurationError(
            f"{name!r} is one of the names that runs give to checkpoints by themselves: "
            "choose another for a tag of your own"
        )


def strip_suffix(path: Path) -> Path:
    """`run/latest` for `run/latest.pdparams`."""
    return path.with_suffix("") if path.suffix in SUFFIXES else path


def read_pointer(path: Path, file_system: FileSystem) -> Path | None:
    """The checkpoint directory that a pointer file names; None when `path` is no such file."""
    try:
        status = file_system.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_POINTER_BYTES:
            return None
        target = json.loads(file_system.read(path))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path.parent / target if isinstance(target, str) and _entry_of(target) else None


class Links:
    """The links of one run directory. They are hints for people and tools: the store never decides anything by them.

    Where the file system has no symbolic links, a pin is a small JSON file that names the checkpoint, and its suffixed
    names are hard links. A name that something else bears is left alone, with a warning.
    """

    def __init__(self, run_dir: Path, file_system: FileSystem) -> None:
        self._run_dir = run_dir
        self._fs = file_system
        self._warned: set[str] = set()
        self._unsynced = False

    def point(self, pin: str, entry: str, files: Collection[str]) -> None:
        """Make the pin's links lead to this checkpoint, each switched atomically."""
        if not self._set(pin, f"{CHECKPOINTS}/{entry}", directory=entry):
            return
        for suffix, file in SUFFIXES.items():
            if file in files:
                self._set(pin + suffix, f"{pin}/{file}", directory=entry, file=file)
            else:
                self._remove(pin + suffix, file)

    def remove(self, pin: str) -> None:
        """Remove the pin's links, so far as they are ours."""
        for suffix, file in SUFFIXES.items():
            self._remove(pin + suffix, file)
        self._remove(pin, None)

    def sync(self) -> None:
        """Return when the links are on the disk as they are now."""
        if self._unsynced:
            self._fs.fsync_directory(self._run_dir)
            self._unsynced = False

    def found(self) -> dict[str, str]:
        """Pin -> checkpoint, as the links say: what is left to go by when the record of the pins is lost."""
        pins = {}
        for name in sorted(self._fs.listdir(self._run_dir)):
            path = self._run_dir / name
            target = self._fs.readlink(path) if self._fs.is_link(path) else self._pointer_target(path)
            entry = _entry_of(target) if target else None
            if entry:
                pins[name] = entry
        return pins

    def clean(self) -> None:
        """Remove half-made links of a process that died."""
        for name in self._fs.listdir(self._run_dir):
            if _TEMPORARY.fullmatch(name) and not self._fs.is_directory(self._run_dir / name):
                self._fs.unlink(self._run_dir / name)

    def _set(self, name: str, target: str, *, directory: str, file: str | None = None) -> bool:
        path = self._run_dir / name
        if self._is(path, target, directory, file):
            return True
        if self._fs.exists(path) and not self._is_ours(path, file):
            self._warn_once(name, f"{path} is not ours and was left as it is, so there is no link {name!r} to {target}")
            return False
        temporary = self._run_dir / f".tmp-link-{secrets.token_hex(4)}"
        try:
            self._make(temporary, target, directory, file)
            self._fs.replace(temporary, path)
            self._unsynced = True
        except OSError as error:
            self._discard(temporary)
            if error.errno in _NO_LINKS_HERE:
                self._warn_once("", f"{self._run_dir} can hold neither symbolic nor hard links: {name} was not made")
                return False
            raise
        return True

    def _make(self, temporary: Path, target: str, directory: str, file: str | None) -> None:
        try:
            self._fs.symlink(target, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS_HERE and getattr(error, "winerror", 0) != 1314:
                raise
            if file is None:
                self._fs.write_file(temporary, json.dumps({"checkpoint": target}).encode())
            else:
                self._fs.link(self._run_dir / CHECKPOINTS / directory / file, temporary)

    def _remove(self, name: str, file: str | None) -> None:
        path = self._run_dir / name
        if self._fs.exists(path) and self._is_ours(path, file):
            self._fs.unlink(path)
            self._unsynced = True

    def _discard(self, temporary: Path) -> None:
        try:
            self._fs.unlink(temporary)
        except OSError:
            pass

    def _is(self, path: Path, target: str, directory: str, file: str | None) -> bool:
        if self._fs.is_link(path):
            return self._fs.readlink(path) == target
        if not self._fs.exists(path):
            return False
        if file is None:
            return self._pointer_target(path) == target
        return self._inode(path) == self._inode(self._run_dir / CHECKPOINTS / directory / file)

    def _is_ours(self, path: Path, file: str | None) -> bool:
        """Whether this is what `_make` makes, for some checkpoint."""
        if self._fs.is_link(path):
            target = self._fs.readlink(path)
            return target == f"{strip_suffix(path).name}/{file}" if file else _entry_of(target) is not None
        if file is None:
            return self._pointer_target(path) is not None
        return self._inode(path) in {self._inode(found / file) for found in self._directories()}

    def _pointer_target(self, path: Path) -> str | None:
        if read_pointer(path, self._fs) is None:
            return None
        return str(json.loads(self._fs.read(path))["checkpoint"])

    def _directories(self) -> list[Path]:
        checkpoints = self._run_dir / CHECKPOINTS
        names = [checkpoints / name for name in self._fs.listdir(checkpoints)]
        hidden = [path for path in names if path.name in (".superseded", ".quarantine")]
        return names + [path / name for path in hidden for name in self._fs.listdir(path)]

    def _inode(self, path: Path) -> tuple[int, int] | None:
        try:
            status = self._fs.lstat(path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=2)


def _entry_of(target: str) -> str | None:
    parent, _, name = target.replace(os.sep, "/").partition("/")
    return name if parent == CHECKPOINTS and parse_entry_name(name) else None
