"""Ranks of one job: who am I, and how do we agree; on paddle.distributed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pickle
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import numpy as np
import paddle

from ..errors import ConfigurationError, TrainingError
from ..importing import stop_if_spawned
from .aborting import call_on_abort
from .board import Board
from .device import accelerator_type, indices_of, refuse_missing_devices
from .meeting import Meeting, meeting_of
from .paddle_internals import log_errors_only, without_modified_flags
from .signals import in_notebook
from .strategy import Strategy, refuse_what_paddle_cannot
from .trees import leaves, mapped

_BACKWARD = "the backward of a step"
_NUMERIC = (paddle.Tensor, np.ndarray, np.number, int, float)
_LONGEST_FORM = 40
T = TypeVar("T")
P = ParamSpec("P")


def launch_if_several(accelerator: str, devices: int | str | Sequence[int], strategy: Strategy, log_dir: Path) -> None:
    """Where several devices are asked for and this script was started by hand, start it again under Paddle's launcher.

    This process becomes the launcher and does not return; each of its processes runs the script from its first line.
    Output of the first goes to the terminal, that of all to `log_dir`.

    Raises:
        ConfigurationError: what is asked for cannot be started, or is not what was started.
    """
    names = indices_of(devices)
    count = 1 if names is None else len(names)
    if strategy.stage:
        processes = max(count, int(os.environ.get("PADDLE_TRAINERS_NUM", "1")))
        refuse_what_paddle_cannot(strategy, accelerator_type(accelerator), processes)
    _refuse_another_job(devices, count, strategy.num_nodes)
    if count <= 1 or "PADDLE_TRAINER_ID" in os.environ:
        return
    refuse_missing_devices(accelerator, devices)
    arguments = _as_a_script()
    script = next((index for index, argument in enumerate(arguments) if argument.endswith(".py")), None)
    if in_notebook() or script is None or not _is_main(arguments[script]):
        raise ConfigurationError(
            f"Trainer(devices={devices!r}) starts the script again in {count} processes, and {_what_runs()}. "
            f"Use devices=1, or start it by hand: python -m paddle.distributed.launch --nproc_per_node {count} train.py"
        )
    chosen = ["--nproc_per_node", str(count)]
    if accelerator_type(accelerator) != "cpu" and names is not None and names != list(range(count)):
        chosen = ["--devices", ",".join(map(str, names))]
    launcher = ["-m", "paddle.distributed.launch", *chosen, "--log_dir", str(log_dir), "--log_level", "WARNING"]
    unheard = [os.environ.get("PYTHONWARNINGS", ""), "ignore:No ccache found"]  # of the launcher and each process
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, unheard))
    os.environ["PADDLELITE_LAUNCHED"] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments[:script], *launcher, *arguments[script:]])


def _as_a_script() -> list[str]:
    """The arguments of this Python; those of the command `paddlelite` with the file that it is, as launchers take."""
    if Path(sys.argv[0]).stem == "paddlelite" or sys.orig_argv[1:3] == ["-m", "paddlelite_trainer.cli"]:
        return [str(Path(__file__).parents[1] / "cli" / "__main__.py"), *sys.argv[1:]]
    return sys.orig_argv[1:]


def _refuse_another_job(devices: object, count: int, num_nodes: int | None) -> None:
    """Raise ConfigurationError where the job has other machines or processes than the Trainer's arguments say."""
    launched = "PADDLE_TRAINER_ID" in os.environ
    nodes, local = (int(os.environ.get(name, "1")) for name in ("PADDLE_NNODES", "PADDLE_LOCAL_SIZE"))
    if num_nodes is not None and num_nodes > 1 and not launched:
        raise ConfigurationError(
            f"num_nodes={num_nodes}: a script does not start processes on other machines. Run this on each of them, "
            f"with --rank 0 to {num_nodes - 1}: python -m paddle.distributed.launch --nnodes {num_nodes} --master "
            f"<address of the first>:6170 --rank 0 --nproc_per_node {count} train.py"
        )
    if num_nodes is not None and launched and nodes != num_nodes:
        raise ConfigurationError(f"num_nodes={num_nodes}, and this job was started with --nnodes {nodes}")
    if count > 1 and launched and "PADDLE_LOCAL_SIZE" in os.environ and local != count:
        raise ConfigurationError(
            f"devices={devices!r} are {count}, and this job was started with {local} processes on a machine: "
            "start as many processes as devices, or leave devices= out"
        )


def _is_main(script: str) -> bool:
    """Whether it is this script that runs, and not a program that was given it: a test runner imports its argument."""
    if script.endswith("cli/__main__.py") and Path(sys.argv[0]).stem == "paddlelite":
        return True
    return Path(getattr(sys.modules["__main__"], "__file__", None) or "").name == Path(script).name


def _what_runs() -> str:
    main = sys.modules["__main__"]
    package = getattr(main, "__package__", None) or ""
    file = getattr(main, "__file__", None)
    program = package if package or file is None else Path(file).name
    return f"this process runs {program}, no script" if program and not in_notebook() else "this is no script"


