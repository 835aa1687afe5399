"""Plain paddle.load opens what the store writes, under every conventional name, in every supported Paddle."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from store_support import memory_dir as memory_dir

from paddlelite_trainer.checkpoint import CheckpointStore, open_checkpoint
from paddlelite_trainer.checkpoint.format import ALIGNMENT, lay_out
from paddlelite_trainer.checkpoint.tensors import host_array
from paddlelite_trainer.errors import UnserializableStateError

paddle = pytest.importorskip("paddle")


def every_kind():
    base = paddle.to_tensor(np.arange(24, dtype="float32").reshape(4, 6) / 7)
    return {
        "float32": base,
        "float64": base.astype("float64"),
        "float16": base.astype("float16"),
        "bfloat16": base.astype("bfloat16"),
        "int8": base.astype("int8"),
        "uint8": base.astype("uint8"),
        "int16": base.astype("int16"),
        "int32": base.astype("int32"),
        "int64": base.astype("int64"),
        "bool": base > 1,
        "complex64": base.astype("complex64"),
        "scalar": paddle.to_tensor(2.5),
        "empty": paddle.zeros([0, 3]),
        "one": paddle.ones([1, 1, 1]),
        "transposed": base.t(),
        "strided": base[:, 1:5],
        "five-d": paddle.ones([2, 1, 3, 1, 2]),
        "tied": base,
        "很长的名字" * 60: base + 1,
        "numpy": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
    }


def write(path, tensors):
    pieces = lay_out(tensors).pieces
    path.write_bytes(b"".join(piece if isinstance(piece, bytes) else host_array(piece).tobytes() for piece in pieces))


def as_numpy(value):
    return value if isinstance(value, np.ndarray) else value.numpy()


def save(run, tensors, **states):
    store = CheckpointStore(run)
    entry = store.candidate(1, 0)
    pins = {name: [entry.name] for name in ("latest", "best", "best_val_acc", "epoch_1")}
    files = {"model.pdparams": tensors, "optimizer.pdopt": {"w/moment1": paddle.ones([3])}, "ema.pdparams": tensors}
    store.save(step=1, epoch=1, files=files, states=states, pins=pins)
    return store


def test_every_conventional_name_opens_with_plain_paddle_load(memory_dir):
    tensors = every_kind()
    save(memory_dir, tensors)
    for pin in ("latest", "best", "best_val_acc", "epoch_1"):
        for suffix in (".pdparams", ".pdema", "/model.pdparams"):
            loaded = paddle.load(f"{memory_dir}/{pin}{suffix}")
            assert list(loaded) == list(tensors)
            for name, tensor in tensors.items():
                assert isinstance(loaded[name], paddle.Tensor), name
                assert list(loaded[name].shape) == list(tensor.shape), name
                np.testing.assert_array_equal(as_numpy(loaded[name]), as_numpy(tensor), err_msg=name)
                if not isinstance(tensor, np.ndarray):
                    assert loaded[name].dtype == tensor.dtype, name
        assert list(paddle.load(f"{memory_dir}/{pin}.pdopt")) == ["w/moment1"]
    numpy = paddle.load(f"{memory_dir}/latest.pdparams", return_numpy=True)
    assert all(type(array) is np.ndarray for array in numpy.values())


def test_our_reader_gives_the_same_bits_and_the_true_types(memory_dir):
    tensors = every_kind()
    save(memory_dir, tensors)
    saved = open_checkpoint(memory_dir / "latest.pdparams")
    for name, array in saved.tensors("model.pdparams").items():
        np.testing.assert_array_equal(array, as_numpy(tensors[name]), err_msg=name)
        assert array.shape == tuple(tensors[name].shape)
        expected = "int32" if name == "big-endian" else str(tensors[name].dtype).rsplit(".", 1)[-1]
        assert saved.dtype_of("model.pdparams", name) == expected
        assert array.flags.writeable
    back = paddle.to_tensor(saved.tensors("model.pdparams")["bfloat16"])
    assert back.dtype == paddle.bfloat16


@pytest.mark.parametrize("suffix", ["pdparams", "pdopt"])
def test_a_layer_and_its_optimizer_take_what_paddle_loads(memory_dir, suffix):
    layer, other = paddle.nn.Linear(4, 3), paddle.nn.Linear(4, 3)
    optimizer = paddle.optimizer.Adam(parameters=layer.parameters())
    layer(paddle.ones([2, 4])).sum().backward()
    optimizer.step()
    state = {name: value for name, value in optimizer.state_dict().items() if isinstance(value, paddle.Tensor)}
    store = CheckpointStore(memory_dir)
    name = store.candidate(1, 0).name
    files = {"model.pdparams": layer.state_dict(), "optimizer.pdopt": state}
    store.save(step=1, epoch=0, files=files, states={}, pins={"latest": [name]})
    if suffix == "pdparams":
        missing, unexpected = other.set_state_dict(paddle.load(f"{memory_dir}/latest.pdparams"))
        assert (missing, unexpected) == ([], [])
        assert (other.weight == layer.weight).all() and (other.bias == layer.bias).all()
    else:
        optimizer.set_state_dict(paddle.load(f"{memory_dir}/latest.pdopt"))
        again = optimizer.state_dict()
        assert all((as_numpy(again[key]) == as_numpy(state[key])).all() for key in state)


def test_tied_weights_are_stored_once_and_read_under_both_names(memory_dir):
    weight = paddle.rand([100, 100])
    view = weight.numpy()
    tensors = {"a": weight, "b": weight, "c": weight + 0, "x": view, "y": view, "z": view.T}
    layout = lay_out(tensors)
    offsets = {block.name: block.offset for block in layout.blocks}
    assert offsets["a"] == offsets["b"] and offsets["x"] == offsets["y"]
    assert len(set(offsets.values())) == 4
    write(memory_dir / "x.pdparams", tensors)
    loaded = paddle.load(str(memory_dir / "x.pdparams"))
    for name, value in tensors.items():
        np.testing.assert_array_equal(as_numpy(loaded[name]), as_numpy(value))


def test_blocks_are_aligned_and_the_same_tensors_give_the_same_bytes(memory_dir):
    tensors = every_kind()
    layout = lay_out(tensors)
    assert all(block.offset % ALIGNMENT == 0 for block in layout.blocks)
    write(memory_dir / "a", tensors)
    write(
        memory_dir / "b", {name: as_numpy(value).copy() if name == "int8" else value for name, value in tensors.items()}
    )
    assert (memory_dir / "a").read_bytes() == (memory_dir / "b").read_bytes()
    assert (memory_dir / "a").stat().st_size == layout.size


def test_names_of_any_length_and_tensors_of_any_size_keep_the_blocks_aligned(memory_dir):
    for length in range(1, 130):
        tensors = {"x" * length: np.arange(length, dtype="int8"), "y": np.ones((1,) * (length % 6))}
        write(memory_dir / "x", tensors)
        assert all(block.offset % ALIGNMENT == 0 for block in lay_out(tensors).blocks)
        loaded = paddle.load(str(memory_dir / "x"), return_numpy=True)
        assert all((loaded[name] == tensors[name]).all() for name in tensors)


def test_the_pickle_asks_for_nothing_but_numpys_arrays(memory_dir):
    asked = set()

    class Watching(pickle.Unpickler):
        def find_class(self, module, name):
            asked.add((module, name))
            return super().find_class(module, name)

    write(memory_dir / "x", every_kind())
    with open(memory_dir / "x", "rb") as file:
        Watching(file).load()
    assert asked == {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


def test_a_host_tensor_is_read_in_place_and_a_strided_one_as_it_looks():
    for name, tensor in every_kind().items():
        array = host_array(tensor)
        np.testing.assert_array_equal(array, as_numpy(tensor), err_msg=name)
        assert array.flags.c_contiguous and array.shape == tuple(tensor.shape)
    weight = paddle.ones([1000])
    assert host_array(weight).ctypes.data == weight.data_ptr()


def test_tensors_in_states_come_back_as_tensors_and_arrays_as_arrays(memory_dir):
    tensors = every_kind()
    store = save(memory_dir, {}, **{"trainer.json": {"callbacks": [tensors, (1, paddle.ones([2]).astype("bfloat16"))]}})
    saved = store.read(store.newest())
    back, (_, half) = saved.state("trainer.json")["callbacks"]
    assert half.dtype == paddle.bfloat16
    for name, value in tensors.items():
        assert isinstance(back[name], np.ndarray) == isinstance(value, np.ndarray)
        np.testing.assert_array_equal(as_numpy(back[name]), as_numpy(value), err_msg=name)
    without = saved.state("trainer.json", return_numpy=True)["callbacks"][0]
    assert all(isinstance(value, np.ndarray) for value in without.values())


def test_what_paddle_could_not_load_is_refused_by_name(memory_dir):
    store = CheckpointStore(memory_dir)
    pins = {"latest": [store.candidate(1, 0).name]}
    for value in (3.0, [1.0], "x", None, np.array(["x"]), np.float32(1)):
        with pytest.raises(UnserializableStateError, match=r"model\.pdparams\['net\.w'\]"):
            store.save(step=1, epoch=0, files={"model.pdparams": {"net.w": value}}, states={}, pins=pins)
    assert store.entries() == []


# ---- across versions: files that one Paddle and NumPy wrote are opened by the others ----

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("golden", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_a_file_written_under_another_paddle_and_numpy_opens(golden):
    loaded = paddle.load(str(GOLDEN / golden / "model.pdparams"))
    saved = open_checkpoint(GOLDEN / golden)
    arrays = saved.tensors("model.pdparams")
    assert set(loaded) == set(arrays) and len(loaded) >= 10
    for name, array in arrays.items():
        np.testing.assert_array_equal(as_numpy(loaded[name]), array, err_msg=name)
        assert str(loaded[name].dtype).rsplit(".", 1)[-1] == saved.dtype_of("model.pdparams", name)


@pytest.mark.skipif("OTHER_PADDLE_PYTHON" not in os.environ, reason="OTHER_PADDLE_PYTHON names no second interpreter")
def test_the_other_paddle_opens_what_this_one_writes(memory_dir):
    tensors = every_kind()
    save(memory_dir, tensors)
    code = (
        "import sys, json, paddle\n"
        "loaded = paddle.load(sys.argv[1])\n"
        "print(json.dumps({name: [str(t.dtype), t.shape, t.numpy().tobytes().hex()] for name, t in loaded.items()}))"
    )
    command = [os.environ["OTHER_PADDLE_PYTHON"], "-c", code, f"{memory_dir}/latest.pdparams"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded = json.loads(output.splitlines()[-1])
    assert list(loaded) == list(tensors)
    for name, (dtype, shape, data) in loaded.items():
        array = host_array(tensors[name])
        assert (shape, bytes.fromhex(data)) == (list(array.shape), array.tobytes()), name
        assert isinstance(tensors[name], np.ndarray) or dtype == str(tensors[name].dtype)


def test_reading_and_writing_need_no_paddle(tmp_path):
    """Only turning a stored Tensor back into one does."""
    code = (
        "import sys; sys.modules['paddle'] = None; sys.path.insert(0, sys.argv[2])\n"
        "import numpy as np\n"
        "from paddlelite_trainer.checkpoint import CheckpointStore\n"
        "store = CheckpointStore(sys.argv[1])\n"
        "name = store.candidate(1, 0).name\n"
        "store.save(step=1, epoch=0, files={'model.pdparams': {'w': "
        "np.ones(3)}}, states={'trainer.json': {'a': np.ones(2)}},\n"
        "           pins={'latest': [name]})\n"
        "saved = store.read(store.newest())\n"
        "assert saved.tensors('model.pdparams')['w'].sum() == 3 and saved.state('trainer.json')['a'].sum() == 2"
    )
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", code, tmp_path, root], check=True)
