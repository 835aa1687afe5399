"""Remotes that misbehave: every call can be counted, failed, torn, kept waiting, or be the last of a process."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from paddlelite_trainer.checkpoint import Remote
from paddlelite_trainer.checkpoint.manifest import MANIFEST, seal, unseal
from paddlelite_trainer.checkpoint.remote import NAMES_FILE, RemoteCheckpoint

CALLS = {"ls", "info", "cat_file", "pipe_file", "put_file", "mv", "rm_file", "rmdir", "makedirs"}


class Crash(BaseException):
    """The process ends here."""


class Hooked:
    """A file system of fsspec's whose calls go through `around(number, name, args, call)`; numbers begin at 1."""

    def __init__(self, inner: Any, around: Callable[[int, str, tuple[Any, ...], Callable[[], Any]], Any]) -> None:
        self._inner, self._around = inner, around
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name not in CALLS:
            return attribute

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, str(args[1] if name in ("put_file", "mv") else args[0])))
            return self._around(len(self.calls), name, args, lambda: attribute(*args, **options))

        return call

    def tear(self, name: str, args: tuple[Any, ...]) -> None:
        """What a write leaves that breaks off half way."""
        data = Path(args[0]).read_bytes() if name == "put_file" else args[1]
        self._inner.pipe_file(args[1] if name == "put_file" else args[0], data[: len(data) // 2])


def hook(remote: Remote, around: Callable[[int, str, tuple[Any, ...], Callable[[], Any]], Any]) -> Hooked:
    remote.objects._fs = Hooked(remote.objects._fs, around)
    return remote.objects._fs


def memory_url() -> str:
    return f"memory://bucket-{uuid.uuid4().hex}/run"


def below(url: str) -> dict[str, bytes]:
    """Every object below the URL."""
    file_system, root = fsspec.core.url_to_fs(url)
    return {path[len(root) + 1 :]: file_system.cat_file(path) for path in file_system.find(root)}


def overwrite(url: str, key: str, data: bytes) -> None:
    file_system, root = fsspec.core.url_to_fs(url)
    file_system.makedirs(f"{root}/{key}".rpartition("/")[0], exist_ok=True)
    file_system.pipe_file(f"{root}/{key}", data)


def remove(url: str, key: str) -> None:
    file_system, root = fsspec.core.url_to_fs(url)
    file_system.rm_file(f"{root}/{key}")


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def forged(url: str, checkpoint: RemoteCheckpoint, change: Callable[[dict[str, Any]], None]) -> RemoteCheckpoint:
    """A copy of a remote checkpoint, of the next commit; its manifest says something else, its checksum is right."""
    objects = below(url)
    manifest = unseal(objects[f"{checkpoint.name}/{MANIFEST}"], "")
    del manifest["sha256"]
    manifest["sequence"] += 1
    change(manifest)
    data = seal(manifest)
    copy = RemoteCheckpoint(checkpoint.entry_name, checkpoint.commit + 1, json.loads(data)["sha256"][:16])
    for key, content in objects.items():
        if key.startswith(f"{checkpoint.name}/"):
            overwrite(url, key.replace(checkpoint.name, copy.name), content)
    overwrite(url, f"{copy.name}/{MANIFEST}", data)
    return copy


def overwrite_names(url: str, names: Any) -> None:
    overwrite(url, NAMES_FILE, seal({"format": 1, "names": names}))


def printed() -> tuple[Callable[[str], None], io.StringIO]:
    """Something to tell things to, and what it was told."""
    told = io.StringIO()
    return (lambda message: print(message, file=told)), told
