"""What a checkpoint of paddle.Model, PaddleOCR, PaddleClas or their kin holds, in our terms."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    did_you_mean,
)
from .format import NAME_TABLE
from .reader import CheckpointReader
from .safe_pickle import read_pickle
from .safetensors_format import read_safetensors
from .saved import SavedCheckpoint, open_checkpoint, resolve_checkpoint

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
_SHOWN = 10


# -- what a foreign checkpoint holds ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class WeightSet:
    """One set of weights by name, and the file they came from.

    bfloat16 ones are uint16 bits, named where the file tells.
    """

    path: Path
    layout: str
    arrays: Mapping[str, np.ndarray]
    bfloat16: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What another program's checkpoint holds, in our terms; None where it does not say.

    `weights` are those that training goes on from and `ema` their running average, whichever file each was in. `epoch`
    counts completed epochs, `global_step` optimizer steps. `optimizer` is as saved, by Paddle's automatic parameter
    names; `parameter_names` leads from structured names to those. bfloat16 weights are uint16 bits; `bfloat16` names
    them where the file tells.
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
    global_step: int | None = None

    def optimizer_by_structured_name(self) -> dict[str, Any]:
        """The optimizer's state as the function of this name returns it; ours has these names already.

        Raises:
            CheckpointMismatchError: nothing tells which parameter an entry belongs to.
        """
        state = self.optimizer or {}
        if self.layout == "paddlelite":
            result: dict[str, Any] = {"accumulators": {}, "master_weights": {}, "scheduler": None, "unmatched": []}
            for key, array in state.items():
                optimizer, _, name = key.partition("/")
                parameter, _, accumulator = name.rpartition("/")
                if optimizer != "optimizer_0":
                    result["unmatched"].append(key)
                elif accumulator == "master_weight":
                    result["master_weights"][parameter] = array
                else:
                    result["accumulators"].setdefault(parameter, {})[accumulator] = array
            return result
        file = self.path.with_suffix(".pdopt")
        return _by_structured_name(self.weights, self.parameter_names, self.path, [state], file)

    def weight_set(self, which: Which = "file") -> WeightSet:
        """The weights of the `.pdparams` file ("file"), those to go on training from ("raw") or the average ("ema").

        Raises:
            CheckpointNotFoundError: there is no average.
        """
        if which == "ema" and self.ema is None:
            raise CheckpointNotFoundError(f"no averaged weights beside {self.path} (no {self.path.stem}.pdema)")
        averaged = which == "ema" or (which == "file" and self.layout != "paddlelite")
        arrays = self.ema if averaged and self.ema is not None else self.weights
        return WeightSet(self.path, self.layout, arrays, self.bfloat16, list(self.notes))


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
        global_step=saved.entry.step,
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
    step: int | None = None
    best: dict[str, Any] | None = None
    if layout == "PaddleOCR":
        epoch, best = _whole(states.get("epoch")), _dict(states.get("best_model_dict"))
        step = _whole(states.get("global_step"))
    elif layout == "PaddleClas":
        epoch = _whole(states.get("epoch"))
        if source.weights.stem == "best_model":
            best = states or None
        elif isinstance(states.get("metric"), (int, float)):
            notes.append(f"metric {states['metric']} is this epoch's, not the best")
    elif layout == "PaddleDetection" and optimizer is not None:
        epoch = _whole(optimizer["last_epoch"])
    elif layout == "PaddleSeg":
        number = re.fullmatch(r"iter_(\d+)", source.weights.parent.name)
        step = int(number[1]) if number else None
        notes.append(f"saved at {source.weights.parent.name}; PaddleSeg records no epoch")
    elif layout == "paddle.Model" and source.weights.stem.isdecimal():
        epoch = int(source.weights.stem) + 1  # 0.pdparams is written when the first epoch is complete
    return ForeignCheckpoint(
        layout, source.weights, weights, ema, optimizer, epoch, best, names, notes=notes, global_step=step
    )


def read_weights(path: str | os.PathLike[str], which: Which = "file") -> WeightSet:
    """One set of weights of a checkpoint and nothing else of it; paths, sets and errors as in `load_foreign`."""
    source = _locate(path)
    notes = list(source.notes)
    if source.kind == "safetensors":
        arrays, bfloat16 = read_safetensors(source.weights)
        return WeightSet(source.weights, source.kind, arrays, frozenset(bfloat16), notes)
    if source.kind == "paddlelite":
        saved = open_checkpoint(source.weights.parent)
        name = {"raw": _OWN_WEIGHTS, "ema": _OWN_EMA, "file": source.weights.name}[which]
        if name not in saved.files:
            raise CheckpointNotFoundError(f"{source.weights.parent} holds no {name}")
        arrays, found = saved.tensors(name), frozenset(_bfloat16_in(saved, name))
        return WeightSet(source.weights.with_name(name), source.kind, arrays, found, notes)
    if which == "ema" and source.raw is None:
        raise CheckpointNotFoundError(f"no averaged weights beside {source.weights} (no {source.weights.stem}.pdema)")
    file = source.raw if which == "raw" and source.raw is not None else source.weights
    if source.raw is not None:
        notes.append(f"these are the {'raw' if file == source.raw else 'averaged (EMA)'} weights")
    return WeightSet(file, source.kind, _read_weights(file)[0], notes=notes)


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
        newest = CheckpointReader(given).newest()
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
    return _by_structured_name(weights, names, weights_file, _read_optimizers(Path(opt_file)), opt_file)


def _by_structured_name(
    weights: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    weights_file: str | os.PathLike[str],
    states: Sequence[Mapping[str, Any]],
    opt_file: str | os.PathLike[str],
) -> dict[str, Any]:
    if not names:
        raise CheckpointMismatchError(
            f"{weights_file} has no table of parameter names ({NAME_TABLE}), so nothing tells which parameter each "
            f"entry of {opt_file} belongs to. Weights that paddle.save wrote from layer.state_dict() have one."
        )
    structured = _structured_names(names, weights, weights_file)
    result: dict[str, Any] = {"accumulators": {}, "master_weights": {}, "scheduler": None, "unmatched": []}
    for state in states:
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
