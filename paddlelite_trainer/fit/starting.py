"""InitFrom: the weights of any Paddle tool's checkpoint, and how far its training had come, for a fresh run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from ..checkpoint.foreign import ForeignCheckpoint, Which, load_foreign
from ..checkpoint.foreign_files import BEST_STEMS, best_beside
from ..checkpoint.weights import Rename, WeightsReport, fit_weights, load_weights, renamed
from ..errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConfigurationTypeError,
    did_you_mean,
    explains_unknown_arguments,
)
from ..hyperparameters import stored
from ..machine import paddle_internals
from ..optimizers import LRSchedulerConfig, apply_snapshot, parameters_of
from ..run.weights import MODEL, TRAINER
from .optimizer_parts import restore_own

if TYPE_CHECKING:
    from ..checkpoint import Entry
    from .fit import Fit
    from .optimization import Optimization

IMPORTED_BEST = "imported-best"
"""The pin of the best checkpoint that was brought along from another tool's run."""
_EPOCH_KEYS = ("best_epoch", "epoch")


@dataclass(frozen=True)
class InitFrom:
    """What `fit(init_from=...)` takes of a checkpoint of paddle.Model, PaddleOCR, PaddleClas, ... or of ours.

        trainer.fit(module, loader, init_from="pretrained/best_accuracy")  # all must fit
        trainer.fit(module, loader, init_from=InitFrom("pretrained", strict=False))
        trainer.fit(module, loader, ckpt_path="last",
                    init_from=InitFrom("output/rec/latest", training_state=True, best={"val_acc": "acc"}))

    With `training_state` the run goes on where the other tool's ended, so far as its files say: optimizer state by
    parameter, completed epochs and steps; each schedule goes on where a fresh one would be after so many epochs or
    steps. What is taken and what is not is told at the start.

    The weights that earned the best score (`best_accuracy` or `best_model` beside `path`) become a checkpoint of the
    run, which ModelCheckpoint and EarlyStopping with that monitor rank against.

    Args:
        path: a prefix, one of the files, or their directory.
        strict: all weights must fit; False: those that fit are taken.
        rename: {prefix in the file: prefix here}, or a function of a name; None from it leaves the weight out.
        which: "file" (as the file holds them), "raw" or "ema"; with `training_state` "raw" is the default, since the
            optimizer's state belongs to those.
        training_state: take optimizer, epochs and steps too.
        best: which of our metrics the other tool's best score is: {our name: its name in the file, or the score}.

    Raises:
        ConfigurationError, ConfigurationTypeError: at construction.
    """

    path: str | os.PathLike[str]
    strict: bool = True
    rename: Rename | None = None
    which: Which | None = None
    training_state: bool = False
    best: Mapping[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)):
            raise ConfigurationTypeError(f"InitFrom takes a path first, got {self.path!r}")
        if self.which not in (None, "file", "raw", "ema"):
            raise ConfigurationError(f"InitFrom(which=...) must be 'file', 'raw' or 'ema', got {self.which!r}")
        if not isinstance(self.best, Mapping) or not all(
            isinstance(name, str) and isinstance(score, (str, int, float)) for name, score in self.best.items()
        ):
            raise ConfigurationTypeError(
                f"InitFrom(best=...) is {{name of our metric: name in the file, or the score}}, got {self.best!r}"
            )
        if self.best and not self.training_state:
            raise ConfigurationError(
                "InitFrom(best=...) is part of how far a training had come: pass training_state=True too"
            )


# A dataclass writes its own.
type.__setattr__(InitFrom, "__init__", explains_unknown_arguments({})(InitFrom.__init__))


@dataclass(frozen=True)
class Start:
    """What a run was given to start from: sentences about it, and the best weights that are to become a checkpoint."""

    notes: list[str]
    best: _Best | None = None

    def save_best(self, fit: Fit) -> list[str]:
        """Make the best weights a checkpoint of the run, which has its directory now; every rank calls it.

        Returns the notes.
        """
        best = self.best
        if best is not None:
            fit.run.adopt(fit.ranks.on_rank_zero(lambda: best.save(fit)))
        return self.notes


