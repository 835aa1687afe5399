"""Pickles that run code, import modules or fill the memory wherever a pickle machine reads them."""

import pickle
import struct
from io import BytesIO

CANARY = "canary_module_of_the_gadget_tests"


def text(value):
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def by_line(module, name):
    """The GLOBAL of protocols 0 to 3."""
    return f"c{module}\n{name}\n".encode()


def by_stack(module, name):
    """The STACK_GLOBAL of protocol 4."""
    return text(module) + text(name) + b"\x93"


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


ARRAY = by_line("numpy.core.multiarray", "_reconstruct")
DTYPE = by_line("numpy", "dtype")
NDARRAY = by_line("numpy", "ndarray")
EMPTY_ARRAY = ARRAY + b"(" + NDARRAY + b"(K\x00tC\x01btR"


def dtype(code, state=None):
    state = state or b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    return call(DTYPE, text(code), b"\x89", b"\x88") + state + b"b"


def array(shape, type, data):
    return EMPTY_ARRAY + b"(K\x01" + shape + type + b"\x89" + data + b"tb"


def in_state_dict(value):
    """A state dict that holds `value` among sound weights."""
    return b"\x80\x04}(" + text("w") + array(b"(K\x01t", dtype("f4"), b"C\x04\x00\x00\x80?") + text("x") + value + b"u."


def callables(sentinel):
    """(module, name, arguments) of what a hostile pickle calls; most would make the file `sentinel`."""
    touch = f"touch {sentinel}"
    python = f"open({str(sentinel)!r}, 'w').close()"
    shell = [("os", "system"), ("posix", "system"), ("nt", "system"), ("os", "popen"), ("commands", "getoutput")]
    shell += [("subprocess", name) for name in ("getoutput", "getstatusoutput")]
    found = [(module, name, [text(touch)]) for module, name in shell]
    argv = b"](" + text("touch") + text(str(sentinel)) + b"e"
    found += [("subprocess", name, [argv]) for name in ("run", "call", "check_call", "check_output", "Popen")]
    found += [("os", "execvp", [text("touch"), argv]), ("pty", "spawn", [argv])]
    found += [(module, name, [text(python)]) for module in ("builtins", "__builtin__") for name in ("eval", "exec")]
    found += [("builtins", "__import__", [text(CANARY)]), ("importlib", "import_module", [text(CANARY)])]
    found += [("builtins", "open", [text(str(sentinel)), text("w")]), ("io", "open", [text(str(sentinel)), text("w")])]
    found += [("builtins", "compile", [text(python), text("x"), text("exec")]), ("builtins", "getattr", [])]
    found += [("builtins", name, []) for name in ("globals", "vars", "breakpoint", "exit", "object", "type", "map")]
    found += [
        (CANARY, "anything", []),
        (f"package_of.{CANARY}", "anything", []),
        ("runpy", "run_module", [text(CANARY)]),
    ]
    found += [("timeit", "timeit", [text(python)]), ("cProfile", "run", [text(python)]), ("pdb", "run", [text(python)])]
    found += [("code", "InteractiveInterpreter", []), ("trace", "Trace", []), ("bdb", "Bdb", [])]
    found += [("os", "remove", [text("x")]), ("shutil", "rmtree", [text("x")]), ("os", "_exit", [b"K\x01"])]
    found += [
        ("pickle", "loads", [text("x")]),
        ("_pickle", "loads", []),
        ("marshal", "loads", []),
        ("dill", "loads", []),
    ]
    found += [
        ("ctypes", "CDLL", [text("x.so")]),
        ("socket", "create_connection", []),
        ("urllib.request", "urlopen", []),
    ]
    found += [("functools", "partial", []), ("operator", "attrgetter", [text("x")]), ("operator", "methodcaller", [])]
    found += [("types", "CodeType", []), ("types", "FunctionType", []), ("copyreg", "_reconstructor", [])]
    found += [("copyreg", "add_extension", []), ("copy_reg", "_reconstructor", []), ("weakref", "finalize", [])]
    found += [("numpy", "load", [text("x")]), ("numpy", "memmap", [text(str(sentinel))]), ("numpy", "fromfile", [])]
    found += [("numpy.testing._private.utils", "runstring", [text(python), b"}"]), ("numpy", "vectorize", [])]
    found += [("numpy.core._internal", "_reconstruct", []), ("numpy.core.numeric", "_frombuffer", [])]
    found += [("paddle", "load", [text("x")]), ("paddle.utils.cpp_extension", "load", []), ("torch", "load", [])]
    found += [("paddle.base.libpaddle", "GeneratorState", []), ("collections", "deque", []), ("builtins", "set", [])]
    # Names under a permitted module, and dotted names that lead from a permitted object to anything at all.
    found += [
        ("numpy", name, []) for name in ("ndarray.__class__", "dtype.__class__", "ndarray.__reduce__", "os.system")
    ]
    found += [("collections", "OrderedDict.__init__.__globals__", []), ("builtins", "tuple.__class__.__base__", [])]
    found += [("_codecs", "decode", []), ("_codecs", "encode.__self__", []), ("codecs", "open", [text(str(sentinel))])]
    found += [("", "", []), ("numpy ", "ndarray", []), ("numpy", "ndarray\0", []), ("numpy.core.multiarray", "", [])]
    return found


