"""What a spawned worker is handed, as a pickle; what cannot be pickled is named by the attribute that holds it."""

from __future__ import annotations

import functools
import io
import mmap
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..errors import DataError
from .fetch import reduce_tensor

_DEEPEST = 20


def handed_over(making: Any, *, name: str = "loader", instead: str = "") -> bytes:
    """The pickle of an object whose attributes a worker needs; Tensors come out of it on the host.

    An array that is the map of a file comes out as a map of that file, not as a copy.

    Raises:
        DataError: something in it cannot be pickled, or its class could not be found by another process.
    """
    try:
        return _pickled(making)
    except Exception as error:
        path, culprit = _innermost("", making, 0)
        if culprit is making:
            path, why = "batches", f"cannot be pickled ({error})"
        else:
            why = _why(culprit)
        raise DataError(
            f"{name}: workers that are spawned are handed what makes its batches by pickle, and its {path} {why}. "
            f"{instead}"
        ) from error


class _Unreachable(Exception):
    """Of a class or function that only this process has."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, paddle.Tensor):
            return reduce_tensor(value)  # Paddle 2.6 has no pickle of its own, and a device is not to be looked for
        if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap) and value.mode in ("r", "r+"):
            order = "C" if value.flags.c_contiguous else "F"
            return np.memmap, (value.filename, value.dtype, value.mode, value.offset, value.shape, order)
        if isinstance(value, (type, types.FunctionType)) and _is_only_here(value):
            raise _Unreachable(value.__qualname__)
        return NotImplemented


def _pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(value)
    return stream.getvalue()


def _is_only_here(value: Any) -> bool:
    """Whether it is of a notebook, `python -c` or a terminal, which no other process can import."""
    if value.__module__ != "__main__":
        return False
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return False
    file = getattr(main, "__file__", None)
    return file is None or not Path(file).is_file()


def _innermost(path: str, value: Any, depth: int) -> tuple[str, Any]:
    """The part of a value that cannot be pickled while all of its own parts can, with the way to it."""
    for name, part in _parts(value) if depth < _DEEPEST else ():
        try:
            _pickled(part)
        except Exception:  # whatever a class's own __reduce__ and __getstate__ raise
            return _innermost(f"{path}{name}".removeprefix("."), part, depth + 1)
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif not isinstance(value, (type, types.FunctionType, types.ModuleType)):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())


def _why(value: Any) -> str:
    where = ""
    kind: Any = value if isinstance(value, type) else type(value)
    if isinstance(value, types.FunctionType):
        where = f" ({Path(value.__code__.co_filename).name}, line {value.__code__.co_firstlineno})"
        if value.__name__ == "<lambda>":
            return f"is a lambda{where}: write it as a function, by `def` at the top level of a module"
        kind, what = value, f"is the function {value.__name__}{where}"
    else:
        what = f"is the class {kind.__name__}" if kind is value else f"is a {kind.__name__}"
    if "<locals>" in kind.__qualname__:
        return f"{what}, which is defined within a function: define it at the top level of a module"
    if _is_only_here(kind):
        return (
            f"{what}, which is defined in a notebook or typed in, where no other process finds it: write it to a file "
            "my_data.py and import it from there"
        )
    try:
        _pickled(value)
    except Exception as error:
        return (
            f"{what}, which cannot be pickled ({error}): make it where it is first used, in __getitem__ or "
            "worker_init_fn, or leave it out in the dataset's __getstate__"
        )
    return what
