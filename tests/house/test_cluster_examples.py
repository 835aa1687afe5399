"""The scripts of examples/cluster with a fake scheduler and launcher: what they run, when again, how they end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "examples/cluster"
LAUNCH = ["-m", "paddle.distributed.launch"]

# Records how it was called, and ends as the plan says, one line for each call: EXIT STATUS [SECONDS]
PYTHON = """#!/bin/bash
printf '%s\\n' "$(printf '%q ' "$@")" >> "$HERE/calls"
read -r code status seconds < <(sed -n "$(wc -l < "$HERE/calls")p" "$HERE/plan")
mkdir -p "runs/mine"; echo "{\\"status\\": \\"$status\\"}" > runs/mine/run.json
trap 'echo "{\\"status\\": \\"interrupted\\"}" > runs/mine/run.json; exit 75' TERM
for ((i = 0; i < ${seconds:-0} * 20; i++)); do sleep 0.05; done
exit "$code"
"""
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$1" in
    show) printf 'node7\\nnode8\\n' ;;
    requeue) echo "$2" >> "$HERE/requeued" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment with the fakes, whose plan is in HERE/plan."""
    (tmp_path / "bin").mkdir()
    for name, text in {"python": PYTHON, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "HERE": str(tmp_path),
        "SLURM_JOB_ID": "42",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_RESTART_COUNT": "1",
    }


def run(cluster: dict[str, str], script: str, plan: str, *arguments: str) -> tuple[int, list[list[str]]]:
    """The exit code, and the arguments of each call of python."""
    here = Path(cluster["HERE"])
    (here / "plan").write_text(plan)
    done = subprocess.run(
        [str(CLUSTER / script), *arguments],
        cwd=here,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, calls(here)


def calls(here: Path) -> list[list[str]]:
    return [shlex.split(line) for line in (here / "calls").read_text().splitlines()]


@pytest.mark.parametrize("script", ["slurm.sh", "machines.sh"])
def test_the_scripts_are_sound(script: str) -> None:
    assert os.access(CLUSTER / script, os.X_OK)
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True, timeout=30)


def test_slurm_starts_a_launcher_on_each_node(cluster: dict[str, str]) -> None:
    code, made = run(cluster, "slurm.sh", "0 finished\n0 finished\n", "train.py", "--name", "two words")
    assert code == 0
    for node, arguments in enumerate(made):
        assert arguments == [
            *LAUNCH,
            *["--master", "node7:6170", "--nnodes", "2", "--rank", str(node), "--devices", "0,1,2,3"],
            *["--log_dir", "logs/42-1", "train.py", "--name", "two words"],
        ]
    assert not (Path(cluster["HERE"]) / "requeued").exists()


@pytest.mark.parametrize(
    ("status", "again"),
    [("interrupted", True), ("running", True), ("failed", False), ("stopped", False), ("finished", False)],
)
def test_slurm_puts_what_is_not_at_its_end_into_the_queue_again(
    cluster: dict[str, str], status: str, again: bool
) -> None:
    code, _ = run(cluster, "slurm.sh", f"15 {status}\n15 {status}\n", "train.py")
    assert code == 15
    assert (Path(cluster["HERE"]) / "requeued").exists() == again


def test_plain_machines_try_again_until_the_run_is_finished(cluster: dict[str, str]) -> None:
    plan = "1 failed\n247 running\n0 finished\n"
    code, made = run({**cluster, "PAUSE": "0"}, "machines.sh", plan, "1", "2", "10.0.0.1:6170", "train.py", "--x")
    assert code == 0
    assert [arguments[arguments.index("--log_dir") + 1] for arguments in made] == ["logs/1-1", "logs/1-2", "logs/1-3"]
    assert made[0] == [
        *LAUNCH,
        *["--master", "10.0.0.1:6170", "--nnodes", "2", "--rank", "1", "--devices", "0,1,2,3"],
        *["--log_dir", "logs/1-1", "train.py", "--x"],
    ]


def test_plain_machines_give_up_after_as_many_tries_as_they_may(cluster: dict[str, str]) -> None:
    settings = {**cluster, "PAUSE": "0", "TRIES": "2"}
    code, made = run(settings, "machines.sh", "1 failed\n3 failed\n0 finished\n", "0", "2", "a:1", "train.py")
    assert (code, len(made)) == (3, 2)


def test_a_run_that_another_machine_has_finished_is_not_started_again(cluster: dict[str, str]) -> None:
    code, made = run({**cluster, "PAUSE": "0"}, "machines.sh", "1 finished\n", "0", "2", "a:1", "train.py")
    assert (code, len(made)) == (0, 1)


def test_a_signal_reaches_the_launcher_and_ends_the_tries(cluster: dict[str, str]) -> None:
    here = Path(cluster["HERE"])
    (here / "plan").write_text("0 running 20\n0 finished\n")
    command = [str(CLUSTER / "machines.sh"), "0", "2", "a:1", "train.py"]
    process = subprocess.Popen(command, cwd=here, env=cluster, stderr=subprocess.PIPE, text=True)
    for _ in range(200):
        if (here / "runs/mine/run.json").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert json.loads((here / "runs/mine/run.json").read_text())["status"] == "interrupted"
    assert len(calls(here)) == 1


def test_the_kubernetes_job_is_one_of_as_many_pods_as_nodes_that_find_each_other() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    spec: dict[str, Any] = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    (line,) = container["args"]
    words = shlex.split(line)
    options = dict(pairwise(words))
    assert words[:4] == ["exec", "python", *LAUNCH] and words[-1] == "train.py"
    assert spec["completions"] == spec["parallelism"] == int(options["--nnodes"])
    assert spec["completionMode"] == "Indexed" and options["--rank"] == "$JOB_COMPLETION_INDEX"
    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    assert options["--master"] == f"{name}-0.{subdomain}:6170"
    assert pod["subdomain"] == subdomain and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert len(options["--devices"].split(",")) == container["resources"]["limits"]["nvidia.com/gpu"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts) and mounts["runs"] == "/runs"
