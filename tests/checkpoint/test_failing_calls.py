"""A save whose n-th file-system call fails leaves everything as it was, for every n."""

import errno
import os
import resource
import signal
import subprocess
import warnings

import numpy as np
import pytest
from store_support import (
    ERRNOS,
    NthCallFails,
    assert_links_lead_somewhere,
    copy_run,
    files_of,
    in_child,
    leftovers,
    links_of,
    save,
    save_last,
    step_in,
)

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore
from paddlelite_trainer.errors import CheckpointSaveError


@pytest.fixture
def template(memory_dir):
    store = CheckpointStore(memory_dir / "template")
    for step in (1, 2, 3):
        save_last(store, step, keep=2)
    store.tag(store.entries()[0], "mine")
    store.close()
    return memory_dir / "template"


def description(run):
    """Everything that a user can see of a run: pins, entries, links."""
    store = CheckpointReader(run)
    return store.pins(), [(entry.name, entry.sha256) for entry in store.entries()], links_of(run)


def save_with_failure(template, run, fail_at, error_number, background):
    copy_run(template, run)
    file_system = NthCallFails(fail_at, error_number)
    store = CheckpointStore(run, file_system=file_system)
    before = description(run)
    file_system.arm()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            save_last(store, 4, keep=2, background=background)
            store.wait()
            error = None
        except CheckpointSaveError as raised:
            error = raised
    file_system.armed = False
    return store, before, error, [str(warning.message) for warning in caught], file_system.calls


def check_every_failure(template, run, error_number, background=False):
    fail_at = 0
    failed = 0
    while True:
        fail_at += 1
        store, before, error, warned, calls = save_with_failure(template, run, fail_at, error_number, background)
        where = f"call {fail_at} ({calls[-1]})"
        if len(calls) < fail_at:
            break
        if error is not None:
            failed += 1
            assert error.errno == error_number, where
            assert "step-000000004" in str(error) and "step-000000003" in str(error), where
            assert description(run) == before, where
            assert leftovers(run) == [], where
            assert [entry.step for entry in store.entries()] == [2, 3], where
        else:
            # It failed after the commit: the save stands, and the user hears about the rest; the next one catches up.
            assert step_in(store.read(store.newest())) == 4, where
            assert [entry.step for entry in store.by_pin("last")] == [4, 3], where
            assert any("The next save tries again" in text for text in warned), where
        save_last(store, 5, keep=2)
        assert [entry.step for entry in store.by_pin("last")] == [5, 3 if error else 4], where
        assert store.entries()[0].step == 2, f"{where}: the tagged one"
        assert_links_lead_somewhere(run)
        again = CheckpointStore(run)
        assert leftovers(run) == [], where
        assert [entry.step for entry in again.entries()] == [2, *([3] if error else [4]), 5], where
        assert all(step_in(again.read(entry)) for entry in again.entries())
    return fail_at - 1, failed


@pytest.mark.usefixtures("record_of_pins")
@pytest.mark.parametrize("error_number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_whichever_call_fails_the_old_checkpoints_and_pins_stay(template, memory_dir, error_number):
    calls, failed = check_every_failure(template, memory_dir / "run", error_number)
    assert calls > 50 and 20 < failed < calls


@pytest.mark.usefixtures("record_of_pins")
def test_whichever_call_fails_in_the_background_the_error_surfaces(template, memory_dir):
    calls, failed = check_every_failure(template, memory_dir / "run", errno.EDQUOT, background=True)
    assert calls > 50 and failed > 20


@pytest.mark.usefixtures("record_of_pins")
def test_whenever_the_disk_dies_for_good_what_was_committed_is_found_on_it(template, memory_dir):
    run = memory_dir / "run"
    outcomes = set()
    for fail_at in range(1, 90):
        copy_run(template, run)
        file_system = NthCallFails(fail_at, from_then_on=True)
        store = CheckpointStore(run, file_system=file_system)
        file_system.arm()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                save_last(store, 4, keep=2)
                saved = True
            except CheckpointSaveError:
                saved = False
        again = CheckpointStore(run)
        steps = [entry.step for entry in again.entries()]
        assert steps in ([2, 3, 4], [2, 3]), f"call {fail_at}"
        assert steps[-1] == 4 or not saved
        assert step_in(again.read(again.newest())) == steps[-1]
        assert leftovers(run) == []
        outcomes.add(saved)
    assert outcomes == {True, False}


@pytest.mark.usefixtures("record_of_pins")
@pytest.mark.soak
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("error_number", ERRNOS, ids=errno.errorcode.get)
def test_whichever_call_fails_with_whichever_error(template, memory_dir, error_number, background):
    check_every_failure(template, memory_dir / "run", error_number, background)


@pytest.mark.usefixtures("record_of_pins")
def test_a_pin_whose_record_cannot_be_written_is_not_set(template, memory_dir):
    """Every call of `tag` fails in turn: the tag is there or an OSError tells that it is not."""
    run = memory_dir / "run"
    outcomes = set()
    for fail_at in range(1, 40):
        copy_run(template, run)
        file_system = NthCallFails(fail_at)
        store = CheckpointStore(run, file_system=file_system)
        file_system.arm()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                store.tag("step-000000003", "new")
                raised = False
            except OSError:
                raised = True
        file_system.armed = False
        assert store.by_pin("mine"), "other pins are untouched"
        assert bool(store.by_pin("new")) is not raised
        assert bool(CheckpointStore(run).by_pin("new")) is not raised
        outcomes.add(raised)
    assert outcomes == {True, False}


def test_a_full_disk_says_how_much_was_needed_and_how_much_was_there(tmp_path):
    class FullDisk(NthCallFails):
        def free_space(self, path):
            return 1000

    store = CheckpointStore(tmp_path, file_system=FullDisk())
    with pytest.raises(CheckpointSaveError, match=r"8\.0 MB are needed and 1\.0 kB are free") as caught:
        save(store, 1, files=files_of(1) | {"model.pdparams": {"w": np.zeros(1_000_000)}})
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value, OSError)
    assert leftovers(tmp_path) == [] and store.entries() == []


