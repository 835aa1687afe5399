"""Ranks that do not see one run: one error on all, as soon as it can be known."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
JOB = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from forked import job
from models import Classifier, make_batches, quiet_trainer
from paddlelite_trainer.errors import ConfigurationError
from paddlelite_trainer.run import shared

OUT = Path(sys.argv[1])
shared.WAIT_SECONDS = 0.2

def fit(name, path):
    try:
        settings = dict(default_root_dir=OUT, run_name=name, enable_checkpointing=True)
        quiet_trainer(**settings).fit(Classifier(), make_batches(4), ckpt_path=path)
        return "done"
    except ConfigurationError as error:
        return str(error)

def work(rank):
    told = [fit("seen", "last")]
    mark_of = shared.mark_of
    if rank == 1:  # what a file system of its own would show
        shared.mark_of = lambda path: None
    told += [fit("fresh", "last"), fit("seen", "last")]
    if rank == 1:
        shared.mark_of = lambda path: "another"
    told += [fit("other", "last")]
    (OUT / f"told{rank}").write_text("\\n".join(told))

job(OUT / "job", 2, work, 90)
"""
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


def test_a_rank_that_does_not_see_the_run_is_named_with_the_remedy_on_all_ranks(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB.replace("{paths!r}", repr([str(HERE), str(HERE.parent), str(HERE.parents[1])])))
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    host = socket.gethostname()
    told = [(tmp_path / f"told{rank}").read_text().splitlines() for rank in (0, 1)]
    assert told[0] == told[1]
    seen, fresh, resumed, other = told[0]
    assert seen == "done"
    start = f"the ranks do not see the same files: rank 1 on {host} cannot find {tmp_path}"
    assert fresh.startswith(f"{start}/fresh, which rank 0 on {host} works in.")
    assert f"{tmp_path}/seen/checkpoints/step-000000002, which rank 0 on {host} goes on from." in resumed
    assert "need one file system for its runs" in fresh and "Trainer(default_root_dir='/shared/runs')" in fresh
    assert f"rank 1 on {host} sees something else in {tmp_path}/other" in other
