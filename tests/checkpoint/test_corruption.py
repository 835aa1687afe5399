"""Whatever happens to a checkpoint's bytes is found, reported, quarantined and fallen back from; no bytes run code."""

import hashlib
import json
import pickle
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from store_support import copy_run, files_of, links_of, save, step_in

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore, open_checkpoint
from paddlelite_trainer.checkpoint.manifest import seal, unseal
from paddlelite_trainer.errors import CheckpointCorruptError, CheckpointNotFoundError


@pytest.fixture
def run(memory_dir):
    store = CheckpointStore(memory_dir / "run")
    save(store, 1, {"best": ["new"]}, files=files_of(1, size=40))
    save(store, 2, files=files_of(2, size=40))
    return memory_dir / "run"


def newest_directory(run):
    return run / "checkpoints" / "step-000000002"


def files(run):
    return sorted(newest_directory(run).iterdir())


def assert_found(run, what):
    """The damage is seen on every way to the checkpoint, and the one before is used."""
    with pytest.raises((CheckpointCorruptError, CheckpointNotFoundError)):
        open_checkpoint(newest_directory(run))
    store = CheckpointReader(run)
    assert store.verify("step-000000002"), what
    with pytest.warns(UserWarning, match="step-000000002 is damaged; using step-000000001"):
        assert store.newest().step == 1, what


def flip(path, bit):
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def test_a_sound_checkpoint_has_no_problems(run):
    store = CheckpointStore(run)
    assert [store.verify(entry) for entry in store.entries()] == [[], []]


def check_flips(run, count):
    rng = random.Random(0)
    paths = files(run)
    for _ in range(count):
        path = rng.choice(paths)
        bit = rng.randrange(path.stat().st_size * 8)
        flip(path, bit)
        assert_found(run, f"bit {bit} of {path.name}")
        flip(path, bit)
    assert CheckpointStore(run).verify("step-000000002") == []


def test_any_flipped_bit_is_found(run):
    check_flips(run, 600)


@pytest.mark.soak
def test_two_thousand_flipped_bits_are_found(run):
    check_flips(run, 2000)


@pytest.mark.parametrize("every", [37, pytest.param(1, marks=pytest.mark.soak)])
def test_every_bit_of_the_manifest_counts(run, every):
    manifest = newest_directory(run) / "manifest.json"
    data = manifest.read_bytes()
    for bit in range(0, len(data) * 8, every):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointCorruptError):
            unseal(bytes(damaged), "manifest.json")
    manifest.write_bytes(bytes(damaged))
    assert_found(run, "last bit of the manifest")


