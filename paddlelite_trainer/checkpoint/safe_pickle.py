"""Reads the pickles of other Paddle programs without the pickle machine: nothing is imported, nothing is called."""

from __future__ import annotations

import os
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import CheckpointCorruptError, UnsafePickleError

# Every name a file may mention, in the spellings of NumPy 1 and 2 and of Python 2 and 3. They stay names: what each
# would build is built here, from checked arguments.
_RECONSTRUCT, _SCALAR, _NDARRAY, _DTYPE = "_reconstruct", "scalar", "ndarray", "dtype"
_ORDERED_DICT, _TUPLE, _BYTES, _ENCODE = "OrderedDict", "tuple", "bytes", "encode"
PERMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("collections", "OrderedDict"): _ORDERED_DICT,
    ("builtins", "tuple"): _TUPLE,
    ("__builtin__", "tuple"): _TUPLE,
    ("builtins", "bytes"): _BYTES,
    ("__builtin__", "bytes"): _BYTES,
    ("_codecs", "encode"): _ENCODE,
}
_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}

# One opcode makes at most one small object (about 100 bytes), so these bound the memory that a file of many tiny
# objects takes. A tensor of a state dict is some 45 opcodes.
_FREE_OPCODES = 1_000_000
_BYTES_PER_OPCODE = 100
_MAX_DEPTH = 64
_MAX_LINE = 512
_MAX_INT_KEY = 2**31

