"""Runs live in odd places: unicode, spaces, long names, links, relative paths, file systems that lack something."""

import errno
import os

import pytest
from store_support import HookedFileSystem, copy_run, leftovers, links_of, save, step_in

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore, open_checkpoint
from paddlelite_trainer.errors import CheckpointNotFoundError


def use(run):
    """A little life of a run: saves, a tag, a resume."""
    store = CheckpointStore(run)
    save(store, 1, {"best": ["new"]})
    save(store, 2, background=True)
    store.wait()
    again = CheckpointStore(run)
    assert step_in(again.read(again.newest())) == 2
    assert [entry.step for entry in again.by_pin("best")] == [1]
    assert leftovers(again.run_dir) == []
    return again


@pytest.mark.parametrize(
    "name",
    ["a b", "日本語/ü", "-n", "'quoted' \"twice\"", "$HOME `x` *?", "x" * 250, "a/" * 40 + "deep", "new\nline", "dot."],
)
def test_any_name_of_a_run_directory_works(memory_dir, name):
    use(memory_dir / name)
    for pin, step in (("latest", 2), ("best", 1)):
        assert step_in(open_checkpoint(memory_dir / name / pin)) == step
        assert step_in(open_checkpoint(str(memory_dir / name / f"{pin}.pdparams"))) == step


def test_a_name_that_is_not_utf8_works(memory_dir):
    use(memory_dir / os.fsdecode(b"caf\xe9"))


def test_pins_may_have_any_name_that_a_file_may_have(memory_dir):
    store = CheckpointStore(memory_dir)
    entry = save(store, 1)
    for name in ("epoch=3-val_acc=0.91", "最好", "a b", "x" * 200, "v1.2"):
        store.tag(entry, name)
        assert step_in(open_checkpoint(memory_dir / f"{name}.pdparams")) == 1
    assert len(CheckpointStore(memory_dir).entries()[0].pins) == 6


def test_a_relative_directory_stays_the_same_when_the_process_moves(memory_dir, monkeypatch):
    monkeypatch.chdir(memory_dir)
    store = CheckpointStore("runs/a")
    save(store, 1)
    (memory_dir / "elsewhere").mkdir()
    monkeypatch.chdir(memory_dir / "elsewhere")
    save(store, 2)
    assert step_in(store.read(store.newest())) == 2
    assert list((memory_dir / "elsewhere").iterdir()) == []


def test_a_symlinked_run_directory_and_a_symlinked_checkpoints_directory_work(memory_dir):
    (memory_dir / "real").mkdir()
    (memory_dir / "link").symlink_to("real")
    use(memory_dir / "link")
    (memory_dir / "disk").mkdir()
    (memory_dir / "run").mkdir()
    (memory_dir / "run/checkpoints").symlink_to(memory_dir / "disk")
    use(memory_dir / "run")
    assert (memory_dir / "disk/step-000000002").is_dir()
    assert step_in(open_checkpoint(memory_dir / "run/latest.pdparams")) == 2


def test_a_run_whose_links_were_lost_in_copying_gets_them_back(memory_dir):
    use(memory_dir / "a")
    copy_run(memory_dir / "a", memory_dir / "b")
    for name in links_of(memory_dir / "b"):
        (memory_dir / "b" / name).unlink()
    CheckpointReader(memory_dir / "b")
    assert links_of(memory_dir / "b") == {}, "a reader makes nothing"
    CheckpointStore(memory_dir / "b")
    assert links_of(memory_dir / "b") == links_of(memory_dir / "a")


