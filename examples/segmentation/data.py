"""Grey images of discs, boxes and rings in noise, and the mean IoU of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle.io import Dataset

CLASSES = ("background", "disc", "box", "ring")
SIZE = 32


class Shapes(Dataset):
    """Grey images [1, 32, 32] of discs, boxes and rings in noise, with the class of each pixel [32, 32]."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.RandomState(self.seed + index)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        labels = np.zeros((SIZE, SIZE), "int64")
        image = draw.uniform(0.0, 0.3) + draw.normal(0.0, 0.12, (SIZE, SIZE))
        for _ in range(draw.randint(1, 4)):
            kind, radius = draw.randint(1, len(CLASSES)), draw.randint(4, 8)
            top, left = draw.randint(radius, SIZE - radius, 2)
            distance = np.hypot(rows - top, columns - left)
            if kind == 2:
                inside = np.maximum(abs(rows - top), abs(columns - left)) <= radius * 0.8
            else:
                inside = (distance <= radius) & ((distance >= radius * 0.55) | (kind == 1))
            labels[inside] = kind
            image[inside] += draw.uniform(0.4, 0.8)
        return image[None].astype("float32"), labels


class MeanIoU(paddle.metric.Metric):
    """The classes' mean intersection over union, from one confusion matrix of all pixels seen; it is resumed too."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.reset()

    def name(self) -> str:
        return "miou"

    def reset(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), "int64")

    def update(self, predicted: Any, labels: Any) -> None:
        pairs = np.asarray(labels).ravel() * self.classes + np.asarray(predicted).ravel()
        self.counts += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def accumulate(self) -> float:
        both = np.diag(self.counts)
        either = self.counts.sum(0) + self.counts.sum(1) - both
        return float((both / np.maximum(either, 1)).mean())
