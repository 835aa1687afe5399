"""Takes weights, and what else is there, from checkpoints of paddle.Model, PaddleOCR, PaddleClas and their kin."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ..errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    did_you_mean,
)
from .format import NAME_TABLE
from .safe_pickle import read_pickle
from .safetensors_format import read_safetensors
from .saved import SavedCheckpoint, open_checkpoint, resolve_checkpoint
from .store import CheckpointStore
from .tensors import dtype_name, shape_of

Rename = Mapping[str, str] | Callable[[str], str | None]
Which = Literal["file", "raw", "ema"]

# With pickle protocols 2 and 3 paddle.save splits arrays above 1 GiB and notes it under this key (the typo is Paddle's;
# framework/io_utils.py, _unpack_saved_dict).
_BIG_ARRAYS = "UnpackBigParamInfor@@"
_NO_ACCUMULATOR = {"LR_Scheduler", "master_weights", NAME_TABLE, "last_epoch"}
_OWN_WEIGHTS, _OWN_EMA, _OWN_OPTIMIZER = "model.pdparams", "ema.pdparams", "optimizer.pdopt"
_SIDE_FILES = (".pdopt", ".pdstates", ".states", ".pdscaler")
_WEIGHT_SUFFIXES = (".pdparams", ".safetensors")
_PREFERRED_STEMS = ("latest", "model", "model_state", "model_final", "final", "best_accuracy", "best_model")
_TRAILING_NUMBER = re.compile(r"(?:.*\D)?(\d+)")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SHOWN = 10


# -- what a foreign checkpoint holds ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class ForeignCheckpoint:
    """What another program's checkpoint holds, in our terms; None where it does not say.

    `weights` are those that training goes on from and `ema` their running average, whichever file each was in. `epoch`
    counts completed epochs. `optimizer` is as saved, by Paddle's automatic parameter names; `parameter_names` leads
    from structured names to those. bfloat16 weights are uint16 bits; `bfloat16` names them where the file tells.
    """

    layout: Literal[
        "paddlelite",
        "paddle.save",
        "paddle.Model",
        "PaddleOCR",
        "PaddleClas",
        "PaddleDetection",
        "PaddleSeg",
        "safetensors",
    ]
    path: Path
    weights: dict[str, np.ndarray]
    ema: dict[str, np.ndarray] | None = None
    optimizer: dict[str, Any] | None = None
    epoch: int | None = None
    best: dict[str, Any] | None = None
    parameter_names: dict[str, str] = field(default_factory=dict)
    bfloat16: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


def load_foreign(path: str | os.PathLike[str]) -> ForeignCheckpoint:
    """Read a checkpoint that another program wrote, or one of ours, by its prefix, one of its files or its directory.

    Raises:
        CheckpointNotFoundError: there are no weights; the message lists what is near.
        CheckpointCorruptError: a file is cut short or damaged.
        UnsafePickleError: a file asks for code; nothing of it was run.
    """
    source = _locate(path)
    if source.kind == "paddlelite":
        return _read_own(source)
    if source.kind == "safetensors":
        arrays, bfloat16 = read_safetensors(source.weights)
        return ForeignCheckpoint(
            "safetensors", source.weights, arrays, bfloat16=frozenset(bfloat16), notes=source.notes
        )
    return _read_paddle(source)


def _read_own(source: _Source) -> ForeignCheckpoint:
    saved = open_checkpoint(source.weights.parent)
    weights = saved.tensors(_OWN_WEIGHTS)
    return ForeignCheckpoint(
        "paddlelite",
        source.weights,
        weights,
        ema=saved.tensors(_OWN_EMA) if _OWN_EMA in saved.files else None,
        optimizer=saved.tensors(_OWN_OPTIMIZER) if _OWN_OPTIMIZER in saved.files else None,
        epoch=saved.entry.epoch,
        bfloat16=frozenset(_bfloat16_in(saved, _OWN_WEIGHTS)),
        notes=source.notes,
    )


def _bfloat16_in(saved: SavedCheckpoint, file: str) -> set[str]:
    return {name for name in saved.tensors(file) if saved.dtype_of(file, name) == "bfloat16"}


def _read_paddle(source: _Source) -> ForeignCheckpoint:
    notes = list(source.notes)
    weights, names = _read_weights(source.weights)
    ema = None
    if source.raw is not None:
        ema = weights
        weights, names = _read_weights(source.raw)
        notes.append(f"{source.weights.name} holds the averaged (EMA) weights and {source.raw.name} the raw ones")
    optimizers = _read_optimizers(source.optimizer)
    states = _read_states(source.states)
    optimizer = optimizers[0] if optimizers else None
    if len(optimizers) > 1:
        notes.append(f"{len(optimizers)} optimizers were saved; this is the first")
    layout = _layout(source, optimizers)
    epoch: int | None = None
    best: dict[str, Any] | None = None
    if layout == "PaddleOCR":
        epoch, best = _whole(states.get("epoch")), _dict(states.get("best_model_dict"))
    elif layout == "PaddleClas":
        epoch = _whole(states.get("epoch"))
        if source.weights.stem == "best_model":
            best = states or None
        elif isinstance(states.get("metric"), (int, float)):
            notes.append(f"metric {states['metric']} is this epoch's, not the best")
    elif layout == "PaddleDetection" and optimizer is not None:
        epoch = _whole(optimizer["last_epoch"])
    elif layout == "PaddleSeg":
        notes.append(f"saved at {source.weights.parent.name}; PaddleSeg records no epoch")
    elif layout == "paddle.Model" and source.weights.stem.isdecimal():
        epoch = int(source.weights.stem) + 1  # 0.pdparams is written when the first epoch is complete
    return ForeignCheckpoint(layout, source.weights, weights, ema, optimizer, epoch, best, names, notes=notes)


def _layout(source: _Source, optimizers: Sequence[dict[str, Any]]) -> Any:
    stem, prefix = source.weights.stem, str(source.weights.with_suffix(""))
    if source.states is not None and source.states.suffix == ".states":
        return "PaddleOCR"
    if any("last_epoch" in optimizer for optimizer in optimizers):
        return "PaddleDetection"
    if source.states is not None or source.raw is not None:
        return "PaddleClas"
    if stem == "model" and re.fullmatch(r"iter_\d+|best_model", source.weights.parent.name):
        return "PaddleSeg"
    if stem.isdecimal() or stem in ("final", "best_model") or os.path.exists(prefix + ".pdscaler"):
        return "paddle.Model"
    return "paddle.save"


# -- where its files are ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Source:
    kind: Literal["paddlelite", "safetensors", "paddle"]
    weights: Path
    raw: Path | None = None
    optimizer: Path | None = None
    states: Path | None = None
    notes: list[str] = field(default_factory=list)


def _locate(path: str | os.PathLike[str]) -> _Source:
    given = Path(path).expanduser().absolute()
    own = _own_checkpoint(given)
    if own is not None:
        file = given.resolve()  # any set of weights in it: model.pdparams, ema.pdparams, swa.pdparams
        return _Source("paddlelite", file if file.suffix == ".pdparams" and file.is_file() else own / _OWN_WEIGHTS)
    weights = _weights_file(given)
    if weights is None:
        raise CheckpointNotFoundError(_nothing_message(given))
    notes = [] if given in (weights, weights.with_suffix("")) else [f"read from {weights}"]
    if weights.suffix == ".safetensors":
        return _Source("safetensors", weights, notes=notes)

    def beside(suffix: str) -> Path | None:
        file = weights.with_name(weights.stem + suffix)
        return file if file.is_file() else None

    return _Source(
        "paddle",
        weights,
        raw=beside(".pdema") if weights.suffix == ".pdparams" else None,
        optimizer=beside(".pdopt"),
        states=beside(".states") or beside(".pdstates"),
        notes=notes,
    )


def _own_checkpoint(given: Path) -> Path | None:
    if (given / "checkpoints").is_dir():
        newest = CheckpointStore(given, read_only=True).newest()
        return newest.path if newest else None
    try:
        return resolve_checkpoint(given)
    except CheckpointNotFoundError:
        return None


def _weights_file(given: Path) -> Path | None:
    if given.is_file():
        if given.suffix not in _SIDE_FILES:
            return given
        return _first_file(given.with_suffix(suffix) for suffix in _WEIGHT_SUFFIXES)
    if given.is_dir():
        return _weights_in(given)
    return _first_file(given.with_name(given.name + suffix) for suffix in _WEIGHT_SUFFIXES)


def _weights_in(directory: Path) -> Path | None:
    files = {file.stem: file for suffix in _WEIGHT_SUFFIXES for file in sorted(directory.glob(f"*{suffix}"))}
    chosen = _preferred([stem for stem in files if not stem.endswith("_student")])
    if chosen is not None:
        return files[chosen]
    folders = {file.parent.name: file for file in sorted(directory.glob("*/model.pdparams"))}
    chosen = _preferred(list(folders))
    return folders[chosen] if chosen is not None else None


def _preferred(names: Sequence[str]) -> str | None:
    """The newest of several by name: `latest`, else the final one, else the highest number, else the best."""
    numbered = {name: int(match[1]) for name in names if (match := _TRAILING_NUMBER.fullmatch(name))}
    last_number = max(numbered, key=lambda name: numbered[name], default=None)
    for name in (*_PREFERRED_STEMS[:-2], last_number, *_PREFERRED_STEMS[-2:]):
        if name is not None and name in names:
            return name
    if len(names) > 1:
        raise ConfigurationError(
            f"several sets of weights are there and none is the newest by name: {', '.join(sorted(names))}. Pass one."
        )
    return names[0] if names else None


def _first_file(candidates: Iterable[Path]) -> Path | None:
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _nothing_message(given: Path) -> str:
    if given.is_file():
        return f"{given} holds no weights, and no {given.stem}.pdparams is beside it"
    if given.is_dir():
        return f"no weights in {given}: neither .pdparams nor .safetensors nor a checkpoint"
    parent = given.parent
    if not parent.is_dir():
        return f"no weights at {given}: there is no directory {parent}"
    near = sorted({file.name for file in parent.iterdir() if file.suffix in _WEIGHT_SUFFIXES or file.is_dir()})
    listing = f" {parent} holds {', '.join(near[:_SHOWN])}{' ...' if len(near) > _SHOWN else ''}." if near else ""
    names = [*near, *(Path(name).stem for name in near)]
    return f"no weights at {given}, with or without .pdparams.{did_you_mean(given.name, names)}{listing}"


# -- what its files hold ---------------------------------------------------------------------------------------------
def _read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    content = _read_dict(path)
    names = content.pop(NAME_TABLE, {})
    arrays = {str(name): array for name, value in content.items() if (array := _as_array(value)) is not None}
    if content and not arrays:
        raise CheckpointMismatchError(
            f"{path} holds no tensors by name, but {', '.join(map(str, list(content)[:_SHOWN]))}"
        )
    return arrays, {str(key): str(name) for key, name in names.items()} if isinstance(names, dict) else {}


def _read_optimizers(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    content = read_pickle(path)
    states = content if isinstance(content, list) else [content]
    return [_joined(state, path) for state in states if isinstance(state, dict)]


def _read_states(path: Path | None) -> dict[str, Any]:
    return _read_dict(path) if path is not None else {}


def _read_dict(path: Path) -> dict[Any, Any]:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointMismatchError(f"{path} holds no dict of names and values, but a {type(content).__name__}")
    return _joined(content, path)


def _joined(content: dict[Any, Any], path: Path) -> dict[Any, Any]:
    content = dict(content)
    try:
        for name, info in content.pop(_BIG_ARRAYS, {}).items():
            content[name] = np.concatenate([content.pop(part) for part in info["slices"]]).reshape(info["OriginShape"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointCorruptError(f"{path} has a large array whose parts do not fit together: {error!r}") from error
    return content


def _as_array(value: Any) -> np.ndarray | None:
    # A tensor that is not at the top of what paddle.save was given is stored as (its name, its array).
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    return value if isinstance(value, np.ndarray) else None


def _dict(value: Any) -> dict[Any, Any] | None:
    return value if isinstance(value, dict) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, np.integer)) else None


# -- the optimizer's state by structured name ------------------------------------------------------------------------
def optimizer_by_structured_name(
    weights_file: str | os.PathLike[str], opt_file: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return a `.pdopt`'s state by the names of the `.pdparams` saved with it, instead of Paddle's automatic ones.

    `{"accumulators": {structured name: {accumulator: array}}, "master_weights": {structured name: array},
    "scheduler": {...} or None, "unmatched": [keys that belong to no parameter]}`. Tied parameters go by their first
    name. Where an EMA was on, `weights_file` is the raw weights' `.pdema`.

    Raises:
        CheckpointMismatchError: the weights carry no table of names, or one name stands for different parameters.
    """
    weights, names = _read_weights(Path(weights_file))
    if not names:
        raise CheckpointMismatchError(
            f"{weights_file} has no table of parameter names ({NAME_TABLE}), so nothing tells which parameter each "
            f"entry of {opt_file} belongs to. Weights that paddle.save wrote from layer.state_dict() have one."
        )
    structured = _structured_names(names, weights, weights_file)
    result: dict[str, Any] = {"accumulators": {}, "master_weights": {}, "scheduler": None, "unmatched": []}
    for state in _read_optimizers(Path(opt_file)):
        result["scheduler"] = result["scheduler"] or _dict(state.get("LR_Scheduler"))
        for name, value in (_dict(state.get("master_weights")) or {}).items():
            if name in structured:
                result["master_weights"][structured[name]] = _as_array(value)
            else:
                result["unmatched"].append(f"master_weights of {name}")
        for key, value in state.items():
            array = _as_array(value)
            if key in _NO_ACCUMULATOR or not isinstance(key, str) or array is None:
                continue
            owner = _owner(key, structured)
            if owner is None:
                result["unmatched"].append(key)
                continue
            accumulator = _accumulator_name(key[len(owner) + 1 :])
            accumulators = result["accumulators"].setdefault(structured[owner], {})
            if accumulator in accumulators:
                raise CheckpointMismatchError(f"{opt_file} has {accumulator} of {structured[owner]} ({owner}) twice")
            accumulators[accumulator] = array
    return result


