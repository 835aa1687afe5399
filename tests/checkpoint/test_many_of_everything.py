"""Work that grows no faster than what is saved: calls, parsed manifests and comparisons, counted and not timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore, FileSystem, lookup, pins, reader
from paddlelite_trainer.checkpoint.entry import Entry


class Writes(FileSystem):
    def __init__(self) -> None:
        self.count = 0

    def write(self, descriptor: int, data: Any) -> None:
        self.count += 1
        super().write(descriptor, data)


def save(store: CheckpointStore, step: int, kept: list[str]) -> str:
    name = store.candidate(step, 0).name
    weights = {"weight": np.full(4, step, "float32")}
    store.save(step=step, epoch=0, files={"model.pdparams": weights}, states={}, pins={"all": [*kept, name]})
    return name


def filled(run: Path, count: int) -> CheckpointStore:
    store, names = CheckpointStore(run), []
    for step in range(count):
        names.append(save(store, step, names))
    return store


def test_many_small_tensors_are_written_together_and_come_back(tmp_path: Path) -> None:
    writes = Writes()
    store = CheckpointStore(tmp_path, file_system=writes)
    rng = np.random.RandomState(0)
    sizes = [*rng.randint(0, 40, 3000), 20_000, 3, 400_000, 5]
    tensors = {f"layer.{index}": rng.randn(size).astype("float32") for index, size in enumerate(sizes)}
    before = writes.count
    store.save(step=1, epoch=0, files={"model.pdparams": tensors}, states={}, pins={"latest": ["step-000000001"]})
    assert writes.count - before < 20
    saved = store.read(store.entries()[0]).tensors("model.pdparams")
    assert saved.keys() == tensors.keys()
    assert all((saved[name] == tensors[name]).all() for name in tensors)


def test_the_types_of_a_file_are_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    tensors = {f"layer.{index}": np.zeros(1, "float32") for index in range(300)}
    store.save(step=1, epoch=0, files={"model.pdparams": tensors}, states={}, pins={"latest": ["step-000000001"]})
    saved = store.read(store.entries()[0])
    asked = []
    own = type(saved)._blocks
    monkeypatch.setattr(type(saved), "_blocks", lambda self, file: asked.append(file) or own(self, file))
    assert {saved.dtype_of("model.pdparams", name) for name in tensors} == {"float32"}
    assert len(asked) == 1


def test_each_tensor_is_found_without_going_through_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    tensors = {f"layer.{index}": np.full(2, index, "float32") for index in range(300)}
    store.save(step=1, epoch=0, files={"model.pdparams": tensors}, states={}, pins={"latest": ["step-000000001"]})
    saved = store.read(store.entries()[0])
    gone_through = []
    monkeypatch.setattr(saved, "_places", {"model.pdparams": _Counted(saved._found("model.pdparams"), gone_through)})
    assert all((saved.tensor("model.pdparams", name) == tensor).all() for name, tensor in tensors.items())
    assert len(gone_through) <= 1
    assert saved.shapes("model.pdparams") == dict.fromkeys(tensors, (2,))


class _Counted(dict):  # type: ignore[type-arg]
    def __init__(self, content: dict[str, Any], calls: list[None]) -> None:
        super().__init__(content)
        self._calls = calls

    def items(self) -> Any:
        self._calls.append(None)
        return super().items()


def test_who_holds_a_checkpoint_is_found_for_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 30)
    names = [entry.name for entry in store.entries()]
    calls = []
    own = pins.Pins.of
    monkeypatch.setattr(pins.Pins, "of", lambda self, entry: calls.append(entry) or own(self, entry))
    save(store, 30, names)
    fresh = CheckpointReader(tmp_path)
    assert all(entry.pins == ("all",) for entry in fresh.entries())
    rows = list(lookup.listed(lookup.Found(tmp_path, None), verify=False))
    assert all(row.pins == ("all",) for row in rows)
    assert len(rows) == 31
    assert len(calls) <= 2  # of the one that was saved


def test_a_reader_reads_a_manifest_once_and_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 10)
    read = []
    own = reader.read_manifest
    monkeypatch.setattr(reader, "read_manifest", lambda path, fs: read.append(path) or own(path, fs))
    looks = CheckpointReader(tmp_path)
    looks.entries()
    looks.pins()
    assert len(read) == 10
    # Each of them names all checkpoints before it.
    kept = [value for attribute in vars(looks).values() if isinstance(attribute, dict) for value in attribute.values()]
    assert kept
    assert not any(isinstance(value, dict) and "pins" in value for value in kept)


def test_pins_are_rebuilt_from_manifests_where_the_record_is_lost_while_a_reader_looks(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    expected = store.pins()
    looks = CheckpointReader(tmp_path)
    assert looks.pins() == expected
    (tmp_path / "checkpoints/pins.json").unlink()
    assert looks.pins() == expected


def test_retention_goes_through_the_checkpoints_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 40)
    newest = store.entries()[-1].name
    asked = []
    own = Entry.__getattribute__

    def counted(self: Entry, name: str) -> Any:
        asked.append(name)
        return own(self, name)

    monkeypatch.setattr(Entry, "__getattribute__", counted)
    store.set_pins({"all": [newest]})
    monkeypatch.undo()
    assert [entry.name for entry in store.entries()] == [newest]
    assert len(asked) < 40 * 40
