"""What `log_image` and its like take, brought into the one form that loggers are given."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from ..errors import ConfigurationError, ConfigurationTypeError

_FORMATS = ("CHW", "HWC", "HW")


def as_image(name: str, value: Any, dataformats: str | None) -> Any:
    """uint8 [height, width, 3 or 4]; floats are taken as from 0 to 1, a truth value as black or white."""
    array = _array("log_image", name, value)
    if dataformats not in (None, *_FORMATS):
        raise ConfigurationError(
            f"log_image({name!r}, dataformats={dataformats!r}): it is one of {', '.join(map(repr, _FORMATS))}"
        )
    array = _height_width_channels(name, array, dataformats or _format_of(name, array))
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        array = _within(f"log_image({name!r})", array, 0.0, 1.0, "floats are shown from 0 to 1")
        array = (array * 255.0).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        array = _within(f"log_image({name!r})", array, 0, 255, "integers are shown from 0 to 255").astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array)


def as_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationTypeError(f"log_text({name!r}, ...) takes a str, got {value!r} of {type(value).__name__}")
    return value.encode("utf-8", "backslashreplace").decode()  # half a pair of surrogates is in no file


def as_histogram(name: str, value: Any) -> Any:
    """Finite float64 numbers, [count], as large as float32 has them; others are left out. None where all are."""
    array = _array("log_histogram", name, value).astype(np.float64).ravel()
    finite = array[np.isfinite(array)]
    if not array.size:
        raise ConfigurationError(f"log_histogram({name!r}, ...) was given no number")
    if finite.size < array.size:
        _tell(f"log_histogram({name!r}): NaN and infinite values are left out")
    if not finite.size:
        return None
    largest = float(np.finfo(np.float32).max)
    if np.abs(finite).max() > largest:  # their squares and distances would be infinite
        return _within(f"log_histogram({name!r})", finite, -largest, largest, "numbers are shown as large as float32's")
    return finite


def as_audio(name: str, value: Any, sample_rate: int) -> tuple[Any, int]:
    """float32 [samples, channels] from -1 to 1, and samples a second."""
    if isinstance(sample_rate, bool) or int(sample_rate) != sample_rate or sample_rate <= 0:
        raise ConfigurationError(f"log_audio({name!r}, sample_rate={sample_rate!r}): samples a second, a positive int")
    array = _array("log_audio", name, value)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.size:
        raise ConfigurationError(
            f"log_audio({name!r}, ...) takes [samples], [samples, channels] or [channels, samples], got {_shape(array)}"
        )
    if array.shape[0] < array.shape[1]:
        array = array.T
    if array.dtype.kind != "f":
        array = array / float(np.iinfo(array.dtype).max)
    return _within(f"log_audio({name!r})", array, -1.0, 1.0, "samples are from -1 to 1").astype(np.float32), int(
        sample_rate
    )


def as_figure(name: str, value: Any) -> Any:
    """A matplotlib Figure; that of an Axes, too, and `pyplot` itself for its present one."""
    figure = value.gcf() if hasattr(value, "gcf") else getattr(value, "figure", value)
    if not hasattr(figure, "savefig"):
        raise ConfigurationTypeError(
            f"log_figure({name!r}, ...) takes a matplotlib Figure, got {value!r} of {type(value).__name__}"
        )
    return figure


def drawn(figure: Any) -> Any:
    """A figure as an image, uint8 [height, width, 4]."""
    from PIL import Image

    content = io.BytesIO()
    figure.savefig(content, format="png")
    content.seek(0)
    return np.asarray(Image.open(content).convert("RGBA"))


def close(figure: Any) -> None:
    """Let pyplot forget a figure, which it else keeps for ever."""
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and hasattr(figure, "savefig") and not hasattr(figure, "gcf"):
        pyplot.close(figure)


def _array(method: str, name: str, value: Any) -> Any:
    try:
        array = np.asarray(
            value.astype("float32").numpy() if _is_bfloat16(value) else getattr(value, "numpy", lambda: value)()
        )
    except Exception as error:
        raise ConfigurationTypeError(
            f"{method}({name!r}, ...) takes an array or a Tensor, got {type(value).__name__}"
        ) from error
    if array.dtype.kind not in "fiub":
        raise ConfigurationTypeError(
            f"{method}({name!r}, ...) takes numbers, got {type(value).__name__} of type {array.dtype}"
        )
    return array


def _is_bfloat16(value: Any) -> bool:
    return str(getattr(value, "dtype", "")).endswith("bfloat16")


def _format_of(name: str, array: Any) -> str:
    if array.ndim == 2:
        return "HW"
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if first != last:
            return "CHW" if first else "HWC"
        if first:
            raise ConfigurationError(
                f"log_image({name!r}, ...): {_shape(array)} may be CHW or HWC. Say which: dataformats='CHW'"
            )
    raise ConfigurationError(
        f"log_image({name!r}, ...) takes one image, [height, width], [channels, height, width] or [height, width, "
        f"channels] with 1, 3 or 4 channels, got {_shape(array)}. Of a batch take one: images[0]"
    )


def _height_width_channels(name: str, array: Any, format_: str) -> Any:
    if array.ndim != len(format_):
        raise ConfigurationError(f"log_image({name!r}, dataformats={format_!r}): the image is {_shape(array)}")
    array = array[:, :, None] if format_ == "HW" else array.transpose(1, 2, 0) if format_ == "CHW" else array
    if array.shape[2] not in (1, 3, 4) or not array.size:
        raise ConfigurationError(
            f"log_image({name!r}, dataformats={format_!r}): an image has 1, 3 or 4 channels and some pixels, this has "
            f"{array.shape[2]} channels and {array.shape[0]} x {array.shape[1]} pixels"
        )
    return array


def _within(what: str, array: Any, low: float, high: float, rule: str) -> Any:
    """Bounded; one that goes beyond is told, as of a normalised image that is still to be brought back."""
    with np.errstate(invalid="ignore"):
        smallest, largest = float(np.nanmin(array)), float(np.nanmax(array)) if np.isfinite(array).any() else high
    if not np.isfinite(array).all() or smallest < low or largest > high:
        _tell(f"{what}: {rule}, and these are from {smallest:g} to {largest:g}, so they are cut off there")
        array = np.clip(np.nan_to_num(array, nan=low), low, high)
    return array


def _tell(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)  # which Python shows once for each sentence


def _shape(array: Any) -> str:
    return f"{list(array.shape)}"
