"""Fixtures of the checkpoint tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from copies_support import copy_now
from remote_support import (
    memory_url,
)
from store_support import memory_dir as memory_dir
from store_support import save

from paddlelite_trainer.checkpoint import CheckpointStore, Remote, pins, record
from paddlelite_trainer.checkpoint.remote import (
    RemoteCheckpoint,
    copier,
)


@pytest.fixture(params=["record replaced whole", "record in changes"])
def record_of_pins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the pins as in a run of few checkpoints, and as in one of many."""
    if request.param == "record in changes":
        monkeypatch.setattr(record, "REPLACED_UP_TO", 0)
        monkeypatch.setattr(record, "CHECKPOINTS_A_CHANGE", 1)
        monkeypatch.setattr(pins, "SHORT_LIST", 0)


@pytest.fixture
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(copier, "LONGEST_RETRY_SECONDS", 0.01)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return memory_url() if request.param == "memory" else f"file://{tmp_path}/remote"


@pytest.fixture
def store(memory_dir: Path) -> Iterator[CheckpointStore]:
    yield CheckpointStore(memory_dir / "run")


@pytest.fixture
def there(store: CheckpointStore) -> tuple[str, RemoteCheckpoint]:
    """A URL with one checkpoint."""
    url = memory_url()
    save(store, 7)
    copy_now(store, url)
    (one,) = Remote(url).checkpoints()
    return url, one
