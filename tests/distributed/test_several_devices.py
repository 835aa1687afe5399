"""Several fake accelerators: what they say to one another, and a Trainer on each, cut and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_gpu
import paddle
import pytest

SCRIPT = Path(__file__).with_name("several_devices.py")
RANKS = 2
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.fake_gpu,
    pytest.mark.timeout(180),
    pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a CUDA build of Paddle 2.6 takes no custom device"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of one job has found."""
    root = tmp_path_factory.mktemp("several_devices")
    done = fake_gpu.launch(SCRIPT, str(root), log_dir=root / "log", ranks=RANKS)
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


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_trainer_on_two_devices_resumes_with_the_same_bits(ranks: list[dict[str, Any]], precision: str) -> None:
    whole, resumed = ([rank[precision][part] for rank in ranks] for part in ("whole", "resumed"))
    assert whole[0]["digest"] == whole[1]["digest"]
    assert [one["digest"] for one in resumed] == [one["digest"] for one in whole]
    assert resumed[0]["history"] == whole[0]["history"]


def test_a_batch_within_a_window_costs_no_collective(ranks: list[dict[str, Any]]) -> None:
    of_batches = ranks[0]["32-true"]["whole"]["of_batches"]
    assert [calls for calls, _ in of_batches[::2]] == [0] * len(of_batches[::2])
    assert all(calls > 0 and sent >= 4 * ranks[0]["parameters"] for calls, sent in of_batches[1::2])
