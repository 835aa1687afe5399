"""Commands that bring a checkpoint elsewhere: export and fetch."""

from __future__ import annotations

import argparse
import errno
import shutil
from pathlib import Path

from ..checkpoint.filesystem import atomic_file
from ..checkpoint.lookup import checkpoint_at
from ..checkpoint.parts import write_joined
from ..checkpoint.remote import Remote, fetch_checkpoint
from ..checkpoint.safetensors_format import write_safetensors
from ..checkpoint.saved import open_checkpoint
from ..errors import CheckpointError, CheckpointNotFoundError, ConfigurationError
from ..reporting.terminal import from_here, size
from .output import done

FILES = {"model": "model.pdparams", "ema": "ema.pdparams", "optimizer": "optimizer.pdopt"}


def export(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output).expanduser()
    return write(arguments, arguments.checkpoint, output, _what_to_export(output, arguments.what))


def write(arguments: argparse.Namespace, checkpoint: str, output: Path, what: str) -> int:
    """Write one file of a checkpoint, `what` of FILES or an average's name, in the format that the suffix says."""
    if output.exists() and not arguments.force:
        raise ConfigurationError(f"{output} exists; --force replaces it")
    if not output.parent.is_dir():
        raise CheckpointError(f"{output} cannot be written: there is no directory {output.parent}")
    saved = open_checkpoint(checkpoint_at(checkpoint))
    file = FILES.get(what, f"{what.removesuffix('.pdparams')}.pdparams")
    if file not in saved.files:
        raise CheckpointNotFoundError(f"{saved.entry.path} has no {file}; it has {', '.join(saved.files)}")
    try:
        with atomic_file(output) as temporary:
            if output.suffix == ".safetensors":
                tensors = saved.tensors(file)
                write_safetensors(temporary, tensors, {name: saved.dtype_of(file, name) for name in tensors})
            elif saved.is_in_parts(file):
                write_joined(temporary, saved.tensors(file))
            else:
                shutil.copyfile(saved.entry.path / file, temporary)  # it is a bare Paddle file already
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed, free = saved.size_of(file), shutil.disk_usage(output.parent).free
            why += f": about {size(needed)} are needed; {size(free)} were free when it failed"
        raise CheckpointError(f"{output} cannot be written: {why}") from error
    nbytes = output.stat().st_size
    words = f"{file} of {from_here(saved.entry.path)} written to {output}, {size(nbytes)}"
    return done(arguments, words, checkpoint=saved.entry.path, output=output, bytes=nbytes)


def _what_to_export(output: Path, asked: str | None) -> str:
    """Which of FILES. A suffix says what a file holds: weights are no .pdopt, nor is an optimizer a .pdparams."""
    suffixes = {"model": (".safetensors", ".pdparams"), "ema": (".safetensors", ".pdparams", ".pdema")}
    suffixes["optimizer"] = (".safetensors", ".pdopt")
    if output.suffix not in {suffix for those in suffixes.values() for suffix in those}:
        raise ConfigurationError(
            "the output's suffix says the format: .safetensors, .pdparams for weights, .pdopt for the optimizer; "
            f"got {output.name!r}"
        )
    what = asked or {".pdopt": "optimizer", ".pdema": "ema"}.get(output.suffix, "model")
    if output.suffix not in suffixes[what]:
        raise ConfigurationError(
            f"--what {what} is written to a file that ends in {' or '.join(suffixes[what])}, got {output.name!r}"
        )
    return what


def fetch(arguments: argparse.Namespace) -> int:
    remote = Remote(arguments.url)
    checkpoint = remote.find(arguments.name)
    entry = fetch_checkpoint(remote, checkpoint, Path(arguments.dest).expanduser().absolute())
    words = f"{checkpoint.name} of {remote.url} is now {from_here(entry.path)}, {size(entry.nbytes)}"
    words += ", every byte checked"
    return done(arguments, words, url=remote.url, checkpoint=checkpoint.name, path=entry.path, bytes=entry.nbytes)
