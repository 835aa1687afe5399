"""What a save writes and looks at does not grow with the checkpoints before it, and its record survives a crash."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import copy_run

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore, FileSystem, pins, record
from paddlelite_trainer.checkpoint.inventory import Inventory
from paddlelite_trainer.checkpoint.manifest import unseal
from paddlelite_trainer.checkpoint.pins import Edit, Pins, edit_between
from paddlelite_trainer.checkpoint.remote.names import rebuilt

WEIGHTS = {"weight": np.zeros(4, "float32")}


class Counts(FileSystem):
    """How many bytes were written, and how many names were listed or asked after."""

    def __init__(self) -> None:
        self.written = self.names = 0

    def write(self, descriptor: int, data: Any) -> None:
        self.written += len(data)
        super().write(descriptor, data)

    def listdir(self, path: Path) -> list[str]:
        found = super().listdir(path)
        self.names += len(found)
        return found

    def lstat(self, path: Path) -> Any:
        self.names += 1
        return super().lstat(path)


def save_ranked(store: CheckpointStore, step: int, rng: random.Random, keep: int | None = None) -> None:
    """One more of a ranking, each with a name of its own, and the newest."""
    entry = store.candidate(step, 0)
    before = store.pins().get("best", ())
    place = rng.randrange(len(before) + 1)
    ranking = [*before[:place], entry.name, *before[place:]][:keep]
    own = {f"step={step}": [entry.name]} if entry.name in ranking else {}
    dropped = {f"step={int(name[5:])}": [] for name in before if name not in ranking}
    store.save(
        step=step,
        epoch=0,
        files={"model.pdparams": WEIGHTS},
        states={},
        pins={"best_loss": ranking, "best": ranking, "latest": [entry.name], **own, **dropped},
    )


@pytest.mark.parametrize("keep", [None, 100], ids=["every one is kept", "100 are kept"])
def test_what_a_save_writes_and_looks_at_does_not_grow_with_the_saves_before_it(
    memory_dir: Path, keep: int | None
) -> None:
    counts, rng = Counts(), random.Random(0)
    store = CheckpointStore(memory_dir, file_system=counts)
    written, names = [0], [0]
    for step in range(1, 801):
        save_ranked(store, step, rng, keep)
        written.append(counts.written)
        names.append(counts.names)
    each = [(total[800] - total[600]) / (total[400] - total[200]) for total in (written, names)]
    assert each == pytest.approx([1.0, 1.0], abs=0.15)
    assert (written[800] - written[600]) / 200 < 5000
    assert CheckpointReader(memory_dir).pins() == store.pins()
    again = CheckpointStore(memory_dir)
    assert again.pins() == store.pins()
    assert [(entry.name, entry.pins) for entry in again.entries()] == [
        (entry.name, entry.pins) for entry in store.entries()
    ]


def test_a_long_list_is_said_by_its_changes_in_a_format_of_its_own(memory_dir: Path) -> None:
    store, rng = CheckpointStore(memory_dir), random.Random(0)
    for step in range(1, 101):
        save_ranked(store, step, rng)
    manifests = [unseal((entry.path / "manifest.json").read_bytes(), "") for entry in store.entries()]
    assert {manifest["format"] for manifest in manifests[:64]} == {1}
    assert {manifest["format"] for manifest in manifests[64:]} == {1, 3}
    assert manifests[70]["pins"]["best"] == {"less": [], "more": [[manifests[70]["pins"]["best"]["more"][0][0], STEP]]}
    changes = sorted(path.name for path in store.directory.glob("pins-*.json"))
    assert 0 < len(changes) <= 20
    assert json.loads((store.directory / "pins.json").read_bytes())["sequence"] < 100


STEP = "step-000000071"


@pytest.mark.parametrize("lost", ["the record", "its last change", "a change before it", "another change in its place"])
def test_of_a_record_that_is_damaged_in_part_no_checkpoint_is_lost(memory_dir: Path, lost: str) -> None:
    store, rng = CheckpointStore(memory_dir), random.Random(0)
    for step in range(1, 90):
        save_ranked(store, step, rng)
    expected = store.pins()
    changes = sorted(store.directory.glob("pins-*.json"))
    changes = [path for path in changes if path.name > f"pins-{store._pins.changes - 5:09d}"]
    if lost == "the record":
        (store.directory / "pins.json").unlink()
    elif lost == "its last change":
        changes[-1].unlink()
    elif lost == "a change before it":
        changes[-2].write_bytes(b"{")
    else:
        changes[-1].write_bytes(changes[-2].read_bytes())
    with pytest.warns(UserWarning) if lost == "a change before it" else _nothing():
        assert CheckpointReader(memory_dir).pins() == expected
    with pytest.warns(UserWarning) if lost == "a change before it" else _nothing():
        again = CheckpointStore(memory_dir)
    assert again.pins() == expected
    assert len(again.entries()) == 89
    save_ranked(again, 90, rng)
    assert len(CheckpointStore(memory_dir).entries()) == 90


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_changes_that_another_record_was_followed_by_say_nothing(memory_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(record, "REPLACED_UP_TO", 0)
    store, rng = CheckpointStore(memory_dir / "run"), random.Random(0)
    for step in range(1, 30):
        save_ranked(store, step, rng)
    copy_run(memory_dir / "run", memory_dir / "other")
    other = CheckpointStore(memory_dir / "other")
    other.tag(other.entries()[0], "mine")
    other.untag("mine")
    for path in (memory_dir / "run/checkpoints").glob("pins-*.json"):
        (memory_dir / "other/checkpoints" / path.name).write_bytes(path.read_bytes())
    assert CheckpointReader(memory_dir / "other").pins() == other.pins()


def test_a_reader_beside_a_writer_sees_each_record_whole(memory_dir: Path, monkeypatch: Any) -> None:
    """It lists the changes, and before it reads them they are replaced by a new pins.json and deleted."""
    monkeypatch.setattr(record, "REPLACED_UP_TO", 0)
    store, rng = CheckpointStore(memory_dir), random.Random(0)

    class Meanwhile(FileSystem):
        armed = True

        def read(self, path: Path) -> bytes:
            if path.name.startswith("pins-") and self.armed:
                self.armed = False
                store.repair()
                save_ranked(store, 41, rng)
            return super().read(path)

    for step in range(1, 41):
        save_ranked(store, step, rng)
    reader = CheckpointReader(memory_dir, file_system=Meanwhile())
    assert reader.pins() == store.pins()


@pytest.mark.parametrize("seed", range(30))
def test_an_edit_makes_of_one_list_the_other(seed: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(pins, "SHORT_LIST", 2)
    rng = random.Random(seed)
    before = tuple(map(str, range(rng.randrange(60))))
    after = [name for name in before if rng.random() > 0.1 * (seed % 4)]
    for new in range(100, 100 + rng.randrange(4)):
        after.insert(rng.randrange(len(after) + 1), str(new))
    if seed % 10 == 0:
        rng.shuffle(after)
    edit = edit_between(before, tuple(after))
    assert edit is None or edit.applied(before) == tuple(after)
    assert edit is not None or len(after) <= 2 or seed % 10 == 0 or 2 * len(set(before) ^ set(after)) > len(after)
    assert edit_between(before, before) in (None, Edit((), ()))


@pytest.mark.parametrize("seed", range(20))
def test_an_inventory_that_is_changed_says_what_one_made_anew_says(seed: int, memory_dir: Path) -> None:
    rng = random.Random(seed)
    store = CheckpointStore(memory_dir)
    entries = {}
    there, now = Inventory(), Pins()
    for _ in range(60):
        what = rng.random()
        if what < 0.4:
            step = rng.randrange(20)
            revision = there.newest_revision(step)
            entry = store.candidate(step, 0, healthy=rng.random() < 0.7)
            entry = type(entry)(**{**vars(entry), "revision": 0 if revision is None else revision + 1})
            entry = type(entry)(**{**vars(entry), "name": _name(entry.step, entry.revision)})
            entries[entry.name] = entry
            there.add(entry)
        elif what < 0.8 and entries:
            held = rng.sample(sorted(entries), rng.randrange(min(5, len(entries)) + 1))
            pin = rng.choice("abcd")
            now = now.with_pins({pin: held})
            there.hold(now, [pin])
        elif entries:
            gone = rng.choice(sorted(entries))
            changed = [pin for pin, held in now.held.items() if gone in held]
            now = now.without_entries([gone], None)
            there.hold(now, changed)
            there.drop([gone])
            del entries[gone]
        anew = Inventory(entries.values(), now)
        assert there.entries() == anew.entries()
        assert there.unheld() == anew.unheld()
        assert [there.newest_revision(step) for step in range(20)] == [anew.newest_revision(step) for step in range(20)]


def _name(step: int, revision: int) -> str:
    return f"step-{step:09d}" + (f"-r{revision}" if revision else "")


def test_names_at_a_remote_are_made_anew_of_lists_that_are_told_by_their_changes(memory_dir: Path) -> None:
    store, rng = CheckpointStore(memory_dir), random.Random(0)
    for step in range(1, 81):
        save_ranked(store, step, rng)
    manifests = [unseal((entry.path / "manifest.json").read_bytes(), "") for entry in store.entries()]
    assert any(manifest["format"] == 3 for manifest in manifests)
    names = rebuilt(None, manifests).held
    assert {name: tuple(one.entry_name for one in held) for name, held in names.items()} == store.pins()
