"""What a run says of itself on the terminal."""

from __future__ import annotations

from collections import namedtuple

import paddle

from paddlelite_trainer.reporting.summary import describe_batch, results_table


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
