"""Lines of Chinese and Latin text in a font that a package brings, as images of one height and any width."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from paddle.io import Dataset
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 24
PLACES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋"
LATIN = "ABCDEFGHJKLMNPQRSTUVWXYZ"
DIGITS = "0123456789"
CHARACTERS = PLACES + LATIN + DIGITS
FONT = Path(importlib.util.find_spec("mplfonts").origin).parent / "fonts" / "NotoSansCJKsc-Regular.otf"


class Lines(Dataset):
    """Number plates and their likes: image [1, 24, width], and the text; drawn once, when the dataset is made."""

    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.RandomState(seed)
        fonts = {size: ImageFont.truetype(str(FONT), size) for size in range(13, 18)}
        self.lines = [self._line(draw, fonts) for _ in range(count)]

    @staticmethod
    def _line(draw: np.random.RandomState, fonts: dict[int, ImageFont.FreeTypeFont]) -> tuple[np.ndarray, str]:
        def some(letters: str, least: int, most: int) -> str:
            return "".join(letters[at] for at in draw.randint(0, len(letters), draw.randint(least, most + 1)))

        text = some(PLACES, 1, 3) + some(LATIN, 1, 2) + some(DIGITS, 0, 4)
        font = fonts[draw.randint(13, 18)]
        width = -(-(int(font.getlength(text)) + draw.randint(4, 16)) // 4) * 4
        image = Image.new("L", (width, HEIGHT), int(draw.randint(0, 60)))
        place = (int(draw.randint(2, 5)), int(draw.randint(-2, 3)))
        ImageDraw.Draw(image).text(place, text, int(draw.randint(150, 256)), font=font)
        noise = draw.normal(0, 0.06, (HEIGHT, width))
        return (np.asarray(image, "float32") / 255.0 + noise).astype("float32")[None], text

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return self.lines[index]


def together(samples: list[tuple[np.ndarray, str]]) -> tuple[Any, ...]:
    """Images [batch, 1, 24, widest], widths [batch], labels [batch, longest] from 1, lengths [batch], and the texts."""
    images, texts = zip(*samples, strict=True)
    widths, lengths = [image.shape[2] for image in images], [len(text) for text in texts]
    pixels = np.zeros((len(images), 1, HEIGHT, max(widths)), "float32")
    labels = np.zeros((len(images), max(lengths)), "int32")
    for row, (image, text) in enumerate(samples):
        pixels[row, :, :, : image.shape[2]] = image
        labels[row, : len(text)] = [CHARACTERS.index(letter) + 1 for letter in text]
    return pixels, np.array(widths, "int64"), labels, np.array(lengths, "int64"), list(texts)
