"""Checkpoints of every format ever released load for ever; `make_golden.py` wrote them."""

import math
from pathlib import Path

import numpy as np
import pytest
from store_support import copy_run

from paddlelite_trainer.checkpoint import CheckpointStore, open_checkpoint

GOLDEN = sorted(path for path in (Path(__file__).parent / "golden").iterdir() if path.is_dir())


def test_there_is_one_of_the_present_format():
    assert {path.name[:8] for path in GOLDEN} == {"format-1", "format-3"}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_a_golden_checkpoint_loads_with_every_value(path):
    saved = open_checkpoint(path)
    entry = saved.entry
    assert (entry.step, entry.epoch, entry.revision, entry.healthy) == (42, 3, 0, True)
    assert entry.metrics["val_acc"] == 0.75 and math.isnan(entry.metrics["loss"])
    assert entry.info == {"note": "golden", "shape": (2, 3)}

    base = np.arange(6, dtype="float32").reshape(2, 3) / np.float32(3)
    tensors = saved.tensors("model.pdparams")
    for name in ("float32", "tied.a", "tied.b"):
        assert (tensors[name] == base).all() and tensors[name].dtype == np.float32
    assert (tensors["transposed"] == base.T).all() and (tensors["int64"] == base.astype("int64")).all()
    assert saved.dtype_of("model.pdparams", "bfloat16") == "bfloat16"
    assert np.allclose((tensors["bfloat16"].astype("uint32") << 16).view("float32"), base, rtol=2**-7)
    assert tensors["scalar"].shape == () and tensors["scalar"] == 2.5 and tensors["empty"].shape == (0, 3)
    assert (saved.tensors("optimizer.pdopt")["float32/moment1"] == 1).all()

    state = saved.state("trainer.json", return_numpy=True)
    assert state["text"] == "état 状态" and state["tuple"] == (1, ("a", b"\x00\xff"))
    assert state["numbers"] == [1, 0.0, 1e-300, math.inf, -math.inf, 2**100, True, None]
    assert math.copysign(1, state["numbers"][1]) == -1
    assert state["keys"] == {1: "int", None: "none", (1, "a"): "tuple"}
    assert state["array"].dtype == np.uint32 and state["array"].tolist() == [0, 1, 2, 3]
    assert type(state["numpy_scalar"]) is np.float32 and state["numpy_scalar"] == np.float32(0.1)
    assert state["tensor"].tolist() == [1.5, 2.5]
    random = np.random.RandomState(1)
    random.set_state(saved.state("rng-rank00000.json")["numpy"])
    assert random.randint(1 << 30) == np.random.RandomState(0).randint(1 << 30)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_a_run_goes_on_from_a_golden_checkpoint(path, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    copy_run(path, tmp_path / "checkpoints/step-000000042")
    store = CheckpointStore(tmp_path)
    assert store.newest().step == 42
    assert store.pins() == {"latest": ("step-000000042",), "best": ("step-000000042",)}
