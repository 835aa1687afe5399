"""Ranks of one job: who am I, and how do we agree; on paddle.distributed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import paddle

from ..errors import ConfigurationError
from .paddle_internals import log_errors_only, without_modified_flags
from .signals import in_notebook

T = TypeVar("T")
HEARTBEAT_SECONDS = 5.0  # gloo gives up after 30 s without a word from a rank


def launch_if_several(accelerator: str, devices: int | str | Sequence[int], log_dir: Path) -> None:
    """Where several devices are asked for and this script was started by hand, start it again under Paddle's launcher.

    This process becomes the launcher and does not return; each of its processes runs the script from its first line.
    Output of the first goes to the terminal, that of all to `log_dir`.
    """
    names = [part for part in devices.split(",") if part] if isinstance(devices, str) else devices
    count = names if isinstance(names, int) else 1 if devices == "auto" else len(names)
    if count <= 1 or "PADDLE_TRAINER_ID" in os.environ:
        return
    arguments = sys.orig_argv[1:]
    script = next((index for index, argument in enumerate(arguments) if argument.endswith(".py")), None)
    if in_notebook() or script is None or not _is_main(arguments[script]):
        raise ConfigurationError(
            f"Trainer(devices={devices!r}) starts the script again in {count} processes, and {_what_runs()}. "
            f"Use devices=1, or start it by hand: python -m paddle.distributed.launch --nproc_per_node {count} train.py"
        )
    chosen = ["--nproc_per_node", str(count)]
    if accelerator != "cpu" and not isinstance(names, int):
        chosen = ["--devices", ",".join(map(str, names))]
    launcher = ["-m", "paddle.distributed.launch", *chosen, "--log_dir", str(log_dir), "--log_level", "WARNING"]
    unheard = [os.environ.get("PYTHONWARNINGS", ""), "ignore:No ccache found"]  # of the launcher and each process
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, unheard))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments[:script], *launcher, *arguments[script:]])


def _is_main(script: str) -> bool:
    """Whether it is this script that runs, and not a program that was given it: a test runner imports its argument."""
    return Path(getattr(sys.modules["__main__"], "__file__", None) or "").name == Path(script).name


def _what_runs() -> str:
    main = sys.modules["__main__"]
    package = getattr(main, "__package__", None) or ""
    file = getattr(main, "__file__", None)
    program = package if package or file is None else Path(file).name
    return f"this process runs {program}, no script" if program and not in_notebook() else "this is no script"


class Ranks:
    """The processes of this job; with one process every method returns at once.

    Every method but the properties is a collective: all ranks must call it, in the same order.
    """

    def __init__(self) -> None:
        self.world_size = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", "0")) if self.world_size > 1 else 0
        self.local_rank = int(os.environ.get("PADDLE_LOCAL_RANK", self.rank))
        self.local_size = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
        if self.world_size > 1 and not paddle.distributed.is_initialized():
            log_errors_only()
            with without_modified_flags():
                paddle.distributed.init_parallel_env()

    @property
    def is_zero(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            self.gather_object(None)

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        paddle.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather_object(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = []
        paddle.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return any(self.gather_object(flag))

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result, or raise its error, on every rank.

        While it runs all ranks exchange a heartbeat, so that work of minutes does not trip gloo's 30 s limit.
        The result is sent by pickle.
        """
        if self.world_size == 1:
            return work()
        if self.rank != 0:
            while True:
                done, result, error = self.broadcast_object((False, None, None))
                if done:
                    break
        else:
            done, result, error = self._work_with_heartbeat(work)
        if error is not None:
            raise error
        return cast(T, result)

    def _work_with_heartbeat(self, work: Callable[[], Any]) -> tuple[bool, Any, BaseException | None]:
        outcome: list[Any] = [None, None]

        def run() -> None:
            try:
                outcome[0] = work()
            except BaseException as error:
                outcome[1] = error

        thread = threading.Thread(target=run, name="rank-zero-work")
        thread.start()
        thread.join(HEARTBEAT_SECONDS)
        while thread.is_alive():
            self.broadcast_object((False, None, None))
            thread.join(HEARTBEAT_SECONDS)
        message = (True, *outcome)
        self.broadcast_object(message)
        return message
