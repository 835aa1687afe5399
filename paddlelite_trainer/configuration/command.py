"""`paddlelite fit`, `validate`, `test` and `predict`: a configuration carried out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..errors import ConfigurationError
from . import parser, which_run
from .keeping import KeepsConfiguration
from .making import Made, make


def run(command: str, arguments: Sequence[str]) -> int:
    """Carry out one command; returns its exit code.

    Raises:
        TrainerError: the configuration is wrong, or training could not begin or go on.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where the user's classes are
    configuration = parser.parsed(command, arguments)
    tree = parser.as_tree(configuration)
    made = make(configuration)
    if command == "fit":
        _fit(made, configuration, tree)
    else:
        _evaluate(command, made, configuration, tree)
    return 0


def _fit(made: Made, configuration: Any, tree: dict[str, Any]) -> None:
    ckpt_path, note = made.trainer.ranks.on_rank_zero(lambda: _goes_on(configuration.ckpt_path, tree, made))
    if note is not None:
        made.trainer.print(note)
    made.trainer.callbacks.append(KeepsConfiguration(parser.as_yaml(configuration), tree))
    more = {"override": configuration.override, "init_from": configuration.init_from}
    made.trainer.fit(made.module, datamodule=made.data, ckpt_path=ckpt_path, **more)


def _goes_on(ckpt_path: str | None, tree: Mapping[str, Any], made: Made) -> tuple[str | None, str | None]:
    """What `fit` is given as ckpt_path, and what is told about it."""
    if ckpt_path != "auto":
        return ckpt_path, None
    found, note = which_run.run_of(tree)
    if found is not None:
        return str(found), note
    has_remote = any(getattr(callback, "remote", None) is not None for callback in made.trainer.callbacks)
    return ("last" if has_remote and note is None else None), note


def _evaluate(command: str, made: Made, configuration: Any, tree: dict[str, Any]) -> None:
    ckpt_path = configuration.ckpt_path
    if ckpt_path == "auto":
        ckpt_path = str(made.trainer.ranks.on_rank_zero(lambda: which_run.checkpoint_to_evaluate(tree)))
    made.trainer.print(f"weights: {ckpt_path or 'as the module is made'}")
    if command != "predict":
        getattr(made.trainer, command)(made.module, datamodule=made.data, ckpt_path=ckpt_path)
        return
    output = configuration.output
    if output is not None:
        _refuse_format(output)
    elif not any(hasattr(callback, "write_on_batch_end") for callback in made.trainer.callbacks):
        raise ConfigurationError(
            "predict has nowhere to put its predictions: --output predictions.npz (or .json), or a "
            "BasePredictionWriter of your own among trainer.callbacks"
        )
    found = made.trainer.predict(made.module, datamodule=made.data, ckpt_path=ckpt_path)
    if output is not None and made.trainer.is_global_zero:
        write_predictions(found, output)
        made.trainer.print(f"predictions: {output}")


def _refuse_format(output: str) -> None:
    if Path(output).suffix not in (".npz", ".json"):
        raise ConfigurationError(f"--output {output}: predictions are written as .npz or .json")


def write_predictions(batches: Sequence[Any], output: str) -> None:
    """The predictions of all batches, one after the other: .npz (an array, or one for each name) or .json."""
    parts = [batch if isinstance(batch, Mapping) else {"predictions": batch} for batch in batches]
    try:
        joined = {name: np.concatenate([_array(part[name]) for part in parts]) for name in (parts[0] if parts else ())}
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"--output {output}: what predict_step returns cannot be put together, as batches are to be tensors, or "
            f"dicts of tensors, with the same sizes but the first ({error}). Write them with a BasePredictionWriter."
        ) from error
    if Path(output).suffix == ".json":
        Path(output).write_text(json.dumps({name: value.tolist() for name, value in joined.items()}), encoding="utf-8")
    else:
        with open(output, "wb") as file:
            np.savez(file, **joined)  # type: ignore[arg-type]


def _array(value: Any) -> np.ndarray[Any, Any]:
    found = value.numpy() if isinstance(value, paddle.Tensor) else np.asarray(value)
    if found.dtype == object:
        raise TypeError(f"got a {type(value).__name__}")
    return np.atleast_1d(found)
