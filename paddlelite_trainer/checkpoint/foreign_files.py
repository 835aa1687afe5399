"""Where another program's checkpoint lies: which of its files hold weights, their average, optimizer and progress."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import CheckpointNotFoundError, ConfigurationError, did_you_mean
from .foreign_parts import INDEX_SUFFIX, Parts, is_slice, name_of_parts, parts_of
from .reader import CheckpointReader
from .saved import resolve_checkpoint

OWN_WEIGHTS = "model.pdparams"
BEST_STEMS = ("best_accuracy", "best_model")
_SIDE_FILES = (".pdopt", ".pdstates", ".states", ".pdscaler")
_WEIGHT_SUFFIXES = (".pdparams", ".safetensors")
_BUNDLE_SUFFIXES = (".pdz", ".pdckpt", ".pkl")  # PaddleSpeech, by hand, PaddleGAN: everything in one file
_PREFERRED_STEMS = ("latest", "model", "model_state", "model_final", "final", *BEST_STEMS)
# Files with the suffix of weights that hold none of the model's (PaddleNLP).
_NO_WEIGHTS = re.compile(r"(optimizer|master_weights|scheduler|scaler|rng_state)([-._].*)?")
_AVERAGES = re.compile(r"ema([-_.].*)?|.*_ema")
_TRAILING_NUMBER = re.compile(r"(?:.*\D)?(\d+)(?:_checkpoint|_weights?)?")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib makes one slash of two; one letter is a drive
_SHOWN = 10


@dataclass(frozen=True)
class Source:
    """The files of one checkpoint; `weights` is the index or the first one where `parts` says that they are several."""

    kind: Literal["paddlelite", "safetensors", "paddle"]
    weights: Path
    parts: Parts | None = None
    raw: Path | None = None
    average: Path | None = None
    optimizer: Path | None = None
    states: Path | None = None
    progress: Path | None = None
    notes: list[str] = field(default_factory=list)


def url_scheme(path: object) -> str | None:
    """The scheme of what is a URL and no path, such as "https" or "s3"."""
    match = _URL.match(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else None  # type: ignore[arg-type]
    return match[1].lower() if match else None


def locate(path: str | os.PathLike[str]) -> Source:
    """The files that a prefix, one of them or their directory means.

    Raises:
        CheckpointNotFoundError: there are no weights; the message lists what is near.
        ConfigurationError: the path is a URL, or several sets of weights are there and none is the newest.
        CheckpointCorruptError: weights in several files, and not all of them are there.
    """
    _refuse_url(path)
    given = Path(path).expanduser().absolute()
    own = _own_checkpoint(given)
    if own is not None:
        file = given.resolve()  # any set of weights in it: model.pdparams, ema.pdparams, swa.pdparams
        return Source("paddlelite", file if file.suffix == ".pdparams" and file.is_file() else own / OWN_WEIGHTS)
    weights = _weights_file(given, is_directory=os.fspath(path).endswith(os.sep))
    if weights is None:
        raise CheckpointNotFoundError(_nothing_message(given))
    parts = parts_of(weights)
    notes = [] if given in (weights, weights.with_suffix("")) else [f"read from {weights}"]
    if parts is not None:
        notes.append(f"the weights are in {len(parts.files)} files")
    stem = name_of_parts(weights) or weights.stem
    folder = weights.parent

    def beside(suffix: str) -> Path | None:
        return first_file([weights.with_name(stem + suffix), weights.with_name(weights.stem + suffix)])

    averages = [folder / f"ema_model{weights.suffix}", folder / f"ema_{stem}{weights.suffix}"]
    return Source(
        "safetensors" if ".safetensors" in weights.name else "paddle",
        weights,
        parts,
        raw=beside(".pdema") if weights.suffix == ".pdparams" else None,
        average=first_file(averages) if not _AVERAGES.fullmatch(stem) else None,
        optimizer=beside(".pdopt") or (_optimizer_of_folder(folder) if stem in ("model", "model_state") else None),
        states=beside(".states") or beside(".pdstates") or first_file([folder / "metric.states"]),
        progress=first_file([folder / "trainer_state.json", folder / "model.yml"]),
        notes=notes,
    )


def best_beside(weights: Path) -> Path | None:
    """The best weights of the training that `weights` come from, where its tool keeps such; `weights` if it is them."""
    if weights.stem in BEST_STEMS or weights.parent.name in BEST_STEMS:
        return weights
    folders = [weights.parent]
    if weights.stem in (weights.parent.name, "model", "model_state") or name_of_parts(weights) is not None:
        folders.append(weights.parent.parent)  # a folder for each moment: PaddleSeg, PaddleX, PaddleOCR's KIE
    names = [[f"{stem}{end}" for end in _WEIGHT_SUFFIXES] for stem in BEST_STEMS]
    return first_file(
        candidate
        for folder in folders
        for stem, files in zip(BEST_STEMS, names, strict=True)
        for candidate in (
            *(folder / file for file in files),
            *(folder / stem / file for file in files),
            folder / stem / weights.name,
            *(folder / stem / f"model{end}" for end in _WEIGHT_SUFFIXES),
        )
    )


def _optimizer_of_folder(folder: Path) -> Path | None:
    """PaddleNLP writes optimizer.pdopt into it, PaddleOCR for its KIE models the folder's name + .pdopt beside it."""
    return first_file([folder / "optimizer.pdopt", folder.with_name(folder.name + ".pdopt")])


