"""Copies at a remote: whatever call fails, or is the last, it holds the old checkpoint or the new one, whole."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_support import (
    Crash,
    below,
    flipped,
    forged,
    hook,
    memory_url,
    overwrite,
    overwrite_names,
    printed,
    remove,
)
from store_support import NthCallFails, leftovers, save, step_in

from paddlelite_trainer.checkpoint import CheckpointStore, Copier, Entry, Remote, copier, is_managed, open_checkpoint
from paddlelite_trainer.checkpoint.manifest import MANIFEST
from paddlelite_trainer.checkpoint.remote import NAMES_FILE, RemoteCheckpoint, fetch_checkpoint, parse_remote_name
from paddlelite_trainer.cli import FAILED, NOT_FOUND, OK, PROBLEMS, USAGE, main
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    ConfigurationError,
    ConfigurationTypeError,
    RemoteError,
)
from paddlelite_trainer.run.directory import Resolution
from paddlelite_trainer.run.remote_run import RemoteCopies, resolve_with_remotes


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(copier, "LONGEST_RETRY_SECONDS", 0.01)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return memory_url() if request.param == "memory" else f"file://{tmp_path}/remote"


@pytest.fixture
def store(memory_dir: Path) -> Iterator[CheckpointStore]:
    yield CheckpointStore(memory_dir / "run")


def copying(store: CheckpointStore, remote: Remote | str, **more: Any) -> Copier:
    more.setdefault("is_wanted", lambda name: True)
    more.setdefault("tell", lambda message: None)
    return Copier(store, Remote(remote) if isinstance(remote, str) else remote, **more)


def copy_now(store: CheckpointStore, remote: Remote | str, **more: Any) -> None:
    """One pass of a Copier, in this thread."""
    one = copying(store, remote, **more)
    one._look()
    one._catch_up()
    store.protect(one, ())


def copied(url: str) -> dict[int, RemoteCheckpoint]:
    """Step -> the remote checkpoint that has a manifest, each of which is shown to be whole."""
    remote = Remote(url)
    return {step_of(remote, one): one for one in remote.checkpoints() if f"{one.name}/{MANIFEST}" in below(url)}


def step_of(remote: Remote, checkpoint: RemoteCheckpoint) -> int:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return step_in(open_checkpoint(fetch_checkpoint(remote, checkpoint, Path(folder)).path))


def named(url: str) -> dict[str, list[str]]:
    return {name: [one.entry_name for one in held] for name, held in Remote(url).names().items()}


# -- what is copied ----------------------------------------------------------------------------------------------------


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
    assert written[-2:] == [MANIFEST, NAMES_FILE]
    assert len(written) == 7


def test_copying_again_writes_nothing(store: CheckpointStore, url: str) -> None:
    save(store, 1)
    copy_now(store, url)
    remote = Remote(url)
    calls = hook(remote, lambda number, name, args, call: call())
    copy_now(store, remote)
    assert not [name for name, _ in calls.calls if name in ("put_file", "pipe_file", "mv")]


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


def test_a_run_that_begins_afresh_is_not_copied_over_another(tmp_path: Path, url: str) -> None:
    save(CheckpointStore(tmp_path / "one"), 1)
    copy_now(CheckpointStore(tmp_path / "one"), url)
    before = below(url)
    other = CheckpointStore(tmp_path / "other")
    save(other, 5)
    tell, told = printed()
    copy_now(other, url, begins_afresh=True, tell=tell)
    assert below(url) == before
    assert "holds another run's checkpoints" in told.getvalue()


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


# -- what is kept there ------------------------------------------------------------------------------------------------


def test_the_last_n_and_what_a_name_holds_are_kept(store: CheckpointStore, url: str) -> None:
    for step in range(1, 7):
        save(store, step, {"best": ["new"]} if step == 2 else {})
        copy_now(store, url, keep_last_n=2)
    assert sorted(copied(url)) == [2, 5, 6]
    assert {key.partition("/")[0] for key in below(url)} == {NAMES_FILE, *(one.name for one in copied(url).values())}


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
    assert deleted[0] == MANIFEST and len(deleted) == 6


# -- crashes and failures, at every call -------------------------------------------------------------------------------


def two_checkpoints(store: CheckpointStore, url: str) -> Callable[[Remote], None]:
    """The first is at the remote; the function returned copies the second and deletes the first."""
    save(store, 1, {"best": ["new"]})
    copy_now(store, url)
    save(store, 2, {"best": ["new"]})
    return lambda remote: copy_now(store, remote, keep_last_n=1)


def count_calls(store: CheckpointStore, url: str) -> int:
    copy_second = two_checkpoints(store, url)
    remote = Remote(url)
    calls = hook(remote, lambda number, name, args, call: call())
    copy_second(remote)
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
        assert {key.partition("/")[0] for key in below(url)} - {".uploading"} == {NAMES_FILE, copied(url)[2].name}
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
    total = count_calls(*fresh_places(kind, memory_dir / "count"))
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


# -- beside the training -----------------------------------------------------------------------------------------------


class Held:
    """A remote whose first upload begins, and goes on when `go_on` is set."""

    def __init__(self) -> None:
        self.remote = Remote(memory_url())
        self.began, self.go_on = threading.Event(), threading.Event()
        hook(self.remote, self._around)

    def _around(self, number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name == "put_file":
            self.began.set()
            assert self.go_on.wait(60)
        return call()


def test_what_is_being_copied_is_not_deleted_and_what_has_not_begun_is_dropped(store: CheckpointStore) -> None:
    held = Held()
    first = save(store, 1)
    one = copying(store, held.remote)
    one.start()
    assert held.began.wait(60)
    second, third = save(store, 2), save(store, 3)
    assert first.path.is_dir() and not second.path.is_dir()
    held.go_on.set()
    assert one.wait(60)
    assert one.finish() == []
    assert sorted(copied(held.remote.url)) == [1, 3]
    store.prune()
    assert [entry.name for entry in store.entries()] == [third.name]


def test_every_checkpoint_is_kept_until_it_is_copied_where_all_are_wanted(store: CheckpointStore) -> None:
    held = Held()
    one = copying(store, held.remote, everything=True)
    one.start()
    entries = [save(store, step) for step in (1, 2, 3)]
    assert held.began.wait(60) and all(entry.path.is_dir() for entry in entries)
    held.go_on.set()
    assert one.wait(60)
    one.finish()
    assert sorted(copied(held.remote.url)) == [1, 2, 3]


def test_two_names_are_copied_each_in_its_newest_state(store: CheckpointStore, url: str) -> None:
    one = copying(store, url, is_wanted=lambda name: name in ("latest", "best"))
    one.start()
    best = save(store, 1, {"best": ["new"], "other": ["new"]})
    assert one.wait(60)
    latest = save(store, 2)
    save(store, 3, {"unwanted": ["new"], "latest": [latest.name]})
    assert one.wait(60)
    one.finish()
    assert named(url) == {"best": [best.name], "latest": [latest.name]}
    assert sorted(copied(url)) == [1, 2]


def test_a_remote_that_hangs_is_left_behind_and_what_was_not_copied_is_named(store: CheckpointStore) -> None:
    held = Held()
    entry = save(store, 1)
    one = copying(store, held.remote)
    one.start()
    assert held.began.wait(60)
    assert not one.wait(0.05)
    assert [left.name for left in one.finish()] == [entry.name]
    held.go_on.set()
    one._thread.join(60)
    assert not one._thread.is_alive()
    assert not copied(held.remote.url), "it went on after its end"


def test_something_urgent_shortens_the_wait(store: CheckpointStore) -> None:
    held = Held()
    save(store, 1)
    one = copying(store, held.remote)
    one.start()
    assert held.began.wait(60)
    assert not one.wait(3600, is_urgent=lambda: True, urgent_seconds=0.05)
    one.finish()
    held.go_on.set()


def test_a_failure_that_lasts_is_told_once(store: CheckpointStore) -> None:
    save(store, 1)
    remote = Remote(memory_url())
    failures = threading.Semaphore(0)

    def around(number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        failures.release()
        raise PermissionError("access denied")

    hook(remote, around)
    tell, told = printed()
    one = copying(store, remote, tell=tell)
    one.start()
    for _ in range(5):
        assert failures.acquire(timeout=60)
    assert [entry.step for entry in one.finish()] == [1]
    assert told.getvalue().count("\n") == 1 and "PermissionError: access denied" in told.getvalue()
    assert isinstance(one.last_error, RemoteError)


# -- what comes back ---------------------------------------------------------------------------------------------------


@pytest.fixture
def there(store: CheckpointStore) -> tuple[str, RemoteCheckpoint]:
    """A URL with one checkpoint."""
    url = memory_url()
    save(store, 7)
    copy_now(store, url)
    (one,) = Remote(url).checkpoints()
    return url, one


FILES = ["model.pdparams", "optimizer.pdopt", "trainer.json", "tensors.pdparams", MANIFEST]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty", "missing"])
def test_damage_at_the_remote_is_found(there: Any, tmp_path: Path, file: str, damage: str) -> None:
    url, one = there
    key = f"{one.name}/{file}"
    data = below(url)[key]
    if damage == "missing":
        remove(url, key)
    else:
        changes = {"flipped": flipped(data), "short": data[:-1], "long": data + b"x", "empty": b""}
        overwrite(url, key, changes[damage])
    with pytest.raises(CheckpointCorruptError):
        fetch_checkpoint(Remote(url), one, tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def rename_file(to: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][to] = manifest["files"].pop("model.pdparams")

    return change


def changed(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = to

    return change


HOSTILE = {
    "a file above": rename_file("../../escaped"),
    "an absolute file": rename_file("/tmp/escaped"),
    "a hidden file": rename_file(".bashrc"),
    "a file of windows": rename_file("..\\escaped"),
    "no end of bytes": changed("files", "model.pdparams", "size", to=2**62),
    "negative bytes": changed("files", "model.pdparams", "size", to=-1),
    "a name above": changed("name", to="../../escaped"),
    "another name": changed("name", to="step-000000008"),
    "a pin above": changed("pins", to={"../../escaped": ["step-000000007"]}),
    "a pin that holds a path": changed("pins", to={"best": ["../../escaped"]}),
    "pins that are none": changed("pins", to=3),
    "a step that is none": changed("step", to="7"),
    "a commit that is none": changed("sequence", to=-1),
    "a newer format": changed("format", to=99),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_is_refused(there: Any, tmp_path: Path, what: str) -> None:
    url, one = there
    forgery = forged(url, one, HOSTILE[what])
    folder = tmp_path / "a" / "b"
    with pytest.raises((CheckpointCorruptError, CheckpointSaveError)):
        fetch_checkpoint(Remote(url), forgery, folder)
    store = CheckpointStore(tmp_path / "c" / "d")
    with pytest.raises((CheckpointCorruptError, CheckpointSaveError)):
        store.adopt(
            "step-000000007",
            lambda place: Remote(url).download(forgery, place) and None,
            {"latest": ["step-000000007"]},
        )
    assert store.entries() == [] and leftovers(tmp_path) == []
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_size_beyond_the_disk_is_refused_where_the_remote_tells_no_sizes(there: Any, tmp_path: Path) -> None:
    url, one = there
    forgery = forged(url, one, changed("files", "model.pdparams", "size", to=2**62))
    remote = Remote(url)
    hook(remote, lambda number, name, args, call: {**call(), "size": None} if name == "info" else call())
    with pytest.raises(CheckpointSaveError, match=r"says that it has 4611686018427.* are free"):
        fetch_checkpoint(remote, forgery, tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_forged_manifest_that_claims_nothing_wrong_is_taken(there: Any, tmp_path: Path) -> None:
    """So that the refusals above are not those of the forgery itself."""
    url, one = there
    forgery = forged(url, one, lambda manifest: None)
    assert fetch_checkpoint(Remote(url), forgery, tmp_path).step == 7


@pytest.mark.parametrize(
    "names", [{"../x": ["step-000000007.c1.0123456789abcdef"]}, {"best": 3}, ["best"], {"best": ["../../x", "step-1"]}]
)
def test_hostile_names_are_no_names(there: Any, names: Any) -> None:
    url, _ = there
    overwrite_names(url, names)
    assert Remote(url).names() == {}


def test_a_manifest_without_end_is_not_read(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, one = there
    monkeypatch.setattr("paddlelite_trainer.checkpoint.remote.MAX_REMOTE_MANIFEST_BYTES", 100)
    remote = Remote(url)
    calls = hook(remote, lambda number, name, args, call: call())
    with pytest.raises(CheckpointCorruptError, match="too much for such a file"):
        remote.manifest(one)
    assert "cat_file" not in dict(calls.calls)


@pytest.mark.parametrize(
    "name", ["step-1.c1.0123456789abcdef", "step-000000001", "../step-000000001.c1.0123456789abcdef", 3]
)
def test_what_is_not_named_like_a_remote_checkpoint_is_none(name: Any) -> None:
    assert parse_remote_name(name) is None


def test_large_files_come_in_pieces(there: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddlelite_trainer.checkpoint.remote.DOWNLOAD_CHUNK_BYTES", 100)
    url, one = there
    assert step_in(open_checkpoint(fetch_checkpoint(Remote(url), one, tmp_path).path)) == 7


def test_an_adopted_checkpoint_is_one_of_the_store(there: Any, tmp_path: Path) -> None:
    url, one = there
    store = CheckpointStore(tmp_path / "run")
    entry = adopt(store, url, one)
    assert step_in(store.read(entry)) == 7
    assert [found.name for found in CheckpointStore(tmp_path / "run").by_pin("latest")] == [entry.name]
    assert (tmp_path / "run" / "latest.pdparams").exists()


def adopt(store: CheckpointStore, url: str, one: RemoteCheckpoint) -> Entry:
    def fill(place: Path) -> None:
        Remote(url).download(one, place, store._fs)

    return store.adopt(one.entry_name, fill, {"latest": [one.entry_name]})


def test_commits_are_counted_on_after_an_adoption(tmp_path: Path) -> None:
    url = memory_url()
    first = CheckpointStore(tmp_path / "first")
    for step in (1, 2, 3):
        save(first, step)
    copy_now(first, url)
    (one,) = Remote(url).checkpoints()
    store = CheckpointStore(tmp_path / "second")
    adopt(store, url, one)
    save(store, 2)  # a step that was there before: the order is that of commits
    copy_now(store, url)
    assert [found.commit for found in Remote(url).checkpoints()] == [one.commit + 1, one.commit]


def test_one_of_the_same_name_makes_room(there: Any, tmp_path: Path) -> None:
    url, one = there
    store = CheckpointStore(tmp_path / "run")
    save(store, 7, metrics={"loss": 0.5})
    entry = adopt(store, url, one)
    assert entry.metrics == {} and (store.directory / ".superseded" / entry.name).is_dir()


def test_an_adoption_that_fails_at_any_call_leaves_the_store_as_it_was(there: Any, memory_dir: Path) -> None:
    url, one = there

    def attempt(folder: Path, fail_at: int) -> tuple[NthCallFails, Exception | None]:
        fs = NthCallFails(fail_at)
        store = CheckpointStore(folder, file_system=fs)
        save(store, 3)
        fs.arm()
        try:
            adopt(store, url, one)
        except CheckpointError as error:
            return fs, error
        return fs, None

    total = len(attempt(memory_dir / "count", 0)[0].calls)
    failed = 0
    for fail_at in range(1, total + 1):
        folder = memory_dir / str(fail_at)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *arguments, **options: None)
            _, error = attempt(folder, fail_at)
        failed += error is not None
        store = CheckpointStore(folder)
        newest = store.newest()
        assert newest is not None and newest.step in (3, 7), fail_at
        assert step_in(store.read(newest)) == newest.step
        assert leftovers(folder) == []
    assert failed > 20


# -- which one a run goes on from --------------------------------------------------------------------------------------


def last(url: str, root: Path) -> Resolution:
    return resolve_with_remotes("last", [RemoteCopies(Remote(url), "raise")], default_root_dir=root, run_name=None)


def test_an_unhealthy_copy_is_passed_over_for_a_healthy_one(store: CheckpointStore, tmp_path: Path) -> None:
    url = memory_url()
    save(store, 1)
    save(store, 2, healthy=False)
    copy_now(store, url, everything=True)
    found = last(url, tmp_path)
    assert found.entry is not None and found.entry.step == 1
    assert any("step-000000002.c2" in finding and "NaN or infinite" in finding for finding in found.findings)


def test_an_unhealthy_copy_is_taken_where_there_is_no_other(store: CheckpointStore, tmp_path: Path) -> None:
    url = memory_url()
    save(store, 2, healthy=False)
    copy_now(store, url)
    found = last(url, tmp_path)
    assert found.entry is not None and found.entry.step == 2


def test_a_copy_of_weights_only_is_nothing_to_go_on_from(store: CheckpointStore, tmp_path: Path) -> None:
    url = memory_url()
    save(store, 1, {"whole": ["new"]})
    save(store, 2, info={"weights_only": True})
    copy_now(store, url)
    overwrite(url, "step-000000009.c9.0123456789abcdef/model.pdparams", b"never completed")
    found = last(url, tmp_path)
    assert found.entry is not None and found.entry.step == 1 and found.findings == ()


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("bucket/run", "has a protocol and a place"),
        ("s3://", "has a protocol and a place"),
        ("memry://bucket/run", "Did you mean 'memory'"),
        ("oci://bucket/run", "Install ocifs"),
    ],
)
def test_a_url_that_cannot_be_opened_is_an_error_with_a_remedy(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Remote(url)


def test_a_url_is_a_str() -> None:
    with pytest.raises(ConfigurationTypeError, match="got PosixPath"):
        Remote(Path("/tmp"))  # type: ignore[arg-type]


def test_without_fsspec_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'paddlelite_trainer\[remote\]'"):
        Remote("s3://bucket/run")


def test_a_password_in_a_url_is_not_told() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Remote("nosuch://me:secret@host/run")
    assert "secret" not in str(caught.value)


def test_a_remote_that_does_not_answer_is_no_empty_remote() -> None:
    remote = Remote(memory_url())

    def around(number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        raise ConnectionError("no route to host")

    hook(remote, around)
    with pytest.raises(RemoteError, match="ConnectionError: no route to host"):
        remote.checkpoints()


# -- the command line --------------------------------------------------------------------------------------------------


def test_fetch_brings_a_checkpoint_by_any_of_its_names(
    store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = memory_url()
    save(store, 1, {"best": ["new"], "mine": ["new"]})
    save(store, 2)
    copy_now(store, url)
    for name, step in (("latest", 2), ("best", 1), ("mine", 1), ("2", 2), ("step-000000001", 1)):
        folder = tmp_path / name
        assert main(["ckpt", "fetch", url, str(folder), "--name", name]) == OK
        assert "every byte checked" in capsys.readouterr().out
        assert step_in(open_checkpoint(folder / f"step-{step:09d}")) == step
    assert main(["ckpt", "fetch", url, str(tmp_path / "best"), "--name", "best", "--json"]) == USAGE
    assert "exists already" in capsys.readouterr().err


def test_fetch_says_what_is_there_and_what_is_wrong(
    there: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, one = there
    assert main(["ckpt", "fetch", url, str(tmp_path), "--name", "lates"]) == NOT_FOUND
    assert "Did you mean 'latest'? It has latest, step-000000007." in capsys.readouterr().err
    overwrite(url, f"{one.name}/model.pdparams", flipped(below(url)[f"{one.name}/model.pdparams"]))
    assert main(["ckpt", "fetch", url, str(tmp_path)]) == PROBLEMS
    assert "model.pdparams was altered" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["ckpt", "fetch", url, str(tmp_path / "file")]) == FAILED
    assert main(["ckpt", "fetch", "nosuch://x/y"]) == USAGE
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_ls_lists_a_remote(there: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = there
    assert main(["ckpt", "ls", url]) == OK
    assert "latest" in capsys.readouterr().out
    assert main(["ckpt", "ls", url, "--json"]) == OK
    (row,) = json.loads(capsys.readouterr().out)
    assert main(["ckpt", "ls", memory_url()]) == NOT_FOUND
    assert row["step"] == 7 and row["pins"] == ["latest"] and row["run"] == url


def test_find_raises_where_nothing_is_there() -> None:
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint"):
        Remote(memory_url()).find()


def test_names_that_runs_give_are_told_from_tags() -> None:
    assert is_managed("epoch_3") and is_managed("best_val_loss") and not is_managed("before-finetune")


# -- what is another run's, or all that is left ------------------------------------------------------------------------


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
