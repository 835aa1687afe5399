"""Other programs' checkpoints as they lie on disk: in several files, in one file, in a folder for each moment."""

import json
import pickle

import pytest
from foreign_support import TABLE, Layer, adam, dump, f4, weights

from paddlelite_trainer.checkpoint.foreign import load_foreign
from paddlelite_trainer.checkpoint.safetensors_format import write_safetensors
from paddlelite_trainer.checkpoint.weights import load_weights
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
)


def layer():
    return Layer(w=f4(0, 0), b=f4(0, 0))


def write_part(path, name, value):
    if path.suffix == ".safetensors":
        write_safetensors(path, {name: f4(value, value)}, {name: "float32"})
    else:
        dump(path, weights(value, names=(name,)))


def in_two_files(directory, suffix, base="model", index=True):
    files = [directory / f"{base}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for name, file, value in zip("wb", files, (1, 2), strict=True):
        write_part(file, name, value)
    if index:
        content = {"metadata": {}, "weight_map": {"w": files[0].name, "b": files[1].name}}
        (directory / f"{base}.{suffix}.index.json").write_text(json.dumps(content))
    return files


# -- several files -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given", ["", "model.{}.index.json", "model", "model-00002-of-00002.{}"])
@pytest.mark.parametrize("suffix", ["safetensors", "pdparams"])
def test_weights_in_several_files_are_loaded_whole_by_any_of_their_names(tmp_path, suffix, given):
    in_two_files(tmp_path, suffix)
    model = layer()
    assert load_weights(model, tmp_path / given.format(suffix)).complete
    assert (model.weights["w"][0], model.weights["b"][0]) == (1, 2)
    assert {"w", "b"} == load_foreign(tmp_path / given.format(suffix)).weights.keys()


@pytest.mark.parametrize("suffix", ["safetensors", "pdparams"])
def test_parts_without_an_index_are_one_set_by_their_names(tmp_path, suffix):
    in_two_files(tmp_path, suffix, index=False)
    assert load_weights(layer(), tmp_path).complete


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "pdparams"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_part_is_an_error_also_where_not_all_must_fit(tmp_path, suffix, index, lost):
    files = in_two_files(tmp_path, suffix, index=index)
    files[lost].unlink()
    for given in (tmp_path, files[1 - lost]):
        with pytest.raises(CheckpointCorruptError, match=f"not there: {files[lost].name}"):
            load_weights(layer(), given, strict=False)


def test_a_weight_that_the_index_names_and_no_file_holds_is_an_error(tmp_path):
    files = in_two_files(tmp_path, "safetensors")
    files[1].unlink()
    write_part(files[1], "other", 2)
    with pytest.raises(CheckpointCorruptError, match=r"names 1 that its files do not hold: b"):
        load_weights(layer(), tmp_path, strict=False)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"w": "../w.safetensors"}}'])
def test_an_index_that_is_none_is_an_error(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointCorruptError, match="is no index of weights"):
        load_weights(layer(), tmp_path)


def test_slices_of_single_processes_are_refused_as_parts(tmp_path):
    for i in (0, 1):
        dump(tmp_path / f"model_state.tp0{i}.pdparams", weights(i))
    for given in (tmp_path, tmp_path / "model_state.tp00.pdparams"):
        with pytest.raises(CheckpointMismatchError, match="a part of them"):
            load_weights(layer(), given, strict=False)


# -- everything in one file --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["model", "state_dict", "net", "params", "main_params", "anything"])
@pytest.mark.parametrize("file", ["x.pdparams", "epoch_6_checkpoint.pkl", "snapshot_iter_12.pdz", "x.pdckpt"])
def test_a_file_that_holds_everything_brings_weights_optimizer_and_epoch(tmp_path, file, key):
    pairs = {name: (f"linear_0.{name}_0", f4(1, 1)) for name in ("w", "b")}  # as paddle.save nests Tensors
    dump(tmp_path / file, {key: pairs, "optimizer": adam(3), "epoch": 2, "global_step": 8, "best_acc": 0.5})
    assert load_weights(layer(), tmp_path / file).complete
    for given in (tmp_path / file, tmp_path):
        found = load_foreign(given)
        assert (found.epoch, found.global_step, found.best) == (2, 8, {"best_acc": 0.5})
        assert found.optimizer_by_structured_name()["accumulators"]["w"]["moment1"][0] == 3


def test_an_average_in_the_same_file_is_taken_where_it_is_asked_for(tmp_path):
    dump(tmp_path / "x.pdparams", {"model": weights(1), "ema": weights(2)})
    for which, value in (("file", 1), ("raw", 1), ("ema", 2)):
        for source in (tmp_path / "x", load_foreign(tmp_path / "x")):
            model = layer()
            load_weights(model, source, which=which)
            assert value == model.weights["w"][0]


def test_several_models_in_one_file_keep_their_keys_and_one_of_them_can_be_taken(tmp_path):
    dump(tmp_path / "x.pdparams", {"netG": weights(1), "netD": weights(2), "optimizers": {"optG": adam(3)}})
    model = layer()
    load_weights(model, tmp_path / "x", rename={"netD.": ""}, strict=False)
    assert model.weights["w"][0] == 2


