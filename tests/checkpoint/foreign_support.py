"""What the tests of foreign checkpoints share: a layer without Paddle, and small files."""

import pickle
from pathlib import Path

import numpy as np

from paddlelite_trainer.checkpoint import CheckpointStore

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
