"""Ranks of a job that are forked from a process that has imported Paddle, so that a job takes a second and not ten.

In a test: `launch(script, ..., log_dir=...)`, as Paddle's launcher would; its own ways are not what is tested there.
In a script that runs many jobs: `job(...)`, in a process that has computed nothing yet.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import paddle


def launch(
    script: Path,
    *arguments: str,
    log_dir: Path,
    ranks: int = 2,
    timeout: float = 150.0,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `script` as the main program of each rank; log_dir/0/log<N> is what a rank said, and rank 0 says it here.

    No rank is ended for another's failure: the ranks have to see to that themselves.
    """
    jobs = [(ranks, list(arguments))]
    return launch_each(script, *jobs, log_dir=log_dir, timeout=timeout, environment=environment)


def launch_each(
    script: Path,
    *jobs: tuple[int, list[str]],
    log_dir: Path,
    timeout: float = 150.0,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """As launch(), for each (ranks, arguments) in turn until one fails; the logs of the n-th are in log_dir/<n>."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), str(log_dir), str(timeout), str(script)]
    variables = {"GLOG_minloglevel": "2", **(environment or os.environ)}
    paths = [str(Path(__file__).parents[2]), variables.get("PYTHONPATH", "")]
    return subprocess.run(
        [*command, json.dumps(jobs)],
        capture_output=True,
        text=True,
        timeout=timeout + 20,
        env={**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=False,
    )


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_rank(root: Path, rank: int, ranks: int, ports: list[int]) -> int:
    """The pid of one rank, which has its own session and log; 0 in the rank itself. A port more than there are ranks.

    It is the leader of a session of its own, so that what it leaves behind can be found.
    """
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    log = os.open(root / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    endpoints = [f"127.0.0.1:{port}" for port in ports[:ranks]]
    os.environ.update(
        PADDLE_TRAINER_ID=str(rank),
        PADDLE_TRAINERS_NUM=str(ranks),
        PADDLE_TRAINER_ENDPOINTS=",".join(endpoints),
        PADDLE_CURRENT_ENDPOINT=endpoints[rank],
        PADDLE_MASTER=f"127.0.0.1:{ports[ranks]}",
        PADDLE_LOCAL_RANK=str(rank),
        PADDLE_LOCAL_SIZE=str(ranks),
        PADDLE_DISTRI_BACKEND="gloo",
    )
    if paddle.device.get_all_custom_device_type():  # where there are fake accelerators, each has its own
        os.environ.update(PADDLE_DISTRI_BACKEND="xccl", PADDLE_XCCL_BACKEND="fake_gpu", FAKE_GPU_CCL_TIMEOUT="60")
        os.environ.update(FLAGS_selected_fake_gpus=str(rank))
    paddle.distributed.parallel._global_parallel_env = None  # it was read for this process's parent
    warnings.simplefilter("ignore")
    return 0


def job(root: Path, ranks: int, work: Callable[[int], None], seconds: float) -> None:
    """Run `work(rank)` in so many ranks and wait for all.

    Raises:
        RuntimeError: with a rank's log, where one did not end with 0 within the time.
    """
    root.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    ports, pids = free_ports(ranks + 1), []
    for rank in range(ranks):
        pid = start_rank(root, rank, ranks, ports)
        if pid == 0:
            _work_and_leave(work, rank)
        pids.append(pid)
    deadline, failed = time.monotonic() + seconds, {}
    left = dict(enumerate(pids))
    while left and time.monotonic() < deadline:
        for rank, pid in list(left.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del left[rank]
                if status:
                    failed[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if left or failed:
        logs = "\n".join((root / f"log{rank}").read_text(errors="replace")[-3000:] for rank in {**failed, **left})
        raise RuntimeError(f"of {ranks} ranks {sorted(left)} never ended, and ended with {failed}:\n{logs}")


def _work_and_leave(work: Callable[[int], None], rank: int) -> None:
    """The rank ends here, and not in what its parent goes on with, whose own exit functions are not the rank's."""
    atexit._clear()
    try:
        work(rank)
    except BaseException as error:
        traceback.print_exc()
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # ranks tell each other that they leave in peace
    os._exit(0)


def _main(log_dir: Path, seconds: float, script: str, jobs: list[tuple[int, list[str]]]) -> None:
    import paddlelite_trainer.callbacks  # noqa: F401  with Trainer, once for all ranks

    deadline = time.monotonic() + seconds
    for number, (ranks, arguments) in enumerate(jobs):

        def work(rank: int, arguments: list[str] = arguments) -> None:
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")

        job(log_dir / str(number), ranks, work, deadline - time.monotonic())
        print((log_dir / str(number) / "log0").read_text(errors="replace"))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