def test_another_device_for_temporary_files_does_not_matter(memory_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    use(memory_dir / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_was_copied_elsewhere_and_renamed_opens(memory_dir):
    use(memory_dir / "run")
    copy_run(memory_dir / "run/checkpoints/step-000000002", memory_dir / "my model")
    assert step_in(open_checkpoint(memory_dir / "my model")) == 2
    assert step_in(open_checkpoint(memory_dir / "my model/model.pdparams")) == 2


def test_where_nothing_is_the_error_names_the_path(memory_dir):
    save(CheckpointStore(memory_dir), 1)
    for path in ("nothing", "latest.txt", "checkpoints", ""):
        with pytest.raises(CheckpointNotFoundError, match="There is no checkpoint at "):
            open_checkpoint(memory_dir / path)
    (memory_dir / "dangling").symlink_to("checkpoints/step-000000009")
    with pytest.raises(CheckpointNotFoundError, match="a link to one that is gone"):
        open_checkpoint(memory_dir / "dangling")
    assert CheckpointReader(memory_dir / "nothing").newest() is None
    assert not (memory_dir / "nothing").exists(), "a reader makes nothing"


class NoSymlinks(HookedFileSystem):
    """As FAT, many network shares and Windows without privileges are."""

    hard_links = True

    def before(self, name, args):
        if name == "symlink" or (name == "link" and not self.hard_links):
            raise PermissionError(errno.EPERM, "Operation not permitted")


def test_without_symbolic_links_pins_are_pointer_files_and_hard_links(memory_dir):
    store = CheckpointStore(memory_dir, file_system=NoSymlinks())
    for step in (1, 2, 3):
        save(store, step, {"best": ["new"]} if step < 3 else {})
        assert step_in(open_checkpoint(memory_dir / "latest")) == step
        assert step_in(open_checkpoint(memory_dir / "latest.pdparams")) == step
        model = store.newest().path / "model.pdparams"
        assert (memory_dir / "latest.pdparams").read_bytes() == model.read_bytes()
        assert (memory_dir / "latest.pdparams").stat().st_ino == model.stat().st_ino, "no byte is copied"
    assert links_of(memory_dir) == {}
    assert [entry.step for entry in store.entries()] == [2, 3]
    (memory_dir / "checkpoints/pins.json").unlink()
    rebuilt = CheckpointStore(memory_dir, file_system=NoSymlinks())
    assert rebuilt.pins() == {"best": ("step-000000002",), "latest": ("step-000000003",)}
    rebuilt.untag("best")
    assert not (memory_dir / "best").exists() and not (memory_dir / "best.pdparams").exists()
    assert sorted(path.name for path in memory_dir.iterdir()) == [
        "checkpoints",
        "latest",
        "latest.pdopt",
        "latest.pdparams",
    ]


def test_with_neither_kind_of_link_pins_still_hold_and_one_warning_says_so(memory_dir):
    file_system = NoSymlinks()
    file_system.hard_links = False
    store = CheckpointStore(memory_dir, file_system=file_system)
    with pytest.warns(UserWarning, match="can hold neither symbolic nor hard links") as caught:
        for step in (1, 2, 3):
            save(store, step)
    assert len(caught) == 1
    assert step_in(open_checkpoint(memory_dir / "latest")) == 3
    assert [entry.step for entry in CheckpointStore(memory_dir, file_system=file_system).entries()] == [3]


def test_a_reader_changes_nothing_and_sees_what_the_writer_does(memory_dir):
    writer = CheckpointStore(memory_dir)
    reader = CheckpointReader(memory_dir)
    assert reader.newest() is None and reader.entries() == []
    for step in (1, 2):
        save(writer, step)
        assert [entry.step for entry in reader.entries()] == [step]
        assert reader.newest().pins == ("latest",)
    before = contents_of(memory_dir)
    assert [entry.step for entry in reader.by_pin("latest")] == [2] == [reader.first_of_pin("latest").step]
    assert reader.verify("step-000000002") == [] == reader.unheld(superseded=True) == reader.quarantined()
    assert step_in(reader.read(reader.newest())) == 2
    assert contents_of(memory_dir) == before
    for change in ("save", "adopt", "set_pins", "tag", "untag", "prune", "repair", "quarantine", "set_aside_after"):
        assert hasattr(writer, change) and not hasattr(reader, change)


def contents_of(directory):
    return {path: path.lstat().st_mtime_ns for path in directory.rglob("*")}
