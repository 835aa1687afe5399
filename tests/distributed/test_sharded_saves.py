"""Checkpoints in parts of two ranks: from a remote, with a rank killed in the midst of its part, and their memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import paddle
import pytest

from paddlelite_trainer.checkpoint.weights import load_weights
from paddlelite_trainer.checkpoint.writer import PENDING_CHUNKS
from paddlelite_trainer.cli import main

SCRIPT = Path(__file__).with_name("sharded_saves.py")
KILLED_IN = "step-000000004"
WEIGHT = 4 * 256 * 256  # bytes of the largest tensors of the network that is weighed
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.fake_gpu,
    pytest.mark.timeout(180),
    pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 2.6 does not shard here"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("sharded_saves")
    done = fake_gpu.run("-W", "ignore", str(SCRIPT), str(root))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((root / "found.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("kept_cut")
    done = fake_gpu.run("-W", "ignore", str(SCRIPT), str(root), "kept cut")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {**json.loads((root / "found.json").read_text()), "root": root}


def test_weights_that_are_kept_cut_are_saved_in_slices_with_the_bits_of_whole_ones(cut: dict[str, Any]) -> None:
    assert cut["files"] == ["model-part00000.pdparams", "model-part00001.pdparams"]
    assert cut["cut"] == cut["whole"]
    assert cut["saved cut"] == cut["saved whole"] and len(cut["saved cut"]) == 7


def test_a_rank_that_is_killed_in_its_slices_leaves_the_checkpoint_before(cut: dict[str, Any]) -> None:
    before = {name: digest for name, digest in cut["saved cut"].items() if name < KILLED_IN}
    assert "1: -9" in cut["dies"].partition("\n")[0]
    assert cut["saved before the kill"] == before and len(before) == 3
    assert cut["again"] == cut["cut"] and cut["saved again"] == cut["saved cut"]


def test_a_run_whose_weights_are_kept_cut_goes_on_under_any_strategy_and_any_goes_on_so(cut: dict[str, Any]) -> None:
    expected = [digest for digest, _ in cut["weights"]]
    for name, found in cut.items():
        if " to " in name:
            assert [digest for digest, _ in found] == expected, name


def test_what_is_kept_cut_is_whole_for_one_layer_at_once(cut: dict[str, Any]) -> None:
    kept = ["weights", "ddp to sharding_stage3, kept cut", "sharding_stage3 to sharding_stage3, kept cut"]
    assert {most for name in kept for _, most in cut[name]} == {1}


@pytest.mark.parametrize("strategy", ["sharding_stage2", "sharding_stage3"])
def test_a_sharded_run_takes_over_the_weights_and_moments_of_a_loop(cut: dict[str, Any], strategy: str) -> None:
    assert cut[f"from a loop, {strategy}"] == cut["from a loop, ddp"]
    assert cut["from a loop, ddp"][0][1] == 3


def test_slices_are_read_as_any_checkpoint_without_the_ranks(cut: dict[str, Any], tmp_path: Path) -> None:
    run = cut["root"] / "cut/version_0"
    assert not (run / "latest.pdparams").exists() and (run / "latest").exists()
    assert main(["ckpt", "export", str(run / "latest"), str(tmp_path / "whole.pdparams")]) == 0
    exported = paddle.load(str(tmp_path / "whole.pdparams"))
    whole = paddle.load(str(cut["root"] / "gathered/version_0/latest.pdparams"))
    assert exported.keys() == whole.keys()
    assert all(np.array_equal(exported[name].numpy(), whole[name].numpy()) for name in whole)
    layer = paddle.nn.Sequential(
        paddle.nn.Linear(8, 16),
        paddle.nn.BatchNorm1D(16),
        paddle.nn.Dropout(),
        *(paddle.nn.Linear(16, 16) for _ in "ab"),
    )
    report = load_weights(layer, run / "latest", rename={"net.": ""})
    assert report.complete and np.array_equal(layer[0].weight.numpy(), whole["net.0.weight"].numpy())


def test_a_run_goes_on_from_the_remote_alone_with_the_same_bits(found: dict[str, Any]) -> None:
    assert found["from the remote"] == found["whole"]
    assert {**found["saved"], **found["saved from the remote"]} == found["saved"]
    assert [step for _, step, _ in found["from the remote"]] == [7, 7]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_in_its_part_leaves_the_checkpoint_before_and_the_run_goes_on(
    found: dict[str, Any], rank: int
) -> None:
    assert f"{rank}: -9" in found[f"rank {rank} dies"].partition("\n")[0]
    before = {name: digest for name, digest in found["saved"].items() if name < KILLED_IN}
    assert found[f"after the kill of rank {rank}"] == before and len(before) == 3
    assert found[f"latest after the kill of rank {rank}"] == max(before)
    assert found[f"again after rank {rank}"] == found["whole"]
    assert found[f"saved again after rank {rank}"] == found["saved"]


@pytest.mark.parametrize("strategy", ["ddp", "sharding_stage2", "sharding_stage3", "sharding_stage3, kept cut"])
def test_a_save_asks_for_no_more_memory_than_for_the_pieces_that_wait_to_be_hashed(
    found: dict[str, Any], strategy: str
) -> None:
    for host, device, weights, _ in found[f"weight of {strategy}"]:
        assert host < 2 * (PENDING_CHUNKS + 1) * WEIGHT + 2**20  # of the weights' file and of the optimizer's
        assert device < (weights if strategy == "sharding_stage3" else 2**20)  # which gathers them


def test_the_watched_norm_is_that_of_all_ranks_gradients(found: dict[str, Any]) -> None:
    (_, replicas), _ = found["norms of ddp"]
    assert {"grad_norm", "grad_norm/net"} <= {*replicas}
    for told, norms in found["norms of sharding_stage2"]:
        assert told == ""
        assert norms == pytest.approx(replicas, rel=1e-5)
    for told, _ in found["norms of sharding_stage3"]:
        assert told.startswith("GradientNormWatch cannot add up the slices")
