"""The bytes of a `.pdparams` file: a pickle for Paddle, whose tensor blocks are found without running it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .tensors import STORED_AS, dtype_name, same_memory_key, shape_of

# The key under which paddle.save puts {key: parameter name}; paddle.load makes a Tensor of every key listed there.
NAME_TABLE = "StructuredToParameterName@@"
ALIGNMENT = 64


@dataclass(frozen=True)
class Block:
    """Where one tensor's raw bytes stand in its file; tied tensors share an offset."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def to_json(self) -> list[Any]:
        return [self.name, self.dtype, list(self.shape), self.offset, self.nbytes]


@dataclass(frozen=True)
class Layout:
    """A whole file before a byte of it is written: `pieces` in order (bytes, or the tensor whose elements go there).

    `blocks` is None for a file that holds no tensors.
    """

    pieces: list[bytes | Any]
    blocks: tuple[Block, ...] | None
    size: int


def lay_out(tensors: Mapping[str, Any]) -> Layout:
    """Lay out `{name: array or Tensor}` as Paddle's file; the same tensors always give the same bytes.

    It is a pickle of protocol 4, `{name: ndarray, ..., NAME_TABLE: {name: name}}`, with each array built as NumPy 1.x
    pickles it (`numpy.core.multiarray._reconstruct`, a name that NumPy 2 keeps for old files), and each block of
    elements aligned to 64 bytes of the file. Tensors that share memory are written once.
    """
    pieces: list[bytes | Any] = []
    blocks: list[Block] = []
    first_with: dict[object, tuple[int, int]] = {}  # memory -> (index of its block, memo slot of its array)
    keys = {name: same_memory_key(value) for name, value in tensors.items()}
    shared = _repeated(keys.values())
    memo = _Memo()
    head = bytearray(b"\x80\x04" + memo.prelude(tensors.values()) + b"}(")
    position = 0

    for name, value in tensors.items():
        head += _text(name)
        key, dtype, shape = keys[name], dtype_name(value), shape_of(value)
        if key in first_with:
            block_index, slot = first_with[key]
            head += _get(slot)
            original = blocks[block_index]
            blocks.append(Block(name, dtype, shape, original.offset, original.nbytes))
            continue
        nbytes = STORED_AS[dtype].itemsize * prod(shape)
        head += (
            memo.array_start
            + _int(1)
            + _tuple(b"".join(map(_int, shape)), len(shape))
            + memo.get(_numpy_code(dtype))
            + b"\x89"
        )
        head += _padding(position + len(head) + 9)
        head += b"\x8e" + struct.pack("<Q", nbytes)
        pieces += [bytes(head), value]
        position += len(head)
        blocks.append(Block(name, dtype, shape, position, nbytes))
        position += nbytes
        head = bytearray(b"tb")
        if key in shared:
            first_with[key] = (len(blocks) - 1, memo.size)
            head += memo.put()

    head += _text(NAME_TABLE) + b"}("
    for name in tensors:
        head += _text(name) * 2
    head += b"uu."
    pieces.append(bytes(head))
    return Layout(pieces, tuple(blocks), position + len(head))


def lay_out_bytes(data: bytes) -> Layout:
    """The layout of a file that is just these bytes."""
    return Layout([data], None, len(data))


def array_at(data: Any, block: Block) -> np.ndarray:
    """The tensor's elements as an array over the file's mapped bytes; no copy."""
    dtype = STORED_AS[block.dtype]
    if block.nbytes == 0:
        return np.empty(block.shape, dtype)
    return np.frombuffer(data, dtype, prod(block.shape), block.offset).reshape(block.shape)


def _repeated(keys: Any) -> set[object]:
    seen: set[object] = set()
    again: set[object] = set()
    for key in keys:
        (again if key in seen else seen).add(key)
    return again


class _Memo:
    """The pickle's memo: NumPy's three names and the dtypes, put there once at the start."""

    def __init__(self) -> None:
        self.size = 0
        self.dtypes: dict[str, int] = {}
        self.array_start = b""

    def put(self) -> bytes:
        self.size += 1
        return b"\x94"

    def get(self, numpy_code: str) -> bytes:
        return _get(self.dtypes[numpy_code])

    def prelude(self, tensors: Any) -> bytes:
        """Opcodes that put every name and dtype the file needs into the memo and leave the stack empty."""
        opcodes = b""
        for module, name in (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            opcodes += _text(module) + _text(name) + b"\x93" + self.put() + b"0"
        for code in sorted({_numpy_code(dtype_name(tensor)) for tensor in tensors}):
            self.dtypes[code] = self.size
            order = b"|" if code[1:] == "1" else b"<"
            opcodes += _get(2) + _text(code) + b"\x89\x88\x87R" + self.put()
            opcodes += b"(" + _int(3) + _text(order.decode()) + b"NNN" + b"J\xff\xff\xff\xff" * 2 + _int(0) + b"tb0"
        # _reconstruct(ndarray, (0,), b"b"), then the start of the state tuple that BUILD takes.
        self.array_start = _get(0) + _get(1) + _int(0) + b"\x85C\x01b\x87R("
        return opcodes


def _numpy_code(dtype: str) -> str:
    return str(STORED_AS[dtype].str[1:])


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) < 256:
        return b"\x8c" + bytes([len(encoded)]) + encoded
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _int(value: int) -> bytes:
    if value < 256:
        return b"K" + bytes([value])
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(items: bytes, count: int) -> bytes:
    if count <= 3:
        return items + (b")", b"\x85", b"\x86", b"\x87")[count]
    return b"(" + items + b"t"


def _get(slot: int) -> bytes:
    return b"h" + bytes([slot]) if slot < 256 else b"j" + struct.pack("<I", slot)


def _padding(position: int) -> bytes:
    """Opcodes without effect (push some bytes, pop them) that bring `position` to a multiple of ALIGNMENT."""
    missing = -position % ALIGNMENT
    if missing == 0:
        return b""
    if missing < 3:
        missing += ALIGNMENT
    return b"C" + bytes([missing - 3]) + bytes(missing - 3) + b"0"