def _structured_names(
    names: Mapping[str, str], weights: Mapping[str, np.ndarray], file: str | os.PathLike[str]
) -> dict[str, str]:
    structured: dict[str, str] = {}
    for key, name in names.items():
        first = structured.setdefault(name, key)
        if first != key and first in weights and key in weights and not np.array_equal(weights[first], weights[key]):
            # Seen where a model was built under unique_name.guard(): one automatic name, two parameters.
            raise CheckpointMismatchError(f"{file} gives {first} and {key}, which differ, one automatic name ({name})")
    return structured


def _owner(key: str, structured: Mapping[str, str]) -> str | None:
    end = len(key)
    while (end := key.rfind("_", 0, end)) > 0:  # from the longest prefix to the shortest
        if key[:end] in structured:
            return key[:end]
    return None


def _accumulator_name(rest: str) -> str:
    rest = re.sub(r"^fp32_master_\d+_", "", rest)
    return re.sub(r"_\d+$", "", rest)


# -- into a layer ----------------------------------------------------------------------------------------------------
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
    notes: list[str]

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
                f"of another shape or type ({len(self.mismatched)}): {'; '.join(shown)}{self._more(self.mismatched)}"
            )
        return lines

    def __str__(self) -> str:
        count = len(self.loaded) + len(self.missing) + len(self.mismatched)
        head = f"{len(self.loaded)} of the model's {count} weights loaded from {self.path} ({self.layout})"
        return "\n".join([head, *(f"  {line}" for line in [*self.problems(), *self.notes])])

    @staticmethod
    def _named(names: Sequence[str], others: Sequence[str]) -> str:
        return ", ".join(f"{name}{did_you_mean(name, others)}" for name in names[:_SHOWN]) + WeightsReport._more(names)

    @staticmethod
    def _more(items: Sequence[Any]) -> str:
        return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""


