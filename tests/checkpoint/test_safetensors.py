"""Safetensors files: what the library reads and writes, and what no file can make us believe."""

import numpy as np
import pytest
from foreign_support import f4

from paddlelite_trainer.checkpoint.safetensors_format import read_safetensors, write_safetensors
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
)


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
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
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