@pytest.mark.parametrize("count", [12, pytest.param(140, marks=pytest.mark.soak)])
def test_a_truncation_anywhere_is_found(run, count):
    for path in files(run):
        data = path.read_bytes()
        for size in {0, 1, len(data) - 1, *range(0, len(data), max(1, len(data) // count))}:
            path.write_bytes(data[:size])
            assert_found(run, f"{path.name} cut to {size} of {len(data)}")
        path.write_bytes(data)


def test_zeroed_blocks_extra_bytes_and_missing_or_extra_files_are_found(run):
    for path in files(run):
        data = path.read_bytes()
        for damaged in (
            bytes(len(data)),
            data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
            data + b"\0",
            b"x" + data,
        ):
            path.write_bytes(damaged)
            assert_found(run, path.name)
        path.unlink()
        assert_found(run, f"{path.name} is missing")
        path.write_bytes(data)
    (newest_directory(run) / "extra.json").write_text("{}")
    assert_found(run, "an extra file")


def test_a_link_or_directory_in_a_files_place_is_found(run):
    path = newest_directory(run) / "model.pdparams"
    path.rename(run / "elsewhere")
    path.symlink_to(run / "elsewhere")
    assert_found(run, "a link")
    path.unlink()
    path.mkdir()
    assert_found(run, "a directory")


def test_a_damaged_checkpoint_goes_to_quarantine_and_its_pins_and_links_let_go(run):
    flip(newest_directory(run) / "model.pdparams", 4000)
    store = CheckpointStore(run)
    with pytest.warns(
        UserWarning, match=r"step-000000002 is damaged; using step-000000001.*moved to checkpoints/.quarantine"
    ):
        newest = store.newest()
    assert step_in(store.read(newest)) == 1
    assert (run / "checkpoints/.quarantine/step-000000002/model.pdparams").exists()
    assert store.pins() == {"best": ("step-000000001",), "latest": ("step-000000001",)}
    assert links_of(run)["latest"] == "checkpoints/step-000000001"
    save(store, 2, files=files_of(2, size=40))
    flip(newest_directory(run) / "model.pdparams", 4000)
    with pytest.warns(UserWarning, match="quarantine"):
        assert CheckpointStore(run).newest().step == 1
    assert (run / "checkpoints/.quarantine/step-000000002.1").exists(), "the second does not replace the first"


def test_when_all_are_damaged_it_is_an_error_that_names_each_and_moves_nothing(run):
    for name in ("step-000000001", "step-000000002"):
        flip(run / "checkpoints" / name / "trainer.json", 9)
    for _ in range(2):
        with pytest.raises(
            CheckpointCorruptError, match=r"step-000000002: trainer.json.*\n.*step-000000001: trainer.json"
        ):
            CheckpointStore(run).newest()


def test_a_directory_without_manifest_is_not_a_checkpoint_and_not_none_either(tmp_path):
    (tmp_path / "checkpoints/step-000000007").mkdir(parents=True)
    with pytest.raises(CheckpointCorruptError, match=r"manifest\.json is missing"):
        CheckpointStore(tmp_path).newest()


def test_bytes_that_cannot_be_read_are_no_reason_to_move_the_checkpoint(run):
    class Unreadable(type(CheckpointStore(run)._fs)):
        def map(self, path):
            if "step-000000002" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return super().map(path)

    store = CheckpointStore(run, file_system=Unreadable())
    with pytest.warns(UserWarning, match="Permission denied"):
        assert store.newest().step == 1
    assert step_in(CheckpointStore(run).read(newest_directory(run))) == 2


def test_a_checkpoint_under_another_ones_name_is_refused(run):
    shutil.rmtree(newest_directory(run))
    copy_run(run / "checkpoints/step-000000001", newest_directory(run))
    with pytest.raises(CheckpointCorruptError, match="named step-000000002, its manifest is that of step-000000001"):
        open_checkpoint(newest_directory(run))
    with pytest.warns(UserWarning, match="step-000000002 is damaged"):
        assert CheckpointStore(run).newest().step == 1


def test_a_torn_record_of_pins_is_rebuilt_from_manifests_and_links(run):
    store = CheckpointStore(run)
    store.tag(store.entries()[0], "mine")
    for content in (b"", b"{}", b"\0" * 100, (run / "checkpoints/pins.json").read_bytes()[:-5], None):
        path = run / "checkpoints/pins.json"
        path.unlink() if content is None else path.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rebuilt = CheckpointStore(run)
        assert bool(caught) is (content is not None)
        assert rebuilt.pins() == {
            "best": ("step-000000001",),
            "latest": ("step-000000002",),
            "mine": ("step-000000001",),
        }


def test_without_record_and_links_sound_checkpoints_are_kept_as_recovered(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step, {"kept": [*(entry.name for entry in store.by_pin("kept")), "new"]})
    store.set_pins({"mine": ["step-000000001"], "kept": []}, links=False)
    (tmp_path / "checkpoints/pins.json").unlink()
    rebuilt = CheckpointStore(tmp_path)
    assert [entry.step for entry in rebuilt.entries()] == [1, 2]
    assert "step-000000001" in rebuilt.pins()["kept"], "the last commit's pins"


# ---- what an attacker may write ----


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_reading_never_unpickles(run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the pickle machine ran")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert step_in(open_checkpoint(newest_directory(run))) == 2


def forge(run, change, **replaced_files):
    """A checkpoint with a manifest whose checksums are right, as an attacker would make it."""
    directory = newest_directory(run)
    manifest = unseal((directory / "manifest.json").read_bytes(), "")
    del manifest["sha256"]
    change(manifest)
    (directory / "manifest.json").write_bytes(seal(manifest))
    return directory


def test_a_pickle_bomb_with_a_matching_manifest_is_not_run(run):
    bomb = pickle.dumps(Bomb())
    (newest_directory(run) / "model.pdparams").write_bytes(bomb)

    def change(manifest):
        manifest["files"]["model.pdparams"] = {
            "size": len(bomb),
            "sha256": hashlib.sha256(bomb).hexdigest(),
            "tensors": [],
        }

    saved = open_checkpoint(forge(run, change))
    assert saved.tensors("model.pdparams") == {}


@pytest.mark.parametrize(
    "name",
    ["../step-000000001/model.pdparams", "/etc/passwd", "a/b", "..", ".hidden", "", "x\0y", "a\\b", "manifest.json"],
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(run, name):
    def change(manifest):
        manifest["files"][name] = manifest["files"].pop("model.pdparams")

    with pytest.raises(CheckpointCorruptError, match="a file that a checkpoint cannot have"):
        open_checkpoint(forge(run, change))


@pytest.mark.parametrize(
    "block",
    [
        ["w", "float32", [40, 2], -64, 320],
        ["w", "float32", [40, 2], 1 << 62, 320],
        ["w", "float32", [1 << 40], 0, 1 << 42],
        ["w", "float32", [1 << 32, 1 << 32], 0, 0],
        ["w", "float32", [-1, -80], 0, 320],
        ["w", "float32", [40, 2], 0, 321],
        ["w", "float32", [40.0, 2], 0, 320],
        ["w", "float32", [True, 80], 0, 320],
        ["w", "object", [40], 0, 320],
        ["w", "O", [40], 0, 320],
        ["w", "<U4", [20], 0, 320],
        ["w", "float32", [1] * 40 + [80], 0, 320],
        ["w", "float32", "40", 0, 160],
        [7, "float32", [80], 0, 320],
        ["w", "float32", [80], 0],
        "w",
        None,
    ],
)
def test_a_tensor_that_cannot_be_in_the_file_is_refused(run, block):
    def change(manifest):
        manifest["files"]["model.pdparams"]["tensors"] = [block]

    with pytest.raises(CheckpointCorruptError):
        open_checkpoint(forge(run, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"]["model.pdparams"]["tensors"].append(
            ["x", "uint8", [8], m["files"]["model.pdparams"]["tensors"][0][3] + 8, 8]
        ),
        lambda m: m["files"]["model.pdparams"]["tensors"].append(m["files"]["model.pdparams"]["tensors"][0]),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={"model.pdparams": None}),
        lambda m: m["files"]["model.pdparams"].update(size=-1),
        lambda m: m["files"]["model.pdparams"].update(size="5"),
        lambda m: m["files"]["model.pdparams"].update(sha256="00"),
        lambda m: m.update(format=None),
        lambda m: m.update(name="../../x"),
        lambda m: m.update(step="2"),
        lambda m: m.update(step=3),
        lambda m: m.update(metrics={"$": "nothing"}),
        lambda m: m.pop("epoch"),
    ],
    ids=[
        "overlap",
        "twice",
        "list",
        "no record",
        "negative",
        "text",
        "short hash",
        "no format",
        "name",
        "text step",
        "other step",
        "metrics",
        "no epoch",
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(run, change):
    with pytest.raises(CheckpointCorruptError):
        open_checkpoint(forge(run, change))


def test_a_format_from_the_future_asks_for_an_upgrade(run):
    with pytest.raises(
        CheckpointCorruptError, match=r"has format 4; this paddlelite_trainer reads up to 3. Upgrade it"
    ):
        open_checkpoint(forge(run, lambda manifest: manifest.update(format=4)))


def test_json_nested_without_end_is_an_error_and_not_a_crash(run):
    body = b'"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
    data = b'{"sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body
    (newest_directory(run) / "manifest.json").write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match="is not JSON"):
        open_checkpoint(newest_directory(run))


def test_changing_a_loaded_tensor_never_reaches_the_file(run):
    saved = open_checkpoint(newest_directory(run))
    before = (newest_directory(run) / "model.pdparams").read_bytes()
    saved.tensors("model.pdparams")["linear.weight"][:] = np.nan
    assert (newest_directory(run) / "model.pdparams").read_bytes() == before
    assert open_checkpoint(newest_directory(run)).tensors("model.pdparams")["linear.weight"][0, 0] == 2


def test_the_manifest_is_json_that_other_programs_read(run):
    manifest = json.loads(Path(newest_directory(run) / "manifest.json").read_text())
    assert manifest["step"] == 2 and manifest["files"]["model.pdparams"]["size"] > 0
