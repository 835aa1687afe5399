"""One file is replaced whole, on the disk, or not at all."""

import os

import pytest

from paddlelite_trainer.checkpoint.filesystem import atomic_file


def test_what_was_written_takes_the_path_s_place_after_its_bytes_are_on_the_disk(tmp_path, monkeypatch):
    path, order = tmp_path / "a.json", []
    path.write_text("old")
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), os.listdir(tmp_path), order) == ("new", ["a.json"], ["fsync", "replace"])


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_file(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["a.json"])


def test_where_nothing_was_written_the_old_file_stays(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(path):
        pass
    assert path.read_text() == "old"
