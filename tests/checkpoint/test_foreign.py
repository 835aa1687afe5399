"""Checkpoints of other Paddle programs: where their files are, and what they hold."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
from foreign_support import PADDLE_FILES, TABLE, adam, dump, f4, save_own, weights

from paddlelite_trainer.checkpoint.foreign import load_foreign, optimizer_by_structured_name
from paddlelite_trainer.checkpoint.safetensors_format import write_safetensors
from paddlelite_trainer.checkpoint.weights import load_weights
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
)


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


@pytest.mark.parametrize(("content", "message"), [([1], "but a list"), ({"state": {"w": 3}}, "but state")])
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
