"""Checkpoints of other Paddle programs: where their files are, what they hold, and how they get into a layer."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from paddlelite_trainer.checkpoint import CheckpointStore
from paddlelite_trainer.checkpoint.foreign import load_foreign, optimizer_by_structured_name
from paddlelite_trainer.checkpoint.safetensors_format import read_safetensors, write_safetensors
from paddlelite_trainer.checkpoint.weights import load_weights
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
)

PADDLE_FILES = Path(__file__).parent / "paddle_files"
TABLE = "StructuredToParameterName@@"


class Layer:
    """The two methods of a Layer that loading weights needs."""

    def __init__(self, **weights):
        self.weights = {name.replace("__", "."): np.asarray(value) for name, value in weights.items()}

    def state_dict(self):
        return dict(self.weights)

    def set_state_dict(self, state_dict):
        for name, value in state_dict.items():
            assert self.weights[name].shape == value.shape and self.weights[name].dtype == value.dtype
            self.weights[name] = value


def f4(*values):
    return np.array(values, "f4")


def dump(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def weights(value, names=("w", "b")):
    """What paddle.save writes of a layer whose parameters are all `value`."""
    return {name: f4(value, value) for name in names} | {TABLE: {name: f"linear_0.{name}_0" for name in names}}


def adam(value, **more):
    return {f"linear_0.w_0_{name}_0": f4(value, value) for name in ("moment1", "moment2")} | {TABLE: {}} | more


# -- the layouts -----------------------------------------------------------------------------------------------------
def test_a_bare_file_of_weights(tmp_path):
    dump(tmp_path / "net.pdparams", weights(1))
    for spelling in (tmp_path / "net", tmp_path / "net.pdparams", str(tmp_path / "net"), tmp_path):
        found = load_foreign(spelling)
        assert (found.layout, list(found.weights), found.optimizer, found.epoch) == (
            "paddle.save",
            ["w", "b"],
            None,
            None,
        )
        assert found.parameter_names == {"w": "linear_0.w_0", "b": "linear_0.b_0"}


@pytest.mark.parametrize("given", ["4", "4.pdopt", ""])
def test_paddle_model_counts_its_epochs_from_zero(tmp_path, given):
    for epoch in (3, 4, 10):
        dump(tmp_path / f"{epoch}.pdparams", weights(epoch))
        dump(tmp_path / f"{epoch}.pdopt", adam(epoch))
    found = load_foreign(tmp_path / given)
    epoch = 4 if given else 10
    assert (found.layout, found.epoch, found.weights["w"][0]) == ("paddle.Model", epoch + 1, epoch)
    assert found.optimizer["linear_0.w_0_moment1_0"][0] == epoch
    assert found.notes == ([] if given == "4" else [f"read from {tmp_path / f'{epoch}.pdparams'}"])


def test_paddle_model_s_final_file_is_preferred_and_says_no_epoch(tmp_path):
    for name in ("0", "1", "final", "best_model"):
        dump(tmp_path / f"{name}.pdparams", weights(7 if name == "final" else 0))
    found = load_foreign(tmp_path)
    assert (found.layout, found.epoch, found.weights["w"][0]) == ("paddle.Model", None, 7)


def test_paddleocr_keeps_epoch_and_best_in_its_states(tmp_path):
    best = {"hmean": np.float64(0.75), "best_epoch": 3, "is_float16": False}
    for name, epoch in {"iter_epoch_4": 4, "latest": 5, "best_accuracy": 3}.items():
        dump(tmp_path / f"{name}.pdparams", weights(epoch))
        dump(tmp_path / f"{name}.pdopt", adam(epoch, LR_Scheduler={"last_epoch": 50, "last_lr": 0.1}))
        dump(tmp_path / f"{name}.states", {"best_model_dict": best, "epoch": epoch, "global_step": 9}, protocol=2)
    for name, epoch in {"best_accuracy": 3, "iter_epoch_4.pdparams": 4, "latest.states": 5, "": 5}.items():
        found = load_foreign(tmp_path / name)
        assert (found.layout, found.epoch, found.best, found.weights["w"][0]) == ("PaddleOCR", epoch, best, epoch)
        assert found.optimizer["LR_Scheduler"]["last_epoch"] == 50


def test_paddleclas_with_an_ema_has_its_raw_weights_in_pdema(tmp_path):
    dump(tmp_path / "best_model.pdparams", weights(0.5))
    dump(tmp_path / "best_model.pdema", weights(1))
    dump(tmp_path / "best_model.pdopt", [adam(2), {}])
    dump(tmp_path / "best_model.pdstates", {"metric": 0.9, "epoch": 12})
    dump(tmp_path / "best_model_student.pdparams", weights(9))
    found = load_foreign(tmp_path)
    assert (found.layout, found.epoch, found.best) == ("PaddleClas", 12, {"metric": 0.9, "epoch": 12})
    assert (found.weights["w"][0], found.ema["w"][0], found.optimizer["linear_0.w_0_moment1_0"][0]) == (1, 0.5, 2)
    assert found.notes[1:] == [
        "best_model.pdparams holds the averaged (EMA) weights and best_model.pdema the raw ones",
        "2 optimizers were saved; this is the first",
    ]


def test_paddleclas_s_latest_metric_is_not_called_the_best(tmp_path):
    dump(tmp_path / "latest.pdparams", weights(1))
    dump(tmp_path / "latest.pdopt", [adam(1)])
    dump(tmp_path / "latest.pdstates", {"metric": 0.25, "epoch": 2})
    found = load_foreign(tmp_path / "latest")
    assert (found.layout, found.epoch, found.best) == ("PaddleClas", 2, None)
    assert found.notes == ["metric 0.25 is this epoch's, not the best"]


@pytest.mark.parametrize("with_ema", [False, True])
def test_paddledetection_keeps_its_epoch_in_the_optimizer(tmp_path, with_ema):
    dump(tmp_path / "7.pdparams", weights(0.5 if with_ema else 1))
    if with_ema:
        dump(tmp_path / "7.pdema", weights(1))
    dump(tmp_path / "7.pdopt", adam(2, last_epoch=8))
    found = load_foreign(tmp_path / "7")
    assert (found.layout, found.epoch, found.weights["w"][0]) == ("PaddleDetection", 8, 1)
    assert (found.ema is not None) == with_ema


def test_paddleseg_saves_a_directory_for_each_number_of_iterations(tmp_path):
    for iteration in (500, 1000):
        dump(tmp_path / f"iter_{iteration}" / "model.pdparams", weights(iteration))
        dump(tmp_path / f"iter_{iteration}" / "model.pdopt", adam(iteration))
    dump(tmp_path / "best_model" / "model.pdparams", weights(3))
    assert load_foreign(tmp_path).weights["w"][0] == 1000
    found = load_foreign(tmp_path / "iter_500")
    assert (found.layout, found.epoch, found.weights["w"][0]) == ("PaddleSeg", None, 500)
    assert "saved at iter_500; PaddleSeg records no epoch" in found.notes
    assert load_foreign(tmp_path / "best_model").layout == "PaddleSeg"


def test_safetensors_with_bfloat16(tmp_path):
    bits = np.array([[16256, 16384]], "u2")
    write_safetensors(tmp_path / "m.safetensors", {"a": f4(1), "b": bits}, {"a": "float32", "b": "bfloat16"})
    for spelling in ("m", "m.safetensors", ""):
        found = load_foreign(tmp_path / spelling)
        assert (found.layout, found.bfloat16) == ("safetensors", {"b"})
        np.testing.assert_array_equal(found.weights["b"], bits)


def save_own(run, value=1.0, **pins):
    store = CheckpointStore(run)
    name = store.candidate(5, 2).name
    files = {
        "model.pdparams": {"w": f4(value, value), "b": f4(value, value)},
        "optimizer.pdopt": {"w.moment1": f4(3)},
        "ema.pdparams": {"w": f4(0.5, 0.5), "b": f4(0.5, 0.5)},
    }
    entry = store.save(step=5, epoch=2, files=files, states={}, pins={"latest": [name]})
    store.close()
    return entry


@pytest.mark.parametrize("spelling", ["", "latest", "latest.pdparams", "checkpoints/step-000000005"])
def test_a_checkpoint_of_our_own(tmp_path, spelling):
    save_own(tmp_path)
    found = load_foreign(tmp_path / spelling)
    assert (found.layout, found.epoch, found.weights["w"][0], found.ema["w"][0]) == ("paddlelite", 2, 1, 0.5)
    assert found.optimizer["w.moment1"][0] == 3


def test_arrays_that_old_protocols_split_are_joined(tmp_path):
    parts = {"w@@.0": np.arange(4, dtype="f4"), "w@@.1": np.arange(4, 6, dtype="f4")}
    info = {"w": {"OriginShape": (2, 3), "slices": list(parts)}}
    dump(tmp_path / "x.pdparams", {**parts, "UnpackBigParamInfor@@": info}, protocol=2)
    np.testing.assert_array_equal(load_foreign(tmp_path / "x").weights["w"], np.arange(6).reshape(2, 3))
    dump(tmp_path / "x.pdparams", {"UnpackBigParamInfor@@": info}, protocol=2)
    with pytest.raises(CheckpointCorruptError, match="parts do not fit together"):
        load_foreign(tmp_path / "x")


def test_tensors_below_the_top_are_pairs_of_name_and_array(tmp_path):
    dump(tmp_path / "x.pdparams", {"w": ("eager_tmp_1", f4(1)), "note": "text", "epoch": 3})
    assert list(load_foreign(tmp_path / "x").weights) == ["w"]


# -- what is not there or not sound ----------------------------------------------------------------------------------
def test_a_missing_file_names_what_is_near(tmp_path):
    dump(tmp_path / "best_accuracy.pdparams", weights(1))
    with pytest.raises(CheckpointNotFoundError, match=r"no weights at .*best_acuracy.*Did you mean 'best_accuracy"):
        load_foreign(tmp_path / "best_acuracy")
    with pytest.raises(CheckpointNotFoundError, match="there is no directory"):
        load_foreign(tmp_path / "a" / "b")


def test_a_directory_without_weights_says_so(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"no weights in .*neither \.pdparams nor"):
        load_foreign(tmp_path)


def test_an_optimizer_s_file_alone_is_no_checkpoint(tmp_path):
    dump(tmp_path / "x.pdopt", adam(1))
    with pytest.raises(CheckpointNotFoundError, match=r"x\.pdopt holds no weights, and no x\.pdparams is beside it"):
        load_foreign(tmp_path / "x.pdopt")


def test_several_sets_of_weights_without_an_order_ask_for_one(tmp_path):
    for name in ("student", "teacher"):
        dump(tmp_path / f"{name}.pdparams", weights(1))
    with pytest.raises(ConfigurationError, match=r"several sets of weights.*student, teacher\. Pass one"):
        load_foreign(tmp_path)


@pytest.mark.parametrize(("content", "message"), [([1], "but a list"), ({"state": {"w": f4(1)}}, "but state")])
def test_a_file_of_something_else_says_what_it_holds(tmp_path, content, message):
    dump(tmp_path / "x.pdparams", content)
    with pytest.raises(CheckpointMismatchError, match=message):
        load_foreign(tmp_path / "x")


def test_an_empty_file_is_damage(tmp_path):
    (tmp_path / "x.pdparams").write_bytes(b"")
    with pytest.raises(CheckpointCorruptError, match=r"x\.pdparams is not a sound Paddle file"):
        load_foreign(tmp_path / "x")


# -- the optimizer ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", ["2.6.2", "3.3.1"])
def test_adam_s_state_goes_by_structured_names(version):
    """The file is of Linear(4, 3), BatchNorm1D(3), Linear(3, 2) after two steps under a cosine schedule."""
    found = optimizer_by_structured_name(
        PADDLE_FILES / f"paddle-{version}.pdparams", PADDLE_FILES / f"paddle-{version}.pdopt"
    )
    shapes = {name: accumulators["moment1"].shape for name, accumulators in found["accumulators"].items()}
    assert shapes == {
        "0.weight": (4, 3), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,), "2.weight": (3, 2), "2.bias": (2,)
    }  # fmt: skip
    for accumulators in found["accumulators"].values():
        assert set(accumulators) == {"moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc"}
    assert found["scheduler"]["last_epoch"] == 2
    assert (found["unmatched"], found["master_weights"]) == ([], {})


def test_names_that_begin_alike_are_told_apart(tmp_path):
    names = {"a": "linear_1.w_0", "b": "linear_1.w_0_1", "c": "linear_10.w_0"}
    dump(tmp_path / "x.pdparams", {key: f4(i) for i, key in enumerate(names)} | {TABLE: names})
    opt = {f"{name}_velocity_{n}": f4(i) for i, (n, name) in enumerate(zip((0, 1, 12), names.values()))}
    dump(tmp_path / "x.pdopt", opt | {"other_0.w_0_velocity_0": f4(9)})
    found = optimizer_by_structured_name(tmp_path / "x.pdparams", tmp_path / "x.pdopt")
    assert {key: acc["velocity"][0] for key, acc in found["accumulators"].items()} == {"a": 0, "b": 1, "c": 2}
    assert found["unmatched"] == ["other_0.w_0_velocity_0"]


def test_master_weights_and_what_belongs_to_them(tmp_path):
    dump(tmp_path / "x.pdparams", {"w": np.array([1], "u2"), TABLE: {"w": "linear_0.w_0"}})
    state = {
        "linear_0.w_0_fp32_master_0_moment1_0": f4(1),
        "master_weights": {"linear_0.w_0": ("linear_0.w_0_fp32_master_0", f4(2))},
    }
    dump(tmp_path / "x.pdopt", [state, {"master_weights": {"other": f4(3)}}])
    found = optimizer_by_structured_name(tmp_path / "x.pdparams", tmp_path / "x.pdopt")
    assert found["accumulators"] == {"w": {"moment1": f4(1)}}
    assert found["master_weights"] == {"w": f4(2)}
    assert found["unmatched"] == ["master_weights of other"]


def test_tied_parameters_go_by_their_first_name_and_accidental_twins_are_refused(tmp_path):
    dump(tmp_path / "x.pdopt", {"emb.w_velocity_0": f4(1)})
    for second, fits in ((1, True), (2, False)):
        dump(tmp_path / "x.pdparams", {"in": f4(1), "out": f4(second), TABLE: {"in": "emb.w", "out": "emb.w"}})
        if fits:
            found = optimizer_by_structured_name(tmp_path / "x.pdparams", tmp_path / "x.pdopt")
            assert list(found["accumulators"]) == ["in"]
        else:
            with pytest.raises(CheckpointMismatchError, match="in and out, which differ, one automatic name"):
                optimizer_by_structured_name(tmp_path / "x.pdparams", tmp_path / "x.pdopt")


def test_weights_without_a_table_of_names_cannot_tell_whose_state_it_is(tmp_path):
    dump(tmp_path / "x.pdparams", {"w": f4(1)})
    dump(tmp_path / "x.pdopt", adam(1))
    with pytest.raises(CheckpointMismatchError, match="no table of parameter names"):
        optimizer_by_structured_name(tmp_path / "x.pdparams", tmp_path / "x.pdopt")


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


# -- safetensors -----------------------------------------------------------------------------------------------------
def sample():
    types = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    types += ["float16", "float32", "float64"]
    arrays = {f"a.{type}": np.arange(6).astype(type).reshape(2, 3) for type in types}
    arrays |= {"empty": np.zeros((0, 4), "f4"), "no dimension": np.array(3, "f4"), "žlutý": np.ones(1, "f4")}
    return arrays, {name: array.dtype.name for name, array in arrays.items()}


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays, dtypes = sample()
    write_safetensors(tmp_path / "x", arrays, dtypes)
    read = library.load_file(tmp_path / "x")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype and read[name].shape == array.shape


def test_we_read_what_the_safetensors_library_writes(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays, _ = sample()
    library.save_file(arrays, tmp_path / "x", {"made by": "a test"})
    read, bfloat16 = read_safetensors(tmp_path / "x")
    assert bfloat16 == set()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_every_truncation_of_a_safetensors_file_is_noticed(tmp_path):
    write_safetensors(tmp_path / "x", {"a": f4(1, 2), "b": f4(3)}, {"a": "float32", "b": "float32"})
    content = (tmp_path / "x").read_bytes()
    for length in range(len(content)):
        (tmp_path / "y").write_bytes(content[:length])
        with pytest.raises(CheckpointCorruptError, match="not a sound safetensors file"):
            read_safetensors(tmp_path / "y")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
        b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}',
        b'{"a": {"dtype": "O", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"shape": [2]}}',
        b"[]",
        b"[" * 5000,
    ],
)
def test_a_lying_safetensors_header_is_refused(tmp_path, header):
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointCorruptError, match="not a sound safetensors file"):
        read_safetensors(tmp_path / "x")


# -- with Paddle itself ----------------------------------------------------------------------------------------------
def trained(paddle):
    paddle.seed(1)
    net = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.BatchNorm1D(3), paddle.nn.Linear(3, 2))
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.1, 10)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=net.parameters())
    for _ in range(3):
        net(paddle.randn([5, 4])).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()
    return net, optimizer


def same_weights(found, net):
    return list(found) == list(net.state_dict()) and all(
        np.array_equal(found[name], tensor.numpy()) for name, tensor in net.state_dict().items()
    )


@pytest.fixture
def paddle():
    return pytest.importorskip("paddle")


def test_a_checkpoint_that_paddle_model_saved(tmp_path, paddle):
    net, optimizer = trained(paddle)
    model = paddle.Model(net)
    model.prepare(optimizer, paddle.nn.MSELoss())
    model.save(str(tmp_path / "2"))
    found = load_foreign(tmp_path)
    assert (found.layout, found.epoch) == ("paddle.Model", 3)
    assert same_weights(found.weights, net)
    state = optimizer_by_structured_name(tmp_path / "2.pdparams", tmp_path / "2.pdopt")
    assert (state["scheduler"]["last_epoch"], state["unmatched"]) == (3, [])
    for name, parameter in net.named_parameters():
        if parameter.trainable:
            for accumulator, array in state["accumulators"][name].items():
                held = optimizer._accumulators[accumulator][parameter.name]
                np.testing.assert_array_equal(array, held.numpy())


def test_layouts_that_paddle_save_writes(tmp_path, paddle):
    net, optimizer = trained(paddle)
    other, _ = trained(paddle)
    for parameter in other.parameters():
        parameter.set_value(parameter * 0.5)
    # As PaddleClas writes with an EMA, PaddleDetection without, and PaddleOCR.
    paddle.save(net.state_dict(), str(tmp_path / "clas/latest.pdema"))
    paddle.save(other.state_dict(), str(tmp_path / "clas/latest.pdparams"))
    paddle.save([optimizer.state_dict()], str(tmp_path / "clas/latest.pdopt"))
    paddle.save({"metric": 0.5, "epoch": 4}, str(tmp_path / "clas/latest.pdstates"))
    paddle.save(net.state_dict(), str(tmp_path / "det/0.pdparams"))
    paddle.save({**optimizer.state_dict(), "last_epoch": 1}, str(tmp_path / "det/0.pdopt"))
    paddle.save(net.state_dict(), str(tmp_path / "ocr/latest.pdparams"))
    paddle.save(optimizer.state_dict(), str(tmp_path / "ocr/latest.pdopt"))
    (tmp_path / "ocr/latest.states").write_bytes(
        pickle.dumps({"epoch": 6, "best_model_dict": OrderedDict(acc=np.float64(0.5)), "global_step": 60}, protocol=2)
    )
    expected = {"clas": ("PaddleClas", 4), "det": ("PaddleDetection", 1), "ocr": ("PaddleOCR", 6)}
    for folder, (layout, epoch) in expected.items():
        found = load_foreign(tmp_path / folder)
        assert (found.layout, found.epoch) == (layout, epoch)
        assert same_weights(found.weights, net)
        assert found.optimizer["LR_Scheduler"]["last_epoch"] == 3
    assert same_weights(load_foreign(tmp_path / "clas").ema, other)
    names = optimizer_by_structured_name(tmp_path / "clas/latest.pdema", tmp_path / "clas/latest.pdopt")["accumulators"]
    assert set(names) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_weights_go_into_a_paddle_layer(tmp_path, paddle, protocol, recwarn):
    net, _ = trained(paddle)
    paddle.save(net.state_dict(), str(tmp_path / "x.pdparams"), protocol=protocol)
    fresh = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.BatchNorm1D(3), paddle.nn.Linear(3, 2))
    assert load_weights(fresh, tmp_path / "x").complete
    assert same_weights({name: tensor.numpy() for name, tensor in fresh.state_dict().items()}, net)
    wider = paddle.nn.Sequential(paddle.nn.Linear(4, 3), paddle.nn.BatchNorm1D(3), paddle.nn.Linear(3, 7))
    before = wider[2].weight.numpy().copy()
    with pytest.raises(CheckpointMismatchError, match=r"2\.weight is \[3, 2\] in the file and \[3, 7\] in the model"):
        load_weights(wider, tmp_path / "x")
    report = load_weights(wider, tmp_path / "x", strict=False)
    assert [mismatch.name for mismatch in report.mismatched] == ["2.weight", "2.bias"]
    np.testing.assert_array_equal(wider[2].weight.numpy(), before)
    np.testing.assert_array_equal(wider[0].weight.numpy(), net[0].weight.numpy())
    assert not [warning for warning in recwarn if "Skip loading" in str(warning.message)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_paddle_weights_of_another_type_are_cast(tmp_path, paddle, dtype):
    net = paddle.nn.Linear(4, 3)
    paddle.save(net.state_dict(), str(tmp_path / "x.pdparams"))
    other = paddle.nn.Linear(4, 3)
    other.to(dtype=dtype)
    report = load_weights(other, tmp_path / "x")
    assert report.notes == [f"2 cast from float32 to {dtype}"]
    assert str(other.weight.dtype).endswith(dtype)
    saved = net.weight.numpy()
    np.testing.assert_allclose(other.weight.astype("float32").numpy(), saved, rtol=2.0**-8)
    paddle.save(other.state_dict(), str(tmp_path / "y.pdparams"))
    assert load_weights(net, tmp_path / "y").notes == [f"2 cast from {dtype} to float32"]
    np.testing.assert_array_equal(net.weight.numpy(), other.weight.astype("float32").numpy())
