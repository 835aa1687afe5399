"""What ranks of one machine see of each other without a message."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from paddlelite_trainer.machine import board as boards
from paddlelite_trainer.machine.board import ARRIVED, FLAGS, RECORDED, SETTLED, made, opened


def test_each_rank_reads_what_the_others_have_posted() -> None:
    path = made(3)
    assert path is not None
    try:
        first, second, third = (opened(path, rank, 3) for rank in range(3))
        assert path.stat().st_mode & 0o077 == 0  # of this user alone
    finally:
        path.unlink()
    assert first is not None and second is not None and third is not None
    first.post(ARRIVED, 1)
    second.post(ARRIVED, 2)
    assert first.late(ARRIVED, 1) == [2]
    assert third.late(ARRIVED, 1) == [] and third.late(ARRIVED, 2) == [0]
    flags = bytes(index % 2 for index in range(FLAGS))
    second.write_flags(flags)
    second.post(RECORDED, 7)
    assert first.flags_of(1, FLAGS) == flags and third.of(RECORDED, 1) == 7
    assert first.flags_of(0, FLAGS) == third.flags_of(2, FLAGS) == bytes(FLAGS)
    assert third.of(SETTLED, 1) == 0
    second.begin()
    assert first.late(ARRIVED, 1) == [1, 2] and first.of(RECORDED, 1) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bell is Linux's futex")
def test_a_rank_that_waits_is_woken_by_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(2)
    first, second = opened(path, 0, 2), opened(path, 1, 2)
    assert path is not None and first is not None and second is not None
    path.unlink()
    monkeypatch.setattr(boards, "_LONGEST_SLEEP", 600.0)  # longer than this test may take
    child = os.fork()
    if child == 0:
        time.sleep(0.2)
        second.post(ARRIVED, 1)
        os._exit(0)
    first.doze(ARRIVED, 1, 1, waited=0.0)
    assert first.late(ARRIVED, 1) == []
    os.waitpid(child, 0)
    first.doze(ARRIVED, 1, 1, waited=0.0)  # what has come is not waited for


def test_where_nothing_rings_a_rank_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(boards, "bell_of", lambda memory: None)
    monkeypatch.setattr("time.sleep", naps.append)
    path = made(2)
    first = opened(path, 0, 2)
    assert path is not None and first is not None
    path.unlink()
    first.doze(ARRIVED, 1, 1, waited=0.02)
    first.doze(ARRIVED, 1, 1, waited=50.0)
    first.post(ARRIVED, 1)
    assert naps == [0.002, 0.01]


def test_a_process_that_cannot_see_it_has_none(tmp_path: Path) -> None:
    assert opened(None, 0, 2) is None
    assert opened(tmp_path / "elsewhere", 1, 2) is None
    (tmp_path / "short").write_bytes(b"0123")
    assert opened(tmp_path / "short", 1, 2) is None


def test_there_is_none_on_a_processor_that_shows_stores_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert made(2) is None