_PUSH_ARGUMENT = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_PUSH_ARGUMENT |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "SHORT_BINSTRING", "BINSTRING"}
_PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Return the dicts, lists, tuples, numbers, strings and arrays that the pickle file holds.

    Memory stays below twice the file and 100 MB. Arrays are read-only views of bytes read from the file; bfloat16 shows
    as uint16, as Paddle writes it.

    Raises:
        UnsafePickleError: the file mentions a name outside `PERMITTED`, or asks for something no state dict needs.
        CheckpointCorruptError: the file is cut short or damaged.
    """
    path = Path(path)
    with open(path, "rb") as file:
        return _Reader(path, file).read()


class _Global(NamedTuple):
    module: str
    name: str


class _Pending:
    """An array or a dtype between REDUCE, which announces it, and BUILD, which brings its state."""

    def __init__(self, kind: str, code: str = "") -> None:
        self.kind = kind
        self.code = code
        self.memo_keys: list[int] = []


class _Malformed(Exception):
    """The opcodes do not fit together."""


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.input = _BoundedInput(file, self.size)
        self.opcodes_left = _FREE_OPCODES + self.size // _BYTES_PER_OPCODE
        self.bytes_left = self.size
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        try:
            for name, argument in self.opcodes():
                self.execute(name, argument)
            if len(self.stack) != 1 or self.outer_stacks:
                raise _Malformed("it ends in the middle of a value")
            (result,) = self.stack
            self.check_result(result)
            return result
        except _Malformed as error:
            raise CheckpointCorruptError(f"{self.path} is not a sound Paddle file: {error}.") from None
        except IndexError:
            raise CheckpointCorruptError(
                f"{self.path} is not a sound Paddle file: its values do not fit together."
            ) from None

    def opcodes(self) -> Iterator[tuple[str, Any]]:
        stream = pickletools.genops(self.input)  # type: ignore[arg-type]
        while True:
            try:
                opcode, argument, _ = next(stream)
            except StopIteration:
                break
            except ValueError as error:  # also UnicodeDecodeError
                raise _Malformed(f"{self.input.position} bytes into {self.size}: {error}") from error
            self.spend(1)
            if opcode.name != "STOP":
                yield opcode.name, argument
        if self.input.position != self.size:
            raise _Malformed(f"{self.size - self.input.position} bytes follow its end")

    def execute(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name == "MEMOIZE":
            self.memoize(len(self.memo))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memoize(argument)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise _Malformed(f"it refers to value {argument}, which is not there")
            stack.append(self.memo[argument])
        elif name in _PUSH_CONSTANT:
            stack.append(_PUSH_CONSTANT[name])
        elif name == "MARK":
            self.outer_stacks.append(stack)
            self.stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise _Malformed("a tuple lacks elements")
            items = self.complete(stack[-count:])
            del stack[-count:]
            stack.append(tuple(items))
        elif name == "TUPLE":
            items = self.pop_to_mark()
            self.stack.append(tuple(items))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif name == "SETITEM":
            items = self.complete(stack[-2:])
            del stack[-2:]
            self.set_items(items)
        elif name == "APPENDS":
            self.extend(self.pop_to_mark())
        elif name == "APPEND":
            self.extend(self.complete([stack.pop()]))
        elif name == "GLOBAL":
            self.push_global(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            self.push_global(module, attribute)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.reduce(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            self.build(state)
        elif name == "POP":  # our own files align their tensors with it
            stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise self.unsafe(f"uses the pickle operation {name}")

    # -- the stack ---------------------------------------------------------------------------------------------------
    def spend(self, opcodes: int) -> None:
        self.opcodes_left -= opcodes
        if self.opcodes_left < 0:
            raise self.unsafe("consists of far more small objects than tensors need, and would fill the memory")

    def memoize(self, key: int) -> None:
        value = self.stack[-1]
        self.memo[key] = value
        if isinstance(value, _Pending):
            value.memo_keys.append(key)

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer_stacks.pop()
        return self.complete(items)

    def complete(self, items: list[Any]) -> list[Any]:
        if any(isinstance(item, _Pending) for item in items):
            raise _Malformed("an array has no content")
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise _Malformed("items are set on something that is no dict")
        for key, value in zip(items[::2], items[1::2]):
            target[self.checked_key(key)] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise _Malformed("items are appended to something that is no list")
        target.extend(items)

    def checked_key(self, key: Any) -> str | int:
        if type(key) is str or (type(key) is int and abs(key) <= _MAX_INT_KEY):
            return key
        raise _Malformed(f"a dict has a key of type {type(key).__name__}; names and small numbers are read")

    # -- what stands for a call --------------------------------------------------------------------------------------
    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _Malformed("a global has no name")
        if (module, name) not in PERMITTED:
            shown = ascii(f"{module}.{name}"[:200])[1:-1]
            raise self.unsafe(f"asks for {shown}")
        self.stack.append(_Global(module, name))

    def reduce(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global):
            raise self.unsafe("calls something that is not a name")
        if type(arguments) is not tuple:
            raise _Malformed("a call has no arguments")
        kind = PERMITTED[function]
        self.complete(list(arguments))
        if kind == _RECONSTRUCT and len(arguments) == 3:
            base, shape, code = arguments
            if (
                isinstance(base, _Global)
                and PERMITTED[base] == _NDARRAY
                and _is(shape, (0,))
                and _is_one_of(code, b"b", "b")
            ):
                return _Pending(_NDARRAY)
        elif kind == _DTYPE and _is_one_of(arguments[1:], (False, True), (0, 1)):
            return _Pending(_DTYPE, self.checked_dtype_code(arguments[0]))
        elif kind == _SCALAR and len(arguments) == 2:
            return self.array((), arguments[0], False, arguments[1])[()]
        elif kind == _ORDERED_DICT and len(arguments) <= 1:
            return self.ordered_dict(*arguments)
        elif kind == _TUPLE and len(arguments) == 1 and type(arguments[0]) in (tuple, list):
            self.spend(len(arguments[0]))
            return tuple(arguments[0])
        elif kind == _BYTES and not arguments:
            return b""
        elif kind == _ENCODE and _is(arguments[1:], ("latin1",)) and type(arguments[0]) is str:
            return self.latin1(arguments[0])
        raise self.unsafe(f"calls {function.module}.{function.name} in a way that no state dict does")

    def ordered_dict(self, pairs: Any = ()) -> dict[str | int, Any]:
        if type(pairs) not in (tuple, list):
            raise _Malformed("an OrderedDict is made of no list")
        self.spend(len(pairs))
        result = {}
        for pair in pairs:
            if type(pair) not in (tuple, list) or len(pair) != 2:
                raise _Malformed("an OrderedDict is made of something other than pairs")
            result[self.checked_key(pair[0])] = pair[1]
        return result

    def build(self, state: Any) -> None:
        pending = self.stack[-1]
        if not isinstance(pending, _Pending):
            raise self.unsafe("sets the state of something that is no array")
        value: Any
        if pending.kind == _DTYPE:
            value = self.dtype(pending.code, state)
        elif type(state) is tuple and len(state) == 5:
            _, shape, dtype, fortran_order, data = state
            value = self.array(shape, dtype, fortran_order, data)
        else:
            raise _Malformed("an array's state has another form than NumPy gives it")
        self.stack[-1] = value
        for key in pending.memo_keys:
            self.memo[key] = value

    def checked_dtype_code(self, code: Any) -> str:
        if type(code) is str and code.startswith(("O", "V")):
            raise self.unsafe(f"holds an array of Python objects (dtype {code[:20]!a})")
        if type(code) is not str or code not in _DTYPES:
            raise _Malformed(f"an array has dtype {ascii(code)[:40]}, which no tensor has")
        return code

    def dtype(self, code: str, state: Any) -> np.dtype[Any]:
        plain = type(state) is tuple and len(state) == 8 and _is(state[2:5], (None, None, None))
        if not plain or not _is_one_of(state[1], "<", ">", "|", "="):
            raise self.unsafe("holds an array of a composed dtype")
        dtype: np.dtype[Any] = np.dtype(code).newbyteorder(state[1])
        return dtype

    def array(self, shape: Any, dtype: Any, fortran_order: Any, data: Any) -> np.ndarray:
        if not isinstance(dtype, np.dtype):
            raise _Malformed("an array has no dtype")
        if (
            type(shape) is not tuple
            or len(shape) > 32
            or not all(type(size) is int and 0 <= size < 2**48 for size in shape)
        ):
            raise _Malformed("an array has an impossible shape")
        if type(data) is str:  # Python 2's byte strings
            data = self.latin1(data)
        count = 1
        for size in shape:
            count *= size
        if type(data) is not bytes or len(data) != count * dtype.itemsize:
            raise _Malformed(f"an array of shape {shape} and type {dtype} comes with another number of bytes")
        array: np.ndarray = np.ndarray(shape, dtype, buffer=data, order="F" if fortran_order is True else "C")
        if not dtype.isnative:
            self.spend_bytes(len(data))
            array = array.astype(dtype.newbyteorder("="))
        return array

    def latin1(self, text: str) -> bytes:
        self.spend_bytes(len(text))
        try:
            return text.encode("latin1")
        except UnicodeEncodeError:
            raise _Malformed("bytes are not bytes") from None

    def spend_bytes(self, count: int) -> None:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise self.unsafe("unfolds to more bytes than it has")

    # -- the result --------------------------------------------------------------------------------------------------
    def check_result(self, result: Any) -> None:
        """Refuse what stayed unfinished, is nested too deep, or unfolds to too much for those who will walk it."""
        level = [result]
        for _ in range(_MAX_DEPTH):
            if not level:
                return
            deeper: list[Any] = []
            for value in level:
                if isinstance(value, (_Global, _Pending)):
                    raise _Malformed("a value was announced and never made")
                if type(value) in (dict, list, tuple):
                    self.spend(len(value))  # a part that is shared counts wherever it shows
                    deeper.extend(value.values() if type(value) is dict else value)
            level = deeper
        raise _Malformed(f"its values are nested more than {_MAX_DEPTH} deep")

    def unsafe(self, what: str) -> UnsafePickleError:
        return UnsafePickleError(f"{self.path} {what}. State dicts never do; nothing of the file was run or imported.")


def _is(value: Any, expected: Any) -> bool:
    """Equality between plain values of one type; arrays would answer with an array."""
    if type(value) is not type(expected):
        return False
    if type(value) is tuple:
        return len(value) == len(expected) and all(map(_is, value, expected))
    return bool(value == expected)


def _is_one_of(value: Any, *expected: Any) -> bool:
    return any(_is(value, one) for one in expected)


class _BoundedInput:
    """What pickletools reads from: never allocates for more bytes than the file still has, whatever it claims."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.position = 0

    def read(self, count: int) -> bytes:
        data = self._file.read(min(count, self._size - self.position))
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        line = self._file.readline(min(_MAX_LINE, self._size - self.position))
        self.position += len(line)
        return line

    def tell(self) -> int:
        return self.position
