"""What was exported, computed in another process as a deployment computes it, and compared with the module."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError, ExportError

SECONDS = 900
"""After which a trial in another process is given up."""
Outputs = list[tuple[str, np.ndarray]]


_OF_A_SIGNAL = re.compile(
    r"\[(TimeInfo|SignalInfo)|FatalError: .*operating system|C\+\+ Traceback|Error Message Summary"
)


@dataclass(frozen=True)
class Program:
    """What the other process is to load; of ONNX it makes the file first."""

    format: str
    program: Path
    parameters: Path
    onnx: Path
    opset: int

    @property
    def runtime(self) -> str:
        return "onnxruntime" if self.format == "onnx" else "paddle.inference"


def refuse_missing_packages(format: str) -> None:
    """Raise ConfigurationError where a package that the format needs is not there or does not go with this Paddle."""
    if format != "onnx":
        return
    missing = [name for name in ("paddle2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"format='onnx' needs {' and '.join(missing)}: pip install 'paddlelite_trainer[onnx]'"
            + ("" if _is_paddle_3() else " 'paddle2onnx<2', as paddle2onnx 2 does not work with Paddle 2")
        )
    version = importlib.metadata.version("paddle2onnx")
    if _is_paddle_3() != (int(version.split(".")[0]) >= 2):
        wanted = "paddle2onnx>=2" if _is_paddle_3() else "paddle2onnx<2"
        raise ConfigurationError(
            f"paddle2onnx {version} does not work with Paddle {paddle.__version__}: pip install '{wanted}'"
        )


def _is_paddle_3() -> bool:
    return not paddle.__version__.startswith("2.")


def computed(program: Program, inputs: Sequence[Mapping[str, np.ndarray]], folder: Path) -> tuple[list[Outputs], str]:
    """What the program yields for each of the inputs, and a note on how it had to be loaded, or "".

    Raises:
        ExportError: it cannot be made, loaded or run; with the other process's own words.
    """
    first = _tried(program, inputs, folder, optimize=True)
    if not isinstance(first, str):
        return first, ""
    if program.format == "inference" and "was ended by" in first:
        second = _tried(program, inputs, folder, optimize=False)
        if not isinstance(second, str):
            return second, (
                f"paddle.inference of Paddle {paddle.__version__} is ended by this program where it optimises the "
                "graph: load it with config.switch_ir_optim(False), as it was compared"
            )
    raise ExportError(first)


def _tried(
    program: Program, inputs: Sequence[Mapping[str, np.ndarray]], folder: Path, *, optimize: bool
) -> list[Outputs] | str:
    runs = []
    for index, arrays in enumerate(inputs):
        pair = (folder / f"input-{index}.npz", folder / f"output-{index}.npz")
        np.savez(pair[0], **arrays)  # type: ignore[arg-type]
        runs.append([str(path) for path in pair])
    job = {"format": program.format, "program": str(program.program), "parameters": str(program.parameters)}
    job_file = folder / "job.json"
    job_file.write_text(
        json.dumps({**job, "onnx": str(program.onnx), "opset": program.opset, "optimize": optimize, "runs": runs})
    )
    here = Path(__file__).with_name("outside.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, str(here), str(job_file)], capture_output=True, env=environment, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{program.runtime} did not end within {SECONDS} s with what was exported"
    if done.returncode != 0:
        said = done.stdout + done.stderr
        who = "paddle2onnx" if b"[Paddle2ONNX]" in said and not program.onnx.exists() else program.runtime
        return f"{who} {_how_it_ended(done.returncode)}: {_last_words(said)}"
    found = []
    for _, path in runs:
        with np.load(path) as arrays:
            found.append([(name.partition(" ")[2], arrays[name]) for name in sorted(arrays.files)])
    return found


def _how_it_ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else "refuses what was exported"


def _last_words(output: bytes) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.decode("utf-8", "replace"))
    operators = re.findall(r"(?:[Oo]perator|[Oo]p)[^\n]*(?:not support|unsupported)[^\n]*|Cannot support[^\n]*", text)
    lines = [line.strip() for line in text.splitlines() if line.strip() and set(line.strip()) - set("-~^=")]
    lines = [line for line in lines if not _OF_A_SIGNAL.match(line)] or lines
    operators += [line for line in lines if line.startswith("[ERROR]")]
    told = list(dict.fromkeys(line.strip() for line in operators)) or lines[-4:]
    return " ".join(told)[-600:]


def difference(eager: Mapping[str, np.ndarray], exported: Outputs, tolerance: float) -> float:
    """The largest difference between any two numbers.

    Raises:
        ExportError: it is more than `tolerance` times the largest number of that output, or than `tolerance` where
        that is below 1; for whole numbers and truth values, more than that share differs. Or types, shapes differ.
    """
    if len(eager) != len(exported):
        raise ExportError(f"forward returns {len(eager)} Tensors and what was exported {len(exported)}")
    largest = 0.0
    for (name, wanted), (_, found) in zip(eager.items(), exported):
        if wanted.shape != found.shape and wanted.size != found.size:
            raise ExportError(f"{name} has shape {list(wanted.shape)}, and {list(found.shape)} where it was exported")
        one, other = wanted.reshape(-1), found.reshape(-1)
        if not np.issubdtype(one.dtype, np.floating):
            share = float(np.mean(one != other)) if one.size else 0.0
            if share > tolerance:
                raise ExportError(f"{share:.2%} of {name}, which are {one.dtype}, differ from what forward returns")
            continue
        off = _largest_difference(one, other.astype(one.dtype))
        scale = float(np.max(np.abs(one[np.isfinite(one)]), initial=1.0))
        if not off <= tolerance * scale:
            raise ExportError(
                f"{name} differs by up to {off:.3g} from what forward returns, where numbers go to {scale:.3g}; "
                f"tolerance={tolerance:g} allows {tolerance * scale:.3g}"
            )
        largest = max(largest, off)
    return largest


def _largest_difference(one: Any, other: Any) -> float:
    """NaN and infinities are the same where both have them."""
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    apart = np.abs(np.where(same, 0, one).astype("float64") - np.where(same, 0, other).astype("float64"))
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))
