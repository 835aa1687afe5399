"""What the files of another program's checkpoint hold: weights by name, and everything that was saved in one file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointCorruptError, CheckpointMismatchError
from .foreign_files import Source
from .foreign_parts import Parts
from .format import NAME_TABLE
from .safe_pickle import read_pickle
from .safetensors_format import read_safetensors

# With pickle protocols 2 and 3 paddle.save splits arrays above 1 GiB and notes it under this key (the typo is Paddle's;
# framework/io_utils.py, _unpack_saved_dict).
_BIG_ARRAYS = "UnpackBigParamInfor@@"
# The keys under which tools and people save everything in one file, in the order in which they are looked for.
_WEIGHT_KEYS: tuple[str, ...] = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "network_state_dict",
)
_WEIGHT_KEYS += ("params", "model_params", "main_params", "weights", "module", "model_dict", "net_state_dict")
_EMA_KEYS = ("ema", "ema_model", "model_ema", "ema_state_dict", "ema_params", "ema_weights", "state_dict_ema")
_OPTIMIZER_KEYS: tuple[str, ...] = (
    "optimizer",
    "optimizer_state_dict",
    "optimizer_state",
    "optimizers",
    "optim",
    "opt",
)
_OPTIMIZER_KEYS += ("main_optimizer", "optim_state_dict", "opt_state_dict", "optimizer_dict", "opt_dict", "optim_dict")
_OF_AN_OPTIMIZER = ("master_weights", "LR_Scheduler")
_SCHEDULE_KEYS = ("lr_scheduler", "scheduler", "lr_sched", "lr_scheduler_state_dict", "scheduler_state_dict")
_OPTIMIZER_WORD = re.compile(r"(?:^|_)(?:optim(?:izer)?s?|opt)(?:_|$)", re.IGNORECASE)
_EPOCH_KEYS, _STEP_KEYS = ("epoch", "epochs"), ("global_step", "iteration", "iter", "step")
_SHOWN = 10


@dataclass(frozen=True)
class Contents:
    """What a file of weights, or several that make one set, hold; None and empty where they say nothing of it."""

    arrays: dict[str, np.ndarray]
    names: dict[str, str] = field(default_factory=dict)
    bfloat16: frozenset[str] = frozenset()
    ema: dict[str, np.ndarray] | None = None
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_contents(path: Path, parts: Parts | None = None) -> Contents:
    """The contents of a file, or of all the files of a set.

    Raises:
        CheckpointCorruptError: a file is damaged, or weights that the index names are missing.
        CheckpointMismatchError: it holds no weights.
        UnsafePickleError: a file asks for code; nothing of it was run.
    """
    if parts is None:
        return _read_file(path)
    read = {file: _read_file(file) for file in parts.files}
    parts.refuse_missing({file: set(contents.arrays) for file, contents in read.items()})
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    bfloat16: set[str] = set()
    for file, contents in read.items():
        for name, array in contents.arrays.items():
            home = (parts.weight_map or {}).get(name, file)
            if home != file:
                continue
            if name in arrays:
                raise CheckpointCorruptError(f"{name} is in several files of {path.parent}, and no index says which")
            arrays[name] = array
        names |= contents.names
        bfloat16 |= contents.bfloat16
    return Contents(arrays, names, frozenset(bfloat16))


def _read_file(path: Path) -> Contents:
    with open(path, "rb") as file:
        start = file.read(24)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointMismatchError(f"{path} is Git LFS's note of where the file is; `git lfs pull` fetches the file")
    if path.suffix == ".safetensors":
        arrays, bfloat16 = read_safetensors(path)
        return Contents(arrays, bfloat16=frozenset(bfloat16))
    if start.startswith(b"PK\x03\x04"):
        raise CheckpointMismatchError(
            f"{path} is a ZIP archive, as torch.save and numpy.savez write, and no file of Paddle's. "
            "Convert it: save its weights with paddle.save or as .safetensors."
        )
    if path.suffix == ".pdiparams":
        raise CheckpointMismatchError(
            f"{path} belongs to a model exported for inference, and its weights have no names: "
            "pass the .pdparams of the training that it was exported from"
        )
    content = read_dict(path)
    names = content.pop(NAME_TABLE, {})
    inner = {key: value for key, value in content.items() if isinstance(value, dict) and _named_arrays(value)}
    if inner:
        return _everything_in_one(path, content, inner)
    arrays = _named_arrays(content)
    optimizers = [key for key, value in content.items() if isinstance(value, list) and any(map(_is_state, value))]
    if content and (not arrays or optimizers):
        raise CheckpointMismatchError(
            f"{path} holds no tensors by name, but {', '.join(map(str, list(content)[:_SHOWN]))}"
        )
    return Contents(arrays, {str(key): str(name) for key, name in names.items()} if isinstance(names, dict) else {})


def _everything_in_one(path: Path, content: dict[Any, Any], inner: dict[Any, dict[Any, Any]]) -> Contents:
    """`{"model": ..., "optimizer": ..., "epoch": ...}` in our terms.

    Several models (PaddleGAN's, a teacher and a student) keep their key as the first part of their weights' names.
    """
    ema_key = next((key for key in _EMA_KEYS if key in inner), None)
    models = [
        key
        for key in inner
        if key != ema_key and key not in (*_SCHEDULE_KEYS, *_OF_AN_OPTIMIZER) and not _OPTIMIZER_WORD.search(str(key))
    ]
    chosen = next((key for key in _WEIGHT_KEYS if key in models), models[0] if len(models) == 1 else None)
    if not models and ema_key is None:
        raise CheckpointMismatchError(
            f"{path} holds no weights of a model, but {', '.join(map(str, list(content)[:_SHOWN]))}"
        )
    if chosen is None and not models:
        chosen = ema_key  # the average is all there is
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for key in models if chosen is None else [chosen]:
        prefix = "" if chosen is not None else f"{key}."
        arrays |= {prefix + name: array for name, array in _named_arrays(inner[key]).items()}
        names |= {prefix + name: automatic for name, automatic in _automatic_names(inner[key]).items()}
    notes = [f"everything is in one file, {path.name}: the weights are its {chosen!r}"]
    if chosen is None:
        notes = [
            f"{path.name} holds several models, {', '.join(map(str, models))}, by which their weights' names begin"
        ]
    elif len(models) > 1:
        notes.append(f"left aside: {', '.join(str(key) for key in models if key != chosen)}")
    return Contents(
        arrays,
        names,
        ema=_named_arrays(inner[ema_key]) if ema_key is not None and ema_key != chosen else None,
        optimizers=list(_optimizers_in(content, path)),
        progress=_progress_in(content),
        notes=notes,
    )


def _optimizers_in(content: Mapping[Any, Any], path: Path) -> Iterator[dict[str, Any]]:
    keys = [key for key in _OPTIMIZER_KEYS if key in content]
    keys += [key for key in content if key not in keys and _OPTIMIZER_WORD.search(str(key))]
    schedule = next((content[key] for key in _SCHEDULE_KEYS if isinstance(content.get(key), dict)), None)
    for key in keys:
        value = content[key]
        for state in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(state, dict):
                state = joined(state, path)
                yield state if schedule is None or "LR_Scheduler" in state else {**state, "LR_Scheduler": schedule}


def _progress_in(content: Mapping[Any, Any]) -> dict[str, Any]:
    def number(keys: tuple[str, ...]) -> int | None:
        return next((found for key in keys if (found := whole(content.get(key))) is not None), None)

    scores = {str(key): _plain(value) for key, value in content.items() if "best" in str(key).lower()}
    best = {key: value for key, value in scores.items() if isinstance(value, (int, float))}
    for value in content.values():
        if value is content.get("best_model_dict") and isinstance(value, dict):
            best |= value
    return {"epoch": number(_EPOCH_KEYS), "global_step": number(_STEP_KEYS), "best_model_dict": best or None}


def read_optimizers(path: Path | None) -> list[dict[str, Any]]:
    """The state of each optimizer in a `.pdopt` file, most often one; none without a file."""
    if path is None:
        return []
    content = read_pickle(path)
    states = content if isinstance(content, list) else [content]
    return [joined(state, path) for state in states if isinstance(state, dict)]


def read_progress(source: Source) -> dict[str, Any]:
    """Epoch, step and best, so far as the files beside the weights tell, by PaddleOCR's names for them."""
    if source.states is not None:
        return read_dict(source.states)
    told: dict[str, Any] = {}
    if source.progress is not None and source.progress.suffix == ".json":  # PaddleNLP
        try:
            state = json.loads(source.progress.read_bytes())
            told = {"epoch": int(state["epoch"]), "global_step": int(state["global_step"])}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(f"{source.progress} does not tell epoch and step: {error!r}") from error
    elif source.progress is not None:  # PaddleX 2
        found = re.search(
            r"(?m)^completed_epochs:\s*(\d+)\s*$", source.progress.read_text(encoding="utf-8", errors="replace")
        )
        told = {"epoch": int(found[1])} if found else {}
    return told


def read_dict(path: Path) -> dict[Any, Any]:
    """The dict that a pickle holds, big arrays joined."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointMismatchError(f"{path} holds no dict of names and values, but a {type(content).__name__}")
    return joined(content, path)


def joined(content: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The dict with arrays whole that old pickle protocols split."""
    content = dict(content)
    try:
        for name, info in content.pop(_BIG_ARRAYS, {}).items():
            content[name] = np.concatenate([content.pop(part) for part in info["slices"]]).reshape(info["OriginShape"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointCorruptError(f"{path} has a large array whose parts do not fit together: {error!r}") from error
    return content


def as_array(value: Any) -> np.ndarray | None:
    """The array, also of the pair (its name, the array) as which a tensor below the top of a file is stored."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    return value if isinstance(value, np.ndarray) else None


def whole(value: Any) -> int | None:
    """The whole number that a value is, also as a Tensor of one element; None for anything else."""
    value = _plain(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _plain(value: Any) -> Any:
    array = as_array(value)
    value = array if array is not None else value
    return value.reshape(()).item() if isinstance(value, (np.ndarray, np.generic)) and value.size == 1 else value


def _named_arrays(state: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    return {str(name): array for name, value in state.items() if (array := as_array(value)) is not None}


def _automatic_names(state: Mapping[Any, Any]) -> dict[str, str]:
    table = state.get(NAME_TABLE)
    if isinstance(table, dict):
        return {str(key): str(name) for key, name in table.items()}
    return {
        str(key): value[0] for key, value in state.items() if isinstance(value, tuple) and as_array(value) is not None
    }


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(_named_arrays(value))
