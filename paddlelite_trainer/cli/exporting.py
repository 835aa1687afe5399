"""The command that exports a checkpoint's network, which alone needs Paddle, and its weights, which does not."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint.links import CHECKPOINTS
from ..checkpoint.lookup import checkpoint_at
from ..errors import CheckpointError, ConfigurationError, ExportError
from ..export.files import FORMATS as FORMATS
from ..export.files import format_of
from . import bringing
from .output import done


def export(arguments: argparse.Namespace) -> int:
    if not arguments.output:
        raise ConfigurationError("the output is empty; name the files without suffix, such as out/model")
    output = Path(arguments.output).expanduser()
    format = arguments.format or format_of(output)
    checkpoint = _best_of(arguments.checkpoint)
    if format in ("safetensors", "pdparams"):
        if output.suffix != f".{format}":
            output = output.with_name(f"{output.name}.{format}")
        return bringing.write(arguments, checkpoint, output, arguments.weights or "model")
    for suffix in (".onnx",) if format == "onnx" else (".json", ".pdmodel"):
        there = output if output.suffix == suffix else output.with_name(output.name + suffix)
        if there.exists() and not arguments.force:
            raise ConfigurationError(f"{there} exists; --force replaces it")
    try:
        from ..export.from_checkpoint import export_checkpoint
    except ImportError as error:
        raise ConfigurationError(f"--format {format} needs PaddlePaddle, and {error}") from error
    try:
        exported = export_checkpoint(
            checkpoint_at(checkpoint),
            output,
            format,
            arguments.module,
            arguments.input or (),
            weights=arguments.weights,
            tolerance=arguments.tolerance,
            opset_version=arguments.opset,
        )
    except ExportError as error:
        raise CheckpointError(" ".join(str(error).split())) from error
    files = {str(path): nbytes for path, nbytes in exported.files.items()}
    return done(
        arguments,
        str(exported),
        checkpoint=checkpoint,
        format=format,
        files=files,
        weights=exported.weights,
        max_difference=exported.max_difference,
        inputs=exported.inputs,
        outputs=exported.outputs,
        notes=list(exported.notes),
    )


def _best_of(text: str) -> str:
    """The best of a run, where it has one, as `trainer.export` takes it; else what was named."""
    path = Path(text).expanduser()
    return str(path / "best") if (path / CHECKPOINTS).is_dir() and (path / "best").exists() else text
