"""RemoteCopy: a run goes on from its remote alone, bit for bit, and no remote that fails ends or changes it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from models import as_if_started_again
from remote_support import below, flipped, hook, memory_url, overwrite, remove
from small_runs import batches, differing, net, trainer, whole_state

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy
from paddlelite_trainer.checkpoint import CheckpointReader, Remote
from paddlelite_trainer.checkpoint.manifest import MANIFEST
from paddlelite_trainer.checkpoint.remote import copier
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    ConfigurationError,
    ConfigurationTypeError,
    RemoteError,
)
from paddlelite_trainer.run import remote_run

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))

KILLED = Path(__file__).with_name("remote_killed.py")


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(copier, "LONGEST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr("paddlelite_trainer.run.remote_run.FIRST_RETRY_SECONDS", 0.001)


@pytest.fixture
def url() -> str:
    return memory_url()


def train(
    root: Path,
    copy: RemoteCopy | None,
    epochs: int = 3,
    *more: Callback,
    ckpt_path: str | None = "last",
    **settings: Any,
) -> Trainer:
    keep = ModelCheckpoint(monitor="val_loss", save_top_k=2)
    run = trainer(root, [keep, *([copy] if copy else []), *more], max_epochs=epochs, **settings)
    run.fit(net(), batches(), batches(2, 5), ckpt_path=ckpt_path)
    return run


def bests(run: Trainer) -> list[str]:
    return [Path(path).name for path in run.checkpoint_callback.best_k_models]


def entries_of(root: Path) -> set[str]:
    return {name for name in os.listdir(root / "version_0" / "checkpoints") if name.startswith("step-")}


def held_in(root: Path) -> set[str]:
    return {name for held in CheckpointReader(root / "version_0").pins().values() for name in held}


def steps_there(url: str) -> list[int]:
    remote = Remote(url)
    return sorted(int(one.entry_name[5:14]) for one in remote.checkpoints() if remote.is_complete(one))


def fails(*_: Any) -> Any:
    raise ConnectionError("no route to host")


# -- from the remote alone ---------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_the_remote_alone_bit_for_bit(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", None)
    expected = whole_state(whole)
    train(tmp_path / "first", RemoteCopy(url), 1)
    second = train(tmp_path / "second", RemoteCopy(url), 2)
    assert f"brought from {url}" in capsys.readouterr().out
    third = train(tmp_path / "third", RemoteCopy(url))
    assert differing(whole_state(third), expected) == []
    assert second.global_step == 8 and third.global_step == 12
    assert bests(third) == bests(whole)
    assert third.history == whole.history


def test_the_best_so_far_comes_along(tmp_path: Path, url: str) -> None:
    """A later checkpoint that is worse does not become the best on a new machine, nor at the remote."""

    class Scripted(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            trainer.record("score", [0.9, 0.5, 0.6][trainer.current_epoch])

    def run(root: Path, epochs: int) -> Trainer:
        keep = ModelCheckpoint(monitor="score", mode="max")
        done = trainer(root, [Scripted(), keep, RemoteCopy(url, keep_last_n=1)], max_epochs=epochs)
        done.fit(net(), batches(), batches(2, 5), ckpt_path="last")
        return done

    run(tmp_path / "first", 2)
    last = run(tmp_path / "second", 3)
    assert bests(last) == ["step-000000004"]
    assert [one.entry_name for one in Remote(url).names()["best"]] == ["step-000000004"]
    assert steps_there(url) == [4, 12]


def test_a_newer_checkpoint_here_wins(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, RemoteCopy(url), 1)
    train(tmp_path, None, 2)
    capsys.readouterr()
    train(tmp_path, RemoteCopy(url))
    out = capsys.readouterr().out
    assert "from step-000000008" in out and "brought from" not in out


def test_a_newer_checkpoint_there_wins(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    train(tmp_path / "here", RemoteCopy(url), 1)
    train(tmp_path / "there", RemoteCopy(url), 2)
    capsys.readouterr()
    again = train(tmp_path / "here", RemoteCopy(url))
    assert "version_0 from step-000000008" in capsys.readouterr().out
    assert again.run_dir == tmp_path / "here" / "version_0"
    assert differing(whole_state(again), expected) == []


def test_nothing_here_is_deleted_before_what_came_has_proved_to_fit(tmp_path: Path, url: str) -> None:
    def run(root: Path, epochs: int, seed: int = 3) -> None:
        done = trainer(root, [RemoteCopy(url)], max_epochs=epochs, seed=seed)
        done.fit(net(), batches(), ckpt_path="last")

    run(tmp_path / "here", 1)
    run(tmp_path / "there", 2)
    with pytest.raises(CheckpointMismatchError, match="seed"):
        run(tmp_path / "here", 3, seed=4)
    assert entries_of(tmp_path / "here") == {"step-000000004", "step-000000008"}
    run(tmp_path / "here", 3)
    assert entries_of(tmp_path / "here") == {"step-000000012"}


def test_a_run_that_went_back_and_on_is_newer_than_the_steps_it_left(tmp_path: Path, url: str) -> None:
    def run(root: Path, ckpt_path: str | Path, **until: int) -> Trainer:
        done = trainer(root, [ModelCheckpoint(save_top_k=-1), RemoteCopy(url)], **{"max_epochs": None, **until})
        done.fit(net(), batches(), ckpt_path=ckpt_path)
        return done

    run(tmp_path / "first", "last", max_epochs=3)
    run(tmp_path / "first", tmp_path / "first/version_0/checkpoints/step-000000004", max_steps=10)
    assert steps_there(url) == [4, 8, 8, 10, 12]
    again = run(tmp_path / "second", "last", max_steps=11)
    assert again.ckpt_path is not None and again.ckpt_path.name == "step-000000010"
    assert again.global_step == 11


def test_a_damaged_copy_is_passed_over_and_told(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    train(tmp_path / "first", RemoteCopy(url), 2)
    newest = Remote(url).checkpoints()[0]
    key = f"{newest.name}/optimizer.pdopt"
    overwrite(url, key, flipped(below(url)[key]))
    capsys.readouterr()
    second = train(tmp_path / "second", RemoteCopy(url))
    out = capsys.readouterr().out
    assert f"WARNING: Remote checkpoint {newest.name} is damaged and was passed over" in out
    assert "from step-000000004" in out
    assert differing(whole_state(second), expected) == []
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["version_0"]


def test_copies_all_of_which_are_damaged_are_an_error_and_no_fresh_run(tmp_path: Path, url: str) -> None:
    train(tmp_path / "first", RemoteCopy(url), 2)
    for key, data in below(url).items():
        if key.endswith("model.pdparams"):
            overwrite(url, key, flipped(data))
    with pytest.raises(CheckpointCorruptError, match="none of them can be used"):
        train(tmp_path / "second", RemoteCopy(url))


def test_a_sound_copy_takes_the_place_of_damaged_ones_here(tmp_path: Path, url: str) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    train(tmp_path / "first", RemoteCopy(url), 2)
    for path in (tmp_path / "first").rglob("step-*/model.pdparams"):
        path.write_bytes(flipped(path.read_bytes()))
    assert differing(whole_state(train(tmp_path / "first", RemoteCopy(url))), expected) == []


def test_what_was_never_completed_does_not_count(tmp_path: Path, url: str) -> None:
    train(tmp_path / "first", RemoteCopy(url), 2)
    for one in Remote(url).checkpoints():
        remove(url, f"{one.name}/{MANIFEST}")
    assert train(tmp_path / "second", RemoteCopy(url), 1).global_step == 4


def test_a_fresh_run_is_refused_where_another_is(tmp_path: Path, url: str) -> None:
    train(tmp_path / "first", RemoteCopy(url), 1)
    before = below(url)
    with pytest.raises(
        ConfigurationError, match=r"holds a run's checkpoints \(run \w+, begun .*\), and this run begins afresh"
    ):
        train(tmp_path / "second", RemoteCopy(url), 1, ckpt_path=None)
    assert below(url) == before and not (tmp_path / "second").exists()


def test_a_run_by_name_comes_back_under_its_name(tmp_path: Path, url: str) -> None:
    train(tmp_path / "first", RemoteCopy(url), 1, run_name="digits")
    second = train(tmp_path / "second", RemoteCopy(url), 2, run_name="digits")
    assert second.run_dir == tmp_path / "second" / "digits" and second.global_step == 8


def test_a_finished_run_comes_back_and_says_that_it_has_finished(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "first", RemoteCopy(url), 1)
    train(tmp_path / "second", RemoteCopy(url), 1)
    assert "Already finished 1/1 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "ending", "nth"), [("mv", "model.pdparams", 2), ("mv", MANIFEST, 2), ("mv", "names.json", 3)]
)
def test_killed_while_it_copies_it_goes_on_from_the_remote_alone(
    tmp_path: Path, name: str, ending: str, nth: int
) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    remote = f"file://{tmp_path}/remote"
    command = [sys.executable, "-W", "ignore", str(KILLED), str(tmp_path / "first"), remote, name, ending, str(nth)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    there = steps_there(remote)
    assert there
    second = train(tmp_path / "second", RemoteCopy(remote))
    assert second.ckpt_path is not None and int(second.ckpt_path.name[5:14]) == there[-1]
    assert differing(whole_state(second), expected) == []


# -- a remote that fails -----------------------------------------------------------------------------------------------


def test_a_remote_that_does_not_answer_at_the_start_is_an_error(tmp_path: Path, url: str) -> None:
    copy = RemoteCopy(url)
    hook(copy.remote, fails)
    with pytest.raises(RemoteError, match=r"no route to host\. RemoteCopy\(\.\.\., if_unreachable='local'\)"):
        train(tmp_path, copy)
    assert not list(tmp_path.iterdir())


def test_a_start_without_the_remote_can_be_asked_for(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    train(tmp_path / "here", None, 1)
    copy = RemoteCopy(url, if_unreachable="local", final_wait_seconds=0)
    hook(copy.remote, fails)
    run = train(tmp_path / "here", copy)
    out = capsys.readouterr().out
    assert "WARNING: The remote copies cannot be reached; going on without them" in out
    assert differing(whole_state(run), expected) == []


def test_a_fresh_start_without_the_remote_is_not_mixed_into_another_run_there(tmp_path: Path, url: str) -> None:
    train(tmp_path / "first", RemoteCopy(url), 1)
    before = below(url)
    copy = RemoteCopy(url, if_unreachable="local")
    is_down = [True]
    hook(copy.remote, lambda number, name, args, call: fails() if is_down[0] else call())

    class Up(Callback):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            is_down[0] = False

    train(tmp_path / "second", copy, 1, Up())
    assert below(url) == before and copy.not_copied == ["step-000000004"]


def test_a_remote_that_fails_all_along_changes_nothing_and_is_told_once(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    copy = RemoteCopy(url, final_wait_seconds=0.1)
    hook(copy.remote, lambda number, name, args, call: fails() if name == "put_file" else call())
    run = train(tmp_path / "run", copy)
    assert differing(whole_state(run), expected) == []
    out = capsys.readouterr().out
    assert out.count("failed, and is tried again") == 1
    assert f"WARNING: not copied to {url}: " in out and "The last error: " in out
    assert copy.not_copied[-1] == "step-000000012"
    as_if_started_again()
    train(tmp_path / "run", RemoteCopy(url))  # over already: what is missing there is copied
    assert steps_there(url)[-1] == 12


def test_a_remote_that_hangs_holds_up_nothing(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    release = threading.Event()
    copy = RemoteCopy(url, final_wait_seconds=0.1)
    hook(copy.remote, lambda number, name, args, call: release.wait(60) if name == "put_file" else call())
    run = train(tmp_path / "run", copy)
    release.set()
    assert differing(whole_state(run), expected) == []
    assert "WARNING: not copied" in capsys.readouterr().out and copy.not_copied
    assert entries_of(tmp_path / "run") == held_in(tmp_path / "run"), "what was kept for copying stays"


class Terminate(Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_after_sigterm_the_wait_is_the_shorter_one(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    copy = RemoteCopy(url, final_wait_seconds=3600, final_wait_seconds_after_signal=0.1)
    hook(copy.remote, lambda number, name, args, call: release.wait(60) if name == "put_file" else call())
    with pytest.raises(SystemExit) as left:
        train(tmp_path, copy, 3, Terminate())
    release.set()
    assert left.value.code == 75
    out = capsys.readouterr().out
    assert "for 0.1 s at most: step-000000004" in out and "WARNING: not copied" in out


def test_after_sigterm_what_was_saved_last_is_copied(tmp_path: Path, url: str) -> None:
    expected = whole_state(train(tmp_path / "whole", None))
    with pytest.raises(SystemExit):
        train(tmp_path / "first", RemoteCopy(url), 3, Terminate())
    assert steps_there(url) == [4]
    assert differing(whole_state(train(tmp_path / "second", RemoteCopy(url))), expected) == []


def test_retries_draw_no_number_of_the_run(tmp_path: Path, url: str) -> None:
    copy = RemoteCopy(url)
    failures = iter(range(10))
    hook(
        copy.remote,
        lambda number, name, args, call: fails() if name == "put_file" and next(failures, None) is not None else call(),
    )
    train(tmp_path / "run", copy)
    after = random.getstate()
    train(tmp_path / "whole", None)
    assert random.getstate() == after
    assert next(failures, None) is None


# -- what is copied ----------------------------------------------------------------------------------------------------


class Tag(Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint("key version")


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (("latest", "best", "tags"), {"latest", "best", "best_val_loss", "key version"}),
        ("tags", {"key version"}),
        ("best", {"best", "best_val_loss"}),
        (("best_*",), {"best_val_loss"}),
        ("all", {"latest", "best", "best_val_loss", "key version"}),
    ],
)
def test_what_says_which_names_are_copied(tmp_path: Path, url: str, what: Any, names: set[str]) -> None:
    train(tmp_path, RemoteCopy(url, what=what), 3, Tag())
    assert set(Remote(url).names()) == names
    if what == "tags":
        assert steps_there(url) == [8]
    if what == "all":
        assert steps_there(url) == [4, 8, 12]


def test_keep_last_n_keeps_tags_for_good(tmp_path: Path, url: str) -> None:
    keep = ModelCheckpoint(every_n_train_steps=1)
    run = trainer(tmp_path, [keep, Tag(), RemoteCopy(url, what="all", keep_last_n=2)], max_epochs=3)
    run.fit(net(), batches())
    assert steps_there(url) == [8, 11, 12]


def test_what_was_kept_for_copying_only_is_deleted_in_the_end(tmp_path: Path, url: str) -> None:
    go_on = threading.Event()
    copy = RemoteCopy(url, what="all")
    hook(copy.remote, lambda number, name, args, call: (go_on.wait(60), call())[1] if name == "put_file" else call())

    class AtTheEnd(Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            assert entries_of(tmp_path) == {"step-000000004", "step-000000008", "step-000000012"}
            go_on.set()

    run = trainer(tmp_path, [AtTheEnd(), copy], max_epochs=3)
    run.fit(net(), batches())
    assert steps_there(url) == [4, 8, 12]
    assert entries_of(tmp_path) == {"step-000000012"}


def test_one_callback_serves_two_fits(tmp_path: Path, url: str) -> None:
    copy = RemoteCopy(url)
    train(tmp_path, copy, 1)
    train(tmp_path, copy, 2)
    assert steps_there(url) == [4, 8]


def test_two_remotes_are_both_kept(tmp_path: Path) -> None:
    urls = [memory_url(), memory_url()]
    run = trainer(tmp_path, [ModelCheckpoint(), *map(RemoteCopy, urls)], max_epochs=2)
    run.fit(net(), batches())
    assert [steps_there(url)[-1] for url in urls] == [8, 8]


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"what": ()}, ConfigurationTypeError, "'all' or names"),
        ({"what": 3}, ConfigurationTypeError, "'all' or names"),
        ({"keep_last_n": 0}, ConfigurationError, "must be >= 1, or None to delete nothing"),
        ({"keep_last_n": 1.5}, ConfigurationTypeError, "must be an integer"),
        ({"final_wait_seconds": -1}, ConfigurationError, "must be >= 0"),
        ({"final_wait_seconds": "300"}, ConfigurationTypeError, "a number of seconds"),
        ({"if_unreachable": "ignore"}, ConfigurationError, "'raise' or 'local'"),
    ],
)
def test_arguments_are_checked(url: str, arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        RemoteCopy(url, **arguments)


def test_without_checkpoints_there_is_nothing_to_copy(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="RemoteCopy was passed together with enable_checkpointing=False"):
        trainer(tmp_path, [RemoteCopy(url)], enable_checkpointing=False)


def test_fast_dev_run_reaches_no_remote(tmp_path: Path, url: str) -> None:
    copy = RemoteCopy(url)
    calls = hook(copy.remote, fails)
    trainer(tmp_path, [copy], fast_dev_run=True).fit(net(), batches())
    assert calls.calls == []


def test_urls_in_the_wrong_place_are_errors_that_name_the_right_one(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"add RemoteCopy\('s3://bucket/run'\) to the callbacks"):
        ModelCheckpoint("s3://bucket/run")
    with pytest.raises(ConfigurationError, match=r"RemoteCopy\('s3://bucket/run'\).*paddlelite ckpt fetch"):
        train(tmp_path, None, 1, ckpt_path="s3://bucket/run")


def test_two_callbacks_for_one_url_are_refused(tmp_path: Path, url: str) -> None:
    twice = [RemoteCopy(url, what="latest"), RemoteCopy(url, what="best")]
    with pytest.raises(ConfigurationError, match="2 callbacks copy to"):
        trainer(tmp_path, [ModelCheckpoint(), *twice]).fit(net(), batches())


def test_the_newest_is_gone_on_from_though_the_best_ones_cannot_be_had(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "first", RemoteCopy(url), 1)
    with monkeypatch.context() as away:
        away.setattr(remote_run, "_bring_ranked", fails_to_answer)
        train(tmp_path / "second", RemoteCopy(url, if_unreachable="local"), 2)
    out = capsys.readouterr().out
    assert "from step-000000004" in out and "The best ones could not be brought" in out


def fails_to_answer(*_: Any) -> Any:
    raise RemoteError("no route to host")


def test_several_callbacks_wait_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The time of each begins with the first one's: when the first has waited its own, the others have too."""
    release = threading.Event()
    copies = [RemoteCopy(memory_url(), final_wait_seconds=seconds) for seconds in (0.3, 0.3, 0.3)]
    for copy in copies:
        hook(copy.remote, lambda number, name, args, call: release.wait(60) if name == "put_file" else call())
    have_begun: list[list[bool]] = []
    inner = copies[0]._wait

    def noted(trainer: Trainer) -> None:
        have_begun.append([copy._waited_until is not None for copy in copies])
        inner(trainer)

    copies[0]._wait = noted  # type: ignore[method-assign]
    trainer(tmp_path, [ModelCheckpoint(), *copies], max_epochs=1).fit(net(), batches())
    release.set()
    assert have_begun[0] == [True, True, True], "the third's time began when the first had waited"
    assert capsys.readouterr().out.count("WARNING: not copied") == 3


def test_a_misspelt_word_is_told_as_the_fit_begins(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, RemoteCopy(url, what=("latest", "bset", "best_val_loss", "v1")), 1)
    out = capsys.readouterr().out
    assert out.count("Did you mean 'best'?") == 2
    assert "RemoteCopy(what='bset') copies checkpoints that are kept as" in out
    assert "what='best_val_loss'" not in out and "what='v1'" not in out


def test_a_name_that_nothing_is_kept_under_is_told_at_the_end(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "one", RemoteCopy(url, what=("latest", "best_val_los", "epoch_*")), 1)
    out = capsys.readouterr().out
    assert "no checkpoint was kept as 'best_val_los', 'epoch_*', so nothing was copied for it" in out
    assert "Did you mean 'best_val_loss'?" in out and "This run has best, best_val_loss, latest." in out
    train(tmp_path / "two", RemoteCopy(memory_url()), 1)
    train(tmp_path / "three", RemoteCopy(memory_url(), what=("best", "best_val*", "last")), 1)
    assert "no checkpoint was kept as" not in capsys.readouterr().out
