"""Files put in their places together: all of them, or what was there before."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..checkpoint.filesystem import REAL
from ..errors import ExportError

Format = Literal["inference", "onnx", "safetensors", "pdparams"]
FORMATS: tuple[Format, ...] = ("inference", "onnx", "safetensors", "pdparams")


def format_of(path: Any) -> Format:
    """The format that a path's suffix asks for; "inference" where it asks for none."""
    suffix = os.path.splitext(str(path))[1]
    return next((format for format in FORMATS if suffix == f".{format}"), "inference")


def refuse_place(path: Path) -> None:
    """Raise ExportError where nothing can be written under this name."""
    if not path.name or path.is_dir():
        raise ExportError(f"{path} is a directory: name a file in it, such as {path / 'model'}")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ExportError(f"{path} cannot be written: {folder} is no directory that may be written to")


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A directory on the same disk, in which to make what is to stand at `path`; it goes, whatever happens.

    Directories above `path` are made, and where it fails, those go too.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # somebody else has put something there
                parent.rmdir()
        raise
    shutil.rmtree(folder, ignore_errors=True)


def put_in_place(made: Sequence[Path], path: Path, gone: Sequence[str] = ()) -> dict[Path, int]:
    """Move files `<anything>.<suffixes>` to `<path>.<suffixes>`, the first last, as it names the rest; returns sizes.

    What was there, also under the suffixes in `gone`, is put back where moving fails. A process killed in the middle
    leaves no file of the first kind, so that nothing loads parts of two exports as one.
    """
    targets = {source: Path(f"{path}{''.join(source.suffixes)}") for source in made}
    replaced = [*targets.values(), *(Path(f"{path}{suffix}") for suffix in gone)] if len(made) > 1 else []
    keep = made[0].parent / "before"
    keep.mkdir()
    aside: list[tuple[Path, Path]] = []
    done: list[Path] = []
    try:
        for source in made:
            with source.open("rb+") as file:
                os.fsync(file.fileno())
        for target in dict.fromkeys(replaced):
            if target.exists() or target.is_symlink():
                os.replace(target, keep / target.name)
                aside.append((keep / target.name, target))
        for source in [*made[1:], made[0]]:
            os.replace(source, targets[source])
            done.append(targets[source])
        REAL.fsync_directory(path.parent)
    except OSError as error:
        for target in done:
            target.unlink(missing_ok=True)
        for kept, target in aside:
            os.replace(kept, target)
        raise ExportError(f"{path} cannot be written: {error}; what was there before is there again") from error
    return {target: target.stat().st_size for target in targets.values()}
