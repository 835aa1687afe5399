"""State trees become JSON and tensors, and come back the same."""

import json
import math
import threading
from collections import OrderedDict, defaultdict, namedtuple
from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlelite_trainer.checkpoint import decode_state, encode_state
from paddlelite_trainer.errors import CheckpointCorruptError, UnserializableStateError

KEYS = st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary())
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def round_trip(tree, **options):
    encoded, tensors = encode_state(tree, "part.json")
    return decode_state(json.loads(json.dumps(encoded, allow_nan=False)), tensors, **options)


def same(a, b):
    """Equal in value and in type, with NaN equal to NaN and -0.0 apart from 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for pair in zip(a.items(), b.items()) for x, y in zip(*pair))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b if isinstance(a, int) else repr(a) == repr(b)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_any_tree_comes_back_equal_in_value_and_type(tree):
    assert same(tree, round_trip(tree))


def test_the_corners_come_back_exactly():
    tree = {
        "inf": [math.inf, -math.inf, math.nan, -0.0, 5e-324, 0.1 + 0.2],
        "big": [2**63 - 1, -(2**63), 2**63, -(2**200), 10**5000],
        "text": ["", "\ud800", "日本", "$"],
        "bytes": bytes(range(256)),
        "mark": {"$": "tuple", "items": 3},
        "keys": {1: "int", "1": "str", None: 0, (1, ("a", None)): 1, 2.5: 2, True + 2: 3},
        "empty": [{}, [], ()],
    }
    assert same(tree, round_trip(tree))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "uint32", "int64", "float16", "float32", "complex64"])
def test_arrays_and_numpy_scalars_come_back_with_their_type(dtype):
    array = np.array([[0, 1], [1, 3]]).astype(dtype)
    back = round_trip({"a": array, "s": array[1, 1], "empty": array[:0], "scalar_array": array[1, 0].reshape(())})
    assert back["a"].dtype == array.dtype and (back["a"] == array).all()
    assert type(back["s"]) is type(array[1, 1]) and back["s"] == array[1, 1]
    assert back["empty"].shape == (0, 2) and back["scalar_array"].shape == ()


def test_numpys_own_random_state_comes_back():
    before = np.random.RandomState(3).get_state()
    other = np.random.RandomState(0)
    other.set_state(round_trip(before))
    assert other.randint(1 << 30) == np.random.RandomState(3).randint(1 << 30)
    generator = np.random.default_rng(7)
    twin = np.random.default_rng(0)
    twin.bit_generator.state = round_trip(generator.bit_generator.state)
    assert twin.integers(1 << 60) == generator.integers(1 << 60)


def test_an_ordered_dict_comes_back_as_a_dict_in_its_order():
    back = round_trip(OrderedDict([("b", 1), ("a", 2)]))
    assert type(back) is dict and list(back.items()) == [("b", 1), ("a", 2)]


class Colour(IntEnum):
    RED = 1


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(),
        threading.Lock(),
        lambda: 0,
        int,
        {1, 2},
        Colour.RED,
        Text("x"),
        1j,
        bytearray(b"x"),
        defaultdict(int),
        namedtuple("Point", "x")(1),
        np.array(["text"]),
        np.array([object()]),
        np.zeros(2, [("a", "i4")]),
        np.array(["2026-01-01"], "datetime64[D]"),
        np.ma.masked_array([1, 2], [True, False]),
        np.datetime64("2026-01-01"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_the_part_and_the_path(value):
    with pytest.raises(UnserializableStateError) as caught:
        encode_state({"callbacks": {"EarlyStopping": [0, (value,)]}}, "trainer.json")
    assert "trainer.json['callbacks']['EarlyStopping'][1][0] " in str(caught.value)


def test_a_key_that_is_not_stored_is_named():
    with pytest.raises(UnserializableStateError, match=r"part\['a'\] has the key b'x'"):
        encode_state({"a": {b"x": 1}}, "part")


def test_a_tree_that_holds_itself_is_refused():
    tree = {}
    tree["self"] = tree
    with pytest.raises(UnserializableStateError, match="holds itself"):
        encode_state(tree, "part")


def test_arrays_under_keys_that_print_alike_do_not_overwrite_each_other():
    back = round_trip({"a']['b": np.array([1]), "a": {"b": np.array([2])}})
    assert back["a']['b"][0] == 1 and back["a"]["b"][0] == 2


@pytest.mark.parametrize(
    "stored", [{"$": "code"}, {"$": "array", "key": "gone"}, {"$": "int"}, {"$": "bytes", "base64": "?"}]
)
def test_json_that_no_encoder_wrote_is_an_error(stored):
    with pytest.raises(CheckpointCorruptError):
        decode_state({"a": [stored]}, {})
