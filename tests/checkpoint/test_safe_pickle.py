"""Other programs' pickles are read without running them, and nothing that they ask for happens."""

import json
import pickle
import random
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import gadgets
import numpy as np
import pytest

from paddlelite_trainer.checkpoint import CheckpointStore, open_checkpoint, safe_pickle
from paddlelite_trainer.checkpoint.foreign import load_foreign, optimizer_by_structured_name
from paddlelite_trainer.checkpoint.safe_pickle import read_pickle
from paddlelite_trainer.checkpoint.weights import load_weights
from paddlelite_trainer.errors import CheckpointCorruptError, CheckpointError, UnsafePickleError

PADDLE_FILES = sorted((Path(__file__).parent / "paddle_files").iterdir())
TYPED = (UnsafePickleError, CheckpointCorruptError)


class Layer:
    """The two methods of a Layer that loading weights needs."""

    def __init__(self, **weights):
        self.weights = weights

    def state_dict(self):
        return self.weights

    def set_state_dict(self, state_dict):
        self.weights.update(state_dict)


def same(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (np.ndarray, np.generic)):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return type(one) is type(other) and one == other


# -- sound files -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PADDLE_FILES, ids=lambda path: path.name)
def test_what_paddle_wrote_is_read_as_the_pickle_machine_reads_it(path):
    with open(path, "rb") as file:
        assert same(read_pickle(path), pickle.load(file))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_and_plain_values_survive_every_protocol(tmp_path, protocol):
    types = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
    content = {type: np.arange(6).astype(type).reshape(2, 3) for type in types}
    content |= {
        "scalar": np.float64(0.5),
        "whole": np.int64(-3),
        "no dimension": np.array(2.5, "f4"),
        "empty": np.zeros((0, 3), "f4"),
        "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">f4"),
        "ordered": OrderedDict(b=1, a=[True, False, None]),
        "numbers": [0, 255, 256, -1, 2**40, -(2**70), 1.5, float("inf")],
        "bytes": b"\x00\xff",
        "no bytes": b"",
        "text": "žluťoučký 🐎",
        3: ("a", ("b", ()), (1, 2, 3, 4)),
    }
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol))
    expected = {**content, "ordered": dict(content["ordered"]), "big-endian": np.arange(3, dtype="f4")}
    assert same(read_pickle(tmp_path / "x"), expected)


def test_a_file_of_our_own_is_read_too(tmp_path):
    weights = {"a": np.arange(5, dtype="f4"), "b": np.ones((2, 0), "i8"), "c": np.array(2, "f2")}
    entry = save_own(tmp_path, weights)
    content = read_pickle(entry.path / "model.pdparams")
    assert same({name: content[name] for name in weights}, weights)


