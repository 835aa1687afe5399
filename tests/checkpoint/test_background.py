"""Background saves: a snapshot nothing changes, one at a time, errors that surface, no part in forked children."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from store_support import HookedFileSystem, assert_links_lead_somewhere, files_of, in_child, leftovers, save, step_in

from paddlelite_trainer.checkpoint import CheckpointStore, choose_background, open_checkpoint
from paddlelite_trainer.errors import CheckpointSaveError


class Gate(HookedFileSystem):
    """Holds writes back until it is opened."""

    def __init__(self):
        self.open = threading.Event()

    def before(self, name, args):
        if name == "write":
            self.open.wait(60)


class Full(HookedFileSystem):
    full = True

    def before(self, name, args):
        if name == "write" and self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_changing_the_state_in_place_after_save_returns_is_not_saved(memory_dir):
    store = CheckpointStore(memory_dir)
    weight, moment = np.empty((64, 64), np.float32), np.empty((64, 64), np.float32).T
    history = np.empty(8)
    for step in range(1, 201):
        for array in (weight, moment, history):
            array[...] = step
        entry = save(
            store,
            step,
            files={"model.pdparams": {"w": weight, "tied": weight}, "optimizer.pdopt": {"m": moment}},
            states={
                "trainer.json": {"global_step": step, "history": [history]},
                "rng-rank00000.json": {"seed": (step,)},
            },
            background=True,
        )
        for array in (weight, moment, history):
            array[...] = -1
        store.wait()
        assert step_in(store.read(entry)) == step


def test_save_returns_before_anything_is_written_and_the_next_one_waits(memory_dir):
    gate = Gate()
    store = CheckpointStore(memory_dir, file_system=gate)
    first = save(store, 1, background=True)
    assert store.busy and store.entries() == []
    assert first.name == "step-000000001" and first.pins == ("latest",)
    threading.Timer(0.1, gate.open.set).start()
    save(store, 2, background=True)  # waits, or there would be two
    assert gate.open.is_set()
    store.wait()
    assert not store.busy
    assert [entry.step for entry in store.entries()] == [2]
    assert step_in(store.read(store.entries()[0])) == 2


def test_the_entry_that_save_returns_is_the_one_that_is_committed(memory_dir):
    store = CheckpointStore(memory_dir)
    for background in (False, True):
        saved = save(store, 1, metrics={"m": 0.5}, info={"note": (1, 2)}, background=background)
        store.wait()
        [found] = store.entries()
        assert (found.name, found.path, found.nbytes, found.created) == (
            saved.name,
            saved.path,
            saved.nbytes,
            saved.created,
        )
        assert found.metrics == {"m": 0.5} and found.info == {"note": (1, 2)} and len(found.sha256) == 64
        assert CheckpointStore(memory_dir).entries() == [found]


@pytest.mark.parametrize("surface", ["next save", "wait", "close"])
def test_an_error_in_the_background_is_raised_once(memory_dir, surface):
    file_system = Full()
    store = CheckpointStore(memory_dir, file_system=file_system)
    file_system.full = False
    save(store, 1)
    file_system.full = True
    save(store, 2, background=True)
    raising = {"next save": lambda: save(store, 3), "wait": store.wait, "close": store.close}[surface]
    with pytest.raises(CheckpointSaveError, match=r"step-000000002 was not saved .* are needed and .* were free"):
        raising()
    store.wait()
    assert [entry.step for entry in store.entries()] == [1] and leftovers(memory_dir) == []
    file_system.full = False
    save(store, 3)
    assert [entry.step for entry in store.entries()] == [3]


def test_what_is_not_storable_is_said_at_once_even_in_the_background(memory_dir):
    store = CheckpointStore(memory_dir)
    with pytest.raises(TypeError, match=r"trainer.json\['x'\] is a builtins.object"):
        save(store, 1, states={"trainer.json": {"x": object()}}, background=True)
    assert not store.busy


def test_a_forked_child_neither_waits_for_its_parents_save_nor_harms_it(memory_dir):
    gate = Gate()
    store = CheckpointStore(memory_dir, file_system=gate)
    save(store, 1, background=True)

    def child():  # as a data-loading worker that ends in good order
        assert not store.busy
        store.wait()
        store.close()

    assert in_child(child) == 0
    gate.open.set()
    store.wait()
    assert step_in(store.read(store.newest())) == 1


def test_an_interpreter_that_ends_finishes_its_save(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from store_support import *\n"
        "save(CheckpointStore(sys.argv[1]), 1, files=files_of(1, 300_000), background=True)"
    )
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, tmp_path, here, here.parent.parent], check=True)
    store = CheckpointStore(tmp_path)
    assert step_in(store.read(store.newest())) == 1


def test_the_host_memory_is_reused(memory_dir):
    store = CheckpointStore(memory_dir)
    save(store, 1, files=files_of(1, 10_000), background=True)
    store.wait()
    memory = store._buffer._memory
    for step in (2, 3):
        save(store, step, files=files_of(step, 10_000 - step), background=True)
        store.wait()
    assert store._buffer._memory is memory


def test_auto_saves_small_or_quick_states_where_they_stand():
    assert not choose_background(1 << 20, 10.0)
    assert choose_background(1 << 30, None)
    assert choose_background(1 << 30, 0.5)
    assert not choose_background(1 << 30, 0.01)


def test_auto_is_taken_by_save(memory_dir):
    store = CheckpointStore(memory_dir, file_system=(gate := Gate()))
    gate.open.set()
    save(store, 1, background="auto")
    assert not store.busy and store.save_seconds > 0
    gate.open.clear()
    store.save_seconds = 1.0
    save(store, 2, files=files_of(2, 3_000_000), background="auto")
    assert store.busy
    gate.open.set()
    store.close()


# ---- kills under load ----


def endless_saves(run, acknowledged):
    """Train and save in the background for ever; each finished save is written to the pipe."""
    store = CheckpointStore(run)
    newest = store.newest()
    first = step = newest.step if newest else 0
    weight = np.empty(20_000, np.float32)
    while True:
        step += 1
        weight[:] = step
        files = {"model.pdparams": {"w": weight}, "optimizer.pdopt": {"m": weight}}
        store.wait()
        if step > first + 1:
            os.write(acknowledged, store.entries()[-1].step.to_bytes(8, "big"))
        last = [entry.name for entry in reversed(store.entries())][:1]
        save(store, step, {"last": ["new", *last]}, files=files, background=True)
        weight[:] = -1


def kill_at_random(run, times):
    rng = random.Random(7)
    highest = 0
    for _ in range(times):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                endless_saves(run, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read(8)  # it has begun
            time.sleep(rng.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            said += pipe.read()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        acknowledged = int.from_bytes(said[-8:], "big")
        highest = max(highest, acknowledged)
        reader_store = CheckpointStore(run, read_only=True)
        newest = reader_store.newest()
        assert (newest.step if newest else 0) >= highest, f"{highest} was acknowledged"
        for entry in reader_store.entries():
            assert step_in(reader_store.read(entry)) == entry.step
    store = CheckpointStore(run)
    assert leftovers(run) == []
    assert_links_lead_somewhere(run)
    assert highest >= times
    return store


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_random_kills_under_load_lose_nothing_acknowledged(tmp_path):
    kill_at_random(tmp_path, 12)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_three_hundred_random_kills_under_load_lose_nothing_acknowledged(tmp_path):
    kill_at_random(tmp_path, 300)


# ---- readers beside a writer ----


def read_for_ever(run, result):
    """Follow `latest` in every way until told to stop, and report the number of reads."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    reads = 0
    store = CheckpointStore(run, read_only=True)
    while not stop.is_set():
        assert step_in(open_checkpoint(run / "latest")) >= 1
        assert step_in(open_checkpoint(run / "latest.pdparams")) >= 1
        content = plain_read(run / "latest.pdparams")
        assert content.startswith(b"\x80\x04") and content.endswith(b"uu.")
        assert all(entry.step >= 1 for entry in store.entries())
        reads += 3
    os.write(result, reads.to_bytes(8, "big"))