def _refuse_url(path: str | os.PathLike[str]) -> None:
    scheme = url_scheme(path)
    if scheme == "file":
        raise ConfigurationError(f"{os.fspath(path)!r} is a URL; pass the path alone, without file://")
    if scheme is not None:
        raise ConfigurationError(
            f"{os.fspath(path)!r} is a URL, and weights are read from this machine's disks only: "
            "download it first and pass the path of the file."
        )


def _own_checkpoint(given: Path) -> Path | None:
    if (given / "checkpoints").is_dir():
        newest = CheckpointReader(given).newest()
        if newest is not None:
            return newest.path
    try:
        return resolve_checkpoint(given)
    except CheckpointNotFoundError:
        return None


def _weights_file(given: Path, *, is_directory: bool) -> Path | None:
    suffixes = (*_WEIGHT_SUFFIXES, *_BUNDLE_SUFFIXES)
    if given.is_file():
        if given.suffix not in _SIDE_FILES:
            return given
        # optimizer.pdopt of PaddleNLP and best_accuracy.pdopt of PaddleOCR's KIE belong to weights of another name.
        beside = [given.with_suffix(suffix) for suffix in suffixes]
        folder = given.parent if given.stem in ("optimizer", "metric") else given.with_suffix("")
        return first_file(beside) or (_weights_in(folder) if folder.is_dir() else None)
    # A prefix comes before a directory of the same name: PaddleClas writes best_model.pdparams, its optimizer, and a
    # directory best_model/ of weights alone.
    prefix = first_file(
        given.with_name(given.name + end) for end in (*suffixes, *(end + INDEX_SUFFIX for end in _WEIGHT_SUFFIXES))
    )
    if given.is_dir():
        return _weights_in(given) if is_directory or prefix is None else prefix
    return prefix


def _weights_in(directory: Path) -> Path | None:
    for suffixes in (_WEIGHT_SUFFIXES, _BUNDLE_SUFFIXES):
        files = _sets_in(directory, suffixes)
        chosen = _preferred([stem for stem in files if not stem.endswith("_student")])
        if chosen is not None:
            return files[chosen]
    folders = {}
    for folder in sorted(entry for entry in directory.iterdir() if entry.is_dir()):
        found = _sets_in(folder, _WEIGHT_SUFFIXES)
        stem = next((stem for stem in (folder.name, "model", "model_state") if stem in found), None)
        if stem is not None:
            folders[folder.name] = found[stem]
    chosen = _preferred(list(folders))
    return folders[chosen] if chosen is not None else None


def _sets_in(directory: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The sets of weights by their names without the suffix, each by its one file, or its index, or its first part."""
    found: dict[str, Path] = {}
    for file in sorted(entry for entry in directory.iterdir() if entry.is_file()):
        name = file.name.removesuffix(INDEX_SUFFIX)
        suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
        stem = name_of_parts(file) or name.removesuffix(suffix or "")
        if suffix is None or _NO_WEIGHTS.fullmatch(stem):
            continue
        known = found.get(stem)
        if known is None or _rank(file) < _rank(known):
            found[stem] = file
    return found


def _rank(file: Path) -> int:
    """A whole file before an index, an index before a part without one; of two whole files the safetensors one."""
    if file.name.endswith(INDEX_SUFFIX):
        return 2
    if name_of_parts(file) is not None:
        return 3
    return 0 if file.suffix == ".safetensors" else 1


def _preferred(names: Sequence[str]) -> str | None:
    """The newest of several by name: `latest`, else the final one, else the highest number, else the best.

    An average is chosen only where there is nothing else.
    """
    names = [name for name in names if not _AVERAGES.fullmatch(name)] or names
    # What each process wrote of one set has numbers that order nothing; whichever is taken is refused as a part.
    if names and all(is_slice(name) for name in names):
        return names[0]
    numbered = {name: int(match[1]) for name in names if (match := _TRAILING_NUMBER.fullmatch(name))}
    last_number = max(numbered, key=lambda name: (numbered[name], not name.endswith("_weight")), default=None)
    for name in (*_PREFERRED_STEMS[:-2], last_number, *_PREFERRED_STEMS[-2:]):
        if name is not None and name in names:
            return name
    if len(names) > 1:
        raise ConfigurationError(
            f"several sets of weights are there and none is the newest by name: {', '.join(sorted(names))}. Pass one."
        )
    return names[0] if names else None


def first_file(candidates: Iterable[Path]) -> Path | None:
    """The first of them that is a file."""
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _nothing_message(given: Path) -> str:
    if given.is_file():
        return f"{given} holds no weights, and no {given.stem}.pdparams is beside it"
    if given.is_dir():
        return f"no weights in {given}: neither .pdparams nor .safetensors nor a checkpoint.{_what_else(given)}"
    parent = given.parent
    if not parent.is_dir():
        return f"no weights at {given}: there is no directory {parent}"
    near = sorted({file.name for file in parent.iterdir() if file.suffix in _WEIGHT_SUFFIXES or file.is_dir()})
    listing = f" {parent} holds {', '.join(near[:_SHOWN])}{' ...' if len(near) > _SHOWN else ''}." if near else ""
    names = [*near, *(Path(name).stem for name in near)]
    return f"no weights at {given}, with or without .pdparams.{did_you_mean(given.name, names)}{listing}"


def _what_else(directory: Path) -> str:
    suffixes = {entry.suffix for entry in directory.iterdir()}
    if ".distcp" in suffixes:
        return (
            " It holds what paddle.distributed.save_state_dict wrote, a part for each process: "
            "load it with paddle.distributed.load_state_dict and write it with paddle.save."
        )
    if suffixes & {".pdiparams", ".pdmodel"}:
        return (
            " It holds a model exported for inference, whose weights have no names: "
            "pass the .pdparams of the training that it was exported from."
        )
    return ""
