"""Copying the next batch ahead, on the fake accelerator: where it happens, and that nothing else changes by it."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import paddle
import pytest
from machine import test_signals_while_waiting as waiting
from models import Classifier, make_batches, quiet_trainer, same_weights, weights_of
from paddle.io import DataLoader, Dataset, IterableDataset

from paddlelite_trainer import Callback, DataModule
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.data import batch as data
from paddlelite_trainer.data import prefetch
from paddlelite_trainer.data.source import BatchSource
from paddlelite_trainer.data.worker_pool import WorkerPool
from paddlelite_trainer.errors import DeviceOutOfMemoryError
from paddlelite_trainer.machine.device import Device, resolve_device
from paddlelite_trainer.machine.rng import random_states

THREAD = "prefetch_to_device"
MODES: list[Any] = [True, "auto"]
BATCHES = 8


def host_batches(count: int = BATCHES) -> list[Any]:
    """On the host; not copied by `data`, whose copies are counted."""
    return [[paddle.to_tensor(field.numpy(), place="cpu") for field in batch] for batch in make_batches(count)]


class Samples(Dataset):
    """Noisy samples; `fails_at` is one that cannot be had."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at

    def __len__(self) -> int:
        return 4 * BATCHES

    def __getitem__(self, index: int) -> Any:
        if index == self.fails_at:
            raise ValueError("no such picture")
        return np.random.randn(4).astype("float32") + np.float32(random.random()), np.int64(index % 3)


class SampleStream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        for index in range(4 * BATCHES):
            yield np.random.randn(4).astype("float32"), np.int64(index % 3)


class Generated:
    """An iterable of batches that is not a DataLoader."""

    def __iter__(self) -> Iterator[Any]:
        for batch in host_batches():
            yield batch[0] + paddle.to_tensor(np.random.randn(8, 4).astype("float32"), place="cpu"), batch[1]


def map_loader(workers: int = 2, **settings: Any) -> DataLoader:
    dataset = settings.pop("dataset", None) or Samples()
    return DataLoader(dataset, batch_size=4, **{"num_workers": workers, "shuffle": True, **settings})


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: host_batches(),
    "map, 0 workers": lambda: map_loader(0),
    "map, 2 workers": map_loader,
    "map, 2 persistent workers": lambda: map_loader(persistent_workers=True),
    "stream, 0 workers": lambda: DataLoader(SampleStream(), batch_size=4),
    "stream, 2 workers": lambda: DataLoader(SampleStream(), batch_size=4, num_workers=2),
    "iterable": Generated,
}


class Learner(Classifier):
    """Draws random numbers from every library in its steps, and remembers all that it can see of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        source = self._run.data.train
        state = {name: value for name, value in source.state_dict().items() if name != "own"}
        drawn = [random.random(), np.random.randn(), paddle.rand([1]).item(), paddle.randn([2]).tolist()]
        self.seen.append([batch_idx, source.is_last, source.batches_done, state, drawn, [x.tolist() for x in batch]])
        assert all(x.place._equals(self.trainer.device.place) for x in batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(["validation", batch_idx, np.random.randn(), [x.tolist() for x in batch]])
        super().validation_step(batch, batch_idx)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the thread of every copy of a Tensor from here on."""
    threads: list[str] = []
    original = data.copied_to

    def copied_to(tensor: Any, place: Any) -> Any:
        threads.append(THREAD if threading.current_thread().name == THREAD else "training")
        return original(tensor, place)

    monkeypatch.setattr(data, "copied_to", copied_to)
    return threads


_has_answered = WorkerPool.has_answered


def has_answered_within_a_minute(pool: WorkerPool, number: int) -> bool:
    for _ in range(60_000):
        if _has_answered(pool, number):
            return True
        time.sleep(0.001)
    return False


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are always ahead of the run."""
    monkeypatch.setattr(WorkerPool, "has_answered", has_answered_within_a_minute)


@pytest.fixture
def decides_after_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" turns to on in the middle of the first epoch."""
    monkeypatch.setattr(prefetch, "WARM_UP_BATCHES", 0)
    monkeypatch.setattr(prefetch, "MEASURED_BATCHES", 2)
    monkeypatch.setattr(prefetch, "WORTHWHILE_SHARE", float("-inf"))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def fit(loader: Any, mode: Any, val: Any = None, **settings: Any) -> tuple[Learner, Any]:
    module = Learner()
    trainer = quiet_trainer(**{"seed": 3, "prefetch_to_device": mode, **settings})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no effect")
        trainer.fit(module, loader, val)
    return module, trainer


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOADERS)
def test_training_has_the_same_bits_with_it_and_without(
    name: str, mode: Any, quick_workers: None, decides_after_two_batches: None
) -> None:
    plain, _ = fit(LOADERS[name](), False, LOADERS[name](), max_epochs=2, val_check_interval=3)
    expected = random_states()
    ahead, trainer = fit(LOADERS[name](), mode, LOADERS[name](), max_epochs=2, val_check_interval=3)
    assert plain.seen == ahead.seen
    assert same_weights(weights_of(plain), weights_of(ahead))
    assert comparable(expected) == comparable(random_states())
    assert trainer.prefetches_to_device == (name != "map, 0 workers")