def plain_read(path):
    """As paddle.load reads: whole, whatever is deleted meanwhile. Only between two parts of the path is it too late."""
    while True:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            continue


class WriterStepsIn(HookedFileSystem):
    """A reader's file system: before each of some of its calls a writer saves, and deletes what the reader looks at."""

    def __init__(self, writer, moments):
        self.writer, self.moments, self.calls = writer, moments, 0

    def before(self, name, args):
        self.calls += 1
        if self.calls in self.moments:
            save(self.writer, self.writer.entries()[-1].step + 1)


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("name", ["latest", "latest.pdparams", None])
def test_saves_between_any_calls_of_a_reader_do_not_disturb_it(memory_dir, name, times):
    moment = 0
    while True:
        moment += 1
        run = memory_dir / str(moment)
        writer = CheckpointStore(run)
        save(writer, 1)
        file_system = WriterStepsIn(writer, range(moment, moment + times))
        if name:
            saved = open_checkpoint(run / name, file_system=file_system)
        else:
            store = CheckpointStore(run, file_system=file_system, read_only=True)
            saved = store.read(store.newest())
        if file_system.calls < moment:
            break
        assert step_in(saved) >= 1
    assert moment > 10


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_readers_of_latest_never_see_a_torn_checkpoint_while_it_is_pruned(memory_dir, seconds):
    store = CheckpointStore(memory_dir)
    save(store, 1)
    pipe, result = os.pipe()
    readers = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                read_for_ever(memory_dir, result)
                code = 0
            finally:
                os._exit(code)
        readers.append(child)
    end = time.monotonic() + seconds
    step = 1
    while time.monotonic() < end:
        step += 1
        save(store, step)
    for child in readers:
        os.kill(child, signal.SIGTERM)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in readers]
    assert codes == [0, 0]
    reads = [int.from_bytes(os.read(pipe, 8), "big") for _ in readers]
    print(f"{step} saves, {sum(reads)} reads")
    assert min(reads) > 10 and step > 10