def sendable(error: BaseException, rank: int = 0) -> BaseException:
    """The error of a rank, or its words where pickle does not bring it back."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TrainingError(f"rank {rank}: {type(error).__name__}: {error}")
    return error


def rank_of_process() -> int:
    """This process's rank in its job, wherever it is asked for."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def rank_zero_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """A decorator: the function does its work on rank 0, and on all others it does nothing and returns None.

    The others do not wait for it. For work whose result all need: `trainer.ranks.on_rank_zero(work)`.

    Args:
        function: with any arguments; its result is rank 0's alone.
    """

    @functools.wraps(function)
    def on_rank_zero(*arguments: P.args, **named: P.kwargs) -> T | None:
        return function(*arguments, **named) if rank_of_process() == 0 else None

    return on_rank_zero


@rank_zero_only
def rank_zero_info(*values: object) -> None:
    """print() on rank 0."""
    print(*values, flush=True)


class Ranks:
    """The processes of this job; with one process every method returns at once.

    Every method but the properties, `note`, `rest`, `wait_later` and `await_on_board` is a collective: all ranks must
    call it, in the same order. Before each they meet, since gloo gives up after 30 s without a word from a rank: a rank
    may come up to `timeout_seconds` later than another, and where it does not come, or fails on the way, a
    RankFailedError says so.
    """

    def __init__(self, timeout_seconds: float = 1800.0) -> None:
        self.timeout_seconds = timeout_seconds
        self.world_size = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", "0")) if self.world_size > 1 else 0
        self.local_rank = int(os.environ.get("PADDLE_LOCAL_RANK", self.rank))
        self.local_size = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
        self._meeting: Meeting | None = None
        self._uses_gloo = self._waits_later = False
        if self.world_size > 1:
            stop_if_spawned()  # of a rank: it has that one's number
            if not paddle.distributed.is_initialized():
                log_errors_only()
                with without_modified_flags():
                    paddle.distributed.init_parallel_env()
            self._meeting = meeting_of(self.rank, self.world_size, timeout_seconds)
            self._uses_gloo = "gloo" in str(paddle.distributed.get_backend()).lower()
            if self._uses_gloo:
                call_on_abort(self._meeting.before_abort)

    @property
    def is_zero(self) -> bool:
        return self.rank == 0

    def meet(self, what: str) -> None:
        """Wait, without a deadline of Paddle's, until all ranks have come here."""
        if self._meeting is not None:
            self._meeting.meet(what, self.timeout_seconds)

    def begin_exchange(self) -> None:
        """Before a backward that averages gradients: on gloo, which waits 30 s alone and aborts, the ranks meet.

        On one machine that costs no message where the others have come already. An accelerator's own collectives wait
        for longer, and a meeting would hold up what is queued on it: only a watch begins, which `rest` and the next
        exchange or meeting end.
        """
        if self._meeting is None:
            return
        if not self._uses_gloo:
            self._meeting.begin_exchange()
        elif self._meeting.board is None:
            self.meet(_BACKWARD)
        else:
            self._meeting.arrive(_BACKWARD, self.timeout_seconds, waits=not self._waits_later)

    def wait_later(self, later: bool) -> None:
        """Whether `begin_exchange` leaves the waiting to `await_exchange`, within the backward; on a board alone."""
        self._waits_later = later

    def await_exchange(self) -> None:
        """Gradients are about to be exchanged: wait where that was left for later."""
        if self._waits_later and self._uses_gloo and self._meeting is not None and self._meeting.board is not None:
            self._waits_later = False
            self._meeting.await_arrivals(_BACKWARD)

    @property
    def board(self) -> Board | None:
        """What all ranks see at once, where they are on one machine."""
        return None if self._meeting is None else self._meeting.board

    def begin_exchanges(self, what: str) -> None:
        """A fit begins: counters on the board are at nought on every rank; a collective."""
        self.meet(what)
        if self._meeting is not None:
            self._meeting.begin_arrivals()
        self.meet(what)

    def await_on_board(self, counter: int, count: int, what: str) -> None:
        """Wait until all ranks have come so far on the board; the calling ranks alone, no collective."""
        assert self._meeting is not None
        self._meeting.await_all(counter, count, what)

    def rest(self) -> None:
        """No exchange of gradients is under way here; no collective."""
        if self._meeting is not None:
            self._meeting.rest()

    def note(self, error: BaseException) -> None:
        """Let the others know that an exception leaves a fit here; no collective."""
        if self._meeting is not None:
            self._meeting.note(error)

    def barrier(self) -> None:
        self.meet("a barrier")

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return self._of_rank_zero(value, "a broadcast")

    def _of_rank_zero(self, value: T, what: str) -> T:
        if self.world_size == 1:
            return value
        self.meet(what)
        box = [value]
        paddle.distributed.broadcast_object_list(box, src=0)
        return value if self.rank == 0 else box[0]  # its own, of which an error has its traceback

    def gather_object(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        self.meet("a gathering")
        return _exchange(value)

    def all_gather(self, data: Any) -> Any:
        """Every Tensor, array and number of nested data as one Tensor over the ranks, [world_size, ...] in rank order.

        With one process data come back as they are.

        Raises:
            RankFailedError: keys, shapes or types are not the same on all ranks.
        """
        if self.world_size == 1:
            return data
        form = _form(data)
        if len(form) > _LONGEST_FORM:  # ranks compare no more than so many characters
            form = f"{zlib.crc32(form.encode()):08x}: {form}"
        self.meet(f"an all_gather of {form}")
        return mapped(functools.partial(_gathered, self.world_size), data)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return any(self.gather_object(flag))

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result, or raise its error, on every rank.

        The result is sent by pickle.
        """
        if self.world_size == 1:
            return work()
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except BaseException as raised:
                error = raised
        sent = None if error is None else sendable(error)
        result, theirs = self._of_rank_zero((result, sent), "the end of rank 0's work")
        if theirs is not None:
            self.raise_of_rank_zero(error if error is not None else theirs)
        return cast(T, result)

    def raise_of_rank_zero(self, error: BaseException) -> NoReturn:
        """Raise what rank 0 has raised, and say on the others whose it is."""
        self.raise_of(0, error)

    def raise_of(self, rank: int, error: BaseException) -> NoReturn:
        """Raise what this rank has raised, and say on the others whose it is."""
        if self.rank != rank and self._meeting is not None:
            self._meeting.blame(rank, error)
        raise error

    def dealt_out_again(self, mine: list[Any]) -> list[Any]:
        """What each rank has made of its batches, in the order of the data, as they were dealt out: one to each."""
        if self.world_size == 1:
            return mine
        everyones = self.gather_object(mapped(_packed, mine))
        most = max(len(one) for one in everyones)
        rows = [one[number] for number in range(most) for one in everyones if number < len(one)]
        return cast("list[Any]", mapped(_unpacked, rows))

    @contextlib.contextmanager
    def those_of_rank_zero(self, tensors: Mapping[str, Any]) -> Iterator[None]:
        """Within, these tensors have rank 0's values; afterwards each rank's own again, where nothing has changed them.

        With one process nothing happens.
        """
        if self.world_size == 1:
            yield
            return
        own = {name: value.numpy().copy() for name, value in tensors.items()}
        theirs = self.broadcast_object(own)
        differing = [name for name in own if name in theirs and not np.array_equal(own[name], theirs[name])]
        for name in differing:
            tensors[name].set_value(theirs[name])
        try:
            yield
        finally:
            for name in differing:
                if np.array_equal(tensors[name].numpy(), theirs[name]):
                    tensors[name].set_value(own[name])


def _gathered(world_size: int, leaf: Any) -> Any:
    if not isinstance(leaf, _NUMERIC):
        return leaf
    tensor = leaf.detach() if isinstance(leaf, paddle.Tensor) else paddle.to_tensor(leaf)
    if 0 in tensor.shape:  # of which Paddle gathers nothing
        return paddle.zeros([world_size, *tensor.shape], tensor.dtype)
    parts: list[Any] = []
    paddle.distributed.all_gather(parts, tensor.reshape([1, *tensor.shape]).contiguous())
    return paddle.concat(parts)


def _form(data: Any) -> str:
    """Keys, types and shapes of nested data, in the order in which they are gathered."""
    if isinstance(data, (paddle.Tensor, np.ndarray)):
        return f"{str(data.dtype).rpartition('.')[2]}{list(data.shape)}"
    if isinstance(data, Mapping):
        return "{" + ", ".join(f"{key}: {_form(value)}" for key, value in data.items()) + "}"
    if isinstance(data, (list, tuple)):
        return "(" + ", ".join(map(_form, data)) + ")"
    if dataclasses.is_dataclass(data):
        return ", ".join(map(_form, leaves(data)))
    return type(data).__name__


def _exchange(value: T) -> list[T]:
    values: list[T] = []
    paddle.distributed.all_gather_object(values, value)
    return values


class _Packed:
    """A Tensor as pickle takes it, which Paddle 2.6's own is not. No dataclass, which would be a branch of a tree."""

    def __init__(self, values: Any, dtype: str) -> None:
        self.values, self.dtype = values, dtype


def _packed(leaf: Any) -> Any:
    if not isinstance(leaf, paddle.Tensor):
        return leaf
    dtype = str(leaf.dtype).rpartition(".")[2]
    return _Packed((leaf.astype("float32") if dtype == "bfloat16" else leaf).numpy(), dtype)


def _unpacked(leaf: Any) -> Any:
    return paddle.to_tensor(leaf.values, dtype=leaf.dtype) if isinstance(leaf, _Packed) else leaf