@pytest.mark.parametrize("name", LOADERS)
def test_all_but_the_first_batch_are_copied_by_the_thread(name: str, quick_workers: None, copies: list[str]) -> None:
    module, _ = fit(LOADERS[name](), True)
    in_training_thread = len(module.seen) if name == "map, 0 workers" else 1
    assert copies.count("training") == 2 * in_training_thread
    assert copies.count(THREAD) == 2 * (len(module.seen) - in_training_thread)


def test_a_batch_that_no_worker_has_yet_is_not_waited_for_before_the_step(
    monkeypatch: pytest.MonkeyPatch, copies: list[str]
) -> None:
    monkeypatch.setattr(WorkerPool, "has_answered", lambda pool, number: False)
    fit(map_loader(), True)
    assert copies == ["training"] * 2 * BATCHES


def test_evaluation_is_ahead_too(copies: list[str]) -> None:
    results = [
        quiet_trainer(prefetch_to_device=mode).validate(Classifier(), host_batches(), verbose=False)
        for mode in (False, True)
    ]
    assert results[0] == results[1]
    assert copies[: 2 * BATCHES] == ["training"] * 2 * BATCHES
    assert sorted(copies[2 * BATCHES :]) == [THREAD] * 2 * (BATCHES - 1) + ["training"] * 2


def test_nothing_is_copied_while_an_iterable_s_own_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    original, is_copying, seen = data.copied_to, [False], []

    def copied_to(tensor: Any, place: Any) -> Any:
        is_copying[0] = True
        time.sleep(0.02)
        moved = original(tensor, place)
        is_copying[0] = False
        return moved

    class Looks(Generated):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                seen.append(is_copying[0])
                yield batch

    monkeypatch.setattr(data, "copied_to", copied_to)
    fit(Looks(), True)
    assert seen == [False] * BATCHES


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["list", "map, 2 workers", "stream, 2 workers", "iterable"])
def test_a_resume_within_an_epoch_equals_an_uninterrupted_run(
    name: str, before: bool, after: bool, quick_workers: None, tmp_path: Path
) -> None:
    whole, _ = fit(LOADERS[name](), False, max_epochs=2)
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint()], "default_root_dir": tmp_path}
    first, _ = fit(LOADERS[name](), before, max_epochs=2, max_steps=3, **saving)
    second = Learner()
    trainer = quiet_trainer(seed=3, prefetch_to_device=after, max_epochs=2, **saving)
    trainer.fit(second, LOADERS[name](), ckpt_path="last")
    assert whole.seen == first.seen + second.seen
    assert same_weights(weights_of(whole), weights_of(second))


@pytest.mark.parametrize("mode", [False, True])
def test_an_error_in_the_dataset_comes_at_its_batch(mode: bool, quick_workers: None) -> None:
    module = Learner()
    with pytest.raises(ValueError, match="no such picture") as caught:
        trainer = quiet_trainer(seed=3, prefetch_to_device=mode)
        trainer.fit(module, map_loader(dataset=Samples(fails_at=14), shuffle=False))
    assert [seen[0] for seen in module.seen] == [0, 1, 2]
    assert any("while fetching batch 3 of epoch 0" in note for note in caught.value.__notes__)
    assert threads() == []


def test_an_error_in_the_copy_comes_at_its_batch_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    original = data.copied_to

    def copied_to(tensor: Any, place: Any) -> Any:
        if tensor is batches[3][1]:
            raise RuntimeError("the cable is cut")
        return original(tensor, place)

    monkeypatch.setattr(data, "copied_to", copied_to)
    batches, module = host_batches(), Learner()
    with pytest.raises(RuntimeError, match="the cable is cut") as caught:
        quiet_trainer(prefetch_to_device=True).fit(module, batches)
    assert [seen[0] for seen in module.seen] == [0, 1, 2]
    functions = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "wait" in functions and functions[-1] == "copied_to"


