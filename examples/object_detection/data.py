"""Images of shapes with boxes of any number, and the mAP of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle.io import Dataset

CLASSES, SIZE = ("disc", "box", "cross"), 64


class Shapes(Dataset):
    """Images [1, 64, 64], boxes [count, 4] as x1, y1, x2, y2 in pixels, and classes [count]; 1 to 4 a picture."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        draw = np.random.RandomState(self.seed + index)
        image = draw.normal(0.2, 0.1, (SIZE, SIZE))
        rows, columns = np.mgrid[:SIZE, :SIZE]
        boxes, kinds, centres = [], [], []
        for _ in range(draw.randint(1, 5)):
            radius = draw.randint(5, 11)
            y, x = draw.randint(radius, SIZE - radius, 2)
            if any(np.hypot(y - other_y, x - other_x) < 18 for other_y, other_x in centres):
                continue
            kind, across, down = draw.randint(len(CLASSES)), abs(columns - x), abs(rows - y)
            square = np.maximum(across, down) <= radius
            shapes = (np.hypot(across, down) <= radius, square, square & (np.minimum(across, down) <= radius // 3))
            image[shapes[kind]] += draw.uniform(0.4, 0.8)
            boxes.append((x - radius, y - radius, x + radius, y + radius))
            kinds.append(kind)
            centres.append((y, x))
        return image[None].astype("float32"), np.array(boxes, "float32"), np.array(kinds, "int64")


def uneven(samples: list[Any]) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Images are stacked; boxes and classes stay lists, one of each image's own length."""
    images, boxes, kinds = zip(*samples, strict=True)
    return np.stack(images), list(boxes), list(kinds)


class MeanAveragePrecision(paddle.metric.Metric):
    """mAP at an IoU of 0.5 over all images seen, the area under each class's curve of precision and recall."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def name(self) -> str:
        return "map"

    def reset(self) -> None:
        self.found = [np.zeros((0, 2)) for _ in CLASSES]  # score, is it right
        self.known = np.zeros(len(CLASSES), "int64")

    def update(self, found: np.ndarray, boxes: np.ndarray, kinds: np.ndarray) -> None:
        """One image: what was found [count, 6] as x1, y1, x2, y2, score, class, best first, and what is there."""
        taken: set[int] = set()
        for *box, score, kind in found:
            overlaps = iou(np.array(box), boxes) * (kinds == kind)
            best = int(overlaps.argmax())
            is_right = overlaps[best] >= 0.5 and best not in taken
            taken |= {best} if is_right else set()
            self.found[int(kind)] = np.vstack([self.found[int(kind)], (score, is_right)])
        self.known += np.bincount(kinds, minlength=len(CLASSES))

    def accumulate(self) -> float:
        areas = []
        for found, known in zip(self.found, self.known, strict=True):
            right = found[np.argsort(-found[:, 0], kind="stable"), 1].cumsum()
            precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
            areas.append((np.diff(right / max(known, 1), prepend=0.0) * precision).sum())
        return float(np.mean(areas))


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with each of boxes [count, 4]."""
    both = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = both.clip(0).prod(1)
    return both / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - both)
