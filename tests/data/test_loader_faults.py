"""What goes wrong in a loader is raised here, by its own name, with the sample's index; nothing hangs or stays."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loaders import (
    PROCESSES,
    PROCESSES_SPAWNED_TOO,
    WORKERS,
    WORKERS_SPAWNED_TOO,
    Augmented,
    AugmentedStream,
    Loader,
    augmented,
    plain,
    read,
    source,
)
from paddle.io import BatchSampler, DataLoader, Dataset, IterableDataset, get_worker_info

from paddlelite_trainer.data import worker_pool
from paddlelite_trainer.errors import DataError, add_note

pytestmark = pytest.mark.timeout(60)
HERE = Path(__file__).parents[1]
CONTEXTS = ["fork", pytest.param("spawn", marks=pytest.mark.soak)]


class Unpicklable(Exception):
    """Loses its argument on the way through pickle."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(f"{name} has {size}")


class Failing(Dataset):
    """Does `fault()` at one index."""

    def __init__(self, fault: Callable[[], Any], index: int = 13, samples: int = 20) -> None:
        self.fault = fault
        self.index = index
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        if index == self.index:
            self.fault()
        return index, np.zeros(3)


def fault(kind: type[BaseException], *arguments: Any) -> None:
    raise kind(*arguments)


def raising(kind: type[BaseException], *arguments: Any) -> Callable[[], Any]:
    return functools.partial(fault, kind, *arguments)


def dying_by(number: int) -> Callable[[], Any]:
    return functools.partial(kill_itself, number)


def kill_itself(number: int) -> None:
    os.kill(os.getpid(), number)


def loader(fault: Callable[[], Any], **settings: Any) -> DataLoader:
    return Loader(Failing(fault), batch_size=3, **settings)