def structures(sentinel):
    """Hostile or senseless uses of single operations, by name."""
    named = {**_operations(sentinel), **_arrays(sentinel), **_values()}
    return {name: in_state_dict(value) for name, value in named.items()}


def _operations(sentinel):
    system = by_line("os", "system")
    touch = text(f"touch {sentinel}")
    return {
        "INST": b"(" + touch + b"ios\nsystem\n",
        "OBJ": b"(" + system + touch + b"o",
        "NEWOBJ": system + b"(" + touch + b"t\x81",
        "NEWOBJ_EX": system + b"(" + touch + b"t}\x92",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "PERSID": b"Pos.system\n",
        "BINPERSID": touch + b"Q",
        "NEXT_BUFFER": b"\x97",
        "DUP": b"}2",
        "POP_MARK": b"(}1}",
        "BUILD on a dict": b"}}(" + text("__class__") + system + b"ub",
        "BUILD on an OrderedDict": call(by_line("collections", "OrderedDict"))
        + b"}("
        + text("__class__")
        + touch
        + b"ub",
        "BUILD on a name": NDARRAY + b"}(" + text("__setstate__") + system + b"ub",
        "BUILD of slots": b"}" + b"N}(" + text("update") + system + b"u\x86b",
        "BUILD twice": array(b"(K\x01t", dtype("f4"), b"C\x04\x00\x00\x80?") + b"}b",
        "call of a string": touch + b"(" + touch + b"tR",
        "call of an array": array(b"(K\x01t", dtype("f4"), b"C\x04\x00\x00\x80?") + b"(tR",
        "call of a dict's item": b"}(" + text("f") + system + b"u(tR",
        "arguments that are no tuple": by_line("collections", "OrderedDict") + b"]R",
    }


