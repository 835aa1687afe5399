"""Two ranks, each with spawned workers of its own, train to the same bits; a script they cannot import is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.distributed, pytest.mark.timeout(400)]
HERE = Path(__file__).parent
SCRIPT = HERE / "spawned_workers.py"
MADE_AT_IMPORT = """
import paddle, spawned_workers
from paddlelite_trainer import Trainer

trainer = Trainer(max_epochs=1, seed=1, multiprocessing_context="spawn", logger=False)
if __name__ == "__main__":
    loader = paddle.io.DataLoader(spawned_workers.Noisy(), batch_size=4, num_workers=1)
    trainer.fit(spawned_workers.Line(), loader)
"""


def launch(script: Path, *arguments: str, logs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    env = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    return subprocess.run(
        [*command, "--log_dir", str(logs), str(script), *arguments],
        env=env,
        cwd=logs.parent,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )


def test_each_rank_has_workers_that_are_forked_or_spawned_with_the_same_bits(tmp_path: Path) -> None:
    done = launch(SCRIPT, str(tmp_path), logs=tmp_path / "logs")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0].values())) == 1


def test_a_trainer_of_two_ranks_that_is_made_at_import_is_one_clear_error(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(MADE_AT_IMPORT)
    done = launch(script, str(tmp_path), logs=tmp_path / "logs")
    assert done.returncode != 0
    said = done.stdout + done.stderr + "".join(log.read_text() for log in (tmp_path / "logs").glob("workerlog.*"))
    assert "this script trains, or makes a Trainer of several ranks, as it is imported" in said
