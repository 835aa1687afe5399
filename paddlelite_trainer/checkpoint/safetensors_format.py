"""Reads and writes .safetensors files, bfloat16 included, which the safetensors library has no NumPy type for."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointCorruptError
from .tensors import STORED_AS

# https://github.com/huggingface/safetensors#format
_CODES = {"bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
_CODES |= {"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"}
_CODES |= {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "complex64": "C64"}
_NAMES = {code: name for name, code in _CODES.items()}
_MAX_HEADER = 100_000_000


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Return the file's arrays by name, and which of them are bfloat16 (as uint16 bits).

    Raises:
        CheckpointCorruptError: the file is cut short, or its header claims what is not there.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(_MAX_HEADER, size - 8):
            raise CheckpointCorruptError(f"{path} is not a sound safetensors file: {size} bytes cannot hold its header")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = [(name, *_checked(entry, size - 8 - length)) for name, entry in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointCorruptError(f"{path} is not a sound safetensors file: {error}") from error
        spans = sorted((start, end) for _, _, _, start, end in entries if end > start)
        if any(start < end for (_, end), (start, _) in pairwise(spans)):
            raise CheckpointCorruptError(f"{path} is not a sound safetensors file: tensors overlap")
        arrays = {}
        for name, dtype, shape, start, end in entries:
            file.seek(8 + length + start)
            arrays[name] = np.frombuffer(file.read(end - start), STORED_AS[dtype]).reshape(shape)
    return arrays, {name for name, dtype, *_ in entries if dtype == "bfloat16"}


def _checked(entry: Mapping[str, Any], data_size: int) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape, (start, end) = _NAMES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"impossible sizes {shape}, {start}, {end}")
    if end > data_size or end - start != prod(shape) * STORED_AS[dtype].itemsize:
        raise ValueError(f"a tensor of shape {list(shape)} and type {dtype} at bytes {start} to {end} of {data_size}")
    return dtype, shape, start, end


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str]
) -> None:
    """Write a new file of `arrays`, whose element types' names (`float32`, `bfloat16`, ...) are in `dtypes`.

    Raises:
        FileExistsError: the file is there already.
        ValueError: an element type that the format lacks, such as complex128.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "paddle"}}
    offset = 0
    for name, array in arrays.items():
        if dtypes[name] not in _CODES:
            raise ValueError(f"safetensors has no type for {name}, which is {dtypes[name]}")
        header[name] = {
            "dtype": _CODES[dtypes[name]],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(
                np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B") if array.nbytes else b""
            )
        file.flush()
        os.fsync(file.fileno())