def said(error: BaseException) -> str:
    """The message with its notes, as a traceback shows them."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def workers_alive() -> list[Any]:
    return multiprocessing.active_children()


def wait_until(condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    resource_tracker.ensure_running()  # of Python's own, for whatever is spawned
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert workers_alive() == []
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


@pytest.mark.parametrize("settings", WORKERS_SPAWNED_TOO)
def test_an_error_in_a_sample_is_raised_as_itself_with_the_index(settings: dict[str, Any]) -> None:
    batches = source(loader(raising(KeyError, "no such picture"), **settings))
    seen = []
    with pytest.raises(KeyError, match="no such picture") as caught:
        for batch in batches.epoch(3):
            seen.append(plain(batch[0]))
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert "raised by sample 13 of Failing" in said(caught.value)
    assert "while fetching batch 4 of epoch 3 of train_dataloader" in said(caught.value)
    batches.close()


@pytest.mark.parametrize("settings", PROCESSES)
def test_a_workers_error_shows_where_it_was_raised(settings: dict[str, Any]) -> None:
    batches = source(loader(raising(ValueError, "bad"), **settings))
    with pytest.raises(ValueError, match="bad") as caught:
        list(batches.epoch(0))
    assert "in train_dataloader's worker 0" in said(caught.value)
    assert "in fault\n    raise kind(*arguments)" in str(caught.value.__cause__)


def collate_that_fails(samples: list[Any]) -> Any:
    if any(index == 13 for index, _ in samples):
        raise RuntimeError("shapes differ")
    return samples


@pytest.mark.parametrize("settings", WORKERS)
def test_an_error_in_collate_fn_is_raised_with_the_samples(settings: dict[str, Any]) -> None:
    batches = source(Loader(Failing(int), batch_size=3, collate_fn=collate_that_fails, **settings))
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        list(batches.epoch(0))
    assert "raised while collating samples [12, 13, 14] of Failing" in said(caught.value)
    batches.close()


def collate_to_what_cannot_be_pickled(samples: list[Any]) -> Any:
    return {"arrays": np.zeros(3), "first": samples[0][0], "later": Whole(samples[0][0] == 6)}


class Whole:
    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses

    def __reduce__(self) -> Any:
        if self.refuses:
            raise TypeError("I stay here")
        return Whole, (False,)


@pytest.mark.parametrize("settings", PROCESSES)
def test_a_batch_that_cannot_be_pickled_is_its_own_error_and_the_others_come(settings: dict[str, Any]) -> None:
    batches = source(Loader(Failing(int), batch_size=3, collate_fn=collate_to_what_cannot_be_pickled, **settings))
    seen = []
    with pytest.raises(TypeError, match="I stay here"):
        for batch in batches.epoch(0):
            seen.append(batch["first"])
    assert seen == [0, 3]
    assert [batch["first"] for batch in batches.epoch(0, 3)] == [9, 12, 15, 18]
    batches.close()


@pytest.mark.parametrize("settings", PROCESSES)
def test_an_error_that_cannot_be_pickled_is_a_data_error_with_its_text(settings: dict[str, Any]) -> None:
    batches = source(loader(raising(Unpicklable, "image", 3), **settings))
    with pytest.raises(DataError, match=r"worker 0 failed: .*Unpicklable: image has 3") as caught:
        list(batches.epoch(0))
    assert "raised by sample 13 of Failing" in str(caught.value.__cause__)


@pytest.mark.parametrize("settings", PROCESSES)
def test_sys_exit_in_a_worker_is_a_data_error(settings: dict[str, Any]) -> None:
    batches = source(loader(functools.partial(sys.exit, 4), **settings))
    with pytest.raises(DataError, match="worker 0 failed: SystemExit: 4"):
        list(batches.epoch(0))


@pytest.mark.parametrize("settings", PROCESSES)
@pytest.mark.parametrize(
    ("fault", "said_so"),
    [
        (dying_by(signal.SIGKILL), "was killed by SIGKILL while loading .* memory runs out: lower"),
        (dying_by(signal.SIGSEGV), "was killed by SIGSEGV|ended with exit code"),
        (functools.partial(os._exit, 3), r"ended with exit code 3 while loading a batch\. Run with num_workers=0"),
    ],
    ids=["SIGKILL", "SIGSEGV", "os._exit"],
)
def test_a_worker_that_dies_is_named(fault: Callable[[], Any], said_so: str, settings: dict[str, Any]) -> None:
    batches = source(loader(fault, **settings))
    seen = []
    with pytest.raises(DataError, match=rf"train_dataloader: worker 0 \(pid \d+\) ({said_so})") as caught:
        for batch in batches.epoch(0):
            seen.append(plain(batch[0]))
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert "while fetching batch 4 of epoch 0" in said(caught.value)


@pytest.mark.parametrize("settings", PROCESSES)
def test_a_worker_killed_from_outside_is_named_at_the_next_batch_it_owes(settings: dict[str, Any]) -> None:
    batches = source(augmented(dataset=Augmented(300), **settings))
    with pytest.raises(DataError, match="was killed by SIGKILL"):
        for number, _ in enumerate(batches.epoch(0)):
            if number == 5:
                os.kill(workers_alive()[1].pid, signal.SIGKILL)
    assert read(batches, 0, 99)  # and the next epoch has new workers
    batches.close()


@pytest.mark.parametrize("settings", PROCESSES)
def test_a_worker_that_gives_nothing_within_the_timeout_is_named(settings: dict[str, Any]) -> None:
    batches = source(loader(functools.partial(time.sleep, 50), timeout=1, **settings))
    with pytest.raises(DataError, match=r"worker 0 \(pid \d+\) gave no batch within timeout=1 s"):
        list(batches.epoch(0))


def init_that_fails(worker: int) -> None:
    raise FileNotFoundError(f"no index for worker {worker}")


@pytest.mark.parametrize("settings", PROCESSES)
def test_an_error_in_worker_init_fn_is_raised_as_itself(settings: dict[str, Any]) -> None:
    batches = source(augmented(worker_init_fn=init_that_fails, **settings))
    with pytest.raises(FileNotFoundError, match="no index for worker 0") as caught:
        list(batches.epoch(0))
    assert "raised by worker_init_fn(0)" in said(caught.value)


marked: list[Any] = []


class Informed(Augmented):
    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        assert info.dataset is self
        return index, np.array([info.id, info.num_workers, *marked])


def mark(worker: int) -> None:
    marked.extend([worker, random.random()])


@pytest.mark.parametrize("settings", PROCESSES_SPAWNED_TOO)
def test_worker_init_fn_and_worker_info_are_as_paddle_has_them(settings: dict[str, Any]) -> None:
    batches = source(Loader(Informed(8), batch_size=2, worker_init_fn=mark, **settings))
    rows = [row for batch in batches.epoch(0) for row in plain(batch[1])]
    assert [row[:3] for row in rows] == [[0, 2, 0]] * 2 + [[1, 2, 1]] * 2 + [[0, 2, 0]] * 2 + [[1, 2, 1]] * 2
    assert len({row[3] for row in rows}) == 2
    assert marked == []
    batches.close()


@pytest.mark.parametrize("settings", WORKERS)
def test_the_same_source_works_again_after_an_error(settings: dict[str, Any]) -> None:
    batches = source(loader(raising(ValueError, "bad"), **settings))
    for _ in range(2):
        with pytest.raises(ValueError, match="bad"):
            list(batches.epoch(0))
    assert [plain(batch[0]) for batch in batches.epoch(0, 5)] == [[15, 16, 17], [18, 19]]
    batches.close()


@pytest.mark.parametrize("settings", WORKERS)
def test_an_error_in_the_loop_body_leaves_nothing(settings: dict[str, Any]) -> None:
    batches = source(augmented(**settings))
    with pytest.raises(ZeroDivisionError):
        for number, _ in enumerate(batches.epoch(0)):
            assert 1 / (2 - number)
    batches.close()
    batches.close()


class Slow(Dataset):
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        self.directory.joinpath(str(index)).touch()
        time.sleep(0.3)
        return index


@pytest.mark.parametrize("settings", PROCESSES)
def test_closing_does_not_wait_for_batches_that_nobody_will_see(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_GRACE_SECONDS", 30.0)
    batches = source(Loader(Slow(tmp_path), batch_size=1, prefetch_factor=20, **settings))
    next(batches.epoch(0))
    batches.close()
    assert len(list(tmp_path.iterdir())) < 30  # of 40 that were asked for


@pytest.mark.parametrize("context", CONTEXTS)
def test_another_epoch_does_not_wait_for_what_was_asked_for_in_the_one_before(context: str, tmp_path: Path) -> None:
    settings = {"persistent_workers": True, "multiprocessing_context": context}
    batches = source(Loader(Slow(tmp_path), batch_size=1, prefetch_factor=20, num_workers=2, **settings))
    next(batches.epoch(0))
    next(batches.epoch(1, 50))
    batches.close()
    assert len([path for path in tmp_path.iterdir() if int(path.name) < 50]) < 15  # of 40 that were asked for


@pytest.mark.parametrize("settings", PROCESSES)
def test_closing_in_the_middle_is_said_to_whoever_goes_on(settings: dict[str, Any]) -> None:
    batches = source(augmented(**settings))
    iterator = batches.epoch(0)
    next(iterator)
    batches.close()
    with pytest.raises(DataError, match="train_dataloader was closed in the middle of an epoch"):
        next(iterator)


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_epoch_that_another_one_overtook_is_said_to_whoever_goes_on(context: str) -> None:
    batches = source(augmented(num_workers=2, persistent_workers=True, multiprocessing_context=context))
    first = batches.epoch(0)
    next(first)
    second = batches.epoch(1)
    next(second)
    with pytest.raises(DataError, match="gone on with after another one was begun"):
        next(first)
    batches.close()


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_source_that_is_dropped_ends_its_workers(context: str) -> None:
    batches = source(augmented(num_workers=2, persistent_workers=True, multiprocessing_context=context))
    read(batches, 0)
    assert len(workers_alive()) == 2
    del batches
    assert wait_until(lambda: not workers_alive())


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_batch_goes_through_dev_shm(context: str) -> None:
    batches = source(augmented(num_workers=2, multiprocessing_context=context))
    for _ in batches.epoch(0):
        maps = Path("/proc/self/maps").read_text()
        assert "memfd:batch" in maps
        assert "/dev/shm" not in maps


class Pid(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("context", CONTEXTS)
def test_persistent_workers_are_the_same_in_every_epoch_and_others_are_new(context: str) -> None:
    for persistent, processes in ((True, 2), (False, 4)):
        settings = {"persistent_workers": persistent, "multiprocessing_context": context}
        batches = source(Loader(Pid(), batch_size=1, num_workers=2, **settings))
        assert len({pid for epoch in range(2) for batch in batches.epoch(epoch) for pid in plain(batch)}) == processes
        batches.close()


MIXED = [pytest.param(one, marks=pytest.mark.soak) for one in (("fork", "spawn"), ("spawn", "fork"))]


@pytest.mark.parametrize("contexts", [("fork", "fork"), *MIXED])
def test_two_sources_with_workers_at_once_do_not_hold_each_other(
    contexts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = (
        source(
            augmented(num_workers=2, persistent_workers=True, multiprocessing_context=context), stage=stage, name=stage
        )
        for context, stage in zip(contexts, ("train", "validate"))
    )
    for number, _ in enumerate(train.epoch(0)):
        if number == 2:
            read(val, 0)
    killed: list[Any] = []
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", killed.append)
    monkeypatch.setattr(worker_pool, "_GRACE_SECONDS", 20.0)
    train.close()
    val.close()
    assert killed == []  # each ended by itself when its parent hung up


class FailingStream(IterableDataset):
    def __init__(self, where: str) -> None:
        self.where = where

    def __iter__(self) -> Iterator[int]:
        if self.where == "iter":
            raise ConnectionError("no server")
        return self.samples()

    def samples(self) -> Iterator[int]:
        yield from range(4)
        if self.where == "sample":
            raise ConnectionError("no server")
        yield from range(4, 8)


def collate_but_four(where: str, samples: list[int]) -> Any:
    if where == "collate" and 4 in samples:
        raise ConnectionError("no server")
    return np.array(samples)


@pytest.mark.parametrize("settings", WORKERS)
@pytest.mark.parametrize("where", ["sample", "collate", "iter"])
def test_an_iterable_datasets_error_is_raised_as_itself(where: str, settings: dict[str, Any]) -> None:
    collate = functools.partial(collate_but_four, where)
    batches = source(Loader(FailingStream(where), batch_size=2, collate_fn=collate, **settings))
    with pytest.raises(ConnectionError, match="no server") as caught:
        list(batches.epoch(0))
    if where == "sample":
        assert "raised by FailingStream after 4 samples" in said(caught.value)
    batches.close()


class Dying(AugmentedStream):
    def __iter__(self) -> Iterator[Any]:
        yield np.zeros(1)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("settings", PROCESSES)
def test_an_iterable_datasets_killed_worker_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"worker 0 .* was killed by SIGKILL"):
        list(source(Loader(Dying(), batch_size=1, **settings)).epoch(0))


def test_an_error_in_a_plain_iterable_is_raised_as_itself() -> None:
    def generator() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone") as caught:
        list(source(generator()).epoch(0))
    assert "while fetching batch 1 of epoch 0 of train_dataloader" in said(caught.value)


def test_an_error_in_a_sampler_is_raised_as_itself() -> None:
    class Broken(BatchSampler):
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[list[int]]:
            raise LookupError("no order")

        def __len__(self) -> int:
            return 3

    with pytest.raises(LookupError, match="no order"):
        list(source(augmented(batch_sampler=Broken())).epoch(0))


MANY = "augmented(dataset=Augmented(3000), num_workers=2, persistent_workers=True, multiprocessing_context={!r})"
STUCK = "Loader(Stuck(), batch_size=1, num_workers=2, multiprocessing_context={!r})"


def run_script(
    body: str, *, loader: str = MANY, context: str = "fork", kill: signal.Signals | None = None
) -> tuple[int, list[int]]:
    """Run a script that prints its workers' pids and then waits; returns its exit code and those pids."""
    script = (
        "import os, sys, time, signal, multiprocessing\nfrom loaders import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        f"batches = source({loader.format(context)})\n"
        "iterator = batches.epoch(0); next(iterator)\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n" + body
    )
    env = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    if kill is not None:
        os.kill(process.pid, kill)
    code = process.wait(timeout=40)
    process.stdout.close()
    return code, pids


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def in_soak(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.mark.parametrize(
    ("context", "body", "kill"),
    [
        ("fork", "time.sleep(60)", signal.SIGKILL),
        ("fork", "time.sleep(60)", signal.SIGTERM),
        in_soak("fork", "time.sleep(60)", signal.SIGINT),
        in_soak("fork", "sys.exit(3)", None),
        in_soak("fork", "os._exit(3)", None),
        ("fork", "raise ValueError", None),
        ("spawn", "time.sleep(60)", signal.SIGKILL),
        in_soak("spawn", "time.sleep(60)", signal.SIGTERM),
        in_soak("spawn", "time.sleep(60)", signal.SIGINT),
        in_soak("spawn", "sys.exit(3)", None),
        in_soak("spawn", "os._exit(3)", None),
        in_soak("spawn", "raise ValueError", None),
    ],
)
def test_workers_end_with_their_parent(context: str, body: str, kill: signal.Signals | None) -> None:
    _, pids = run_script(body, context=context, kill=kill)
    assert wait_until(lambda: all(is_gone(pid) for pid in pids))


@pytest.mark.parametrize(
    ("context", "body", "kill"),
    [
        ("fork", "time.sleep(60)", signal.SIGKILL),
        ("fork", "raise ValueError", None),
        in_soak("spawn", "time.sleep(60)", signal.SIGKILL),
        in_soak("spawn", "raise ValueError", None),
    ],
)
def test_workers_that_are_stuck_end_with_their_parent(context: str, body: str, kill: signal.Signals | None) -> None:
    _, pids = run_script(body, loader=STUCK, context=context, kill=kill)
    assert wait_until(lambda: all(is_gone(pid) for pid in pids))


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_signal_to_the_whole_group_leaves_the_decision_to_the_parent(context: str) -> None:
    body = (
        "got = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
        "print('ready', flush=True)\n"
        "os.killpg(0, signal.SIGTERM); os.killpg(0, signal.SIGTERM)\n"
        "seen = 1 + sum(1 for _ in iterator)\n"
        "batches.close(); os._exit(7 if seen == 1000 and got else 8)"
    )
    code, pids = run_script(body, context=context)
    assert code == 7
    assert wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_a_note_is_in_the_message_where_python_has_no_notes() -> None:
    class Old(ValueError):
        add_note = property()  # as in Python 3.10: no such attribute

    texts = []
    for arguments in (("bad",), (), (3,)):
        error = Old(*arguments)
        assert not hasattr(error, "add_note")
        add_note(error, "raised by sample 13")
        texts.append(str(error))
    assert texts == ["bad\nraised by sample 13", "raised by sample 13", "(3, 'raised by sample 13')"]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("lack", ["no function", "no system call"])
def test_workers_run_without_memfd_create_and_leave_no_file(
    lack: str, context: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(38, "Function not implemented")

    reference = read(source(augmented()), 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if lack == "no function":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
    batches = source(augmented(num_workers=2, multiprocessing_context=context))
    rows = []
    for batch in batches.epoch(0):
        rows.append(plain(batch))
        assert list(tmp_path.iterdir()) == []  # so that a kill leaves none
    batches.close()
    assert rows == reference


def test_workers_without_any_shared_memory_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"no temporary file could be made.*Set TMPDIR .* or num_workers=0"):
        read(source(augmented(num_workers=2)), 0)
