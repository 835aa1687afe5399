"""Two launchers as two nodes: one job; where a node is lost the same commands, run again, go on with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_nodes.py")
ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()
MUST_END_SECONDS = 45
pytestmark = [pytest.mark.distributed]


def start(root: Path, node: int, port: int, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--master", f"127.0.0.1:{port}"]
    command += ["--nnodes", "2", "--rank", str(node), "--nproc_per_node", "1", "--log_dir", str(root / f"log{node}")]
    environment = {**os.environ, "GLOG_minloglevel": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, str(SCRIPT), str(root), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ended(nodes: list[subprocess.Popen[str]]) -> list[str]:
    """What each said, once all have ended; whoever has not within the time is killed, and that is an error."""
    try:
        return [node.communicate(timeout=MUST_END_SECONDS)[0] for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)


def ends(root: Path) -> list[dict[str, Any]]:
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.timeout(100)
def test_two_launchers_are_one_job_of_two_nodes(tmp_path: Path) -> None:
    port = free_port()
    nodes = [start(tmp_path, node, port) for node in (0, 1)]
    said = ended(nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    for rank, one in enumerate(ends(tmp_path)):
        assert one["place"] == [2, rank, 0, 2]  # nodes, this one, its processes' number here, all processes
        assert one["weights"] == ends(tmp_path)[0]["weights"] and one["step"] == 9


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_node_that_is_lost_ends_the_job_and_the_same_commands_go_on_with_it(tmp_path: Path) -> None:
    whole, root = tmp_path / "whole", tmp_path / "lost"
    whole.mkdir(), root.mkdir()
    port = free_port()
    ended([start(whole, node, port) for node in (0, 1)])

    port = free_port()
    nodes = [start(root, node, port, "wait") for node in (0, 1)]
    for _ in range(600):
        if all((root / f"holds{rank}").exists() for rank in (0, 1)) or any(node.poll() for node in nodes):
            break
        time.sleep(0.1)
    os.killpg(nodes[1].pid, signal.SIGKILL)  # the machine is gone, with all that ran there
    os.kill(int((root / "holds1").read_text()), signal.SIGKILL)
    said = ended(nodes)
    assert nodes[0].returncode != 0
    assert f"Rank 1 on {HOST} failed first: its process" in said[0]

    port = free_port()
    again = [start(root, node, port) for node in (0, 1)]
    said = ended(again)
    assert [node.returncode for node in again] == [0, 0], said
    assert "epoch 0, batch 3" in said[0] or "epoch 1, batch" in said[0]
    for rank, (one, other) in enumerate(zip(ends(root), ends(whole))):
        assert one == other, rank
