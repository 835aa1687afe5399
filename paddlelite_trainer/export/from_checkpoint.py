"""A checkpoint exported without a run: the module made from a class that is named, and the input as it is told."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..checkpoint.saved import open_checkpoint
from ..errors import ConfigurationError, did_you_mean
from ..importing import importing, script_as_module
from ..module import Module
from ..run.weights import state_at
from .exporting import Exported, Wanted, export_module

_INPUT = re.compile(r"(?:(?P<name>\w+):)?(?P<dtype>[a-z]+\d*)\[(?P<shape>[\w\s,-]*)\]")


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    format: Any,
    class_path: str | None,
    inputs: Sequence[str],
    *,
    weights: str | None,
    tolerance: float,
    opset_version: int,
) -> Exported:
    """Export the weights of a checkpoint as a program; `class_path` is `package.module:Class` or `file.py:Class`.

    What is imported is what the caller names, never what a checkpoint does.

    Raises:
        ConfigurationError: no class, or none of that name; an input that cannot be read. ExportError, CheckpointError.
    """
    info = open_checkpoint(checkpoint).manifest.get("info", {})
    cls = _class_at(class_path, str(info.get("module", "")))
    spec = [_spec(text) for text in inputs] or None
    wanted = Wanted(format, spec, None, weights, tolerance, opset_version)
    module = cls.load_from_checkpoint(checkpoint)
    saved = state_at(checkpoint)
    module.forward_inputs.recall(saved.get("forward_inputs") if saved else None)
    return export_module(module, output, wanted, checkpoint, None)


def _class_at(class_path: str | None, made_by: str) -> type[Module]:
    where, _, name = (class_path or "").rpartition(":")
    if not where or not name:
        hint = f"; this checkpoint is of a class {made_by}" if made_by else ""
        raise ConfigurationError(
            "forward is code, and a checkpoint holds none: pass --module package.module:Class or --module "
            f"train.py:Class{hint}"
        )
    namespace = _imported(where)
    found = getattr(namespace, name, None)
    if not (isinstance(found, type) and issubclass(found, Module)):
        modules = [
            key for key, value in vars(namespace).items() if isinstance(value, type) and issubclass(value, Module)
        ]
        what = "has no class" if found is None else "has no Module of the name"
        raise ConfigurationError(f"{where} {what} {name}.{did_you_mean(name, modules)}")
    return found


def _imported(where: str) -> Any:
    if not where.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        try:
            if importlib.util.find_spec(where) is None:
                raise ModuleNotFoundError(f"No module named {where!r}")
        except (ModuleNotFoundError, ValueError) as error:
            raise ConfigurationError(f"--module {where}: {error}") from error
        with importing(where):
            return importlib.import_module(where)
        raise ConfigurationError(f"{where} trains while it is imported: put that below `if __name__ == '__main__':`")
    path = Path(where).expanduser().absolute()
    if not path.is_file():
        raise ConfigurationError(f"--module: there is no file {path}")
    return script_as_module(path)


def _spec(text: str) -> Any:
    """`image:float32[any,3,224,224]`, or a .npy file with an example."""
    if text.endswith(".npy"):
        try:
            return paddle.to_tensor(np.load(text, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"--input {text}: {error}") from error
    found = _INPUT.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(
            f"--input takes name:dtype[sizes], such as image:float32[any,3,224,224], or a .npy file; got {text!r}"
        )
    sizes = [size.strip() for size in found["shape"].split(",") if size.strip()]
    shape = [None if size in ("any", "None", "-1") else _size(size, text) for size in sizes]
    try:
        return paddle.static.InputSpec(shape, found["dtype"], found["name"])
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigurationError(f"--input {text}: {error}") from error


def _size(text: str, given: str) -> int:
    if not text.isdigit():
        raise ConfigurationError(f"--input {given}: a size is a number, or any; got {text!r}")
    return int(text)
