"""Evaluations over two ranks: of rank 0's statistics, each sample once, predictions in order; and sparse gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import paddle
import pytest
from evaluations import Numbers
from forked import launch

SCRIPT = Path(__file__).with_name("evaluations.py")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """{case: what each rank has found}."""
    out = tmp_path_factory.mktemp("evaluations")
    launch(SCRIPT, str(out), log_dir=out / "log", timeout=90)
    files = [out / f"rank{rank}.jsonl" for rank in (0, 1)]
    ranks = [dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {} for file in files]
    return {name: [rank.get(name, "never came to its end") for rank in ranks] for name in {**ranks[0], **ranks[1]}}


def test_a_run_with_averaged_weights_has_the_same_history_wherever_it_was_stopped(found: dict[str, list[Any]]) -> None:
    first, second = found["averaging"]
    whole, *resumed = first
    assert [resumed, second] == [[whole] * 3, first]
    assert len(whole) == 3


@pytest.mark.parametrize("case", ["recorded", "recorded of averages"])
def test_the_recorded_metric_is_that_of_the_saved_weights(found: dict[str, list[Any]], case: str) -> None:
    first, second = found[case]
    assert first["recorded"] == second["recorded"] == first["of the saved"] == second["of the saved"]
    assert first["own"] != second["own"], "the ranks have the same statistics, so this shows nothing"


def test_one_process_finds_the_recorded_metric_in_the_saved_weights(found: dict[str, list[Any]]) -> None:
    first, _ = found["recorded"]
    state = paddle.load(f"{first['path']}/latest.pdparams")
    net = paddle.nn.Sequential(paddle.nn.Linear(4, 6), paddle.nn.BatchNorm1D(6), paddle.nn.Linear(6, 1))
    net.set_state_dict({name.partition(".")[2]: value for name, value in state.items() if name.startswith("net.")})
    net.eval()
    data = Numbers()
    samples = paddle.to_tensor([data[index][0] for index in range(len(data))])
    assert first["recorded"] == pytest.approx(float(net(samples).pow(2).mean()), rel=1e-5)


def test_a_rank_has_its_own_statistics_back_after_an_evaluation(found: dict[str, list[Any]]) -> None:
    for rank in found["recorded"]:
        assert rank["unchanged"] == [True] * len(rank["unchanged"])


@pytest.mark.parametrize(
    ("case", "mean", "predicted"),
    [
        ("padded", 3.0, [1, 2, 3, 4, 5]),
        ("padded and shuffled", 3.0, None),
        ("padded, the tail dropped", 2.5, [1, 2, 3, 4]),
        ("fewer samples than ranks", 1.0, [1]),
    ],
)
def test_a_sample_counts_once_where_a_distributed_sampler_repeats_it(
    found: dict[str, list[Any]], case: str, mean: float, predicted: list[int] | None
) -> None:
    for rank in found[case]:
        assert (rank["validate"], rank["test"]) == (mean, mean)
        assert (rank["predict"] if predicted else sorted(rank["predict"])) == (predicted or [1, 2, 3, 4, 5])
        assert (rank["kinds"], rank["none"]) == (["Tensor"], [])
    assert found[case][0] == found[case][1]


def test_every_rank_is_given_all_predictions_in_the_order_of_the_data(found: dict[str, list[Any]]) -> None:
    assert found["divided"] == [[[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1]]] * 2


def test_all_gather_gives_every_rank_what_all_have(found: dict[str, list[Any]]) -> None:
    assert found["gathering"][0] == [[[[0, 0], [1, 1]], [0.5, 1.5], [0, 2], "n"], "done"]
    assert found["gathering"][1] == [found["gathering"][0][0], None]


@pytest.mark.parametrize("case", ["sparse", "sparse, ranks of unequal batches", "sparse, clipped"])
def test_sparse_gradients_are_averaged_as_dense_ones_are(found: dict[str, list[Any]], case: str) -> None:
    assert found[case] == [[True, True]] * 2


def test_sparse_gradients_that_are_to_be_accumulated_are_refused_on_every_rank(found: dict[str, list[Any]]) -> None:
    first, second = found["sparse, accumulating"]
    assert first == second
    assert first.startswith("ConfigurationError: accumulate_grad_batches on several processes")
    assert "which table has" in first and "without sparse=True" in first
