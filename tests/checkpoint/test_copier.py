"""Copying beside the training: what is waited for, what is dropped, and what is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from copies_support import copied, copying, named
from remote_support import (
    hook,
    memory_url,
    printed,
)
from store_support import save

from paddlelite_trainer.checkpoint import CheckpointStore, Remote
from paddlelite_trainer.errors import (
    RemoteError,
)

pytestmark = pytest.mark.usefixtures("retry_at_once")


# -- beside the training ---------------------------------------------------------------------------------------------


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
