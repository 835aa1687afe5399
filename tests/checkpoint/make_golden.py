"""Writes a golden checkpoint: run once for each released format, under the name that the format gets, and never again.

python tests/checkpoint/make_golden.py format-1-paddle-3.3.1
"""

import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from paddlelite_trainer.checkpoint import CheckpointStore, pins, record  # noqa: E402


def golden_tensors():
    base = paddle.to_tensor(np.arange(6, dtype="float32").reshape(2, 3) / 3)
    kinds = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool", "complex64")
    tensors = {kind: base.astype(kind) for kind in kinds}
    tensors |= {"scalar": paddle.to_tensor(2.5), "empty": paddle.zeros([0, 3]), "transposed": base.t()}
    return tensors | {"tied.a": base, "tied.b": base}


def golden_state():
    return {
        "text": "état 状态",
        "numbers": [1, -0.0, 1e-300, float("inf"), float("-inf"), 2**100, True, None],
        "tuple": (1, ("a", b"\x00\xff")),
        "keys": {1: "int", None: "none", (1, "a"): "tuple"},
        "array": np.arange(4, dtype="uint32"),
        "numpy_scalar": np.float32(0.1),
        "tensor": paddle.to_tensor([1.5, 2.5]),
    }


def main(name):
    with tempfile.TemporaryDirectory() as run:
        store = CheckpointStore(run)
        older = []
        if name.startswith("format-3"):  # in which a long list of checkpoints is told by what has changed in it
            pins.SHORT_LIST = record.REPLACED_UP_TO = 0
            store.save(step=41, epoch=3, files={}, states={}, pins={"best": ["step-000000041"]})
            older = ["step-000000041"]
        entry = store.candidate(42, 3)
        store.save(
            step=42,
            epoch=3,
            files={"model.pdparams": golden_tensors(), "optimizer.pdopt": {"float32/moment1": paddle.ones([2, 3])}},
            states={
                "trainer.json": golden_state(),
                "rng-rank00000.json": {"numpy": np.random.RandomState(0).get_state()},
            },
            metrics={"val_acc": 0.75, "loss": float("nan")},
            info={"note": "golden", "shape": (2, 3)},
            pins={"latest": [entry.name], "best": [entry.name, *older]},
        )
        shutil.copytree(entry.path, HERE / "golden" / name)


if __name__ == "__main__":
    main(sys.argv[1])
