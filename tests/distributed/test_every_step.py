"""A run on several ranks that goes on from any of its steps ends with the bits of the undisturbed one.

python -m pytest tests/distributed/test_every_step.py -m soak -s     tries and prints the whole table
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import fake_gpu
import paddle
import pytest
from forked import launch

SCRIPT = Path(__file__).with_name("every_step.py")
IS_2 = paddle.__version__.startswith("2.")
STRATEGIES = (
    ["ddp"] if IS_2 else ["ddp", "sharding_stage1", "sharding_stage2", "sharding_stage3", "sharding_stage3:cut"]
)
PRECISIONS = ["32-true", "16-mixed", "16-true", "bf16-mixed", "bf16-true"]
if IS_2:  # which has no bfloat16 there
    PRECISIONS = ["32-true", "16-mixed", "16-true"]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]


def row_of(output: str) -> list[str]:
    line = next((line for line in output.splitlines() if line.startswith("EVERY STEP")), "")
    print(line)
    return line.split()[2:]


def check(done: subprocess.CompletedProcess[str], strategy: str, ranks: int, precision: str, device: str) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    in_force = strategy.partition(":")[0] if ranks > 1 else "single_device"
    expected = [strategy, str(ranks), precision, device, "9", "9", precision, in_force]
    assert row_of(done.stdout) == expected


def on_fake_accelerators(root: Path, strategy: str, ranks: int, precision: str) -> None:
    started(root, strategy, ranks, precision, fake_gpu.environment())


def started(root: Path, strategy: str, ranks: int, precision: str, environment: dict[str, str] | None) -> None:
    done = launch(
        SCRIPT, str(root), strategy, precision, log_dir=root / "log", ranks=ranks, timeout=350, environment=environment
    )
    check(done, strategy, ranks, precision, "cpu" if environment is None else "fake_gpu")


@pytest.mark.fake_gpu
@pytest.mark.skipif(IS_2, reason="Paddle 2.6 does not shard here")
@pytest.mark.parametrize("strategy", ["sharding_stage2", "sharding_stage3:cut"])
def test_from_every_step_of_a_sharded_run(tmp_path: Path, strategy: str) -> None:
    on_fake_accelerators(tmp_path, strategy, 2, "16-true")


@pytest.mark.soak
@pytest.mark.fake_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_from_every_step_on_fake_accelerators(tmp_path: Path, strategy: str, ranks: int, precision: str) -> None:
    on_fake_accelerators(tmp_path, strategy, ranks, precision)


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_from_every_step_on_gloo(tmp_path: Path, ranks: int) -> None:
    started(tmp_path, "ddp", ranks, "32-true", None)
