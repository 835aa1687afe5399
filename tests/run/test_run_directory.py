"""Who may write a run's directory, and what it says of itself."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_support import python, save

from paddlelite_trainer.errors import (
    CheckpointSaveError,
    ConfigurationError,
    RunLockedError,
)
from paddlelite_trainer.run.directory import RunDirectory, read_run
from paddlelite_trainer.run.resolve import resolve

HOLD = """
    import sys
    from paddlelite_trainer.run.directory import RunDirectory
    run = RunDirectory(sys.argv[1])
    print("held", flush=True)
    sys.stdin.read()
"""


# -- directories -----------------------------------------------------------------------------------------------------
def test_fresh_runs_get_the_next_free_number(tmp_path):
    (tmp_path / "version_7").mkdir()
    with_number = RunDirectory.create(tmp_path)
    another = RunDirectory.create(tmp_path)
    assert [with_number.path.name, another.path.name] == ["version_8", "version_9"]
    with_number.close()
    another.close()


def test_a_named_run_lives_under_its_name(tmp_path):
    run = RunDirectory.create(tmp_path / "deep" / "runs", run_name="группа α/baseline 1")
    assert run.path == tmp_path / "deep" / "runs" / "группа α" / "baseline 1"
    run.close()


@pytest.mark.parametrize("name", ["", "../other", "a/../../b", "/abs", "nul\0"])
def test_a_run_name_that_leaves_the_root_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match="run_name must name a directory below"):
        RunDirectory.create(tmp_path, run_name=name)


def test_a_run_name_that_no_directory_can_have_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is longer than a directory's name can be \(255 bytes\)"):
        RunDirectory.create(tmp_path, run_name="模" * 100)


def test_a_fresh_run_never_mixes_with_an_old_one_of_the_same_name(tmp_path):
    save(tmp_path / "x", 1)
    with pytest.raises(ConfigurationError, match=r"already holds a run with checkpoints.*ckpt_path='last'"):
        RunDirectory.create(tmp_path, run_name="x")
    assert not (tmp_path / "x" / "run.json").exists()
    RunDirectory.resume(tmp_path / "x").close()  # the refused run did not keep the lock


def test_a_named_run_that_died_before_its_first_checkpoint_starts_again(tmp_path):
    RunDirectory.create(tmp_path, run_name="x").close()
    run = RunDirectory.create(tmp_path, run_name="x")
    assert read_run(run.path).sessions == 2
    run.close()


def test_a_file_where_the_root_should_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigurationError, match=r"runs.*is a file"):
        RunDirectory.create(tmp_path / "runs" / "deeper")


def test_relative_and_linked_roots_survive_a_chdir_and_a_moved_link(tmp_path, monkeypatch):
    for name in ("real", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create("link/runs")
    monkeypatch.chdir(tmp_path / "other")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    run.close("finished")
    assert run.path == tmp_path / "real" / "runs" / "version_0"
    assert read_run(run.path).status == "finished"


def test_a_root_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(CheckpointSaveError, match=r"cannot make a run directory below .*runs: .*Permission denied"):
        RunDirectory.create(tmp_path / "runs")


# -- what a run says of itself ---------------------------------------------------------------------------------------
def test_a_running_run_says_who_where_and_how(tmp_path):
    run = RunDirectory.create(tmp_path)
    info = read_run(run.path)
    assert (info.status, info.pid, info.host) == ("running", os.getpid(), socket.gethostname())
    assert Path(sys.executable).name in info.command
    assert str(info).startswith(f"running (process {os.getpid()} on {socket.gethostname()} since ")
    run.close()


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("finished", "finished"),
        ("stopped: val_acc did not improve: 5 epochs", "stopped: val_acc did not improve: 5 epochs"),
        ("failed: ValueError: no key\nsecond line", "failed: ValueError: no key"),
        ("interrupted by SIGTERM", "interrupted: by SIGTERM"),
    ],
)
def test_an_ended_run_says_how_it_ended(tmp_path, outcome, said):
    run = RunDirectory.create(tmp_path)
    run.close(outcome)
    run.close("finished")
    assert str(read_run(run.path)) == said
    assert read_run(run.path).ended is not None


def test_an_ended_run_says_the_first_line_of_its_reason(tmp_path):
    path = tmp_path / "version_0"
    save(path, 1)
    RunDirectory.resume(path).close("failed: ValueError: 2 problems\n  - this\n  - that")
    info = read_run(path)
    assert str(info) == "failed: ValueError: 2 problems"
    assert info.reason == "ValueError: 2 problems\n  - this\n  - that"
    assert "\n" not in resolve("last", default_root_dir=tmp_path).message


def test_an_unknown_outcome_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path)
    with pytest.raises(ConfigurationError, match="begins with finished, stopped, failed, interrupted, got 'done'"):
        run.close("done")
    run.close()


def test_a_killed_run_says_that_it_was_killed(tmp_path):
    holder = python(HOLD, tmp_path)
    holder.stdout.readline()
    assert read_run(tmp_path).status == "running"
    holder.kill()
    holder.wait()
    assert read_run(tmp_path).status == "killed"


def test_a_resumed_run_keeps_its_beginning_and_counts_its_sessions(tmp_path):
    RunDirectory(tmp_path).close("interrupted by SIGTERM")
    created = json.loads((tmp_path / "run.json").read_text())["created"]
    run = RunDirectory.resume(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["created"], record["sessions"], record["status"], record["ended"]) == (created, 2, "running", None)
    run.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "running"}', '{"status": 1, "pid": "x"}', "\xff"])
def test_a_broken_run_json_is_no_error(tmp_path, content):
    (tmp_path / "run.json").write_text(content, encoding="latin1")
    assert read_run(tmp_path) is None
    RunDirectory(tmp_path).close("finished")
    assert read_run(tmp_path).status == "finished"


def test_a_full_disk_at_the_end_warns_and_does_not_raise(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match=r"cannot record in .*run.json that the run finished: .*No space left"):
            run.close("finished")
        with pytest.raises(CheckpointSaveError, match=r"cannot write the run directory .*No space left"):
            RunDirectory.resume(run.path)
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "run.json"]
    RunDirectory.resume(run.path).close()  # neither kept the lock


# -- the lock --------------------------------------------------------------------------------------------------------
def test_a_second_process_fails_and_names_the_first(tmp_path):
    holder = python(HOLD, tmp_path)
    holder.stdout.readline()
    with pytest.raises(RunLockedError, match=f"in use by process {holder.pid} on {socket.gethostname()}"):
        RunDirectory(tmp_path)
    holder.kill()
    holder.wait()
    RunDirectory(tmp_path).close()


def test_a_second_run_in_the_same_process_fails_too(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
        RunDirectory(tmp_path)
    run.close()


def test_the_loser_leaves_run_json_as_it_was(tmp_path):
    run = RunDirectory(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunLockedError):
        RunDirectory(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == before
    run.close()


def test_reading_a_locked_run_takes_no_lock(tmp_path):
    save(tmp_path / "version_0", 1)
    run = RunDirectory.resume(tmp_path / "version_0")
    resolution = resolve("last", default_root_dir=tmp_path)
    assert (resolution.run_dir, resolution.entry.step) == (run.path, 1)
    run.close()


def _race(path, rounds, barrier, results):
    for number in range(rounds):
        barrier.wait()
        try:
            run = RunDirectory(path / str(number))
            results.put((number, "won", os.getpid(), ""))
        except RunLockedError as error:
            run = None
            results.put((number, "lost", os.getpid(), str(error)))
        barrier.wait()
        if run is not None:
            run.close()


def _version_race(path, rounds, barrier, results):
    for _ in range(rounds):
        barrier.wait()
        run = RunDirectory.create(path)
        results.put(run.path.name)
        barrier.wait()
        run.close()


def _compete(target, path, rounds):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=target, args=(path, rounds, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    collected = [results.get(timeout=60) for _ in range(2 * rounds)]
    for process in processes:
        process.join()
    return collected


@pytest.mark.parametrize("races", [12, pytest.param(50, marks=pytest.mark.soak)])
def test_of_two_processes_that_race_for_a_run_one_wins_each_time(tmp_path, races):
    for number in range(races):
        (tmp_path / str(number)).mkdir()
    results = _compete(_race, tmp_path, races)
    for number in range(races):
        (winner,) = [pid for round, outcome, pid, _ in results if (round, outcome) == (number, "won")]
        (message,) = [text for round, outcome, _, text in results if (round, outcome) == (number, "lost")]
        assert f"process {winner} on {socket.gethostname()}" in message


def test_fresh_runs_started_at_once_get_different_numbers(tmp_path):
    names = _compete(_version_race, tmp_path, 20)
    assert sorted(names) == sorted(f"version_{number}" for number in range(40))


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    parent = python(
        """
        import os, sys, time
        from paddlelite_trainer.run.directory import RunDirectory
        run = RunDirectory(sys.argv[1])
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        print(worker, flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    try:
        os.kill(worker, 0)  # still there
        RunDirectory(tmp_path).close()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_worker_that_ends_does_not_unlock_its_parent(tmp_path):
    run = RunDirectory(tmp_path)
    worker = os.fork()
    if worker == 0:
        run.close("finished")
        run = None
        os._exit(0)
    os.waitpid(worker, 0)
    assert read_run(tmp_path).status == "running"
    challenger = python(HOLD, tmp_path, stderr=subprocess.PIPE)
    _, error = challenger.communicate()
    assert f"RunLockedError: {tmp_path} is in use by process {os.getpid()}" in error
    run.close()
