"""What comes back from a remote is trusted in nothing: damage, hostile manifests, adoption into a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from copies_support import copy_now
from remote_support import (
    below,
    flipped,
    forged,
    hook,
    memory_url,
    overwrite,
    overwrite_names,
    remove,
)
from store_support import NthCallFails, leftovers, save, step_in

from paddlelite_trainer.checkpoint import CheckpointStore, Entry, Remote, open_checkpoint
from paddlelite_trainer.checkpoint.manifest import MANIFEST
from paddlelite_trainer.checkpoint.remote import (
    NAMES_COPY,
    RemoteCheckpoint,
    fetch_checkpoint,
    parse_remote_name,
)
from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointSaveError,
)

pytestmark = pytest.mark.usefixtures("retry_at_once")


# -- what comes back -------------------------------------------------------------------------------------------------


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
    url, one = there
    overwrite_names(url, names)
    assert Remote(url).names() == {"latest": [one]}  # what its copy says
    remove(url, NAMES_COPY)
    assert Remote(url).names() == {"latest": [one]}  # what the checkpoints say


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
