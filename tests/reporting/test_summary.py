"""What a run says of itself on the terminal."""

from __future__ import annotations

from collections import namedtuple

import paddle
import pytest

from paddlelite_trainer.reporting.summary import describe_batch, print_results


def test_results_are_a_table_with_a_row_per_metric(capsys: pytest.CaptureFixture[str]) -> None:
    print_results("validate", [{"val_loss": 0.123456789, "acc": 1.0}])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["validate", "metric", "value"],
        ["val_loss", "0.123457"],
        ["acc", "1"],
    ]


def test_results_of_several_loaders_are_columns_and_one_that_lacks_a_metric_has_a_gap(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_results("test", [{"loss": 1.5}, {"loss": 2.0, "acc": 0.5}])
    heading, loss, acc = capsys.readouterr().out.splitlines()
    assert heading.split() == ["test", "metric", "loader", "0", "loader", "1"]
    assert loss.split() == ["loss", "1.5", "2"]
    assert acc.split() == ["acc", "0.5"] and len(acc) == len(heading), "below loader 1, aligned right"


def test_without_results_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_results("test", [{}, {}])
    assert capsys.readouterr().out == ""


def test_a_batch_is_described_by_its_tensors() -> None:
    Pair = namedtuple("Pair", "x y")
    batch = {"a": [paddle.ones([2, 3]), "text"], "b": Pair(paddle.ones([1], "int64"), None)}
    assert describe_batch(batch) == "{a: [[2, 3] float32, str], b: [[1] int64, NoneType]}"
