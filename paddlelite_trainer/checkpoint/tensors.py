"""What a checkpoint takes for a tensor, and how its bytes are reached without copying them."""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

import numpy as np

# Name in a manifest -> NumPy type of the stored bits. NumPy has no bfloat16; Paddle writes its bits as uint16.
STORED_AS = {name: np.dtype(name) for name in ("bool", "int8", "int16", "int32", "int64")}
STORED_AS |= {name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")}
STORED_AS |= {name: np.dtype(name) for name in ("float16", "float32", "float64", "complex64", "complex128")}
STORED_AS["bfloat16"] = np.dtype("uint16")

_NAMES: dict[Any, str] = {}  # of the dtypes met, NumPy's and Paddle's: asked for several times for each tensor


def is_tensor(value: Any) -> bool:
    """Whether `value` is an ndarray or looks like a Paddle Tensor; Paddle itself is not imported to find out."""
    if isinstance(value, np.ndarray):
        return True
    return not isinstance(value, np.generic | type) and hasattr(value, "numpy") and hasattr(value, "dtype")


def dtype_name(value: Any) -> str:
    """`float32`, `bfloat16`, ...: the element type's plain name, of an array and of a Tensor alike."""
    dtype = value.dtype
    name = _NAMES.get(dtype)
    if name is None:
        name = str(dtype.name) if isinstance(value, np.ndarray) else str(dtype).rsplit(".", 1)[-1]
        _NAMES[dtype] = name
    return name


def why_not_stored(value: Any) -> str:
    """Why this array or Tensor cannot be stored, to follow its name in a sentence; empty when it can be."""
    name = dtype_name(value)
    if name not in STORED_AS:
        return f"has elements of type {name}"
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray and not isinstance(value, np.memmap):
        return f"is a {type(value).__qualname__}, more than a plain array"
    return ""


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The numbers, as float32, of bfloat16's bits, which NumPy holds as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """bfloat16's bits, as uint16, of what is nearest to the numbers; of two as near, the even one."""
    bits = np.ascontiguousarray(values, np.float32).reshape(values.shape).view(np.uint32)
    nearest_even = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest_even)


def shape_of(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value.shape))


def host_array(value: Any) -> np.ndarray:
    """The tensor's elements as a little-endian, C-contiguous array: a view of its own memory where that can be had."""
    array = value if isinstance(value, np.ndarray) else _view_of_host_memory(value)
    if array is None:
        # Of a tensor within larger memory, which sharded weights are, Tensor.numpy() copies all of that memory.
        on_host = value.cpu() if hasattr(value, "cpu") else value
        array = _view_of_host_memory(on_host)
        array = np.asarray(on_host.numpy()) if array is None else array
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(shape_of(value))


def _view_of_host_memory(tensor: Any) -> np.ndarray | None:
    # Tensor.numpy() copies element by element: 0.9 s for 256 MB on Paddle 3.3.1, where a view costs microseconds.
    if not hasattr(tensor, "data_ptr") or not tensor.place.is_cpu_place() or not tensor.is_contiguous():
        return None
    dtype, shape = STORED_AS[dtype_name(tensor)], shape_of(tensor)
    nbytes = dtype.itemsize * prod(shape)
    address = tensor.data_ptr() if nbytes else 0
    if nbytes == 0 or address == 0:
        return np.empty(shape, dtype) if nbytes == 0 else None
    memory = (ctypes.c_ubyte * nbytes).from_address(address)
    memory.owner = tensor  # type: ignore[attr-defined]  # as long as anyone holds the view
    return np.frombuffer(memoryview(memory), dtype).reshape(shape)


def same_memory_key(value: Any) -> object:
    """Equal for two tensors exactly when they are the same elements in the same memory, as tied weights are."""
    shape = shape_of(value)
    if 0 in shape:
        return object()  # nothing to share
    if isinstance(value, np.ndarray):
        address, layout = value.__array_interface__["data"][0], value.strides
    elif hasattr(value, "data_ptr") and hasattr(value, "get_strides"):
        address, layout = value.data_ptr(), tuple(value.get_strides())
    else:
        address, layout = id(value), ()
    return (address, layout, shape, dtype_name(value))
