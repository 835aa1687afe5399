"""Several fake accelerators: what they say to one another, and a Trainer on each, cut and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_gpu
import paddle
import pytest
from forked import launch

SCRIPT = Path(__file__).with_name("several_devices.py")
RANKS = 2
IS_2 = paddle.__version__.startswith("2.")
STRATEGIES = ["ddp"] if IS_2 else ["ddp", "sharding_stage1", "sharding_stage2", "sharding_stage3"]
AVERAGED = ["averaged", "averaged in the end"]
ONLY = {"sharding_stage1": ["plain"], "sharding_stage3": ["plain", "accumulated and clipped", "16-mixed", *AVERAGED]}
VARIANTS = ["plain", "accumulated and clipped", "16-mixed", *AVERAGED, "unused"]
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.fake_gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a CUDA build of Paddle 2.6 takes no custom device"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of one job has found."""
    root = tmp_path_factory.mktemp("several_devices")
    environment = fake_gpu.environment()
    done = launch(SCRIPT, str(root), *STRATEGIES, log_dir=root / "log", ranks=RANKS, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


def test_devices_of_several_processes_talk_and_are_counted(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(one["collectives"] for one in ranks):
        assert found["device"] == f"fake_gpu:{rank}"
        assert found["sum"] == [3.0]
        assert found["half"] == pytest.approx(0.3, abs=2e-4)
        assert found["counted"] == [2, 300_000 * 4 + 5 * 2]
        assert found["gathered"] == [0, 1]
        assert found["told"] == 10
        assert found["scattered"] == [2 * rank + 1.0] * 2
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]


TRIED = [
    (variant, strategy) for variant in VARIANTS for strategy in STRATEGIES if variant in ONLY.get(strategy, VARIANTS)
]


@pytest.mark.parametrize(("variant", "strategy"), TRIED)
def test_each_strategy_trains_as_data_parallel_does_and_resumes_with_the_same_bits(
    ranks: list[dict[str, Any]], variant: str, strategy: str
) -> None:
    whole, resumed = ([rank[f"{variant}, {strategy}"][part] for rank in ranks] for part in ("whole", "resumed"))
    replicas = ranks[0][f"{variant}, ddp"]["whole"]
    assert whole[0]["strategy"] == strategy
    assert whole[0]["learned"] == whole[1]["learned"]
    if strategy == "sharding_stage3" and variant not in (
        "plain",
        *AVERAGED,
    ):  # clipped by a norm that is summed in another order
        assert whole[0]["norm"] == pytest.approx(replicas["norm"], rel=1e-3, nan_ok=True)
        assert whole[0]["learned values"] == pytest.approx(replicas["learned values"], rel=1e-3, abs=1e-3)
    else:
        assert whole[0]["learned"] == replicas["learned"]
        assert whole[0]["history"] == replicas["history"]
        assert whole[0]["saved"] == replicas["saved"]  # of all parameters, whichever rank had it
        assert whole[0]["averages"] == replicas["averages"]
    if variant != "averaged in the end":  # when the module has them
        assert whole[0]["model"] == whole[0]["weights"]  # which plain paddle.load opens
    for part in ("everything", "saved", "averages"):
        assert [one[part] for one in resumed] == [one[part] for one in whole]
    assert resumed[0]["history"] == whole[0]["history"]
    assert whole[0]["skipped"] == whole[1]["skipped"] == replicas["skipped"]  # steps, for an infinity


@pytest.mark.parametrize("strategy", [one for one in STRATEGIES if one in ("ddp", "sharding_stage2")])
def test_a_batch_within_a_window_costs_no_collective(ranks: list[dict[str, Any]], strategy: str) -> None:
    of_batches = ranks[0][f"accumulated and clipped, {strategy}"]["whole"]["of_batches"]
    assert [calls for calls, _ in of_batches[::2]] == [0] * len(of_batches[::2])
    assert all(calls > 0 and sent >= 4 * ranks[0]["parameters"] for calls, sent in of_batches[1::2])


def test_data_parallel_training_costs_the_one_collective_that_it_costs_by_hand(ranks: list[dict[str, Any]]) -> None:
    of_batches = ranks[0]["plain, ddp"]["whole"]["of_batches"]
    assert of_batches[1:] == [[1, 4 * ranks[0]["parameters"]]] * (len(of_batches) - 1)  # after the first, ranks agree
    of_batches = ranks[0]["unused, ddp"]["whole"]["of_batches"]  # which Paddle searches for
    assert all(calls == 2 for calls, _ in of_batches)


@pytest.mark.parametrize("strategy", STRATEGIES[1:3])
def test_each_rank_keeps_its_share_of_the_optimizer(ranks: list[dict[str, Any]], strategy: str) -> None:
    all_of_it = ranks[0]["plain, ddp"]["whole"]["moments"]
    assert [file for file in ranks[0][f"plain, {strategy}"]["whole"]["files"] if file.endswith("pdopt")] == [
        "optimizer-part00000.pdopt",
        "optimizer-part00001.pdopt",
    ]
    shares = [rank[f"plain, {strategy}"]["whole"]["moments"] for rank in ranks]
    assert sum(shares) == all_of_it
    assert max(shares) <= 0.75 * all_of_it


@pytest.mark.skipif(IS_2, reason="Paddle 2.6 does not shard here")
def test_a_parameter_without_a_gradient_is_named_where_that_is_not_expected(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["refused"].startswith("unused.bias, unused.weight: no gradient came")
        assert "Pass find_unused_parameters=True" in rank["refused"]


@pytest.mark.skipif(not IS_2, reason="Paddle 3 shards here")
def test_sharding_that_paddle_cannot_do_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["refused"].startswith(
        "strategy='sharding_stage2' cannot be on 'fake_gpu': group sharding of Paddle"
    )


@pytest.mark.skipif(IS_2, reason="Paddle 2.6 does not shard here")
@pytest.mark.parametrize("change", ["ddp to sharding_stage3", "sharding_stage3 to os_g", "os_g to ddp"])
def test_a_run_goes_on_with_its_bits_under_another_strategy(ranks: list[dict[str, Any]], change: str) -> None:
    for rank in ranks:
        for part in ("learned", "saved", "history"):
            assert rank["shapes"][change][part] == rank["plain, ddp"]["whole"][part]


@pytest.mark.skipif(IS_2, reason="Paddle 2.6 does not shard here")
def test_what_cut_weights_cannot_do_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert "Paddle takes a step only where each parameter has one" in ranks[0]["refused by 3"]
