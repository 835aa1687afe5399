"""Copies at a remote: whatever call fails, or is a process's last, the old checkpoint or the new one is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from copies_support import copied, copy_now, copying, named, step_of
from remote_support import (
    Crash,
    below,
    flipped,
    hook,
    memory_url,
    printed,
)
from store_support import save

from paddlelite_trainer.checkpoint import CheckpointStore, Remote
from paddlelite_trainer.checkpoint.manifest import MANIFEST
from paddlelite_trainer.checkpoint.remote import (
    NAMES_COPY,
    NAMES_FILE,
)
from paddlelite_trainer.checkpoint.remote.lease import LEASE_FILE
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    RemoteError,
)

RECORDS = {NAMES_FILE, NAMES_COPY}

pytestmark = pytest.mark.usefixtures("retry_at_once")


# -- what is copied --------------------------------------------------------------------------------------------------


def test_a_checkpoint_and_its_names_are_copied(store: CheckpointStore, url: str) -> None:
    first = save(store, 1, {"best": ["new"]})
    copy_now(store, url)
    second = save(store, 2)
    copy_now(store, url)
    assert sorted(copied(url)) == [1, 2]
    assert named(url) == {"best": [first.name], "latest": [second.name]}


def test_the_data_is_written_first_the_manifest_next_and_names_last(store: CheckpointStore) -> None:
    save(store, 1)
    remote = Remote(memory_url())
    calls = hook(remote, lambda number, name, args, call: call())
    copy_now(store, remote)
    written = [path.rpartition("/")[2] for name, path in calls.calls if name in ("put_file", "pipe_file")]
    assert written[0] == LEASE_FILE and written[-3:] == [MANIFEST, NAMES_FILE, NAMES_COPY]
    assert len(written) == 9


def test_copying_again_writes_nothing(store: CheckpointStore, url: str) -> None:
    save(store, 1)
    copy_now(store, url)
    remote = Remote(url)
    calls = hook(remote, lambda number, name, args, call: call())
    copy_now(store, remote)
    written = [path for name, path in calls.calls if name in ("put_file", "pipe_file", "mv")]
    assert {path.rpartition("/")[2] for path in written} <= {LEASE_FILE, f".uploading-{LEASE_FILE}"}


def test_a_damaged_checkpoint_is_not_copied(store: CheckpointStore, url: str) -> None:
    entry = save(store, 1)
    (entry.path / "model.pdparams").write_bytes(flipped((entry.path / "model.pdparams").read_bytes()))
    tell, told = printed()
    copy_now(store, url, tell=tell)
    assert not Remote(url).checkpoints()
    assert "step-000000001 was not copied" in told.getvalue() and "was altered" in told.getvalue()


def test_two_checkpoints_of_one_step_do_not_share_a_place(tmp_path: Path, url: str) -> None:
    save(CheckpointStore(tmp_path / "one"), 1)
    other = CheckpointStore(tmp_path / "other")
    save(other, 1, metrics={"loss": 0.5})
    copy_now(CheckpointStore(tmp_path / "one"), url)
    copy_now(other, url)
    assert len(Remote(url).checkpoints()) == 2


def test_a_name_that_is_taken_away_here_is_taken_away_there(store: CheckpointStore, url: str) -> None:
    entry = save(store, 1, {"mine": ["new"]})
    one = copying(store, url)
    for change in (lambda: None, lambda: store.untag("mine")):
        change()
        one._look()
        one._catch_up()
    assert named(url) == {"latest": [entry.name]}


def test_a_name_that_is_only_there_stays(store: CheckpointStore, url: str) -> None:
    entry = save(store, 1, {"mine": ["new"]})
    copy_now(store, url)
    store.untag("mine")  # as on a machine that never had it
    copy_now(store, url)
    assert named(url) == {"latest": [entry.name], "mine": [entry.name]}


# -- what is kept there ----------------------------------------------------------------------------------------------


def test_the_last_n_and_what_a_name_holds_are_kept(store: CheckpointStore, url: str) -> None:
    for step in range(1, 7):
        save(store, step, {"best": ["new"]} if step == 2 else {})
        copy_now(store, url, keep_last_n=2)
    assert sorted(copied(url)) == [2, 5, 6]
    assert {key.partition("/")[0] for key in below(url)} == {*RECORDS, *(one.name for one in copied(url).values())}


def test_nothing_is_deleted_unless_asked_for(store: CheckpointStore, url: str) -> None:
    for step in range(1, 5):
        save(store, step)
        copy_now(store, url)
    assert sorted(copied(url)) == [1, 2, 3, 4]


def test_the_manifest_is_deleted_first(store: CheckpointStore) -> None:
    remote = Remote(memory_url())
    save(store, 1)
    copy_now(store, remote)
    calls = hook(remote, lambda number, name, args, call: call())
    save(store, 2)
    copy_now(store, remote, keep_last_n=1)
    deleted = [path.rpartition("/")[2] for name, path in calls.calls if name == "rm_file"]
    assert deleted[0] == MANIFEST and deleted[-1] == LEASE_FILE and len(deleted) == 7


# -- crashes and failures, at every call -----------------------------------------------------------------------------


def two_checkpoints(store: CheckpointStore, url: str) -> Callable[..., None]:
    """The first is at the remote; the function returned copies the second and deletes the first."""
    save(store, 1, {"best": ["new"]})
    copy_now(store, url)
    save(store, 2, {"best": ["new"]})
    return lambda remote, **more: copy_now(store, remote, keep_last_n=1, **more)


def count_calls(store: CheckpointStore, url: str, **more: Any) -> int:
    copy_second = two_checkpoints(store, url)
    remote = Remote(url)
    calls = hook(remote, lambda number, name, args, call: call())
    copy_second(remote, **more)
    return len(calls.calls)


def fresh_places(kind: str, folder: Path) -> tuple[CheckpointStore, str]:
    where = memory_url() if kind == "memory" else f"file://{folder}/remote"
    return CheckpointStore(folder / "run"), where


@pytest.mark.parametrize("how", ["before", "after", "torn"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_after_a_crash_at_any_call_the_remote_holds_the_old_or_the_new_whole(
    memory_dir: Path, kind: str, how: str
) -> None:
    total = count_calls(*fresh_places(kind, memory_dir / "count"))
    assert total >= 20
    newest = []
    for last in range(1, total + 1):
        store, url = fresh_places(kind, memory_dir / str(last))
        copy_second = two_checkpoints(store, url)
        remote = Remote(url)
        was_torn = []

        def around(number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
            if number < last:  # noqa: B023
                return call()
            if how == "after":
                call()
            elif how == "torn" and name in ("put_file", "pipe_file"):
                calls.tear(name, args)  # noqa: B023
                was_torn.append(args)  # noqa: B023
            raise Crash

        calls = hook(remote, around)
        with pytest.raises(Crash):
            copy_second(remote)
        if kind == "memory" and was_torn:  # an object store does not do that; found and fallen back from all the same
            assert newest_sound(url) in (1, 2), (last, calls.calls[-1])
        else:
            there = copied(url)  # shows each to be whole
            newest.append(max(there))
            assert set(there) in ({1}, {2}, {1, 2}), (last, calls.calls[-1])
            for name, held in Remote(url).names().items():
                assert set(held) <= set(there.values()), (last, calls.calls[-1], name)
        CheckpointStore(store.run_dir)
        copy_now(CheckpointStore(store.run_dir), url, keep_last_n=1)
        assert set(copied(url)) == {2}, (last, calls.calls[-1])
        assert set(named(url)) == {"latest", "best"}
        left = {key.partition("/")[0] for key in below(url) if not key.startswith(".uploading")}
        assert left == {*RECORDS, copied(url)[2].name}
    assert set(newest) == {1, 2} and newest == sorted(newest)


def newest_sound(url: str) -> int | None:
    remote = Remote(url)
    for one in remote.checkpoints():
        try:
            return step_of(remote, one)
        except CheckpointCorruptError:
            continue
    return None


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_whichever_call_fails_once_it_is_tried_again_and_told_once(memory_dir: Path, kind: str) -> None:
    total = count_calls(*fresh_places(kind, memory_dir / "count"), releases=False)
    for fail_at in range(1, total + 1):
        store, url = fresh_places(kind, memory_dir / str(fail_at))
        two_checkpoints(store, url)
        remote = Remote(url)

        def around(number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
            if number == fail_at:  # noqa: B023
                raise TimeoutError("503 slow down")
            return call()

        hook(remote, around)
        tell, told = printed()
        one = copying(store, remote, keep_last_n=1, tell=tell)
        one.start()
        assert one.wait(60)
        assert one.finish() == []
        assert set(copied(url)) == {2}
        lines = told.getvalue().splitlines()
        assert len(lines) == 2, lines
        assert "failed, and is tried again" in lines[0] and "503 slow down" in lines[0]
        assert "works again" in lines[1]


@pytest.mark.parametrize("what", ["model.pdparams", MANIFEST, NAMES_FILE])
def test_half_an_object_that_was_acknowledged_is_noticed(store: CheckpointStore, what: str) -> None:
    save(store, 1)
    remote = Remote(memory_url())
    torn = []

    def around(number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name in ("put_file", "pipe_file") and calls.calls[-1][1].endswith(f"/{what}") and not torn:
            torn.append(what)
            return calls.tear(name, args)
        return call()

    calls = hook(remote, around)
    tell, told = printed()
    one = copying(store, remote, tell=tell)
    one.start()
    assert one.wait(60)
    one.finish()
    assert torn and "failed" in told.getvalue()
    assert sorted(copied(remote.url)) == [1]
    assert list(named(remote.url)) == ["latest"]


# -- what is another run's, or all that is left ----------------------------------------------------------------------


def test_retention_deletes_nothing_of_another_run(tmp_path: Path, url: str) -> None:
    one, other = CheckpointStore(tmp_path / "one"), CheckpointStore(tmp_path / "other")
    for step in (1, 2):
        save(one, step)
        copy_now(one, url)
    for step in (11, 12):
        save(other, step)
        copy_now(other, url, keep_last_n=1)
    assert sorted(copied(url)) == [1, 2, 12]


def test_the_copy_of_a_checkpoint_that_was_damaged_here_stays_named_and_kept(store: CheckpointStore, url: str) -> None:
    best = save(store, 1, {"best": ["new"]})
    copy_now(store, url)
    (best.path / "model.pdparams").write_bytes(flipped((best.path / "model.pdparams").read_bytes()))
    second = save(store, 2, {"best": [best.name, "new"]})
    tell, told = printed()
    copy_now(CheckpointStore(store.run_dir), url, keep_last_n=1, tell=tell)
    assert sorted(copied(url)) == [1, 2]
    assert named(url)["best"] == [best.name, second.name]
    assert "step-000000001 was not copied" in told.getvalue()


def test_a_call_that_the_library_cancels_is_one_more_failure(store: CheckpointStore) -> None:
    remote = Remote(memory_url())

    def cancelled(number: int, name: str, args: Any, call: Any) -> Any:
        raise asyncio.CancelledError

    hook(remote, cancelled)
    with pytest.raises(RemoteError, match="CancelledError"):
        remote.checkpoints()