def _arrays(sentinel):
    system = by_line("os", "system")
    touch = text(f"touch {sentinel}")
    object_dtype = dtype("O8", b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?t")
    return {
        "array of objects": array(b"(K\x01t", object_dtype, b"](" + call(system, touch) + b"e"),
        "array of objects in an array of objects": array(
            b"(K\x01t", object_dtype, b"](" + array(b"(K\x01t", object_dtype, b"](" + call(system, touch) + b"e") + b"e"
        ),
        "array of objects without a state": call(DTYPE, text("O8"), b"\x89", b"\x88"),
        "scalar of objects": call(by_line("numpy.core.multiarray", "scalar"), object_dtype, call(system, touch)),
        "dtype that aligns": call(DTYPE, text("f4"), b"\x88", b"\x88"),
        "dtype of a name": call(DTYPE, system, b"\x89", b"\x88"),
        "dtype by a list": call(DTYPE, b"](" + text("a") + text("O8") + b"\x86e", b"\x89", b"\x88"),
        "dtype of fields": dtype("V8", b"(K\x03" + text("|") + b"N(" + text("f") + b"t}K\x08K\x01K\x00t"),
        "dtype with a subarray": dtype("f4", b"(K\x03" + text("<") + b"(N(tt" + b"NNK\x08K\x01K\x00t"),
        "dtype with metadata": dtype("f4", b"(K\x04" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}t"),
        "dtype of strings": dtype("U8"),
        "dtype of dates": dtype("M8"),
        "array of a subclass": ARRAY + b"(" + by_line("numpy", "memmap") + b"(K\x00tC\x01btR",
        "array of a class of ours": ARRAY + b"(" + by_line(CANARY, "Evil") + b"(K\x00tC\x01btR",
        "array of a huge first shape": ARRAY + b"(" + NDARRAY + b"(J\xff\xff\xff\x7ftC\x01btR",
        "array without content": EMPTY_ARRAY,
        "array in a list before its content": b"](" + EMPTY_ARRAY + b"e",
        "array with a dict for content": EMPTY_ARRAY + b"}b",
        "array that is larger than its bytes": array(b"(J\xff\xff\xff\x7ft", dtype("f4"), b"C\x04\x00\x00\x80?"),
        "array of a negative size": array(b"(J\xff\xff\xff\xfft", dtype("f4"), b"C\x04\x00\x00\x80?"),
        "array of an overflowing size": array(b"(" + b"J\xff\xff\xff\x7f" * 4 + b"t", dtype("f4"), b"C\x00"),
        "empty array of endless dimensions": array(b"(K\x00" + b"K\x01" * 40 + b"t", dtype("f4"), b"C\x00"),
        "array of a shape of floats": array(b"(G\x00\x00\x00\x00\x00\x00\x00\x00t", dtype("f4"), b"C\x00"),
        "array whose bytes are text": array(b"(K\x01t", dtype("f4"), text("€uro")),
    }


def _values():
    return {
        "another codec": call(by_line("_codecs", "encode"), text("a"), text("rot13")),
        "a codec module": call(by_line("_codecs", "encode"), text("a"), text(CANARY)),
        "bytes of a size": call(by_line("builtins", "bytes"), b"J\xff\xff\xff\x7f"),
        "tuple of a number": call(by_line("builtins", "tuple"), b"K\x05"),
        "OrderedDict of a text": call(by_line("collections", "OrderedDict"), text("ab")),
        "a name for a value": NDARRAY,
        "a name nobody calls": by_line("os", "system"),
        "a name that is no text": b"K\x01K\x02\x93",
        "a name with a surrogate": by_stack("numpy\ud800", "ndarray"),
        "a list for a key": b"}]K\x01s",
        "an array for a key": b"}" + array(b"(K\x01t", dtype("f4"), b"C\x04\x00\x00\x80?") + b"K\x01s",
        "a huge number for a key": b"}\x8a\x09" + b"\xff" * 8 + b"\x00K\x01s",
        "items for a list": b"]K\x01K\x02s",
        "an item for a dict": b"}K\x01a",
        "an odd number of items": b"}(K\x01u",
        "a memo that was never filled": b"h\x07",
        "a mark that was never set": b"t",
        "an empty stack": b"000000",
    }


def bombs(count=110_000):
    """Small files that claim or unfold to much, by name; some hold `count` small objects."""
    thousand = b"](" + b"N" * 50_000 + b"e\x94"
    long_text = text("a" * 200_000) + b"\x94"
    encode = by_line("_codecs", "encode")
    return {
        "bytes of 4 EB": in_state_dict(b"\x8e" + struct.pack("<Q", 2**62)),
        "bytes of 2 GB": in_state_dict(b"B" + struct.pack("<I", 2**31 - 1)),
        "text of 4 EB": in_state_dict(b"\x8d" + struct.pack("<Q", 2**62)),
        "bytearray of 4 EB": in_state_dict(b"\x96" + struct.pack("<Q", 2**62)),
        "number of 2 GB": in_state_dict(b"\x8b" + struct.pack("<i", 2**31 - 1)),
        "decimal number of many digits": in_state_dict(b"L" + b"9" * 100_000 + b"L\n"),
        "frame of 4 EB": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        "memo of 4 billion": in_state_dict(b"N" + b"r\xff\xff\xff\xff"),
        "a name of a million letters": in_state_dict(b"c" + b"a" * 1_000_000 + b"\nb\n"),
        "very many dicts": in_state_dict(b"](" + b"}\x94" * (count // 2) + b"e"),
        "very many marks": b"\x80\x04" + b"(" * count,
        "a list copied ten thousand times": in_state_dict(
            b"(" + thousand + call(by_line("builtins", "tuple"), b"h\x00") * 10_000 + b"t"
        ),
        "pairs copied ten thousand times": in_state_dict(
            b"("
            + b"](" + (text("k") + b"N\x86") * 20_000 + b"e\x94"
            + call(by_line("collections", "OrderedDict"), b"h\x00") * 10_000
            + b"t"
        ),
        "text encoded ten thousand times": in_state_dict(
            b"(" + long_text + call(encode, b"h\x00", text("latin1")) * 10_000 + b"t"
        ),
        "tuples nested a hundred thousand deep": in_state_dict(b"N" + b"\x85" * 100_000),
        "lists nested a hundred thousand deep": in_state_dict(b"](" * 100_000 + b"e" * 100_000),
        "doubling tuples": in_state_dict(
            b"N\x94" + b"".join(b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
        ),
        "a list that holds itself": in_state_dict(b"]\x94h\x00a"),
    }  # fmt: skip


def machine_reads(content):
    """What Python's own pickle machine makes of it: the control that a gadget is alive."""
    return pickle.load(BytesIO(content))
