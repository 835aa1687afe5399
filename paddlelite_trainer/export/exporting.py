"""Exports a module: makes the files beside their place, tries them in another process, and puts them there together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..checkpoint.safetensors_format import read_safetensors, write_safetensors
from ..checkpoint.saved import open_checkpoint
from ..checkpoint.tensors import dtype_name, host_array
from ..errors import CheckpointNotFoundError, ConfigurationError, ExportError, did_you_mean
from ..reporting.terminal import from_here, size
from ..run.weights import MODEL, load_weights_at
from .example import Example, example_of
from .files import FORMATS, Format, beside, put_in_place, refuse_place
from .network import eager_outputs, save_program, undisturbed
from .trial import Program, computed, difference, refuse_missing_packages

_PROGRAM_FILES = (".json", ".pdmodel", ".pdiparams", ".pdiparams.info")


@dataclass(frozen=True)
class Wanted:
    """What `Trainer.export` was asked for; checked when it is made."""

    format: Format = "inference"
    input_spec: Any = None
    batch: Any = None
    weights: str | None = None
    tolerance: float = 1e-4
    opset_version: int = 13

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigurationError(
                f"export(format=...) must be one of {', '.join(map(repr, FORMATS))}, got {self.format!r}."
                + did_you_mean(str(self.format), FORMATS)
            )
        if not (isinstance(self.tolerance, (int, float)) and self.tolerance >= 0):
            raise ConfigurationError(f"export(tolerance=...) must be a number >= 0, got {self.tolerance!r}")
        if not (isinstance(self.opset_version, int) and 7 <= self.opset_version <= 30):
            raise ConfigurationError(f"export(opset_version=...) must be an int from 7 on, got {self.opset_version!r}")
        refuse_missing_packages(self.format)

    @property
    def is_program(self) -> bool:
        """Whether forward is exported, and not the weights alone."""
        return self.format in ("inference", "onnx")


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the module; `str()` is what people are told."""

    path: Path
    format: str
    files: dict[Path, int]
    """Sizes in bytes."""
    weights: str
    max_difference: float
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    compared: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        files = [f"{from_here(path)} ({size(nbytes)})" for path, nbytes in self.files.items()]
        lines = [f"Exported {', '.join(files)}"]
        lines.append(f"  weights: {self.weights}")
        for word, told in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"  {word} {name}: {what}" for name, what in told.items()]
        lines.append(f"  {self.compared}: the largest difference is {self.max_difference:.3g}")
        lines += [f"  WARNING: {note}" for note in self.notes]
        return "\n".join(lines)


def export_module(
    module: Any, path: str | Path, wanted: Wanted, checkpoint: Path | None, averages: str | None, *, keep: bool = True
) -> Exported:
    """Export the module with a checkpoint's weights, or its own where that is None; it is as before afterwards.

    `averages` is the file of averaged weights that evaluation takes, where a callback says so. Unless `keep`, all is
    made and tried and nothing is put in its place.

    Raises:
        ExportError: nothing was written, and what was there before is there.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise ConfigurationError(
            f"export(path=...) is the files' name without suffix, such as 'out/model', got {path!r}"
        )
    path = _with_suffix(Path(path).expanduser().absolute(), wanted.format)
    refuse_place(path)
    with _weights_in_place(module, checkpoint, wanted.weights, averages) as weights:
        make = _export_program if wanted.is_program else _export_weights
        with beside(path) as folder:
            return make(module, path, wanted, weights, folder, keep)


def _with_suffix(path: Path, format: str) -> Path:
    """The path as its format has it: a prefix for an inference program, else a file with the format's suffix."""
    if format == "inference":
        return path.with_suffix("") if path.suffix in (".json", ".pdmodel", ".pdiparams") else path
    suffix = f".{format}"
    return path if path.suffix == suffix else path.with_name(path.name + suffix)


# -- which weights -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _weights_in_place(module: Any, checkpoint: Path | None, chosen: str | None, averages: str | None) -> Iterator[str]:
    """Within, the module has the weights that are exported; yields what people are told of them."""
    if checkpoint is None:
        if chosen not in (None, "model"):
            raise ConfigurationError(
                f"export(weights={chosen!r}) takes averaged weights from a checkpoint: pass checkpoint='best' or 'last'"
            )
        yield "those that the module has"
        return
    file = _file_of(checkpoint, chosen, averages)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        load_weights_at(module, checkpoint / file if file != MODEL else checkpoint, strict=module.strict_loading)
        yield f"{file} of {from_here(checkpoint)}"
    finally:
        for name, value in module.state_dict().items():
            value.set_value(before[name])


def averages_of(callbacks: Iterable[Any]) -> str | None:
    """The file of the weights that evaluation takes; None where no callback averages any."""
    found = {one.evaluate_with_average: one.file for one in callbacks if hasattr(one, "evaluate_with_average")}
    return found.get(True, MODEL if found else None)


def _file_of(checkpoint: Path, chosen: str | None, averages: str | None) -> str:
    """The file of the checkpoint whose weights are wanted: averages where there are any, as evaluation takes them."""
    try:
        files = [name for name in open_checkpoint(checkpoint).files if name.endswith(".pdparams")]
    except CheckpointNotFoundError:  # a file of another Paddle tool
        return MODEL
    weights = [name for name in files if name != "tensors.pdparams"]
    if chosen is not None:
        file = f"{chosen.removesuffix('.pdparams')}.pdparams"
        if file not in weights:
            raise ConfigurationError(
                f"export(weights={chosen!r}): {checkpoint} has the weights "
                + ", ".join(repr(name.removesuffix(".pdparams")) for name in weights)
            )
        return file
    if averages is not None:
        return averages if averages in weights else MODEL
    averaged = [name for name in weights if name != MODEL]
    if len(averaged) > 1:
        raise ConfigurationError(
            f"{checkpoint} has several averages: choose with weights= one of 'model', "
            + ", ".join(repr(name.removesuffix(".pdparams")) for name in averaged)
        )
    return averaged[0] if averaged else MODEL


