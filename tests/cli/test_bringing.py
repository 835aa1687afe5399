"""`paddlelite ckpt export`: what it writes and what it leaves as it was."""

import errno
import re

import numpy as np
import pytest
from cli_support import damage

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore
from paddlelite_trainer.checkpoint.foreign import load_foreign
from paddlelite_trainer.checkpoint.safe_pickle import read_pickle
from paddlelite_trainer.checkpoint.safetensors_format import read_safetensors
from paddlelite_trainer.cli import FAILED, NOT_FOUND, OK, PROBLEMS, USAGE


# -- export ----------------------------------------------------------------------------------------------------------
def test_export_writes_safetensors_with_bfloat16(call, tmp_path):
    class BFloat16:
        dtype, shape = "paddle.bfloat16", [2]

        def numpy(self):
            return np.array([16256, 16384], "u2")

    (tmp_path / "run").mkdir()
    store = CheckpointStore(tmp_path / "run")
    tensors = {"half": BFloat16(), "whole": np.arange(3)}
    store.save(
        step=1, epoch=0, files={"model.pdparams": tensors}, states={}, pins={"latest": [store.candidate(1, 0).name]}
    )
    code, out, _ = call("export", tmp_path / "run", tmp_path / "w.safetensors")
    assert code == OK and out.endswith(" B\n")
    arrays, bfloat16 = read_safetensors(tmp_path / "w.safetensors")
    assert bfloat16 == {"half"}
    assert (arrays["half"].tolist(), arrays["whole"].tolist()) == ([16256, 16384], [0, 1, 2])


def test_export_writes_a_bare_paddle_file(call, run, tmp_path):
    assert call("export", run / "best", tmp_path / "w.pdparams")[0] == OK
    found = load_foreign(tmp_path / "w.pdparams")
    assert (found.layout, found.weights["w"][0, 0]) == ("paddle.save", 20)


def test_the_suffix_says_what_is_exported(call, run, tmp_path):
    code, out, _ = call("export", run / "best", tmp_path / "w.pdopt")
    assert code == OK and out.startswith("optimizer.pdopt of ")
    assert next(iter(read_pickle(tmp_path / "w.pdopt"))) == "w.moment1"
    assert call("export", run / "best", tmp_path / "o.safetensors", "--what", "optimizer")[0] == OK
    assert list(read_safetensors(tmp_path / "o.safetensors")[0]) == ["w.moment1"]


def test_a_full_disk_is_told_with_the_wanted_file_and_the_sizes(call, run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("paddlelite_trainer.cli.bringing.write_safetensors", full)
    monkeypatch.setattr("shutil.copyfile", full)
    for name in ("w.safetensors", "w.pdparams"):
        code, _, err = call("export", run, tmp_path / name)
        said = rf"{tmp_path / name} cannot be written: No space left on device: about \d+ B are needed; "
        said += r"[\d.]+ \wB were free"
        assert code == FAILED and re.search(said, err)


def test_export_replaces_a_file_only_when_asked(call, run, tmp_path):
    (tmp_path / "w.pdparams").write_text("precious")
    code, _, err = call("export", run, tmp_path / "w.pdparams")
    assert (code, err) == (USAGE, f"paddlelite: {tmp_path / 'w.pdparams'} exists; --force replaces it\n")
    assert (tmp_path / "w.pdparams").read_text() == "precious"
    assert call("export", run, tmp_path / "w.pdparams", "--force")[0] == OK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "w.pdparams"]


@pytest.mark.parametrize(
    ("output", "more", "code", "message"),
    [
        ("w.pt", [], USAGE, ".pdparams for weights, .pdopt for the optimizer; got 'w.pt'"),
        (
            "w.pdopt",
            ["--what", "model"],
            USAGE,
            "--what model is written to a file that ends in .safetensors or .pdparams",
        ),
        ("w.pdparams", ["--what", "optimizer"], USAGE, "ends in .safetensors or .pdopt, got 'w.pdparams'"),
        ("w.pdparams", ["--what", "ema"], NOT_FOUND, "has no ema.pdparams; it has model.pdparams"),
        ("absent/w.pdparams", [], FAILED, "absent/w.pdparams cannot be written: there is no directory "),
    ],
)
def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(call, run, tmp_path, output, more, code, message):
    got, _, err = call("export", run, tmp_path / output, *more)
    assert got == code and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_damaged_checkpoint_is_not_exported(call, run, tmp_path):
    damage(CheckpointReader(run).entries()[0])
    code, _, err = call("export", run / "10", tmp_path / "w.pdparams")
    assert code == PROBLEMS and err.count("\n") == 1
    assert not (tmp_path / "w.pdparams").exists()