def test_without_room_for_one_batch_more_it_is_off_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original, plain = data.copied_to, fit(host_batches(), False)[0]

    def copied_to(tensor: Any, place: Any) -> Any:
        if threads() and threading.current_thread().name.startswith(THREAD):
            raise MemoryError("ResourceExhaustedError: Out of memory error on fake_gpu 0")
        return original(tensor, place)

    monkeypatch.setattr(data, "copied_to", copied_to)
    with pytest.warns(UserWarning, match="prefetch_to_device is off from here on: one batch more does not fit"):
        module, trainer = fit(host_batches(), True)
    assert trainer.prefetches_to_device is False
    assert plain.seen == module.seen


def test_memory_that_ran_out_in_a_worker_is_an_error_and_no_batch_of_nothing(quick_workers: None) -> None:
    class Full(Samples):
        def __getitem__(self, index: int) -> Any:
            if index == 14:
                raise RuntimeError("CUDA error: out of memory")
            return super().__getitem__(index)

    module = Learner()
    with pytest.raises(DeviceOutOfMemoryError, match="prefetch_to_device=False"):
        quiet_trainer(seed=3, prefetch_to_device=True).fit(module, map_loader(dataset=Full(), shuffle=False))
    assert [seen[0] for seen in module.seen] == [0, 1, 2]


def test_a_thread_that_cannot_begin_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(place: Any) -> None:
        raise RuntimeError("no context for this thread")

    monkeypatch.setattr(prefetch, "set_current_place", fails)
    with pytest.raises(RuntimeError, match="no context for this thread"):
        fit(host_batches(), True)


def test_a_batch_that_a_step_puts_into_the_list_is_the_one_that_comes() -> None:
    batches = host_batches()
    (harder,) = host_batches(1)

    class Replaces(Learner):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                batches[4] = harder
            return super().training_step(batch, batch_idx)

    module = Replaces()
    quiet_trainer(seed=3, prefetch_to_device=True).fit(module, batches)
    assert module.seen[4][-1] == [field.tolist() for field in harder]
    assert module.seen[5][-1] == [field.tolist() for field in batches[5]]


def test_a_step_without_memory_names_the_batch_that_is_ahead() -> None:
    class Full(Learner):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise MemoryError("ResourceExhaustedError: Out of memory error on fake_gpu 0")

    for mode in (True, False):
        with pytest.raises(DeviceOutOfMemoryError) as told:
            quiet_trainer(prefetch_to_device=mode).fit(Full(), host_batches())
        assert ("prefetch_to_device=False" in str(told.value)) is mode


@pytest.mark.parametrize(("memory", "expected"), [(None, True), (10**9, True), (8 * 4 * 4, False)])
def test_auto_leaves_the_memory_to_batches_that_are_large_beside_it(
    memory: int | None, expected: bool, decides_after_two_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "memory", lambda device: memory)
    _, trainer = fit(host_batches(), "auto")
    assert trainer.prefetches_to_device is expected


def test_timing_waits_for_the_work_before_a_copy_and_ends_with_it(decides_after_two_batches: None) -> None:
    decides, waits = prefetch.Prefetch("auto", resolve_device()), []
    for batch in host_batches(5):
        before = fake_gpu.synchronizations()
        decides.move(batch)
        waits.append(fake_gpu.synchronizations() - before)
    assert [count - waits[-1] for count in waits] == [1, 1, 1, 0, 0]  # the copies themselves wait too