# -- the weights alone -------------------------------------------------------------------------------------------------


def _export_weights(module: Any, path: Path, wanted: Wanted, weights: str, folder: Path, keep: bool) -> Exported:
    """The module's state_dict, read back and compared bit by bit."""
    made = folder / f"weights{path.suffix}"
    tensors = dict(module.state_dict())
    arrays = {name: np.array(host_array(value)) for name, value in tensors.items()}
    if wanted.format == "safetensors":
        try:
            write_safetensors(made, arrays, {name: dtype_name(value) for name, value in tensors.items()})
        except ValueError as error:
            raise ExportError(str(error)) from error
        found = read_safetensors(made)[0]
    else:
        paddle.save(tensors, str(made))
        found = {name: np.array(host_array(value)) for name, value in paddle.load(str(made)).items()}
    wrong = [name for name, array in arrays.items() if name not in found or found[name].tobytes() != array.tobytes()]
    if wrong:
        raise ExportError(f"{path}: read back, {', '.join(wrong[:5])} are not what was written")
    return Exported(
        path,
        wanted.format,
        put_in_place([made], path.with_suffix("")) if keep else {},
        weights,
        0.0,
        compared=f"{len(arrays)} tensors, read back and compared bit by bit",
    )


# -- the program -------------------------------------------------------------------------------------------------------


def _export_program(module: Any, path: Path, wanted: Wanted, weights: str, folder: Path, keep: bool) -> Exported:
    from ..module import Module

    if type(module).forward is Module.forward:
        raise ExportError(
            f"{type(module).__name__} has no forward, so there is nothing to export: write forward(self, x), or "
            "export the weights with format='safetensors' or 'pdparams'"
        )
    with undisturbed(module):
        example = example_of(module, wanted.input_spec, wanted.batch)
        trials, told_of_sizes = _trials(module, example)
        saved = save_program(module, example, folder / "model")
        program = Program(
            wanted.format, saved, saved.with_suffix(".pdiparams"), folder / "model.onnx", wanted.opset_version
        )
        inputs = [arrays for arrays, _ in trials]
        outputs, note = computed(program, inputs, folder)
    largest = 0.0
    for (_, eager), found, what in zip(trials, outputs, ("", " with a batch of another size")):
        try:
            largest = max(largest, difference(eager, found, wanted.tolerance))
        except ExportError as error:
            raise ExportError(
                f"{type(module).__name__} was exported, computed by {program.runtime}{what}, and is not "
                f"the same: {error}. Nothing was written"
            ) from error
    suffixes = [".onnx"] if wanted.format == "onnx" else [saved.suffix, ".pdiparams", ".pdiparams.info"]
    made = [folder / f"model{suffix}" for suffix in suffixes if (folder / f"model{suffix}").exists()]
    place = path.with_suffix("") if wanted.format == "onnx" else path
    files = put_in_place(made, place, gone=_PROGRAM_FILES) if keep else {}
    shapes = {
        name: f"{dtype_name(tensor)} {_shown(shape)}"
        for name, tensor, shape in zip(example.names, example.tensors, example.shapes)
    }
    told = {
        found_name: f"{name}, {array.dtype} {list(array.shape)}"
        for (name, array), (found_name, _) in zip(trials[0][1].items(), outputs[0])
    }
    notes = [note] if note else []
    floats = [array for array in trials[0][1].values() if np.issubdtype(array.dtype, np.floating) and array.size]
    if floats and max(float(np.abs(array).max()) for array in floats) <= wanted.tolerance:
        notes.append("all outputs are within tolerance of 0, so the comparison says little: give a lower tolerance=")
    compared = f"compared by {program.runtime} with eager on {example.origin}"
    compared += told_of_sizes
    return Exported(path, wanted.format, files, weights, largest, shapes, told, compared, tuple(notes))


_Trial = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def _trials(module: Any, example: Example) -> tuple[list[_Trial], str]:
    """Inputs and what forward makes of them, for the example and a batch of another size; and which sizes these are."""
    try:
        trials = [_trial(module, example, example.tensors)]
    except ExportError:
        raise
    except Exception as error:
        took = ", ".join(f"{name} {_shown(list(tensor.shape))}" for name, tensor in zip(example.names, example.tensors))
        raise ExportError(
            f"{type(module).__name__}.forward fails with {example.origin} ({took}): {type(error).__name__}: {error}"
        ) from error
    other = example.of_another_size()
    if other is None:
        return trials, ""
    try:
        trials.append(_trial(module, example, other))
    except Exception as error:  # its own forward cannot take them
        return trials, f" (batches of another size were not tried, as forward refuses one: {type(error).__name__})"
    sizes = [
        next(tensor.shape[0] for tensor, shape in zip(tensors, example.shapes) if shape and shape[0] is None)
        for tensors in (example.tensors, other)
    ]
    return trials, f", batches of {sizes[0]} and {sizes[1]}"


def _trial(module: Any, example: Example, tensors: list[Any]) -> _Trial:
    eager = eager_outputs(module, example, tensors)
    return {name: tensor.numpy() for name, tensor in zip(example.names, tensors)}, eager


def _shown(shape: list[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
