"""Whole lines right, and the edits that the others need."""

from __future__ import annotations

import paddle


class LinesRight(paddle.metric.Metric):
    """The share of lines that are right as a whole, and the edits that the others need, for each true character."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def name(self) -> list[str]:
        return ["line_acc", "edits"]

    def reset(self) -> None:
        self.right = self.lines = self.edits = self.characters = 0

    def update(self, said: list[str], known: list[str]) -> None:
        for one, other in zip(said, known, strict=True):
            self.edits += edit_distance(one, other)
            self.right += one == other
        self.lines, self.characters = self.lines + len(known), self.characters + sum(map(len, known))

    def accumulate(self) -> list[float]:
        return [self.right / max(self.lines, 1), self.edits / max(self.characters, 1)]


def edit_distance(said: str, known: str) -> int:
    """Characters to put in, take out or exchange (Levenshtein)."""
    row = list(range(len(known) + 1))
    for place, letter in enumerate(said, 1):
        before, row[0] = row[0], place
        for column, other in enumerate(known, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (letter != other))
    return row[-1]