def load_weights(
    layer: Loadable,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    rename: Rename | None = None,
    which: Which = "file",
) -> WeightsReport:
    """Load another program's weights (or ours) into `layer`, all that fit or, when `strict`, all or none.

    `path` is a prefix, a file or a directory as in `load_foreign`. `rename` maps saved names to the model's: a dict of
    prefixes (`{"module.": ""}`), or a function that returns the new name, or None to leave the weight out. `which` says
    what to take where an averaged (EMA) set exists: what the `.pdparams` file itself holds, the "raw" weights or the
    "ema". Values are cast to the model's type, and the report says so.

        report = load_weights(model, "output/best_accuracy", strict=False)
        print(report)

    Raises:
        CheckpointMismatchError: names or shapes do not fit and `strict` is true; the layer is unchanged.
        CheckpointNotFoundError, CheckpointCorruptError, UnsafePickleError: as `load_foreign`.
    """
    if which not in ("file", "raw", "ema"):
        raise ConfigurationError(f"which must be 'file', 'raw' or 'ema', got {which!r}")
    source = _locate(path)
    file, weights, bfloat16, notes = _weights_for(source, which)
    weights, bfloat16 = _renamed(weights, bfloat16, rename)
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
    notes += [f"{count} cast from {saved} to {wanted}" for (saved, wanted), count in casts.items()]
    report = WeightsReport(
        file,
        "paddlelite" if source.kind == "paddlelite" else source.kind,
        list(fitting),
        [name for name in model if name not in weights],
        [name for name in weights if name not in model],
        mismatched,
        notes,
    )
    hint = _prefix_hint(report)
    if strict and not report.complete:
        raise CheckpointMismatchError(
            f"the weights in {file} do not fit the model, which is unchanged. "
            + (hint or "strict=False loads those that fit."),
            report.problems(),
        )
    if hint:
        notes.append(hint)
    _set(layer, fitting)
    return report