def test_an_optimizer_alone_is_no_model(tmp_path):
    dump(tmp_path / "x.pdparams", {"optimizer": adam(1), "epoch": 3})
    with pytest.raises(CheckpointMismatchError, match="no weights of a model, but optimizer, epoch"):
        load_foreign(tmp_path / "x")


# -- a folder for each moment ------------------------------------------------------------------------------------------
def test_a_prefix_comes_before_a_directory_of_the_same_name_and_a_slash_means_the_directory(tmp_path):
    dump(tmp_path / "best_model.pdparams", weights(1))
    dump(tmp_path / "best_model.pdopt", [adam(1)])
    dump(tmp_path / "best_model.pdstates", {"epoch": 3, "metric": 0.7})
    dump(tmp_path / "best_model" / "model.pdparams", weights(2))
    found = load_foreign(tmp_path / "best_model")
    assert found.epoch == 3 and found.optimizer is not None and found.weights["w"][0] == 1
    assert load_foreign(f"{tmp_path / 'best_model'}/").weights["w"][0] == 2


@pytest.mark.parametrize("stem", ["model", "epoch_9"])
def test_the_folder_of_an_epoch_tells_the_epoch(tmp_path, stem):
    for epoch in (2, 9):
        name = stem if stem == "model" else f"epoch_{epoch}"
        dump(tmp_path / f"epoch_{epoch}" / f"{name}.pdparams", weights(epoch))
        dump(tmp_path / f"epoch_{epoch}" / f"{name}.pdopt", adam(epoch))
    for given in (tmp_path, tmp_path / "epoch_9"):
        found = load_foreign(given)
        assert found.epoch == 9 and found.weights["w"][0] == 9 and found.optimizer is not None


def test_paddlex_2_tells_the_epoch_of_its_best_in_model_yml(tmp_path):
    dump(tmp_path / "best_model" / "model.pdparams", weights(1))
    (tmp_path / "best_model" / "model.yml").write_text("Model: X\ncompleted_epochs: 7\n")
    assert load_foreign(tmp_path).epoch == 7


def test_paddleseg_s_average_is_beside_the_weights_and_the_file_is_not_the_average(tmp_path):
    dump(tmp_path / "iter_6" / "model.pdparams", weights(1))
    dump(tmp_path / "iter_6" / "ema_model.pdparams", weights(2))
    for which, value in (("file", 1), ("raw", 1), ("ema", 2)):
        for source in (tmp_path / "iter_6", load_foreign(tmp_path)):
            model = layer()
            load_weights(model, source, which=which)
            assert value == model.weights["w"][0]


@pytest.mark.parametrize("given", ["latest", "", "latest.pdopt"])
def test_paddleocr_s_kie_keeps_its_optimizer_beside_the_folder(tmp_path, given):
    for value, name in enumerate(("latest", "best_accuracy")):
        dump(tmp_path / name / "model_state.pdparams", weights(value))
        dump(tmp_path / name / "metric.states", {"epoch": 4, "global_step": 40, "best_model_dict": {"hmean": 0.5}}, 2)
        dump(tmp_path / f"{name}.pdopt", adam(value))
    found = load_foreign(tmp_path / given)
    assert (found.epoch, found.global_step, found.best) == (4, 40, {"hmean": 0.5})
    assert found.optimizer is not None and found.weights["w"][0] == 0


def test_paddlenlp_s_checkpoints_bring_optimizer_epoch_and_step(tmp_path):
    for step in (50, 200):
        folder = tmp_path / f"checkpoint-{step}"
        dump(folder / "model_state.pdparams", weights(step))
        dump(folder / "optimizer.pdopt", adam(step))
        dump(folder / "scheduler.pdparams", {"last_epoch": step})
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": step / 80, "global_step": step}))
    found = load_foreign(tmp_path)
    assert (found.epoch, found.global_step, found.weights["w"][0]) == (2, 200, 200)
    assert found.optimizer is not None


# -- what is none ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("url", ["https://a.b/x.pdparams", "s3://b/x", "hdfs://b/x.pdparams", "gs://b/x"])
def test_a_url_is_called_one(url):
    with pytest.raises(ConfigurationError, match=r"is a URL.*download it first"):
        load_weights(layer(), url)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pdparams", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("x.pth", b"PK\x03\x04" + bytes(30), "ZIP archive"),
        ("x.pdiparams", b"\x00" * 40, "exported for inference"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointMismatchError, match=message):
        load_weights(layer(), tmp_path / name)


@pytest.mark.parametrize(("name", "message"), [("0_0.distcp", "load_state_dict"), ("x.pdiparams", "inference")])
def test_a_directory_without_weights_says_what_it_has_instead(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match=message):
        load_weights(layer(), tmp_path)


def test_the_pairs_of_a_nested_file_are_not_mistaken_for_a_table(tmp_path):
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"w": f4(1, 1), "b": f4(1, 1), TABLE: {"w": "l.w", "b": "l.b"}}))
    assert load_foreign(tmp_path / "x").parameter_names == {"w": "l.w", "b": "l.b"}