def start_from(fit: Fit, given: str | os.PathLike[str] | InitFrom) -> Start:
    """Put what `given` names into a run that has not begun; every rank calls it.

    Raises:
        CheckpointNotFoundError, CheckpointCorruptError, CheckpointMismatchError, UnsafePickleError: of the files.
    """
    init = given if isinstance(given, InitFrom) else InitFrom(given)
    if not init.training_state:
        which = init.which or "file"
        report = load_weights(_Weights(fit), init.path, strict=init.strict, rename=init.rename, which=which)
        return Start([str(report)])
    found = load_foreign(init.path)
    best = _find_best(fit, init, found)
    report = load_weights(_Weights(fit), found, strict=init.strict, rename=init.rename, which=init.which or "raw")
    notes = [str(report), *_take_progress(fit, found)]
    state = found.optimizer_by_structured_name() if found.optimizer is not None else None
    notes += _take_optimizer(fit, init, state, report)
    notes += _take_schedules(fit, (state or {}).get("scheduler") or {})
    if best is not None:
        scores = ", ".join(f"{name} {score:g}" for name, score in best.scores.items())
        notes.append(f"best: {scores}, with the weights of {best.path}, is what later checkpoints are ranked against")
    elif found.best:
        notes.append(
            f"best: the file says {found.best}. To rank against it say which of your metrics it is: "
            f"InitFrom(..., best={{'val_acc': {next(iter(found.best))!r}}})"
        )
    return Start(notes, best)


@dataclass(frozen=True)
class _Weights:
    """The module's, of which a rank that has slices takes its own."""

    fit: Fit

    def state_dict(self) -> Mapping[str, Any]:
        return self.fit.module.state_dict()  # type: ignore[no-any-return]

    def set_state_dict(self, state_dict: dict[str, Any]) -> Any:
        engine, rest = self.fit.engine, dict(state_dict)
        slices = {} if engine is None else engine.slices(self.state_dict())
        for name in slices.keys() & rest.keys():
            mine, start, end = slices[name]
            here = rest.pop(name).reshape(-1)[start:end]
            mine.set_value(np.pad(here, (0, end - start - len(here))))
        return self.fit.module.set_state_dict(rest)


# -- counters ----------------------------------------------------------------------------------------------------------
def _take_progress(fit: Fit, found: ForeignCheckpoint) -> list[str]:
    progress, source = fit.progress, fit.data.train if fit.data is not None else None
    epoch, step = found.epoch, found.global_step
    batches = source.length if source is not None else None
    steps = None if batches is None else math.ceil(batches / fit.settings.window_of(fit.progress.current_epoch))
    if epoch is None and step is None:
        return ["epoch and step: the files do not say; counting begins at 0"]
    if epoch is None:
        epoch = step // steps if step is not None and steps else 0
        told = f"step {step} from the file; epoch {epoch} by the {steps} steps of an epoch here"
    elif step is None:
        step = epoch * (steps or 0)
        told = f"epoch {epoch} from the file; step {step} by the {steps} steps of an epoch here"
    else:
        told = f"epoch {epoch}, step {step} from the file"
    assert step is not None
    progress.go_on_at(epoch, step, batches=epoch * (batches or 0))
    return [f"goes on at {told}"]


def _optimization(fit: Fit) -> Optimization:
    assert fit.optimization is not None
    return fit.optimization


# -- optimizer and schedules -------------------------------------------------------------------------------------------
def _take_optimizer(fit: Fit, init: InitFrom, state: dict[str, Any] | None, report: WeightsReport) -> list[str]:
    if state is None:
        return ["optimizer: the files hold none; its state begins at zero"]
    if len(_optimization(fit).optimizers) != 1:
        return [
            f"optimizer: this run has {len(_optimization(fit).optimizers)}, and the file's state is of one; "
            "it was left aside"
        ]
    (optimizer,) = _optimization(fit).optimizers
    trained = {_optimization(fit).parameter_names[parameter.name]: parameter for parameter in parameters_of(optimizer)}
    keeps_masters = paddle_internals.keeps_master_weights(optimizer)
    loaded, left = set(report.loaded), list(state["unmatched"])
    tensors: dict[str, Any] = {}
    filled = set()
    for name, accumulators in state["accumulators"].items():
        here = renamed(name, init.rename)
        if here is None or here not in trained or here not in loaded:
            left.append(name)
            continue
        filled.add(here)
        wide = str(trained[here].dtype).endswith("float64")
        for accumulator, array in accumulators.items():
            tensors[f"{here}/{accumulator}"] = array.astype("float64") if wide else array
        master = state["master_weights"].get(name)
        if master is not None and keeps_masters and "float16" in str(trained[here].dtype):
            tensors[f"{here}/master_weight"] = master
    rest = {"class": type(optimizer).__name__, "learning_rate": None}
    try:
        restore_own(fit, optimizer, tensors, rest)
    except CheckpointMismatchError as error:
        raise CheckpointMismatchError(
            f"the optimizer's state beside {report.path} does not fit {type(optimizer).__name__}; "
            "training_state=False takes weights only.",
            error.problems,
        ) from error
    learning = [name for name, parameter in trained.items() if not parameter.stop_gradient]
    notes = [
        f"optimizer: state taken for {len(filled.intersection(learning))} of the {len(learning)} parameters that learn"
    ]
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        notes.append(f"optimizer: left aside, for this run does not train or load them: {shown}")
    return notes