def _weights_for(source: _Source, which: Which) -> tuple[Path, dict[str, np.ndarray], set[str], list[str]]:
    notes = list(source.notes)
    if source.kind == "safetensors":
        arrays, bfloat16 = read_safetensors(source.weights)
        return source.weights, arrays, bfloat16, notes
    if source.kind == "paddlelite":
        saved = open_checkpoint(source.weights.parent)
        name = {"raw": _OWN_WEIGHTS, "ema": _OWN_EMA, "file": source.weights.name}[which]
        if name not in saved.files:
            raise CheckpointNotFoundError(f"{source.weights.parent} holds no {name}")
        return source.weights.with_name(name), saved.tensors(name), _bfloat16_in(saved, name), notes
    if which == "ema" and source.raw is None:
        raise CheckpointNotFoundError(f"no averaged weights beside {source.weights} (no {source.weights.stem}.pdema)")
    file = source.raw if which == "raw" and source.raw is not None else source.weights
    if source.raw is not None:
        notes.append(f"these are the {'raw' if file == source.raw else 'averaged (EMA)'} weights")
    return file, _read_weights(file)[0], set(), notes


def _renamed(
    weights: dict[str, np.ndarray], bfloat16: set[str], rename: Rename | None
) -> tuple[dict[str, np.ndarray], set[str]]:
    if rename is None:
        return weights, bfloat16
    result: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, array in weights.items():
        new = rename(name) if callable(rename) else _with_prefix_replaced(name, rename)
        if new is None:
            continue
        if new in origin:
            raise ConfigurationError(f"rename gives {origin[new]} and {name} one name, {new}")
        result[new], origin[new] = array, name
    return result, {new for new, old in origin.items() if old in bfloat16}


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
        values = _widened(array) if saved == "bfloat16" else array
        return _rounded_to_bfloat16(values) if wanted == "bfloat16" else values.astype(wanted)
    if wanted == "bfloat16" or saved == "bfloat16":
        return None
    converted = array.astype(wanted)
    return converted if np.array_equal(converted, array) else None


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).reshape(values.shape).view(np.uint32)
    nearest_even = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest_even)


def _set(layer: Loadable, weights: dict[str, np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Paddle warns of every missing name; the report has them
        outcome = layer.set_state_dict(weights)
    refused = list(outcome[1]) if isinstance(outcome, tuple) and len(outcome) == 2 else []
    if refused:
        raise CheckpointMismatchError("the layer did not take weights of its own names", refused)