@pytest.mark.parametrize("megabytes", [1, 2, 3, 4])
def test_a_small_disk_that_fills_up_keeps_the_checkpoint_before(tmp_path, megabytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs privileges: " + mounted.stderr.decode().strip())
    try:
        run = disk / "run"

        class Optimist(NthCallFails):
            def free_space(self, path):
                return 1 << 40  # so that it is the disk itself that refuses

        store = CheckpointStore(run, file_system=Optimist())
        save(store, 1)
        for step in (2, 3):
            with pytest.raises(CheckpointSaveError, match="are needed and"):
                save(store, step, files=files_of(step, size=megabytes << 17))
            assert leftovers(run) == []
            assert step_in(store.read(store.newest())) == 1
        save(store, 4)
        assert [entry.step for entry in CheckpointStore(run).entries()] == [4]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_size_limit_is_an_error_like_any_other(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        own = CheckpointStore(tmp_path)
        with pytest.raises(CheckpointSaveError) as caught:
            save(own, 2, files=files_of(2, size=100_000))
        assert caught.value.errno == errno.EFBIG
        assert step_in(own.read(own.newest())) == 1

    assert in_child(limited) == 0
    assert leftovers(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    save(CheckpointStore(disk / "run"), 1)
    # root may write where permissions forbid it, so a read-only mount stands for the directory.
    if subprocess.run(["mount", "--bind", disk, disk], capture_output=True).returncode:
        pytest.skip("mounting needs privileges")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        with pytest.raises(CheckpointSaveError, match="Read-only file system"):
            CheckpointStore(disk / "fresh")
        with pytest.raises(CheckpointSaveError, match="Read-only file system"):
            CheckpointStore(disk / "run")
        reader = CheckpointReader(disk / "run")
        assert step_in(reader.read(reader.newest())) == 1
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.usefixtures("record_of_pins")
def test_an_interrupt_in_the_middle_of_a_save_leaves_nothing_behind(template, memory_dir):
    """Ctrl-C may come between any two calls; what it interrupts is undone like a failure."""
    run = memory_dir / "run"

    class Interrupts(NthCallFails):
        def before(self, name, args):
            try:
                super().before(name, args)
            except OSError:
                raise KeyboardInterrupt from None

    for fail_at in range(1, 60):
        copy_run(template, run)
        file_system = Interrupts(fail_at)
        store = CheckpointStore(run, file_system=file_system)
        file_system.arm()
        try:
            save_last(store, 4, keep=2)
        except KeyboardInterrupt:
            pass
        file_system.armed = False
        again = CheckpointStore(run)
        steps = [entry.step for entry in again.entries()]
        assert steps in ([2, 3], [2, 3, 4]), f"call {fail_at} ({file_system.calls[-1]})"
        assert leftovers(run) == []
        assert [entry.step for entry in again.by_pin("latest")] == steps[-1:]


def test_a_failed_fsync_is_not_tried_again_on_the_same_file(tmp_path):
    """After a failed fsync the kernel may have dropped the data and call the next one a success."""

    class FsyncFails(NthCallFails):
        def __init__(self):
            super().__init__()
            self.fsynced = []

        def fsync(self, descriptor):
            self.fsynced.append(os.fstat(descriptor).st_ino)
            raise OSError(errno.EIO, "Input/output error")

    file_system = FsyncFails()
    store = CheckpointStore(tmp_path, file_system=file_system)
    with pytest.raises(CheckpointSaveError, match="Input/output error"):
        save(store, 1)
    assert len(file_system.fsynced) == len(set(file_system.fsynced))
    assert leftovers(tmp_path) == []
