"""The first process of a launched job prints into a file, and draws its bar on the terminal of the launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddlelite_trainer.callbacks import ProgressBar, progress_display

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd/1").exists(), reason="needs Linux's /proc")
ERASED = "\r\x1b[2K"


class Launcher:
    """A process whose standard output is a terminal, and what is written there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import fcntl
        import struct
        import termios

        self.ours, self.theirs = os.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        wait = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
        self.process = subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=self.theirs)
        monkeypatch.setattr(progress_display.os, "getppid", lambda: self.process.pid)

    def shown(self) -> str:
        os.set_blocking(self.ours, False)
        try:
            return os.read(self.ours, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def end(self) -> None:
        self.process.communicate()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    made = Launcher(monkeypatch)
    yield made
    made.end()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with open(tmp_path / "workerlog.0", "w", buffering=1) as file:
        monkeypatch.setattr("sys.stdout", file)
        yield file


def test_the_bar_is_one_line_that_gives_way_to_what_is_printed(
    launcher: Launcher, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    bar = progress_display.rich_bar()
    bar.start()
    bar.update(bar.add_task("Epoch 1/2", total=4, metrics="loss 0.5"), completed=2)
    bar.draw()
    assert launcher.shown() == ERASED  # the launcher may still show what was printed before
    now[0] = 3.0
    bar.draw()
    line = launcher.shown()
    assert line.startswith(f"{ERASED}Epoch 1/2 ")
    assert "2/4" in line and "loss 0.5" in line and line.endswith("\r") and "\n" not in line
    print("a line")
    bar.draw()
    bar.draw()
    assert launcher.shown() == ERASED
    now[0] = 6.0
    bar.draw()
    assert "2/4" in launcher.shown()
    bar.stop()
    assert launcher.shown() == ERASED


def test_what_the_trainer_prints_takes_the_bar_away_at_once(launcher: Launcher, log: Any) -> None:
    callback = ProgressBar()
    callback._bar = progress_display.rich_bar()
    callback.print("a line")
    assert launcher.shown() == ERASED
    callback._bar.stop()


def test_a_terminal_that_is_gone_ends_nothing(launcher: Launcher, log: Any) -> None:
    bar = progress_display.rich_bar()
    bar.add_task("Epoch 1/2", total=4, metrics="")
    bar._screen.close()
    for _ in range(2):
        bar.draw()
    bar.stop()
    assert launcher.shown() == "", "nothing was left to draw on"


@pytest.mark.parametrize(("name", "value"), [("PADDLE_TRAINER_ID", "1"), ("PADDLE_TRAINERS_NUM", "1")])
def test_other_processes_draw_none(
    launcher: Launcher, log: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert progress_display.rich_bar() is None


def test_a_launcher_without_a_terminal_has_no_bar(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    monkeypatch.setattr(progress_display.os, "getppid", lambda: 0)
    assert progress_display.rich_bar() is None


def test_a_file_that_the_launcher_prints_into_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    kept = tmp_path / "log.txt"
    kept.write_text("of the attempt before\n")
    with kept.open("a") as output:
        wait = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
        launcher = subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=output)
    try:
        monkeypatch.setattr(progress_display.os, "getppid", lambda: launcher.pid)
        assert progress_display._launchers_terminal() is None
    finally:
        launcher.communicate()
    assert kept.read_text() == "of the attempt before\n"
