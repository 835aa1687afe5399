"""Weights of another program go into a layer: all that fit or none, and what did not is named."""

import numpy as np
import pytest
from foreign_support import Layer, dump, f4, save_own, weights

from paddlelite_trainer.checkpoint.weights import load_weights
from paddlelite_trainer.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
)


# -- into a layer ----------------------------------------------------------------------------------------------------
def test_weights_that_fit_are_loaded(tmp_path):
    dump(tmp_path / "x.pdparams", weights(3))
    layer = Layer(w=f4(0, 0), b=f4(0, 0))
    report = load_weights(layer, tmp_path / "x")
    assert report.complete and report.loaded == ["w", "b"]
    assert [value.tolist() for value in layer.weights.values()] == [[3, 3], [3, 3]]
    assert str(report) == f"2 of the model's 2 weights loaded from {tmp_path / 'x.pdparams'} (paddle)"


def unfitting(tmp_path):
    dump(tmp_path / "x.pdparams", {"w": f4(1), "fc.wieght": f4(1), "head": np.ones((2, 3), "f4")})
    return Layer(w=f4(0), fc__weight=f4(0), head=np.zeros((2, 5), "f4"))


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    layer = unfitting(tmp_path)
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(layer, tmp_path / "x")
    assert caught.value.problems == [
        "in the model and not in the file (1): fc.weight Did you mean 'fc.wieght'?",
        "in the file and not in the model (1): fc.wieght",
        "of another shape or type (1): head is [2, 3] in the file and [2, 5] in the model",
    ]
    assert "the model, which is unchanged" in str(caught.value)
    assert all((value == 0).all() for value in layer.weights.values())


def test_without_strict_what_fits_is_loaded_and_the_rest_reported(tmp_path):
    layer = unfitting(tmp_path)
    report = load_weights(layer, tmp_path / "x", strict=False)
    assert (report.loaded, report.missing, report.unexpected) == (["w"], ["fc.weight"], ["fc.wieght"])
    assert [tuple(mismatch) for mismatch in report.mismatched] == [("head", (2, 3), (2, 5), "")]
    assert layer.weights["w"] == 1 and (layer.weights["head"] == 0).all()
    lines = str(report).splitlines()
    assert lines[0].startswith("1 of the model's 3 weights loaded from ")
    assert len(lines) == 4 and all(line.startswith("  ") for line in lines[1:])


def test_a_long_list_is_cut(tmp_path):
    dump(tmp_path / "x.pdparams", {"w": f4(1)})
    layer = Layer(w=f4(0), **{f"layer_{i}": f4(0) for i in range(30)})
    report = load_weights(layer, tmp_path / "x", strict=False)
    assert "layer_9 and 20 more" in str(report) and "layer_10" not in str(report)


@pytest.mark.parametrize(
    ("saved", "rename", "hint"),
    [
        (["module.w", "module.b"], {"module.": ""}, "{'module.': ''}"),
        (["b"], lambda name: "net." + name, "{'': 'net.'}"),
    ],
)
def test_names_that_differ_by_a_prefix_get_a_hint_that_works(tmp_path, saved, rename, hint):
    model = Layer(w=f4(0), b=f4(0)) if len(saved) == 2 else Layer(net__b=f4(0))
    dump(tmp_path / "x.pdparams", {name: f4(1) for name in saved})
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(model, tmp_path / "x")
    assert f"With rename={hint} {len(saved)} more names meet." in str(caught.value)
    assert load_weights(model, tmp_path / "x", rename=rename).complete


def test_rename_takes_the_longest_prefix_and_may_leave_weights_out(tmp_path):
    dump(tmp_path / "x.pdparams", {"a.w": f4(1), "a.b.w": f4(2)})
    layer = Layer(x__w=f4(0), y__w=f4(0))
    load_weights(layer, tmp_path / "x", rename={"a.": "x.", "a.b.": "y."})
    assert [float(value[0]) for value in layer.weights.values()] == [1, 2]
    report = load_weights(Layer(**{"a.w": f4(0)}), tmp_path / "x", rename=lambda name: None if ".b." in name else name)
    assert report.complete
    with pytest.raises(ConfigurationError, match=r"rename gives a\.w and a\.b\.w one name, w"):
        load_weights(layer, tmp_path / "x", rename={"a.": "", "a.b.": ""})


