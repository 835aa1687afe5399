"""What a run says of itself on the terminal."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import paddle
import pytest

from paddlelite_trainer.reporting.summary import describe_batch, results_table
from paddlelite_trainer.reporting.terminal import from_here


def test_results_are_a_table_with_a_row_per_metric() -> None:
    text = results_table("validate", [{"val_loss": 0.123456789, "acc": 1.0}])
    assert [line.split() for line in text.splitlines()] == [
        ["validate", "metric", "value"],
        ["val_loss", "0.123457"],
        ["acc", "1"],
    ]


def test_results_of_several_loaders_are_columns_and_one_that_lacks_a_metric_has_a_gap() -> None:
    heading, loss, acc = results_table("test", [{"loss": 1.5}, {"loss": 2.0, "acc": 0.5}]).splitlines()
    assert heading.split() == ["test", "metric", "loader", "0", "loader", "1"]
    assert loss.split() == ["loss", "1.5", "2"]
    assert acc.split() == ["acc", "0.5"] and len(acc) == len(heading), "below loader 1, aligned right"


def test_a_batch_is_described_by_its_tensors() -> None:
    Pair = namedtuple("Pair", "x y")
    batch = {"a": [paddle.ones([2, 3]), "text"], "b": Pair(paddle.ones([1], "int64"), None)}
    assert describe_batch(batch) == "{a: [[2, 3] float32, str], b: [[1] int64, NoneType]}"


def test_a_path_is_told_as_one_types_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "version_0") == "runs/version_0"
    assert from_here(tmp_path.parent) == str(tmp_path.parent)
    assert from_here("runs/version_0") == "runs/version_0"
