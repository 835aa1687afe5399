"""Puts weights of any checkpoint into a layer, all that fit or none, and reports by name what did not."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import CheckpointMismatchError, ConfigurationError, ConfigurationTypeError, did_you_mean
from .foreign import ForeignCheckpoint, WeightSet, Which, read_weights
from .tensors import dtype_name, from_bfloat16, shape_of, to_bfloat16

Rename = Mapping[str, str] | Callable[[str], str | None]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SHOWN = 10


class Loadable(Protocol):
    """What `load_weights` asks of a layer; every paddle.nn.Layer is one."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def set_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Mismatch(NamedTuple):
    """A weight that the model has in another shape, or in a type its values do not fit."""

    name: str
    saved_shape: tuple[int, ...]
    model_shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did, by name; `str()` is the report for people."""

    path: Path
    layout: str
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[Mismatch]
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every weight of the model was loaded and every weight of the file used."""
        return not (self.missing or self.unexpected or self.mismatched)

    def problems(self) -> list[str]:
        """One line for each kind of problem, none when `complete`."""
        lines = []
        if self.missing:
            lines.append(
                f"in the model and not in the file ({len(self.missing)}): {self._named(self.missing, self.unexpected)}"
            )
        if self.unexpected:
            lines.append(
                f"in the file and not in the model ({len(self.unexpected)}): {self._named(self.unexpected, [])}"
            )
        if self.mismatched:
            shown = [
                f"{name} is {list(saved)} in the file and {list(model)} in the model{f' ({reason})' if reason else ''}"
                for name, saved, model, reason in self.mismatched[:_SHOWN]
            ]
            lines.append(
                f"of another shape or type ({len(self.mismatched)}): {'; '.join(shown)}{_more(self.mismatched)}"
            )
        return lines

    def __str__(self) -> str:
        count = len(self.loaded) + len(self.missing) + len(self.mismatched)
        head = f"{len(self.loaded)} of the model's {count} weights loaded from {self.path} ({self.layout})"
        return "\n".join([head, *(f"  {line}" for line in [*self.problems(), *self.notes])])

    @staticmethod
    def _named(names: Sequence[str], others: Sequence[str]) -> str:
        return ", ".join(f"{name}{did_you_mean(name, others)}" for name in names[:_SHOWN]) + _more(names)


def _more(items: Sequence[Any]) -> str:
    return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""


def load_weights(
    layer: Loadable,
    source: str | os.PathLike[str] | ForeignCheckpoint,
    *,
    strict: bool = True,
    rename: Rename | None = None,
    which: Which = "file",
) -> WeightsReport:
    """Load another program's weights (or ours) into `layer`, all that fit or, when `strict`, all or none.

    Values are cast to the model's type, and the report says so.

        report = load_weights(model, "output/best_accuracy", strict=False)
        print(report)

    Args:
        layer: any Paddle layer.
        source: a prefix, a file or a directory as in `load_foreign`, or what that returned.
        strict: all names and shapes must fit; False: those that fit are loaded.
        rename: {prefix in the file: prefix here}, as `{"module.": ""}`, or a function that returns the new name, or
            None to leave the weight out.
        which: where an averaged (EMA) set exists, "file" (what the `.pdparams` file itself holds), "raw" or "ema".

    Raises:
        ConfigurationError: `which` is none of these, or Paddle is in static mode.
        ConfigurationTypeError: the layer is none, or the source no path.
        CheckpointMismatchError: names or shapes do not fit and `strict` is true, or none fits; the layer is unchanged.
        CheckpointNotFoundError, CheckpointCorruptError, UnsafePickleError: as `load_foreign`.
    """
    if not isinstance(source, (str, os.PathLike, ForeignCheckpoint)):
        raise ConfigurationTypeError(f"load_weights takes a layer and then a path, got {source!r} for the path")
    if not callable(getattr(layer, "set_state_dict", None)):
        raise ConfigurationTypeError(
            f"load_weights takes a layer first, got a {type(layer).__name__}; "
            "load_foreign(path).weights is a dict of arrays"
        )
    if which not in ("file", "raw", "ema"):
        raise ConfigurationError(f"which must be 'file', 'raw' or 'ema', got {which!r}")
    paddle = sys.modules.get("paddle")
    if paddle is not None and not paddle.in_dynamic_mode():
        raise ConfigurationError(
            "load_weights needs dynamic mode, and paddle.enable_static() is in force: "
            "call paddle.disable_static() before."
        )
    found = source.weight_set(which) if isinstance(source, ForeignCheckpoint) else read_weights(source, which)
    fitting, report = fit_weights(layer, found, rename)
    hint = _prefix_hint(report)
    if not fitting or (strict and not report.complete):
        raise CheckpointMismatchError(
            f"the weights in {found.path} do not fit the model, which is unchanged. "
            + (
                hint
                or (
                    "strict=False loads those that fit (in a fit: init_from=InitFrom(path, strict=False))."
                    if fitting
                    else "None of them does."
                )
            ),
            report.problems(),
        )
    if hint:
        report.notes.append(hint)
    _set(layer, fitting)
    return report


