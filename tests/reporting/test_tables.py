"""A table into a pipe is the one that rich sets, made without it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from paddlelite_trainer.reporting import terminal


@pytest.mark.parametrize("seed", range(12))
def test_a_table_into_a_pipe_is_the_one_that_rich_sets(seed: int, monkeypatch: Any, capsys: Any) -> None:
    rng = random.Random(seed)
    words = [
        "",
        "a",
        "step-000000001",
        "best_val/acc",
        "验证 准确率",
        "\x1b[31mred",
        "0.5",
        "DAMAGED",
        "[64, 32]",
        "x" * 40,
    ]
    rows: list[list[Any]] = [
        [rng.choice([rng.choice(words), [rng.choice(words), "(not finite)"], ["a 1", "b 2"]]) for _ in range(4)]
        for _ in range(rng.randrange(6))
    ]
    shown = []
    for lines in (terminal._lines, lambda *_: None):
        monkeypatch.setattr(terminal, "_lines", lines)
        terminal.table(["step", "name", "kept as", "验证"], rows, right=(0, 2))
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_a_cell_of_several_lines_is_left_to_rich(capsys: Any) -> None:
    terminal.table(["one", "two"], [["a\nb", "c"]])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["one", "two"], ["a", "c"], ["b"]]
