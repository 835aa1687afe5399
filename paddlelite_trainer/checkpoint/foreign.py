"""What a checkpoint of paddle.Model, PaddleOCR, PaddleClas or their kin holds, in our terms."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import CheckpointMismatchError, CheckpointNotFoundError
from .foreign_contents import Contents, as_array, read_contents, read_optimizers, read_progress, whole
from .foreign_files import OWN_WEIGHTS, Source, locate
from .format import NAME_TABLE
from .saved import SavedCheckpoint, open_checkpoint

Which = Literal["file", "raw", "ema"]

_NO_ACCUMULATOR = {"LR_Scheduler", "master_weights", NAME_TABLE, "last_epoch"}
_OWN_EMA, _OWN_OPTIMIZER = "ema.pdparams", "optimizer.pdopt"
# PaddleX's folders, PaddleClas's and PaddleOCR's files, PaddleGAN's: all count from 1.
_EPOCH_IN_NAME = re.compile(r"(?:iter_)?epoch[-_](\d+)(?:_checkpoint|_weight)?")


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
        "PaddleX",
        "PaddleNLP",
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
    file_is_average: bool = False
    """Whether the file of weights itself holds the average: `ema` was in it, and `weights` beside it."""

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
            raise CheckpointNotFoundError(_no_average(self.path))
        averaged = which == "ema" or (which == "file" and self.file_is_average)
        arrays = self.ema if averaged and self.ema is not None else self.weights
        return WeightSet(self.path, self.layout, arrays, self.bfloat16, list(self.notes))


def load_foreign(path: str | os.PathLike[str]) -> ForeignCheckpoint:
    """Read a checkpoint that another program wrote, or one of ours, by its prefix, one of its files or its directory.

    Raises:
        CheckpointNotFoundError: there are no weights; the message lists what is near.
        CheckpointCorruptError: a file is cut short or damaged.
        UnsafePickleError: a file asks for code; nothing of it was run.
    """
    source = locate(path)
    return _read_own(source) if source.kind == "paddlelite" else _read_foreign(source)


def _read_own(source: Source) -> ForeignCheckpoint:
    saved = open_checkpoint(source.weights.parent)
    weights = saved.tensors(OWN_WEIGHTS)
    return ForeignCheckpoint(
        "paddlelite",
        source.weights,
        weights,
        ema=saved.tensors(_OWN_EMA) if _OWN_EMA in saved.files else None,
        optimizer=saved.tensors(_OWN_OPTIMIZER) if _OWN_OPTIMIZER in saved.files else None,
        epoch=saved.entry.epoch,
        global_step=saved.entry.step,
        bfloat16=frozenset(_bfloat16_in(saved, OWN_WEIGHTS)),
        notes=source.notes,
    )


def _bfloat16_in(saved: SavedCheckpoint, file: str) -> set[str]:
    return {name for name in saved.tensors(file) if saved.dtype_of(file, name) == "bfloat16"}


def _read_foreign(source: Source) -> ForeignCheckpoint:
    contents = read_contents(source.weights, source.parts)
    weights, names, bfloat16, ema = contents.arrays, contents.names, contents.bfloat16, contents.ema
    notes = [*source.notes, *contents.notes]
    if source.raw is not None:
        raw = read_contents(source.raw)
        ema, weights, names = weights, raw.arrays, raw.names
        notes.append(f"{source.weights.name} holds the averaged (EMA) weights and {source.raw.name} the raw ones")
    elif source.average is not None:
        ema = read_contents(source.average).arrays
    optimizers = contents.optimizers or read_optimizers(source.optimizer)
    if len(optimizers) > 1:
        notes.append(f"{len(optimizers)} optimizers were saved; this is the first")
    layout = _layout(source, optimizers)
    epoch, step, best = _progress(source, layout, contents, optimizers, notes)
    return ForeignCheckpoint(
        layout,
        source.weights,
        weights,
        ema,
        optimizers[0] if optimizers else None,
        epoch,
        best,
        names,
        bfloat16,
        notes,
        step,
        file_is_average=source.raw is not None,
    )


def _progress(
    source: Source, layout: str, contents: Contents, optimizers: Sequence[dict[str, Any]], notes: list[str]
) -> tuple[int | None, int | None, dict[str, Any] | None]:
    """Completed epochs, steps and best scores, so far as anything tells; what is to be said of it goes to `notes`."""
    states = {**read_progress(source), **contents.progress}
    epoch, step, best = (
        whole(states.get("epoch")),
        whole(states.get("global_step")),
        _dict(states.get("best_model_dict")),
    )
    stem, folder = source.weights.stem, source.weights.parent.name
    if contents.progress and epoch is not None:
        notes.append(f"epoch {epoch}, as the file says, is taken for the number of completed epochs")
    if layout == "PaddleClas":
        if stem == "best_model":
            best = states or None
        elif isinstance(states.get("metric"), (int, float)):
            notes.append(f"metric {states['metric']} is this epoch's, not the best")
    elif layout == "PaddleDetection" and epoch is None:
        epoch = next((whole(optimizer["last_epoch"]) for optimizer in optimizers if "last_epoch" in optimizer), None)
    elif layout == "PaddleSeg":
        number = re.fullmatch(r"iter_(\d+)", folder)
        step = int(number[1]) if number and step is None else step
        notes.append(f"saved at {folder}; PaddleSeg records no epoch")
    elif layout == "paddle.Model" and stem.isdecimal() and epoch is None:
        epoch = int(stem) + 1  # 0.pdparams is written when the first epoch is complete
    named = next((match for name in (stem, folder) if (match := _EPOCH_IN_NAME.fullmatch(name))), None)
    if epoch is None and named is not None and layout != "safetensors":
        epoch = int(named[1])
        notes.append(f"epoch {epoch} by the name {named[0]}")
    return epoch, step, best


def read_weights(path: str | os.PathLike[str], which: Which = "file") -> WeightSet:
    """One set of weights of a checkpoint and nothing else of it; paths, sets and errors as in `load_foreign`."""
    source = locate(path)
    if source.kind == "paddlelite":
        saved = open_checkpoint(source.weights.parent)
        name = {"raw": OWN_WEIGHTS, "ema": _OWN_EMA, "file": source.weights.name}[which]
        if name not in saved.files:
            raise CheckpointNotFoundError(f"{source.weights.parent} holds no {name}")
        arrays, found = saved.tensors(name), frozenset(_bfloat16_in(saved, name))
        return WeightSet(source.weights.with_name(name), source.kind, arrays, found, list(source.notes))
    file, parts = source.weights, source.parts
    if which == "raw" and source.raw is not None:
        file, parts = source.raw, None
    elif which == "ema" and source.average is not None:
        file, parts = source.average, None
    contents = read_contents(file, parts)
    notes = [*source.notes, *contents.notes]
    if source.raw is not None:
        notes.append(f"these are the {'raw' if file == source.raw else 'averaged (EMA)'} weights")
    elif which == "ema":
        average = contents.arrays if source.average is not None else contents.ema
        if average is None:
            raise CheckpointNotFoundError(_no_average(source.weights))
        notes.append("these are the averaged (EMA) weights")
        return WeightSet(file, source.kind, average, contents.bfloat16, notes)
    return WeightSet(file, source.kind, contents.arrays, contents.bfloat16, notes)


def _no_average(path: Path) -> str:
    return f"no averaged weights beside {path} (no {path.stem}.pdema, no ema_model{path.suffix})"


def _dict(value: Any) -> dict[Any, Any] | None:
    return value if isinstance(value, dict) else None


def _layout(source: Source, optimizers: Sequence[dict[str, Any]]) -> Any:
    stem, folder, prefix = source.weights.stem, source.weights.parent.name, str(source.weights.with_suffix(""))
    if source.states is not None and source.states.suffix == ".states":
        return "PaddleOCR"
    if source.progress is not None:
        return "PaddleNLP" if source.progress.suffix == ".json" else "PaddleX"
    if source.kind == "safetensors":
        return "safetensors"
    if any("last_epoch" in optimizer for optimizer in optimizers):
        return "PaddleDetection"
    if source.states is not None or source.raw is not None:
        return "PaddleClas"
    if stem == "model" and re.fullmatch(r"iter_\d+|best_model", folder):
        return "PaddleSeg"
    if stem == "model" and _EPOCH_IN_NAME.fullmatch(folder):
        return "PaddleX"
    if stem.isdecimal() or stem in ("final", "best_model") or os.path.exists(prefix + ".pdscaler"):
        return "paddle.Model"
    return "paddle.save"


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
    contents = read_contents(Path(weights_file))
    weights, names = contents.arrays, contents.names
    return _by_structured_name(weights, names, weights_file, read_optimizers(Path(opt_file)), opt_file)


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
                result["master_weights"][structured[name]] = as_array(value)
            else:
                result["unmatched"].append(f"master_weights of {name}")
        for key, value in state.items():
            array = as_array(value)
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
