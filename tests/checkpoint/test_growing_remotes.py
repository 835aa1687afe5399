"""What a copy costs does not grow with the checkpoints before it: what changed is looked at, names rest between."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from copies_support import copying, named
from remote_support import memory_url
from store_support import memory_dir as memory_dir
from store_support import save

from paddlelite_trainer.checkpoint import CheckpointStore, Remote
from paddlelite_trainer.checkpoint.remote import copier
from paddlelite_trainer.checkpoint.remote.logs import _logs_of


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_what_a_copier_notes_of_changes_is_what_a_look_at_all_finds(
    memory_dir: Path, seed: int, everything: bool
) -> None:
    rng, store = random.Random(seed), CheckpointStore(memory_dir)
    one = copying(store, memory_url(), everything=everything, is_wanted=lambda name: name in ("latest", "best", "mine"))
    one._look()
    store.watch(one._note)
    for step in range(1, 25):
        best = [entry.name for entry in store.by_pin("best")]
        best.insert(rng.randrange(len(best) + 1), "new")
        save(store, step, {"best": best[:3], f"other{step % 4}": ["new"]})
        if rng.random() < 0.3:
            store.tag(rng.choice(store.entries()), "mine")
        if rng.random() < 0.2 and "mine" in store.pins():
            store.untag("mine")
        while rng.random() < 0.4 and (entry := one._take()) is not None:
            one._copied[entry.sha256] = None  # type: ignore[assignment]
            one._put_back()
        noted = set(one._waiting), {name: [each.name for each in held] for name, held in one._pins.items()}
        one._look()
        found = set(one._waiting), {name: [each.name for each in held] for name, held in one._pins.items()}
        assert noted == found


def test_names_of_many_checkpoints_follow_at_intervals_and_are_right_in_the_end(
    memory_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "_FEW_NAMED", 4)
    monkeypatch.setattr(copier, "_RESTS", 1e6)
    store, url, written = CheckpointStore(memory_dir), memory_url(), []
    remote = Remote(url)
    own = remote.write_names
    monkeypatch.setattr(remote, "write_names", lambda names: written.append(names) or own(names))
    one = copying(store, remote)
    one.start()
    for step in range(1, 31):
        save(store, step, {"all": [*(entry.name for entry in store.by_pin("all")), "new"]})
        entry = store.entries()[-1]
        deadline = time.monotonic() + 20
        while entry.sha256 not in one._copied:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    assert 1 <= len(written) <= 8
    assert len(Remote(url).checkpoints()) == 30, "copies do not wait for names"
    assert Remote(url).find("latest").entry_name == entry.name
    assert one.wait(20)
    assert one.finish() == []
    assert named(url) == {pin: list(held) for pin, held in store.pins().items()}


def test_links_of_kept_checkpoints_are_not_looked_into_for_logs(memory_dir: Path, monkeypatch: Any) -> None:
    store = CheckpointStore(memory_dir)
    for step in range(1, 6):
        save(store, step, {f"kept{step}": ["new"]})
    (memory_dir / "train.log").write_text("a line")
    (memory_dir / "history").mkdir()
    (memory_dir / "history/0.json").write_text("{}")
    (memory_dir / ".hidden").write_text("")
    monkeypatch.setattr(Path, "is_symlink", lambda path: pytest.fail(f"{path} was looked at"))
    monkeypatch.setattr(Path, "is_file", lambda path: pytest.fail(f"{path} was looked at"))
    assert [path.relative_to(memory_dir).as_posix() for path in _logs_of(memory_dir)] == ["train.log", "history/0.json"]
