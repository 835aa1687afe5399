"""Pages of words in matplotlib's fonts, their maps, and boxes cut out of a map."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from paddle.io import Dataset
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIZE = 96
SHRINK, BORDER = 0.25, 2  # of a word's height; pixels
FONTS = sorted((Path(matplotlib.get_data_path()) / "fonts/ttf").glob("DejaVu*.ttf"))
SOURCE = Path(importlib.util.find_spec("textwrap").origin).read_text(encoding="utf-8")
WORDS = sorted(set(re.findall(r"[A-Za-z]{3,9}", SOURCE)))


class Pages(Dataset):
    """A page [1, 96, 96]; maps of cores, borders and where borders count [96, 96]; boxes [count, 4]."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        draw = np.random.RandomState(self.seed + index)
        page = Image.new("L", (SIZE, SIZE), int(draw.randint(120, 256)))
        pen, boxes = ImageDraw.Draw(page), []
        for _ in range(draw.randint(2, 7)):
            font = ImageFont.truetype(str(FONTS[draw.randint(len(FONTS))]), draw.randint(10, 18))
            word, place = WORDS[draw.randint(len(WORDS))], tuple(int(at) for at in draw.randint(2, SIZE - 14, 2))
            box = pen.textbbox(place, word, font=font)
            if max(box) > SIZE - 2 or any(_touch(box, other) for other in boxes):
                continue
            pen.text(place, word, int(draw.randint(0, 80)), font=font)
            boxes.append(box)
        noise = draw.normal(0, 0.05, (SIZE, SIZE))
        pixels = (np.asarray(page, "float32") / 255.0 + noise).astype("float32")
        known = np.array(boxes, "float32").reshape(-1, 4)
        return pixels[None], *_maps(known), known


def _touch(box: tuple[float, ...], other: tuple[float, ...], gap: int = 3) -> bool:
    return not (
        box[2] + gap < other[0] or other[2] + gap < box[0] or box[3] + gap < other[1] or other[3] + gap < box[1]
    )


def _maps(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cores are the boxes made smaller; borders are highest on a box's edge and count near it."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    cores, borders, masks = (np.zeros((SIZE, SIZE), "float32") for _ in range(3))
    for x1, y1, x2, y2 in boxes:
        inside = np.minimum.reduce([columns - x1, x2 - 1 - columns, rows - y1, y2 - 1 - rows])  # pixels from the edge
        cores[inside >= (y2 - y1) * SHRINK] = 1
        near = abs(inside) <= BORDER
        masks[near] = 1
        borders = np.maximum(borders, near * (1 - abs(inside) / (BORDER + 1))).astype("float32")
    return cores, 0.3 + 0.4 * borders, masks


def boxes_of(cores: np.ndarray) -> np.ndarray:
    """Boxes [count, 4] around the connected parts of a map of cores, grown by what training takes away."""
    boxes = []
    for rows, columns in ndimage.find_objects(ndimage.label(cores)[0]):
        height = (rows.stop - rows.start) / (1 - 2 * SHRINK)
        grown = height * SHRINK
        if height >= 4:
            boxes.append((columns.start - grown, rows.start - grown, columns.stop + grown, rows.stop + grown))
    return np.array(boxes, "float32").reshape(-1, 4)


def together(samples: list[Any]) -> tuple[Any, ...]:
    """Pages and maps are stacked; boxes stay a list, one array a page."""
    *stacked, boxes = zip(*samples, strict=True)
    return (*(np.stack(part) for part in stacked), list(boxes))