@pytest.mark.parametrize("name", ["list", "map, 2 workers", "iterable"])
def test_one_batch_more_is_on_the_device_and_no_batch_longer_than_its_step(
    name: str, quick_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    original = data.copied_to

    def copied_to(tensor: Any, place: Any) -> Any:
        moved = original(tensor, place)
        alive.append(weakref.ref(moved))
        return moved

    class Counts(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            while under_way and not all(tensor.place.is_custom_place() for tensor in under_way[0]._batch or ()):
                time.sleep(0.001)
            counts.append(sum(tensor() is not None for tensor in alive))
            return super().training_step(batch, batch_idx)

    counts: list[int] = []
    under_way: list[Any] = []
    start = prefetch.Prefetch.start

    def remembered(self: Any, batch: Any) -> Any:
        upcoming = start(self, batch)
        under_way[:] = [upcoming]
        return upcoming

    monkeypatch.setattr(data, "copied_to", copied_to)
    monkeypatch.setattr(prefetch.Prefetch, "start", remembered)
    quiet_trainer(prefetch_to_device=True).fit(Counts(), LOADERS[name]())
    assert counts == [4] * (BATCHES - 1) + [2]  # two Tensors in each batch


@pytest.mark.parametrize("name", ["list", "map, 2 workers", "iterable"])
def test_the_loader_keeps_nothing_of_a_batch_on_the_device_and_no_thread_after_an_iteration(
    name: str, quick_workers: None
) -> None:
    source = BatchSource(LOADERS[name](), stage="train", seed=3, prefetch=prefetch.Prefetch(True, resolve_device()))
    batches = source.epoch(0)
    next(batches)
    batch = next(batches)
    assert batch[0].place.is_custom_place()
    reference = weakref.ref(batch[0])
    del batch
    assert reference() is None
    assert threads() == [THREAD]
    batches.close()  # type: ignore[attr-defined]
    assert threads() == []
    source.close()


class Leaves(Callback):
    """Ends the epoch, the fit or the run at batch 3."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> Any:
        if batch_idx != 3:
            return None
        if self.how == "error":
            raise ZeroDivisionError
        if self.how == "stop":
            trainer.stop()
        if self.how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return -1 if self.how == "break" else None


@pytest.mark.parametrize("how", ["error", "stop", "signal", "break"])
@pytest.mark.parametrize("name", LOADERS)
def test_no_thread_is_left_however_the_fit_ends(name: str, how: str, quick_workers: None) -> None:
    seen_in_thread: list[int] = []

    class Watches(Learner):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen_in_thread.append(len(threads()))
            return super().training_step(batch, batch_idx)

    module, ends = Watches(), {"error": ZeroDivisionError, "signal": SystemExit}
    trainer = quiet_trainer(seed=3, max_epochs=2, prefetch_to_device=True, callbacks=[Leaves(how)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no effect")
        try:
            trainer.fit(module, LOADERS[name]())
        except BaseException as error:
            assert type(error) is ends[how]
        else:
            assert how in ("stop", "break")
    assert threads() == []
    assert set(seen_in_thread) == ({0} if name == "map, 0 workers" else {1})
    assert trainer.progress.batches_in_epoch == (0 if how == "break" else 4 if how in ("stop", "signal") else 3)


def test_persistent_workers_serve_the_next_epoch_after_a_break(quick_workers: None) -> None:
    runs = [
        fit(map_loader(persistent_workers=True), mode, max_epochs=3, callbacks=[Leaves("break")])[0].seen
        for mode in (False, True)
    ]
    assert len(runs[0]) == 9
    assert runs[0] == runs[1]


def test_what_has_code_of_its_own_is_moved_in_the_training_thread() -> None:
    moved_in: list[str] = []

    class Graph:
        def __init__(self, batch: Any) -> None:
            self.batch = batch

        def to(self, place: Any) -> Any:
            moved_in.append(threading.current_thread().name)
            return data.move_to_device(self.batch, place)

    fit([Graph(batch) for batch in host_batches()], True)
    assert moved_in == ["MainThread"] * BATCHES


def test_with_transfer_hooks_it_has_no_effect_and_says_so(copies: list[str]) -> None:
    class Hooked(Learner):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    trainer = quiet_trainer(prefetch_to_device=True)
    with pytest.warns(UserWarning, match=r"prefetch_to_device=True\) has no effect: Hooked moves its batches by hooks"):
        trainer.fit(Hooked(), host_batches())
    assert (trainer.prefetches_to_device, copies) == (False, ["training"] * 2 * BATCHES)


def test_with_transfer_hooks_of_the_data_module_it_has_no_effect(copies: list[str]) -> None:
    class Data(DataModule):
        def train_dataloader(self) -> Any:
            return host_batches()

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    trainer = quiet_trainer(prefetch_to_device=True)
    with pytest.warns(UserWarning, match=r"prefetch_to_device=True\) has no effect: Data moves its batches by hooks"):
        trainer.fit(Learner(), datamodule=Data())
    assert copies == ["training"] * 2 * BATCHES


def test_a_sequence_that_may_make_its_batches_when_asked_is_not_ahead(copies: list[str]) -> None:
    class Made(list):  # type: ignore[type-arg]
        pass

    fit(Made(host_batches()), True)
    assert copies == ["training"] * 2 * BATCHES


def test_data_fetched_in_this_process_is_not_ahead_and_says_so() -> None:
    class Harder(Samples):
        level = 0

        def __getitem__(self, index: int) -> Any:
            return np.full(4, self.level, "float32"), np.int64(0)

    class Raises(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            dataset.level = batch_idx + 1

    dataset, module = Harder(), Learner()
    trainer = quiet_trainer(prefetch_to_device=True, callbacks=[Raises()])
    with pytest.warns(UserWarning, match="has no effect: only lists of batches, iterables, and DataLoaders with"):
        trainer.fit(module, map_loader(0, dataset=dataset))
    assert [seen[-1][0][0][0] for seen in module.seen] == list(range(BATCHES))


@pytest.mark.parametrize(
    ("copy", "batch", "expected"),
    [
        (10e-3, 100e-3, True),
        (1e-3, 100e-3, False),
        (2.1e-3, 100e-3, True),
        (40e-6, 1e-3, False),  # 4 %, but giving it to the thread would cost more
    ],
)
def test_auto_is_on_where_the_copy_is_worth_it(
    copy: float, batch: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def copied_to(tensor: Any, place: Any) -> Any:
        now[0] += copy / 2
        return original(tensor, place)

    original = data.copied_to
    monkeypatch.setattr(data, "copied_to", copied_to)
    monkeypatch.setattr(prefetch.time, "perf_counter", lambda: now[0])
    decides = prefetch.Prefetch("auto", resolve_device())
    for number, host in enumerate(host_batches(20)):
        assert (decides.is_on is None) == (number < 14)
        decides.move(host)
        now[0] += 5.0 if number in (2, 9) else batch - copy  # a first kernel, a validation
    assert decides.is_on is expected
    assert decides.describe() == (
        f"prefetch to the device: {'on' if expected else 'off'}; "
        f"copying took {copy * 1e3:.3g} of a batch's {batch * 1e3:.3g} ms"
    )


def test_auto_is_off_where_batches_are_on_the_device_already(copies: list[str]) -> None:
    place = resolve_device().place
    batches = data.move_to_device(host_batches(), place)
    copies.clear()
    _, trainer = fit(batches, "auto")
    assert (trainer.prefetches_to_device, copies) == (False, [])


def test_the_profile_tells_what_was_decided(decides_after_two_batches: None, tmp_path: Path) -> None:
    _, trainer = fit(host_batches(), "auto", profiler="simple", enable_checkpointing=True, default_root_dir=tmp_path)
    text = (trainer.run_dir / "profile.txt").read_text()
    assert text.rstrip().splitlines()[-1].startswith("prefetch to the device: on; copying took ")


def test_no_process_is_forked_while_the_thread_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    original, began, is_copying = data.copied_to, threading.Event(), [False]

    def copied_to(tensor: Any, place: Any) -> Any:
        is_copying[0] = True
        began.set()
        time.sleep(0.2)
        moved = original(tensor, place)
        is_copying[0] = False
        return moved

    monkeypatch.setattr(data, "copied_to", copied_to)
    copier = prefetch.Prefetch(True, resolve_device())
    upcoming = copier.start(host_batches(1)[0][0])
    began.wait()
    child = os.fork()
    if child == 0:
        os._exit(1 if is_copying[0] else 0)
    assert os.waitpid(child, 0)[1] == 0
    upcoming.wait()
    copier.close()


def training_thread_is_in(function: Any) -> bool:
    frame = sys._current_frames()[threading.main_thread().ident]  # type: ignore[index]
    return any(found.f_code is function.__code__ for found, _ in traceback.walk_stack(frame))


def test_a_signal_while_looking_ahead_leaves_the_position_before_the_batch_in_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stuck(Samples):
        def __getitem__(self, index: int) -> Any:
            if index == 14 and not (tmp_path / "began").exists():
                (tmp_path / "began").touch()
                time.sleep(600)
            return super().__getitem__(index)

    def preempt() -> None:
        while not (
            (tmp_path / "began").exists() and len(module.seen) == 2 and training_thread_is_in(WorkerPool.receive)
        ):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(WorkerPool, "has_answered", lambda pool, number: True)  # what it waits for is batch 3
    saving = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint()], "default_root_dir": tmp_path}
    whole, _ = fit(map_loader(shuffle=False), False)
    module, resumed = Learner(), Learner()
    preempts = threading.Thread(target=preempt)
    preempts.start()
    trainer = quiet_trainer(seed=3, prefetch_to_device=True, **saving)
    with pytest.raises(SystemExit):
        trainer.fit(module, map_loader(dataset=Stuck(), shuffle=False))
    preempts.join()
    assert trainer._fit.data.train.state_dict()["batches_done"] == 2
    quiet_trainer(seed=3, prefetch_to_device=True, **saving).fit(
        resumed, map_loader(dataset=Stuck(), shuffle=False), ckpt_path="last"
    )
    assert len(module.seen) == 2
    assert whole.seen == module.seen + resumed.seen


@pytest.mark.parametrize("where", ["training", pytest.param("validation", marks=pytest.mark.soak)])
def test_a_wait_for_data_does_not_keep_a_preempted_run_from_saving(where: str, tmp_path: Path) -> None:
    waiting.preempt_and_resume(tmp_path, 2, where, "prefetch_to_device=True")
