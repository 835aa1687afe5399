"""Whether gradients and losses are all finite, whatever their types, sizes and magnitudes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer.gradients import all_finite
from paddlelite_trainer.machine import paddle_internals


def tensor(*entries: float, dtype: str = "float32") -> Any:
    return paddle.to_tensor(np.array(entries, "float64")).astype(dtype)


def sparse(entry: float) -> Any:
    """The gradient of an embedding that was used at two rows, one of them twice."""
    layer = paddle.nn.Embedding(4, 2, sparse=True)
    (layer(paddle.to_tensor([1, 3, 1])) * entry).sum().backward()
    return layer.weight.grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_bad_entry_among_many_tensors_is_found(bad: float, dtype: str) -> None:
    good = [tensor(1.0, -2.0), tensor(3.0, dtype="float64")]
    assert all_finite(good)
    assert not all_finite([*good, tensor(1.0, bad, dtype=dtype)])
    assert not all_finite(good, [tensor(bad, dtype=dtype).reshape([])])
    assert not all_finite((), [tensor(bad, dtype=dtype)])


def test_nothing_and_an_empty_tensor_are_finite() -> None:
    assert all_finite(())
    assert all_finite([paddle.zeros([0, 3])], [tensor(1.0)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_entries_whose_squares_overflow_are_finite(dtype: str) -> None:
    huge = tensor(3e38, -3e38, 3e38, dtype=dtype)
    assert all_finite([huge, huge], [tensor(3e38)])
    assert not all_finite([huge, tensor(float("nan"))])


def test_sparse_gradients_are_looked_at_too() -> None:
    assert all_finite([sparse(2.0), tensor(1.0)])
    assert not all_finite([sparse(float("inf")), tensor(1.0)])


def test_a_save_looks_at_many_tensors_a_thousand_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Classifier()
    module.many = paddle.nn.ParameterList([module.create_parameter([1]) for _ in range(2500)])
    looked: list[int] = []
    own = paddle_internals.total
    monkeypatch.setattr(paddle_internals, "total", lambda squares: looked.append(len(squares)) or own(squares))
    trainer = quiet_trainer(max_steps=1, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(module, make_batches(1))
    assert max(looked) == 1000
    assert sum(looked) > 2500
    module.many[2400].set_value(tensor(float("inf")))
    trainer.save_checkpoint("bad")
    assert [entry.healthy for entry in trainer.checkpoints.entries() if "bad" in entry.pins] == [False]