def fit_weights(
    layer: Loadable, found: WeightSet, rename: Rename | None = None
) -> tuple[dict[str, np.ndarray], WeightsReport]:
    """The weights that fit the layer by name and shape, in its types, and the report; the layer is left as it is."""
    weights, bfloat16 = _renamed(found.arrays, found.bfloat16, rename)
    model = dict(layer.state_dict())
    fitting: dict[str, np.ndarray] = {}
    mismatched: list[Mismatch] = []
    casts: Counter[tuple[str, str]] = Counter()
    for name in model:
        if name not in weights:
            continue
        array, wanted = weights[name], dtype_name(model[name])
        saved_shape, model_shape = tuple(array.shape), shape_of(model[name])
        if saved_shape != model_shape:
            mismatched.append(Mismatch(name, saved_shape, model_shape, ""))
            continue
        saved = _saved_dtype(array, name in bfloat16, wanted)
        converted = _convert(array, saved, wanted)
        if converted is None:
            mismatched.append(Mismatch(name, saved_shape, model_shape, f"{saved} values that {wanted} cannot hold"))
            continue
        if saved != wanted:
            casts[saved, wanted] += 1
        fitting[name] = converted
    return fitting, WeightsReport(
        found.path,
        found.layout,
        list(fitting),
        [name for name in model if name not in weights],
        [name for name in weights if name not in model],
        mismatched,
        [*found.notes, *(f"{count} cast from {saved} to {wanted}" for (saved, wanted), count in casts.items())],
    )


def renamed(name: str, rename: Rename | None) -> str | None:
    """What `rename` makes of a name; None where it leaves it out."""
    if rename is None:
        return name
    return rename(name) if callable(rename) else _with_prefix_replaced(name, rename)


def _renamed(
    weights: Mapping[str, np.ndarray], bfloat16: frozenset[str], rename: Rename | None
) -> tuple[Mapping[str, np.ndarray], frozenset[str]]:
    if rename is None:
        return weights, bfloat16
    result: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, array in weights.items():
        new = renamed(name, rename)
        if new is None:
            continue
        if new in origin:
            raise ConfigurationError(f"rename gives {origin[new]} and {name} one name, {new}")
        result[new], origin[new] = array, name
    return result, frozenset(new for new, old in origin.items() if old in bfloat16)


def _with_prefix_replaced(name: str, prefixes: Mapping[str, str]) -> str:
    longest = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
    return name if longest is None else prefixes[longest] + name[len(longest) :]


def _prefix_hint(report: WeightsReport) -> str:
    """How one prefix would make most of the names that are left over meet, or nothing."""
    if not report.missing or not report.unexpected:
        return ""
    missing, unexpected = set(report.missing), set(report.unexpected)
    for longer, shorter, adding in ((missing, unexpected, True), (unexpected, missing, False)):
        prefixes = Counter(
            name[: -len(tail)] for name in longer for tail in _tails(name) if tail in shorter and len(tail) < len(name)
        )
        if prefixes:
            prefix, count = prefixes.most_common(1)[0]
            if 2 * count >= len(shorter):
                pair = f"{{'': {prefix!r}}}" if adding else f"{{{prefix!r}: ''}}"
                return f"With rename={pair} {count} more names meet."
    return ""


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(1, len(parts))]


def _saved_dtype(array: np.ndarray, is_bfloat16: bool, wanted: str) -> str:
    # Paddle's files do not tell bfloat16 from uint16; no layer has uint16 weights.
    if is_bfloat16 or (array.dtype == np.uint16 and wanted in _FLOATS):
        return "bfloat16"
    return str(array.dtype.name)


def _convert(array: np.ndarray, saved: str, wanted: str) -> np.ndarray | None:
    """The values in the wanted type, bfloat16 as uint16 bits; None where whole numbers would change."""
    if saved == wanted:
        return array
    if saved in _FLOATS and wanted in _FLOATS:
        values = from_bfloat16(array) if saved == "bfloat16" else array
        return to_bfloat16(values) if wanted == "bfloat16" else values.astype(wanted)
    if wanted == "bfloat16" or saved == "bfloat16":
        return None
    converted = array.astype(wanted)
    return converted if np.array_equal(converted, array) else None


def _set(layer: Loadable, weights: dict[str, np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Paddle warns of every missing name; the report has them
        outcome = layer.set_state_dict(weights)
    refused = list(outcome[1]) if isinstance(outcome, tuple) and len(outcome) == 2 else []
    if refused:
        raise CheckpointMismatchError("the layer did not take weights of its own names", refused)
