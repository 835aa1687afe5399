"""Fixtures of the command line's tests."""

import errno
from functools import partial

import pytest
from cli_support import save

from paddlelite_trainer.checkpoint.filesystem import REAL
from paddlelite_trainer.cli import main


@pytest.fixture
def run(tmp_path):
    """A run with the steps 10, 20 and 30, the second of them the best."""
    path = tmp_path / "runs" / "version_0"
    for step in (10, 20, 30):
        save(path, step, pins=["best"] if step == 20 else [], val_acc=step / 100)
    return path


@pytest.fixture
def call(capsys):
    """Run the command with these arguments: (exit code, stdout, stderr)."""

    def call(*arguments):
        code = main(["ckpt", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def no_permission(monkeypatch):
    """Make every reading of what is in the given path fail as it does for another user."""

    def forbid(path):
        inside = path.is_dir()

        def call(name, real, where):
            if path in where.parents if inside else where == path and name != "lstat":
                raise PermissionError(errno.EACCES, "Permission denied", str(where))
            return real(where)

        for name in ("map", "read", "lstat", "listdir"):
            monkeypatch.setattr(REAL, name, partial(call, name, getattr(REAL, name)))

    return forbid
