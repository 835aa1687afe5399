"""Who may write a run's directory, what it says of itself, and which checkpoint a `ckpt_path` means."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

from paddlelite_trainer.checkpoint import CheckpointStore
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    ConfigurationError,
    ConfigurationTypeError,
    RunLockedError,
)
from paddlelite_trainer.run.directory import RunDirectory, read_run
from paddlelite_trainer.run.resolve import resolve

ROOT = Path(__file__).parents[2]


def save(run, step, **pins):
    """Add a checkpoint of this step to a run; `pins` are held by it, besides `latest` and one of its own."""
    run.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(run)
    name = store.candidate(step, epoch=step // 10).name
    entry = store.save(
        step=step,
        epoch=step // 10,
        files={"model.pdparams": {"w": np.full(3, step, "float32")}},
        states={"trainer.json": {"step": step}},
        pins={"latest": [name], f"keep_{step}": [name], **{pin: [name] for pin in pins.get("pins", ())}},
    )
    store.close()
    return entry


def damage(entry):
    path = entry.path / "model.pdparams"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


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


def test_of_two_processes_that_race_for_a_run_one_wins_fifty_times_out_of_fifty(tmp_path):
    for number in range(50):
        (tmp_path / str(number)).mkdir()
    results = _compete(_race, tmp_path, 50)
    for number in range(50):
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


# -- ckpt_path -------------------------------------------------------------------------------------------------------
def test_none_is_a_fresh_run(tmp_path):
    save(tmp_path / "version_0", 1)
    resolution = resolve(None, default_root_dir=tmp_path)
    assert (resolution.fresh, resolution.run_dir, resolution.entry) == (True, None, None)


@pytest.mark.parametrize("word", ["last", "latest"])
def test_last_goes_on_with_the_newest_run_that_has_a_checkpoint(tmp_path, word):
    save(tmp_path / "version_2", 50)
    save(tmp_path / "version_10", 7)
    (tmp_path / "version_11" / "checkpoints").mkdir(parents=True)
    resolution = resolve(word, default_root_dir=tmp_path)
    assert (resolution.run_dir, resolution.entry.step, resolution.fresh) == (tmp_path / "version_10", 7, False)
    assert "going on with" in resolution.message and "step 7" in resolution.message


def test_last_without_any_checkpoint_starts_afresh_and_says_so(tmp_path):
    resolution = resolve("last", default_root_dir=tmp_path / "absent")
    assert resolution.fresh
    assert resolution.message == f"no checkpoint in {tmp_path / 'absent'} yet: fresh run"


def test_last_stays_within_a_named_run(tmp_path):
    save(tmp_path / "version_0", 5)
    save(tmp_path / "x", 3)
    assert resolve("last", default_root_dir=tmp_path, run_name="x").entry.step == 3
    assert resolve("last", default_root_dir=tmp_path, run_name="y").fresh
    assert resolve("last", default_root_dir="elsewhere", run_name=str(tmp_path / "x")).entry.step == 3


def test_a_run_is_found_by_its_path_from_a_root_that_is_a_link(tmp_path):
    save(tmp_path / "far" / "away" / "runs" / "version_0", 3)
    (tmp_path / "link").symlink_to("far/away/runs")
    run = RunDirectory.resume(tmp_path / "link" / "version_0")
    run.close()
    name = os.path.relpath(run.path, tmp_path / "link")
    assert resolve("last", default_root_dir=tmp_path / "link", run_name=name).run_dir == run.path
    assert resolve("last", default_root_dir=tmp_path / "link").run_dir == run.path


def test_a_fresh_start_mentions_runs_with_names(tmp_path):
    save(tmp_path / "mine", 3)
    assert "run_name=: mine" in resolve("last", default_root_dir=tmp_path).message


def test_last_falls_back_from_a_damaged_checkpoint_and_says_so(tmp_path):
    save(tmp_path / "version_0", 1)
    damage(save(tmp_path / "version_0", 2))
    found = resolve("last", default_root_dir=tmp_path)
    assert found.entry.step == 1
    assert "step-000000002 is damaged; using step-000000001" in found.findings[0]
    assert found.damaged == ("step-000000002",)


def test_checkpoints_none_of_which_verifies_are_an_error_and_no_fresh_start(tmp_path):
    save(tmp_path / "version_0", 9)
    for step in (1, 2):
        damage(save(tmp_path / "version_1", step))
    with pytest.raises(CheckpointCorruptError, match="none of them can be used"):
        resolve("last", default_root_dir=tmp_path)


@pytest.mark.parametrize("word", ["last", "best"])
def test_checkpoints_without_a_readable_manifest_are_no_fresh_start_either(tmp_path, word):
    (save(tmp_path / "version_0", 1).path / "manifest.json").write_bytes(b"")
    with pytest.raises(CheckpointCorruptError, match="none of them can be used"):
        resolve(word, default_root_dir=tmp_path)


def test_last_tells_how_the_run_ended(tmp_path):
    save(tmp_path / "version_0", 1)
    RunDirectory.resume(tmp_path / "version_0").close("stopped: patience")
    assert "stopped: patience" in resolve("last", default_root_dir=tmp_path).message


def test_best_is_the_pin_of_that_name(tmp_path):
    save(tmp_path / "version_0", 1, pins=["best"])
    save(tmp_path / "version_0", 2, pins=["best_b"])
    resolution = resolve("best", default_root_dir=tmp_path)
    assert (resolution.entry.step, resolution.run_dir) == (1, tmp_path / "version_0")


def test_best_is_the_only_monitored_metric_s(tmp_path):
    save(tmp_path / "version_0", 1, pins=["best_val_acc"])
    save(tmp_path / "version_0", 2)
    assert resolve("best", default_root_dir=tmp_path).entry.step == 1


def test_best_of_several_metrics_asks_which(tmp_path):
    save(tmp_path / "version_0", 1, pins=["best_val_acc"])
    save(tmp_path / "version_0", 2, pins=["best_val_loss"])
    with pytest.raises(ConfigurationError, match=r"best_val_acc, best_val_loss.*as ckpt_path='best_val_acc'"):
        resolve("best", default_root_dir=tmp_path)
    assert resolve("best_val_loss", default_root_dir=tmp_path).entry.step == 2


def test_best_where_nothing_was_monitored_is_an_error(tmp_path):
    save(tmp_path / "version_0", 1)
    with pytest.raises(ConfigurationError, match=r"nothing was monitored in .*version_0.*monitor="):
        resolve("best", default_root_dir=tmp_path)


def test_best_without_any_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="there is no checkpoint in"):
        resolve("best", default_root_dir=tmp_path)


def test_a_tag_names_a_checkpoint_of_the_newest_run_that_has_it(tmp_path):
    save(tmp_path / "version_0", 4, pins=["before-finetune"])
    save(tmp_path / "version_1", 9)
    resolution = resolve("before-finetune", default_root_dir=tmp_path)
    assert (resolution.entry.step, resolution.run_dir) == (4, tmp_path / "version_0")


def _spellings(run):
    step = run / "checkpoints" / "step-000000002"
    return {
        "directory": step,
        "run": run,
        "link": run / "latest",
        "weights link": run / "latest.pdparams",
        "weights file": step / "model.pdparams",
        "text": f"{step}/",
    }


@pytest.mark.parametrize("spelling", ["directory", "run", "link", "weights link", "weights file", "text"])
def test_a_path_may_be_spelt_in_many_ways(tmp_path, spelling):
    run = tmp_path / "läufe 1" / "version_0"
    save(run, 1)
    save(run, 2)
    resolution = resolve(_spellings(run)[spelling], default_root_dir=tmp_path / "elsewhere")
    assert (resolution.run_dir, resolution.entry.step) == (run, 2)


def test_a_relative_path_is_resolved_at_once(tmp_path, monkeypatch):
    save(tmp_path / "version_0", 2)
    monkeypatch.chdir(tmp_path)
    resolution = resolve("version_0/latest", default_root_dir=".")
    assert resolution.entry.path == tmp_path / "version_0" / "checkpoints" / "step-000000002"


def test_a_path_into_another_run_than_the_named_one_begins_a_fresh_run(tmp_path):
    entry = save(tmp_path / "version_0", 2)
    resolution = resolve(entry.path, default_root_dir=tmp_path, run_name="branch")
    assert (resolution.run_dir, resolution.entry.step, resolution.fresh) == (None, 2, False)
    assert resolve(entry.path, default_root_dir=tmp_path, run_name="version_0").run_dir is not None


def test_a_checkpoint_copied_out_of_its_run_begins_a_fresh_run(tmp_path):
    save(tmp_path / "version_0", 2).path.rename(tmp_path / "kept")
    resolution = resolve(tmp_path / "kept", default_root_dir=tmp_path)
    assert (resolution.run_dir, resolution.entry.step) == (None, 2)
    assert "fresh run from" in resolution.message


def test_a_path_to_a_damaged_manifest_is_refused(tmp_path):
    entry = save(tmp_path / "version_0", 2)
    (entry.path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointCorruptError, match=r"manifest\.json"):
        resolve(entry.path, default_root_dir=tmp_path)


def test_a_path_that_is_not_there_lists_what_is_near(tmp_path):
    save(tmp_path / "version_0", 2)
    with pytest.raises(
        CheckpointNotFoundError, match=r"step-000000003\. Did you mean 'step-000000002'\? .* holds .*step"
    ):
        resolve(tmp_path / "version_0/checkpoints/step-000000003", default_root_dir=tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"absent/deep/x\. .* holds version_0"):
        resolve(tmp_path / "absent/deep/x", default_root_dir=tmp_path)


def test_a_misspelt_word_gets_did_you_mean(tmp_path):
    save(tmp_path / "version_0", 2, pins=["before-finetune"])
    for wrong, right in {"lsat": "last", "bset": "best", "before-finetun": "before-finetune"}.items():
        with pytest.raises(CheckpointNotFoundError, match=f"{wrong!r} is neither .* Did you mean '{right}'"):
            resolve(wrong, default_root_dir=tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path):
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint yet"):
        resolve(tmp_path / "version_0", default_root_dir=tmp_path)


def test_a_directory_of_something_else_points_to_load_weights(tmp_path):
    (tmp_path / "output").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"neither a checkpoint nor a run.*load_weights"):
        resolve(tmp_path / "output", default_root_dir=tmp_path)


def test_another_type_is_refused(tmp_path):
    with pytest.raises(ConfigurationTypeError, match=r"ckpt_path must be None, 'last'.*got True, a bool"):
        resolve(True, default_root_dir=tmp_path)


def test_a_resumed_fit_verifies_its_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint
    from paddlelite_trainer.checkpoint import saved

    def fit(epochs: int) -> None:
        settings = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint()], "default_root_dir": tmp_path}
        quiet_trainer(max_epochs=epochs, **settings).fit(Classifier(), make_batches(2), ckpt_path="last")

    fit(1)
    hashed = []
    monkeypatch.setattr(saved, "_hashes", lambda data, hashes=saved._hashes: hashed.append(len(data)) or hashes(data))
    fit(2)
    assert len(hashed) == 1


def test_a_checkpoint_passed_over_is_told_where_warnings_are_off_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint

    def fit(epochs: int) -> None:
        keeps = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(keep_last_n=3)]}
        quiet_trainer(max_epochs=epochs, default_root_dir=tmp_path, **keeps).fit(
            Classifier(), make_batches(2), ckpt_path="last"
        )

    fit(2)
    newest = tmp_path / "version_0/checkpoints/step-000000004/model.pdparams"
    newest.write_bytes(newest.read_bytes()[:-8])
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(3)
    told = capsys.readouterr().out
    assert "Checkpoint step-000000004 is damaged; using step-000000002" in told
    assert "finished" not in told


def test_other_hyper_parameters_than_the_checkpoints_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint

    for lr, epochs in ((0.1, 1), (0.2, 2)):
        settings = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint()], "default_root_dir": tmp_path}
        quiet_trainer(max_epochs=epochs, **settings).fit(Classifier(lr=lr), make_batches(1), ckpt_path="last")
    assert "hyper-parameter lr: saved 0.1, now 0.2" in capsys.readouterr().out