@pytest.mark.parametrize(
    ("saved", "wanted"), [("f2", "f4"), ("f8", "f4"), ("f4", "f2"), ("i4", "i8"), ("?", "i8"), ("i8", "f4")]
)
def test_types_are_cast_and_it_is_said(tmp_path, saved, wanted):
    dump(tmp_path / "x.pdparams", {"w": np.array([1, 0], saved)})
    layer = Layer(w=np.zeros(2, wanted))
    report = load_weights(layer, tmp_path / "x")
    assert layer.weights["w"].tolist() == [1, 0] and layer.weights["w"].dtype == np.dtype(wanted)
    assert report.notes == [f"1 cast from {np.dtype(saved).name} to {np.dtype(wanted).name}"]


@pytest.mark.parametrize(("saved", "wanted"), [(f4(1.5), "i8"), (np.array([2**40]), "i4"), (np.array([300]), "u1")])
def test_whole_numbers_are_never_changed_by_a_cast(tmp_path, saved, wanted):
    dump(tmp_path / "x.pdparams", {"w": saved})
    with pytest.raises(CheckpointMismatchError, match=f"values that {np.dtype(wanted).name} cannot hold"):
        load_weights(Layer(w=np.zeros(1, wanted)), tmp_path / "x")


class BFloat16:
    """A stand-in for a bfloat16 Tensor."""

    def __init__(self, shape):
        self.shape, self.dtype = shape, "paddle.bfloat16"


def test_bfloat16_is_widened_and_rounded_to_nearest_even(tmp_path):
    dump(tmp_path / "x.pdparams", {"w": np.array([0x3F80, 0xC040, 0x7F80], "u2")})
    layer = Layer(w=f4(0, 0, 0))
    assert load_weights(layer, tmp_path / "x").notes == ["1 cast from bfloat16 to float32"]
    assert layer.weights["w"].tolist() == [1.0, -3.0, float("inf")]

    class Half(Layer):
        def state_dict(self):
            return {"w": BFloat16([6])}

        def set_state_dict(self, state_dict):
            self.bits = state_dict["w"]

    half = Half()
    exact, tie_to_even, tie_to_even_up, above = 0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001
    bits = np.array([exact, tie_to_even, tie_to_even_up, above, 0x7F800001, 0xFF800000], "u4")
    dump(tmp_path / "x.pdparams", {"w": bits.view("f4")})
    load_weights(half, tmp_path / "x")
    assert [hex(value) for value in half.bits] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0x7fc0", "0xff80"]
    dump(tmp_path / "x.pdparams", {"w": np.arange(6, dtype="u2")})
    assert load_weights(half, tmp_path / "x").notes == []
    assert half.bits.tolist() == list(range(6))


def test_which_weights_is_the_user_s_choice_where_there_is_an_average(tmp_path):
    dump(tmp_path / "7.pdparams", weights(0.5))
    dump(tmp_path / "7.pdema", weights(1))
    layer = Layer(w=f4(0, 0), b=f4(0, 0))
    for which, value in {"file": 0.5, "raw": 1, "ema": 0.5}.items():
        report = load_weights(layer, tmp_path / "7", which=which)
        assert layer.weights["w"][0] == value
        assert report.notes == [f"these are the {'raw' if which == 'raw' else 'averaged (EMA)'} weights"]
    (tmp_path / "7.pdema").unlink()
    with pytest.raises(CheckpointNotFoundError, match="no averaged weights beside"):
        load_weights(layer, tmp_path / "7", which="ema")
    with pytest.raises(ConfigurationError, match="which must be 'file', 'raw' or 'ema', got 'both'"):
        load_weights(layer, tmp_path / "7", which="both")


def test_our_own_checkpoint_goes_into_a_layer_too(tmp_path):
    save_own(tmp_path)
    layer = Layer(w=f4(0, 0), b=f4(0, 0))
    for which, value in {"file": 1, "raw": 1, "ema": 0.5}.items():
        assert load_weights(layer, tmp_path / "latest", which=which).complete
        assert layer.weights["w"][0] == value


def test_a_layer_that_refuses_its_own_names_is_an_error(tmp_path):
    class Refusing(Layer):
        def set_state_dict(self, state_dict):
            return [], ["w"]

    dump(tmp_path / "x.pdparams", {"w": f4(1)})
    with pytest.raises(CheckpointMismatchError, match="did not take weights of its own names"):
        load_weights(Refusing(w=f4(0)), tmp_path / "x")
