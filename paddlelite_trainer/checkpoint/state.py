"""Turns the nested state of any part of a run into JSON and tensors, and back; nothing is pickled."""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import CheckpointCorruptError, UnserializableStateError
from .tensors import is_tensor, why_not_stored

# JSON has no tuples, bytes, infinities or keys other than strings: such a value becomes {"$": kind, ...}.
MARK = "$"
MAX_DEPTH = 200
_PLAIN_JSON_INT = 2**63


def encode_state(tree: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """Return `tree` as (JSON object, tensors by key); `where` names the part in errors and begins every key.

    A tree is nested dict, list, tuple, str, int, float, bool, None, bytes, NumPy scalar, ndarray and Tensor; dict
    keys may be str, int, float, bool, None and tuples of these. An OrderedDict is stored as a dict, and
    a float of a derived class as a float. The tensors are
    not copied.

    Raises:
        UnserializableStateError: the tree holds anything else, or holds itself; the message has the path to it.
    """
    encoder = _Encoder(where)
    return encoder.encode(tree, "", 0), encoder.tensors


def decode_state(
    json_object: Any, tensors: Mapping[str, np.ndarray], make_tensor: Callable[[np.ndarray], Any] | None = None
) -> Any:
    """Return the tree that `encode_state` was given.

    What was a Tensor goes through `make_tensor`, which is `paddle.to_tensor` unless given (only then is Paddle
    imported); pass `lambda array: array` to have arrays. NumPy arrays come back as they are in `tensors`.

    Raises:
        CheckpointCorruptError: the object is not one that `encode_state` makes.
    """
    try:
        return _decode(json_object, tensors, make_tensor or _paddle_tensor)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointCorruptError(f"A stored state cannot be decoded: {error!r}") from error


class _Encoder:
    def __init__(self, where: str) -> None:
        self.where = where
        self.tensors: dict[str, Any] = {}

    def encode(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            # Hexadecimal has no limit on digits, and other JSON readers keep it exact.
            return value if -_PLAIN_JSON_INT <= value < _PLAIN_JSON_INT else {MARK: "int", "hex": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {MARK: "float", "value": repr(value)}
        if depth > MAX_DEPTH:
            raise self.error(path, f"is nested more than {MAX_DEPTH} levels deep, or holds itself")
        if kind is dict or kind is OrderedDict:
            return self.encode_dict(value, path, depth)
        if kind is list:
            return [self.encode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        if kind is tuple:
            return {
                MARK: "tuple",
                "items": [self.encode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)],
            }
        if kind is bytes:
            return {MARK: "bytes", "base64": base64.b64encode(value).decode("ascii")}
        if isinstance(value, np.generic):
            self.check_storable(np.asarray(value), path)
            return {MARK: "scalar", "dtype": value.dtype.str, "hex": value.tobytes().hex(), "value": str(value)}
        if kind is np.ndarray or is_tensor(value):
            return self.encode_tensor(value, path)
        if isinstance(value, float):  # as metrics are, which callbacks keep in their states
            return self.encode(float(value), path, depth)
        raise self.error(path, f"is {_describe(value)}")

    def encode_dict(self, value: Mapping[Any, Any], path: str, depth: int) -> Any:
        if all(type(key) is str for key in value) and MARK not in value:
            return {key: self.encode(item, f"{path}[{key!r}]", depth + 1) for key, item in value.items()}
        items = []
        for key, item in value.items():
            if not _is_key(key):
                raise self.error(path, f"has the key {key!r}, {_describe(key)}")
            items.append(
                [self.encode(key, f"{path}[{key!r}]", depth + 1), self.encode(item, f"{path}[{key!r}]", depth + 1)]
            )
        return {MARK: "dict", "items": items}

    def encode_tensor(self, value: Any, path: str) -> Any:
        self.check_storable(value, path)
        key = f"{self.where}{path}"
        while key in self.tensors:  # keys 1 and "1" print apart, but a user's str key may hold anything
            key += "'"
        self.tensors[key] = value
        return {MARK: "array" if isinstance(value, np.ndarray) else "tensor", "key": key}

    def check_storable(self, value: Any, path: str) -> None:
        reason = why_not_stored(value)
        if reason:
            raise self.error(path, reason)

    def error(self, path: str, what: str) -> UnserializableStateError:
        return UnserializableStateError(
            f"{self.where}{path} {what}, which a checkpoint does not store. It stores dict, list, tuple, str, int, "
            "float, bool, None, bytes, NumPy numbers and arrays, and Tensors; store those, or leave this out."
        )


def _is_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(_is_key(item) for item in key)
    return key is None or type(key) in (str, int, float, bool)


def _describe(value: Any) -> str:
    text = repr(value) if not isinstance(value, Mapping) else "..."
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"a {type(value).__module__}.{type(value).__qualname__} ({text})"


def _decode(value: Any, tensors: Mapping[str, np.ndarray], make_tensor: Callable[[np.ndarray], Any]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, make_tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: _decode(item, tensors, make_tensor) for key, item in value.items()}
    kind = value[MARK]
    if kind == "tuple":
        return tuple(_decode(item, tensors, make_tensor) for item in value["items"])
    if kind == "dict":
        return {_decode(key, tensors, make_tensor): _decode(item, tensors, make_tensor) for key, item in value["items"]}
    if kind == "array":
        return tensors[value["key"]]
    if kind == "tensor":
        return make_tensor(tensors[value["key"]])
    if kind == "int":
        return int(value["hex"], 16)
    if kind == "float":
        return float(value["value"])
    if kind == "bytes":
        return base64.b64decode(value["base64"], validate=True)
    if kind == "scalar":
        return np.frombuffer(bytes.fromhex(value["hex"]), np.dtype(value["dtype"]))[0]
    raise ValueError(f"unknown kind {kind!r}")


def _paddle_tensor(array: np.ndarray) -> Any:
    import paddle

    return paddle.to_tensor(array)
