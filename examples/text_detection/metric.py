"""Precision, recall and F-score of boxes over a data set."""

from __future__ import annotations

import numpy as np
import paddle


class FScore(paddle.metric.Metric):
    """Precision, recall and their harmonic mean over all pages; a box is found where its IoU with one is over 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def name(self) -> list[str]:
        return ["precision", "recall", "f_score"]

    def reset(self) -> None:
        self.right = self.found = self.known = 0

    def update(self, found: np.ndarray, known: np.ndarray) -> None:
        """Boxes [count, 4] of one page, as x1, y1, x2, y2."""
        both = np.minimum(found[:, None, 2:], known[:, 2:]) - np.maximum(found[:, None, :2], known[:, :2])
        both = both.clip(0).prod(2)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (found, known)]
        overlap = both / np.maximum(areas[0][:, None] + areas[1] - both, 1)
        self.right += int((overlap > 0.5).any(axis=0).sum())
        self.found, self.known = self.found + len(found), self.known + len(known)

    def accumulate(self) -> list[float]:
        precision, recall = self.right / max(self.found, 1), self.right / max(self.known, 1)
        return [precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)]