def test_reading_takes_little_more_memory_than_the_file(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps({str(i): np.full(2_000_000, i, "f4") for i in range(4)}, 4))
    size = (tmp_path / "x").stat().st_size
    tracemalloc.start()
    read_pickle(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    tracemalloc.stop()


# -- damaged files ---------------------------------------------------------------------------------------------------
def test_every_truncation_is_noticed(tmp_path):
    content = PADDLE_FILES[0].read_bytes()
    for length in range(len(content)):
        (tmp_path / "x").write_bytes(content[:length])
        with pytest.raises(CheckpointCorruptError, match="not a sound Paddle file"):
            read_pickle(tmp_path / "x")


def test_bytes_after_the_end_are_noticed(tmp_path):
    (tmp_path / "x").write_bytes(PADDLE_FILES[0].read_bytes() + b"\0")
    with pytest.raises(CheckpointCorruptError, match="1 bytes follow its end"):
        read_pickle(tmp_path / "x")


def test_random_damage_gives_no_other_error_than_ours(tmp_path):
    dice = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for number in range(1500):
        source = PADDLE_FILES[number % len(PADDLE_FILES)]
        content = bytearray(source.read_bytes())
        for _ in range(dice.choice([1, 1, 3, 10])):
            content[dice.randrange(len(content))] = dice.randrange(256)
        path = tmp_path / f"x{source.suffix}"
        path.write_bytes(content)
        try:
            load_foreign(path) if path.suffix == ".pdparams" else read_pickle(path)
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 500


# -- hostile files ---------------------------------------------------------------------------------------------------
def hostile_files(sentinel):
    files = {
        f"{module}.{name} by {spelling.__name__}": gadgets.in_state_dict(
            gadgets.call(spelling(module, name), *arguments)
        )
        for module, name, arguments in gadgets.callables(sentinel)
        for spelling in (gadgets.by_line, gadgets.by_stack)
    }
    return files | gadgets.structures(sentinel)


def save_own(run, weights):
    store = CheckpointStore(run)
    entry = store.save(
        step=1, epoch=0, files={"model.pdparams": weights}, states={}, pins={"latest": [store.candidate(1, 0).name]}
    )
    store.close()
    return entry


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported."""
    marker = tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{gadgets.CANARY}.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nanything = print\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield marker
    sys.modules.pop(gadgets.CANARY, None)


def test_the_gadgets_are_alive(tmp_path, canary):
    sentinel = tmp_path / "sentinel"
    live = {("os", "system"), ("subprocess", "call"), ("builtins", "eval"), ("builtins", "exec")}
    for module, name, arguments in gadgets.callables(sentinel):
        if (module, name) in live:
            gadgets.machine_reads(gadgets.in_state_dict(gadgets.call(gadgets.by_line(module, name), *arguments)))
            assert sentinel.exists(), (module, name)
            sentinel.unlink()
    gadgets.machine_reads(gadgets.in_state_dict(gadgets.by_line(gadgets.CANARY, "anything")))
    assert canary.exists()
    for operation in ("INST", "OBJ", "array of objects"):
        gadgets.machine_reads(gadgets.structures(sentinel)[operation])
        assert sentinel.exists(), operation
        sentinel.unlink()


def by_pickle(path):
    read_pickle(path)


def by_weights(path):
    load_foreign(path.rename(path.with_suffix(".pdparams")))


def by_weights_into_a_layer(path):
    load_weights(Layer(w=np.zeros(1, "f4")), path.rename(path.with_suffix(".pdparams")), strict=False)


def by_prefix_beside(suffix):
    def load(path):
        path.rename(path.with_name("latest" + suffix))
        path.with_name("latest.pdparams").write_bytes(PADDLE_FILES[0].with_name("paddle-3.3.1.pdparams").read_bytes())
        load_foreign(path.with_name("latest"))

    load.__name__ = f"by_{suffix[1:]}"
    return load


def by_optimizer_file(path):
    optimizer_by_structured_name(PADDLE_FILES[0].with_name("paddle-3.3.1.pdparams"), path)


def by_weights_of_the_optimizer(path):
    optimizer_by_structured_name(path, PADDLE_FILES[0].with_name("paddle-3.3.1.pdopt"))


LOAD_PATHS = [by_pickle, by_weights, by_weights_into_a_layer, by_optimizer_file, by_weights_of_the_optimizer]
LOAD_PATHS += [by_prefix_beside(suffix) for suffix in (".pdopt", ".states", ".pdstates", ".pdema")]


@pytest.mark.parametrize("load", LOAD_PATHS, ids=lambda load: load.__name__)
def test_no_hostile_file_runs_or_imports_anything(tmp_path, canary, load):
    sentinel = tmp_path / "sentinel"
    files = hostile_files(sentinel)
    assert len(files) >= 200
    modules = set(sys.modules)
    for number, (name, content) in enumerate(files.items()):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / "file"
        path.write_bytes(content)
        with pytest.raises(TYPED) as caught:
            load(path)
        assert str(tmp_path / str(number)) in str(caught.value), name
    assert not sentinel.exists()
    assert not canary.exists()
    assert set(sys.modules) == modules


def test_the_error_names_what_was_asked_for(tmp_path):
    for spelling in (gadgets.by_line, gadgets.by_stack):
        (tmp_path / "x.pdparams").write_bytes(gadgets.in_state_dict(spelling("os", "system")))
        with pytest.raises(UnsafePickleError, match=r"x\.pdparams asks for os\.system\..*nothing of the file was run"):
            load_foreign(tmp_path / "x")


def defuse(path, name, content):
    """Bytes of memory that reading this bomb took."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        if name in ("frame of 4 EB", "memo of 4 billion"):  # harmless to us, fatal to the machine
            assert isinstance(read_pickle(path), dict)
        else:
            with pytest.raises(TYPED):
                read_pickle(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", gadgets.bombs())
def test_a_bomb_takes_little_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(safe_pickle, "_FREE_OPCODES", safe_pickle._FREE_OPCODES // 10)
    content = gadgets.bombs()[name]
    assert defuse(tmp_path / "x", name, content) < 2 * len(content) + 10e6


@pytest.mark.soak
@pytest.mark.parametrize("name", gadgets.bombs())
def test_a_larger_bomb_takes_little_memory(tmp_path, name):
    content = gadgets.bombs(20_000_000)[name]
    assert defuse(tmp_path / "x", name, content) < 2 * len(content) + 100e6


def test_hostile_weights_inside_a_checkpoint_of_ours_are_damage(tmp_path, canary):
    sentinel = tmp_path / "sentinel"
    entry = save_own(tmp_path / "run", {"w": np.ones(3, "f4")})
    (entry.path / "model.pdparams").write_bytes(gadgets.structures(sentinel)["INST"])
    for load in (open_checkpoint, load_foreign, lambda path: load_weights(Layer(w=np.zeros(3, "f4")), path)):
        with pytest.raises(CheckpointCorruptError, match=r"model\.pdparams"):
            load(entry.path)
    assert not sentinel.exists()


def test_hostile_weights_with_a_forged_manifest_are_bytes_and_no_pickle(tmp_path):
    """Whoever can write the whole checkpoint can set the values of tensors, and nothing else."""
    import hashlib

    sentinel = tmp_path / "sentinel"
    entry = save_own(tmp_path / "run", {"w": np.ones(3, "f4")})
    content = gadgets.structures(sentinel)["INST"]
    (entry.path / "model.pdparams").write_bytes(content)
    lines = (entry.path / "manifest.json").read_bytes().split(b"\n", 1)[1]
    record = json.loads(b"{" + lines)
    record["files"]["model.pdparams"].update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    rest = (
        "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in record.items())[:-2] + "}\n"
    ).encode()
    seal = b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode()
    (entry.path / "manifest.json").write_bytes(seal + rest)
    try:
        weights = open_checkpoint(entry.path).tensors("model.pdparams")["w"]
        assert weights.shape == (3,)
    except CheckpointCorruptError:
        pass  # the tensor's place may lie beyond the shorter file
    assert not sentinel.exists()


def test_the_permitted_names_are_what_state_dicts_need_and_no_more():
    modules = {
        "numpy",
        "numpy.core.multiarray",
        "numpy._core.multiarray",
        "collections",
        "builtins",
        "__builtin__",
        "_codecs",
    }
    assert {module for module, _ in safe_pickle.PERMITTED} == modules
    assert len(safe_pickle.PERMITTED) == 12
    source = Path(safe_pickle.__file__).read_text()
    assert "import pickle\n" not in source and "getattr(" not in source and "__import__" not in source