def _take_schedules(fit: Fit, saved: Mapping[str, Any]) -> list[str]:
    """Each schedule goes on where a fresh one would be: a file does not say what its schedule was built from."""
    assert fit.schedules is not None
    notes = []
    theirs = saved.get("last_lr")
    for config in fit.schedules.configs:
        scheduler = config.scheduler
        if config.needs_metric:
            plateau = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "last_lr")
            known = {key: _plain(saved[key]) for key in plateau if key in saved}
            apply_snapshot(scheduler, known)
            told = "with the file's state" if "num_bad_epochs" in known else "from its start"
        else:
            count = _steps_of(config, fit)
            for _ in range(count):
                scheduler.step()
            told = f"after {count} of its steps"
        notes.append(f"learning rate: {type(scheduler).__name__} goes on {told} at {scheduler.last_lr:g}")
    if not notes:
        notes = [
            f"learning rate: {float(optimizer.get_lr()):g}, as configured"
            for optimizer in _optimization(fit).optimizers
        ]
    if theirs is not None:
        notes[-1] += f" (the file's schedule was at {float(theirs):g})"
    return notes


def _steps_of(config: LRSchedulerConfig, fit: Fit) -> int:
    done = fit.progress.current_epoch if config.interval == "epoch" else fit.progress.global_step
    return done // config.frequency


def _plain(value: Any) -> Any:
    return value.reshape(()).item() if isinstance(value, (np.ndarray, np.generic)) and value.size == 1 else value


# -- the best so far ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Best:
    """The other tool's best weights, fitted to the module, and their scores by our names."""

    path: Path
    scores: dict[str, float]
    weights: dict[str, np.ndarray]
    epoch: int | None

    def save(self, fit: Fit) -> Entry | None:
        """Make them a checkpoint of the run, of weights only, for it is not there to go on from."""
        store, progress = fit.run.store, fit.progress
        if store is None:
            return None
        now = progress.current_epoch
        epoch = now if self.epoch is None else min(self.epoch, now)
        step = progress.global_step * epoch // now if now else progress.global_step
        wanted = {name: str(value.dtype) for name, value in fit.module.state_dict().items()}
        return store.save(
            step=step,
            epoch=epoch,
            files={
                MODEL: {  # of uint16 bits only a Tensor knows that they are bfloat16
                    name: paddle.to_tensor(array) if wanted[name].endswith("bfloat16") else array
                    for name, array in self.weights.items()
                }
            },
            states={
                TRAINER: {
                    "weights_only": True,
                    "hyper_parameters": stored(fit.module.hparams),
                    "hyper_parameters_name": fit.module.hparams_name,
                    "progress": {**progress.state_dict(), "current_epoch": epoch, "global_step": step},
                }
            },
            metrics=self.scores,
            healthy=all(np.isfinite(array).all() for array in self.weights.values() if array.dtype.kind == "f"),
            info={"weights_only": True, "imported_from": str(self.path)},
            pins={IMPORTED_BEST: [store.candidate(step, epoch).name]},
        )


def _find_best(fit: Fit, init: InitFrom, found: ForeignCheckpoint) -> _Best | None:
    if not init.best:
        return None
    best = _best_beside(found)
    said = {**(found.best or {}), **(best.best or {})}
    scores = {}
    for name, score in init.best.items():
        if isinstance(score, str):
            if not isinstance(said.get(score), (int, float, np.number)):
                raise ConfigurationError(
                    f"InitFrom(best={{{name!r}: {score!r}}}): the files have no score of that name."
                    f"{did_you_mean(score, map(str, said))} They have: "
                    f"{', '.join(map(str, said)) or 'none; give the number itself'}."
                )
            score = said[score]
        scores[name] = float(score)
    weights, report = fit_weights(fit.module, best.weight_set("file"), init.rename)
    if not report.complete:
        raise CheckpointMismatchError(
            f"the best weights, in {best.path}, do not fit the model, so nothing can be ranked against them. "
            "Leave best= out.",
            report.problems(),
        )
    epoch = next((int(said[key]) for key in _EPOCH_KEYS if isinstance(said.get(key), (int, np.integer))), best.epoch)
    return _Best(best.path, scores, weights, epoch)


def _best_beside(found: ForeignCheckpoint) -> ForeignCheckpoint:
    best = best_beside(found.path)
    if best is None:
        raise CheckpointNotFoundError(
            f"InitFrom(best=...): a score belongs to the weights that earned it, and beside {found.path} there is "
            f"neither {' nor '.join(stem + '.pdparams' for stem in BEST_STEMS)}. Leave best= out."
        )
    return found if best == found.path else load_foreign(best)
