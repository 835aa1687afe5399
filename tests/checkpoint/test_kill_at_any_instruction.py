"""A process that dies at any instruction of a save leaves the checkpoints before it, or those and the new one."""

import os
import sys
import threading

import pytest
from store_support import (
    HookedFileSystem,
    assert_links_lead_somewhere,
    copy_run,
    in_child,
    leftovers,
    save_last,
    step_in,
)

from paddlelite_trainer.checkpoint import REAL, CheckpointStore

STEP = 100  # of the save that is killed; the checkpoints before it have the steps 1, 2, ...
OURS = os.sep + os.path.join("paddlelite_trainer", "checkpoint") + os.sep
KILLED = 9


def run_with(directory, prior, keep):
    store = CheckpointStore(directory)
    for step in range(1, prior + 1):
        save_last(store, step, keep)
    store.close()


def save_in_child(directory, keep, *, background, die_at=0, count=None, file_system=REAL):
    """In this process: open, save, and die at the `die_at`-th instruction of our code; or count them all."""
    store = CheckpointStore(directory, file_system=file_system)
    seen = 0

    def trace(frame, event, arg):
        nonlocal seen
        if OURS not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == die_at:
                os._exit(KILLED)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    save_last(store, STEP, keep, background=background)
    store.wait()
    sys.settrace(None)
    if count is not None:
        os.write(count, str(seen).encode())


def instructions_of_a_save(directory, keep, *, background):
    reader, writer = os.pipe()
    assert in_child(lambda: save_in_child(directory, keep, background=background, count=writer)) == 0
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def check_after_death(directory, prior, keep):
    """The survivor has all that was committed, whole, and nothing else, and can go on: whether the new one is there."""
    store = CheckpointStore(directory)
    steps = [entry.step for entry in store.entries()]
    before = list(range(1, prior + 1))[-keep:]
    after = [*before, STEP][-keep:]
    assert steps in (before, after), f"{steps} are left of {before} and {STEP}"
    newest = store.newest()
    assert (newest.step if newest else None) == (steps[-1] if steps else None)
    for entry in store.entries():
        assert step_in(store.read(entry)) == entry.step
    assert [entry.step for entry in store.by_pin("last")] == steps[::-1]
    assert [entry.step for entry in store.by_pin("latest")] == steps[-1:]
    assert leftovers(directory) == []
    assert_links_lead_somewhere(directory)
    if steps:
        assert os.readlink(directory / "latest") == f"checkpoints/{newest.name}"
    save_last(store, STEP + 1, keep)
    assert [entry.step for entry in store.entries()] == [*steps, STEP + 1][-keep:]
    return steps == after


def kill_at(template, run, prior, keep, background, points):
    outcomes = set()
    for point in points:
        copy_run(template, run)
        code = in_child(lambda point=point: save_in_child(run, keep, background=background, die_at=point))
        # Threads that count side by side may miss an instruction, so the last of them may not be reached.
        assert code == KILLED or (code == 0 and point > points[-1] * 0.98), f"instruction {point}: exit code {code}"
        outcomes.add(check_after_death(run, prior, keep))
    return outcomes


@pytest.mark.parametrize(
    ("prior", "keep", "background"),
    [
        (0, 1, False),
        pytest.param(1, 1, False, marks=pytest.mark.soak),
        pytest.param(2, 2, True, marks=pytest.mark.soak),
        (3, 1, True),
        pytest.param(3, 3, False, marks=pytest.mark.soak),
    ],
)
@pytest.mark.usefixtures("record_of_pins")
def test_killed_at_any_instruction_nothing_committed_is_lost_or_mixed(memory_dir, prior, keep, background):
    run_with(memory_dir / "template", prior, keep)
    copy_run(memory_dir / "template", memory_dir / "count")
    total = instructions_of_a_save(memory_dir / "count", keep, background=background)
    points = range(1 + total // 100, total, total // 90)
    outcomes = kill_at(memory_dir / "template", memory_dir / "run", prior, keep, background, points)
    assert outcomes == {False, True}, "the points lie on one side of the commit"


@pytest.mark.usefixtures("record_of_pins")
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("prior", [0, 1, 2, 3])
def test_killed_at_hundreds_of_instructions(memory_dir, prior, keep, background):
    run_with(memory_dir / "template", prior, keep)
    copy_run(memory_dir / "template", memory_dir / "count")
    total = instructions_of_a_save(memory_dir / "count", keep, background=background)
    points = range(1, total, max(1, total // 250))
    assert len(points) >= 200
    outcomes = kill_at(memory_dir / "template", memory_dir / "run", prior, keep, background, points)
    assert outcomes == {False, True}


class DiesAtCall(HookedFileSystem):
    """Ends the process just before, half-way through (of a write) or just after the n-th call."""

    def __init__(self, die_at, moment):
        self.die_at, self.moment, self.calls = die_at, moment, 0
        self.lock = threading.Lock()  # fsyncs run side by side
        self.doomed = False

    def before(self, name, args):
        with self.lock:
            self.calls += 1
            if self.calls != self.die_at:
                return
            self.doomed = True
        if self.moment == "before":
            os._exit(KILLED)
        if self.moment == "within":
            if name == "write":
                os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
            os._exit(KILLED)

    def after(self, name, args, result):
        if self.doomed:
            os._exit(KILLED)


@pytest.mark.usefixtures("record_of_pins")
@pytest.mark.parametrize(("prior", "keep"), [pytest.param(0, 1, marks=pytest.mark.soak), (2, 1)])
@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.soak), "within", "after"])
def test_killed_around_every_file_system_call_nothing_is_lost(memory_dir, prior, keep, moment):
    """Opening the store is among them: a process may die while it clears up after one that died."""
    run_with(memory_dir / "template", prior, keep)
    copy_run(memory_dir / "template", memory_dir / "run")
    counter = DiesAtCall(0, moment)
    save_in_child(memory_dir / "run", keep, background=False, file_system=counter)
    assert counter.calls > 60
    outcomes = set()
    for die_at in range(1, counter.calls + 1):
        copy_run(memory_dir / "template", memory_dir / "run")
        file_system = DiesAtCall(die_at, moment)
        code = in_child(
            lambda fs=file_system: save_in_child(memory_dir / "run", keep, background=False, file_system=fs)
        )
        # A call that raises (asking after a name that is not there) has no "after".
        assert code == KILLED or (code == 0 and moment == "after")
        outcomes.add(check_after_death(memory_dir / "run", prior, keep))
    assert outcomes == {False, True}
