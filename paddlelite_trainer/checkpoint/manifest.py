"""The manifest of a checkpoint: what it holds, byte for byte, under a checksum of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from ..errors import CheckpointCorruptError
from .format import Block
from .tensors import STORED_AS

MANIFEST = "manifest.json"
FORMAT_VERSION = 3  # says how long lists of pins changed; 2 names them whole; 1 has no parts
MAX_MANIFEST_BYTES = 1 << 30
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')


def seal(body: Mapping[str, Any]) -> bytes:
    """JSON with one key to a line, after a first line that holds the SHA-256 of all the rest."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in body.items()]
    rest = (",\n".join(lines) + "}\n").encode("ascii")
    return b'{"sha256": "%s",\n%s' % (hashlib.sha256(rest).hexdigest().encode("ascii"), rest)


def unseal(data: bytes, what: str) -> dict[str, Any]:
    """The object that `seal` wrote, its `sha256` included.

    Raises:
        CheckpointCorruptError: any bit differs from what was written; `what` names it.
    """
    match = _SEAL.match(data)
    if not match:
        raise CheckpointCorruptError(f"{what} does not begin with its checksum ({len(data)} bytes)")
    found = hashlib.sha256(data[match.end() :]).hexdigest()
    expected = match.group(1).decode("ascii")
    if found != expected:
        raise CheckpointCorruptError(
            f"{what} has been altered: its checksum is {found[:12]}..., it says {expected[:12]}..."
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{what} is not JSON: {error}") from error
    return dict(value)


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint: its size, its SHA-256 and, for a file of tensors, where each one stands."""

    size: int
    sha256: str
    blocks: tuple[Block, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"size": self.size, "sha256": self.sha256}
        if self.blocks is not None:
            record["tensors"] = [block.to_json() for block in self.blocks]
        return record


def is_file_name(name: object) -> bool:
    """Whether a checkpoint may have a file of this name: no directory, nothing hidden, nothing a shell stumbles on."""
    return isinstance(name, str) and bool(_FILE_NAME.fullmatch(name)) and name != MANIFEST


def parse_files(manifest: Mapping[str, Any]) -> dict[str, StoredFile]:
    """The manifest's files, each claim checked against the others, so that no reader can be led outside of them.

    Raises:
        CheckpointCorruptError: a name that leaves the directory, an offset beyond its file, tensors that overlap, ...
    """
    version = manifest.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointCorruptError(f"manifest.json has no format version: {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointCorruptError(
            f"The checkpoint has format {version}; this paddlelite_trainer reads up to {FORMAT_VERSION}. Upgrade it."
        )
    try:
        files = manifest["files"]
        return {_checked_name(name): _parse_file(name, record) for name, record in files.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointCorruptError(f"manifest.json does not describe its files: {error!r}") from error


def _checked_name(name: object) -> str:
    if not is_file_name(name):
        raise CheckpointCorruptError(f"manifest.json names a file that a checkpoint cannot have: {name!r}")
    assert isinstance(name, str)
    return name


def _parse_file(name: str, record: Mapping[str, Any]) -> StoredFile:
    size, sha256 = record["size"], record["sha256"]
    if not _is_count(size) or not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise CheckpointCorruptError(
            f"manifest.json has an impossible size or checksum for {name}: {size!r}, {sha256!r}"
        )
    if "tensors" not in record:
        return StoredFile(size, sha256)
    blocks = tuple(_parse_block(name, size, *fields) for fields in record["tensors"])
    spans = sorted({(block.offset, block.offset + block.nbytes) for block in blocks if block.nbytes})
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise CheckpointCorruptError(f"manifest.json has overlapping tensors in {name} at byte {start}")
    if len({block.name for block in blocks}) != len(blocks):
        raise CheckpointCorruptError(f"manifest.json names a tensor of {name} twice")
    return StoredFile(size, sha256, blocks)


def _parse_block(file: str, size: int, name: Any, dtype: Any, shape: Any, offset: Any, nbytes: Any) -> Block:
    sound = (
        isinstance(name, str)
        and dtype in STORED_AS
        and isinstance(shape, list)
        and len(shape) <= 32
        and all(map(_is_count, shape))
        and _is_count(offset)
        and _is_count(nbytes)
        and STORED_AS[dtype].itemsize * prod(shape) == nbytes
        and offset + nbytes <= size
    )
    if not sound:
        raise CheckpointCorruptError(
            f"manifest.json has an impossible tensor in {file} ({size} bytes): "
            f"{name!r} {dtype!r} {shape!r} at {offset!r}, {nbytes!r} bytes"
        )
    return Block(name, dtype, tuple(shape), offset, nbytes)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
