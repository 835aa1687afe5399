"""What a checkpoint holds of a fit: collected at a save point, restored all at once."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from ..callback import overridden
from ..errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    LogWriteError,
    did_you_mean,
)
from ..machine.rng import derive_seed, random_states, set_random_states
from ..module import running_statistics
from ..optimizers import gradients_of, optimizer_state, restore_optimizer
from ..progress import Progress
from ..reporting.loggers import Logger
from ..reporting.metrics import numbers_of, paddle_metrics_of, set_numbers
from .changes import check, fingerprint

if TYPE_CHECKING:
    from ..checkpoint import Entry, SavedCheckpoint
    from ..checkpoint.weights import WeightsReport
    from ..module import Module
    from ..trainer import Trainer

MODEL, OPTIMIZER, TRAINER = "model.pdparams", "optimizer.pdopt", "trainer.json"
OVERRIDES = ("callbacks", "data", "learning_rate", "lr_schedulers", "optimizer", "precision", "stop")
"""What `fit(override=...)` accepts: parts of a checkpoint that are left aside in favour of the present settings."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint opened for resuming, its trainer part decoded."""

    entry: Entry
    checkpoint: SavedCheckpoint
    trainer: dict[str, Any]


# -- save --------------------------------------------------------------------------------------------------------------------------------


def save(trainer: Trainer, pins: Mapping[str, Sequence[str]], *, weights_only: bool = False) -> Entry:
    """Write one checkpoint of everything; every rank calls it, rank 0 writes."""
    ranks = trainer.ranks.gather_object(rank_tree(trainer))
    if not trainer.is_global_zero:
        return trainer.ranks.on_rank_zero(_never)
    contents: dict[str, Any] | Exception
    try:
        contents = _contents(trainer, ranks, weights_only)  # here, for user's hooks belong to the thread they know
    except Exception as error:  # the other ranks wait, and are told
        contents = error

    def write() -> Entry:
        if isinstance(contents, Exception):
            raise contents
        return trainer.checkpoints.save(**contents, pins=pins, background=trainer.async_checkpoint)

    return trainer.ranks.on_rank_zero(write)


def _contents(trainer: Trainer, ranks: Sequence[Mapping[str, Any]], weights_only: bool) -> dict[str, Any]:
    """What `CheckpointStore.save` is given, apart from pins."""
    weights = model_weights(trainer.model)
    if trainer._saving_mark is not None:
        weights = trainer._saving_mark.weights(weights)
    files: dict[str, dict[str, Any]] = {MODEL: weights}
    states: dict[str, Any] = {}
    tree = trainer_tree(trainer)
    for hook in trainer._hooks.get("on_save_checkpoint", ()):
        hook(tree)
    files.update(tree.pop("files"))
    optimizer_tensors = tree.pop("optimizer_tensors")
    if weights_only:
        states[TRAINER] = {
            "weights_only": True,
            "hyper_parameters": tree["hyper_parameters"],
            "progress": tree["progress"],
        }
    else:
        files[OPTIMIZER] = optimizer_tensors
        states[TRAINER] = tree
        states.update({_rank_file(rank): state for rank, state in enumerate(ranks)})
    candidate = trainer._candidate()
    return {
        "step": candidate.step,
        "epoch": candidate.epoch,
        "files": files,
        "states": states,
        "metrics": candidate.metrics,
        "healthy": candidate.healthy,
        "info": {**environment(trainer), **({"weights_only": True} if weights_only else {})},
    }


def _never() -> Entry:
    raise AssertionError("only rank 0 writes")


def _rank_file(rank: int) -> str:
    return f"rng-rank{rank:05d}.json"


def rank_tree(trainer: Trainer) -> dict[str, Any]:
    """What differs between ranks: random states, the epoch's sums, the loader's position, and buffers (BatchNorm's statistics)."""
    buffers: dict[str, Any] = {}
    if trainer.world_size > 1:
        saved = trainer.model.state_dict()
        buffers = {name: value.numpy() for name, value in running_statistics(trainer.model).items() if name in saved}
    source, mark = trainer._train_source, trainer._saving_mark
    # A validation may be given up within a window; and in manual optimization a user may accumulate over batches.
    has_gradients = trainer.progress.batches_in_window > 0 or not trainer.model.automatic_optimization
    if mark is not None and not mark.gradients_hold:
        has_gradients = False
    return {
        "random": random_states(),
        "metrics": trainer._train_metrics.state_dict(epoch_is_over=trainer.is_last_batch),
        "paddle_metrics": {place: numbers_of(metric) for place, metric in paddle_metrics_of(trainer.model).items()},
        "data": None if source is None else mark.source if mark is not None else source.state_dict(),
        "gradients": {
            trainer.parameter_names[parameter.name]: parameter.grad.numpy()
            for parameter in (gradients_of(trainer.optimizers) if has_gradients else ())
        },
        "buffers": buffers,
    }


def model_weights(module: Module) -> dict[str, Any]:
    """The module's state_dict; keys are the bare layer's, without any wrapper's prefix."""
    return dict(module.state_dict())


def trainer_tree(trainer: Trainer) -> dict[str, Any]:
    """All that is neither weights nor random states. This is the one list of what a checkpoint holds; `restore` reads it back."""
    optimizer_tensors: dict[str, Any] = {}
    optimizers = []
    for index, optimizer in enumerate(trainer.optimizers):
        tensors, rest = optimizer_state(optimizer, trainer.parameter_names)
        optimizer_tensors.update({f"optimizer_{index}/{name}": tensor for name, tensor in tensors.items()})
        optimizers.append(rest)
    mark = trainer._saving_mark
    callbacks = {
        key: mark.callbacks[key] if mark is not None and key in mark.callbacks else callback.state_dict()
        for key, callback in keyed(trainer.callbacks)
    }
    return {
        "optimizer_tensors": optimizer_tensors,
        "files": {},
        "weights_only": False,
        "seed": trainer.seed,
        "progress": trainer.progress.state_dict(),
        "optimizers": optimizers,
        "lr_schedulers": [state.state_dict() for state in trainer._scheduler_states],
        "precision": trainer.precision.state_dict(),
        "callback_metrics": trainer.metrics_of_the_fit(),
        "history": trainer.history,
        "epoch_record": trainer._epoch_record,
        "callbacks": callbacks,
        "loggers": _saved_logs(trainer),
        "stop_reason": trainer._stop_reason if trainer._stopped_for_good else None,
        "datamodule": trainer.datamodule.state_dict() if trainer.datamodule is not None else {},
        "hyper_parameters": dict(trainer.model.hparams),
        "added_param_groups": trainer._added_param_groups,
        "untrained": untrained(trainer),
        "run": fingerprint(trainer),
    }


def positions_in_logs(trainer: Trainer) -> list[dict[str, Any]]:
    return [logger.state_dict() for logger in trainer.loggers]


def _saved_logs(trainer: Trainer) -> list[dict[str, Any]]:
    """Positions in the logs, of which everything is on the disk.

    Raises:
        LogWriteError: of the first logger whose log could not be saved; the others' were.
    """
    failures: list[LogWriteError] = []
    for logger in trainer.loggers:
        if not overridden(logger, "state_dict", Logger):
            continue  # the checkpoint promises nothing of it
        try:
            logger.save()
        except LogWriteError as error:
            failures.append(error)
        except Exception as error:
            failures.append(LogWriteError(f"{type(logger).__name__}.save() failed: {error!r}"))
            failures[-1].__cause__ = error
    if failures:
        raise failures[0]
    mark = trainer._saving_mark
    return positions_in_logs(trainer) if mark is None or mark.loggers is None else mark.loggers


def environment(trainer: Trainer) -> dict[str, Any]:
    """What `paddlelite ckpt show` tells of where a checkpoint was made."""
    from .. import __version__

    return {
        "paddlelite_trainer": __version__,
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": trainer.device.name,
        "precision": trainer.precision.effective,
        "world_size": trainer.world_size,
        "module": type(trainer.model).__qualname__,
        "max_epochs": trainer.max_epochs,
    }


def untrained(trainer: Trainer) -> list[str]:
    """Names of the parameters that do not learn, apart from those that toggle_optimizer holds back for the moment."""
    held_back = {id(parameter) for parameter, was_untrained in trainer._toggled if not was_untrained}
    return sorted(
        name
        for name, parameter in trainer.model.named_parameters()
        if parameter.stop_gradient and id(parameter) not in held_back
    )


def is_healthy(trainer: Trainer) -> bool:
    """Whether the last loss, every weight and every optimizer value are finite; one copy to the host."""
    values = list(trainer.model.state_dict().values())
    for optimizer in trainer.optimizers:
        for by_parameter in optimizer._accumulators.values():
            values += by_parameter.values()
        values += (getattr(optimizer, "_master_weights", None) or {}).values()
    loss = trainer._last_loss.get("loss") if isinstance(trainer._last_loss, Mapping) else trainer._last_loss
    if isinstance(loss, paddle.Tensor):
        values.append(loss)
    floats = [value for value in values if value.is_floating_point() and value.size]
    if not floats:
        return True
    with paddle.no_grad():
        return bool(paddle.stack([paddle.isfinite(value).all() for value in floats]).all().item())


def keyed(callbacks: Sequence[Any]) -> list[tuple[str, Any]]:
    """Callbacks with their state keys; the second of one key is `key#2`, and so on."""
    seen: dict[str, int] = {}
    pairs = []
    for callback in callbacks:
        key = callback.state_key
        seen[key] = seen.get(key, 0) + 1
        pairs.append((key if seen[key] == 1 else f"{key}#{seen[key]}", callback))
    return pairs


# -- restore -----------------------------------------------------------------------------------------------------------------------------


def open_saved(entry: Entry, opened: SavedCheckpoint | None = None) -> Saved:
    """Open and verify the checkpoint that a fit resumes from, unless it is `opened` already: verifying reads every byte.

    Raises:
        CheckpointMismatchError: it holds weights only.
    """
    from ..checkpoint import open_checkpoint

    checkpoint = opened if opened is not None else open_checkpoint(entry.path)
    trainer = checkpoint.state(TRAINER)
    if trainer.get("weights_only"):
        raise CheckpointMismatchError(
            f"{entry.path} holds weights only, so a run cannot go on from it exactly. Start a fresh run with init_from={str(entry.path)!r}, or resume from another checkpoint."
        )
    return Saved(checkpoint.entry, checkpoint, trainer)


def agreed_seed(given: int | None, saved: Saved) -> int:
    """The run's seed; a different one asked for now is refused, since every batch would change."""
    seed: int = saved.trainer["seed"]
    if given is not None and given != seed:
        raise CheckpointMismatchError(
            "the checkpoint does not fit this run:",
            [
                f"seed: saved {seed}, now {given}. Pass seed={seed} or none, or start a fresh run with init_from={str(saved.entry.path)!r}"
            ],
        )
    return seed


def checked_override(override: Sequence[str]) -> tuple[str, ...]:
    names = (override,) if isinstance(override, str) else tuple(override)
    for name in names:
        if name not in OVERRIDES:
            raise ConfigurationError(
                f"fit(override=...) takes {', '.join(OVERRIDES)}; got {name!r}.{did_you_mean(name, OVERRIDES)}"
            )
    return names


def restore(trainer: Trainer, saved: Saved, override: Sequence[str]) -> list[str]:
    """Put everything back; returns sentences about what differs from the saved run. Nothing is changed where it raises for a mismatch of shapes or names."""
    tree = saved.trainer
    trainer._reload_as_before(Progress(**tree["progress"]))
    notes = check(trainer, saved, override)
    if not {"optimizer", "precision"} & set(
        override
    ):  # first: in another precision the weights' types do not fit either
        trainer.precision.load_state_dict(tree["precision"])
    refuse_other_weights(trainer.model, saved.checkpoint)
    for hook in trainer._hooks.get("on_load_checkpoint", ()):
        hook({**tree, "files": _Files(saved.checkpoint)})
    load_weights_into(trainer.model, saved.checkpoint)
    untrained = set(tree["untrained"])
    for name, parameter in trainer.model.named_parameters():
        parameter.stop_gradient = name in untrained
    _add_param_groups_of(trainer, tree["added_param_groups"])
    if "optimizer" not in override:
        notes += _restore_optimizers(trainer, saved, "learning_rate" in override)
    if "lr_schedulers" not in override and "optimizer" not in override:
        for state, scheduler in zip(tree["lr_schedulers"], trainer._scheduler_states):
            note = scheduler.load_state_dict(state)
            if note is not None:
                notes.append(note)
    trainer.progress.load_state_dict(tree["progress"])
    if "data" in override and trainer.progress.epoch_is_open:
        trainer.progress.begin_epoch_again()
        notes.append(f"data: epoch {trainer.progress.current_epoch} begins again, as override asks.")
    trainer._callback_metrics.update(tree["callback_metrics"])
    trainer.history = list(tree["history"])
    trainer._epoch_record = dict(tree["epoch_record"])
    if "stop" not in override:
        trainer._stop_reason = tree["stop_reason"]
    if "callbacks" not in override:
        notes += _restore_callbacks(trainer, tree["callbacks"])
    if trainer.is_global_zero and trainer.run_dir == saved.entry.path.parent.parent:  # else it logs to other files
        for logger, state in zip(trainer.loggers, tree["loggers"]):
            logger.load_state_dict(state)
    if trainer.datamodule is not None and tree["datamodule"]:
        trainer.datamodule.load_state_dict(tree["datamodule"])
    _restore_rank(trainer, saved, override)
    restore_random_states(trainer, saved)
    progress = trainer.progress
    notes.append(
        f"Resumed from {saved.entry.path}: epoch {progress.current_epoch}, batch {progress.batches_in_epoch}, step {progress.global_step}."
    )
    return notes


def _restore_rank(trainer: Trainer, saved: Saved, override: Sequence[str]) -> None:
    file = _rank_file(trainer.global_rank)
    if file not in saved.checkpoint.files:  # there are more processes than there were, which `_changes` has told
        return
    rank = saved.checkpoint.state(file)
    for place, metric in paddle_metrics_of(trainer.model).items():
        if place in rank["paddle_metrics"]:
            set_numbers(metric, rank["paddle_metrics"][place])
    trainer._train_metrics.load_state_dict(rank["metrics"])
    parameters = dict(trainer.model.named_parameters())
    for name, gradient in rank["gradients"].items():
        parameters[name].grad = paddle.to_tensor(gradient)
    if "data" not in override and trainer._train_source is not None and rank["data"] is not None:
        trainer._train_source.load_state_dict(rank["data"])
    present = trainer.model.state_dict()
    for name, value in rank["buffers"].items():
        present[name].set_value(value)


def restore_random_states(trainer: Trainer, saved: Saved) -> None:
    """This rank's generators; to be called when nothing will be drawn any more before the first batch."""
    file = _rank_file(trainer.global_rank)
    if file not in saved.checkpoint.files:
        return
    states = saved.checkpoint.state(file)["random"]
    set_random_states(states)
    if states["paddle"]["cpu"] is None and trainer.seed is not None:  # saved by a Paddle that cannot tell it
        paddle.seed(derive_seed(trainer.seed, "resumed at", trainer.progress.total_batches))


def roll_back(trainer: Trainer) -> Entry:
    """Put back weights, optimizers and loss scale of the newest healthy checkpoint; see Trainer.roll_back."""
    entry = trainer.ranks.on_rank_zero(lambda: trainer.checkpoints.newest(complete=True))
    if entry is None or not entry.healthy:
        raise CheckpointNotFoundError(
            "there is no healthy checkpoint in this run to roll back to. Save one at the start, or more often."
        )
    saved = open_saved(entry)
    for hook in trainer._hooks.get("on_load_checkpoint", ()):
        hook({**saved.trainer, "files": _Files(saved.checkpoint)})
    load_weights_into(trainer.model, saved.checkpoint)
    _restore_optimizers(trainer, saved, keep_learning_rate=True)
    trainer.precision.load_state_dict(saved.trainer["precision"])
    return entry


def _add_param_groups_of(trainer: Trainer, groups: Sequence[Mapping[str, Any]]) -> None:
    parameters = dict(trainer.model.named_parameters())
    for group in groups:
        missing = [name for name in group["parameters"] if name not in parameters]
        if missing:
            raise CheckpointMismatchError(
                "the checkpoint does not fit this run:",
                [
                    f"a parameter group was added to the optimizer during the run, with {', '.join(missing)}, which this module does not have"
                ],
            )
        trainer.add_param_group(
            [parameters[name] for name in group["parameters"]],
            optimizer_index=group["optimizer_index"],
            learning_rate=group["learning_rate"],
            weight_decay=group["weight_decay"],
        )


class _Files(dict[str, Any]):
    """A checkpoint's tensor files, read when asked for."""

    def __init__(self, checkpoint: SavedCheckpoint) -> None:
        self._checkpoint = checkpoint
        super().__init__(dict.fromkeys(checkpoint.files))

    def __getitem__(self, name: str) -> Any:
        return self._checkpoint.tensors(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401


def _restore_optimizers(trainer: Trainer, saved: Saved, keep_learning_rate: bool) -> list[str]:
    notes = []
    states = saved.trainer["optimizers"]
    tensors = saved.checkpoint.tensors(OPTIMIZER)
    for index, (optimizer, rest) in enumerate(zip(trainer.optimizers, states)):
        prefix = f"optimizer_{index}/"
        own = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        present = None if rest["learning_rate"] is None else float(optimizer.get_lr())
        restore_optimizer(optimizer, trainer.parameter_names, own, rest, keep_learning_rate=keep_learning_rate)
        if present is not None and present != rest["learning_rate"]:
            kept, left = (present, rest["learning_rate"]) if keep_learning_rate else (rest["learning_rate"], present)
            how = "as override asks" if keep_learning_rate else "pass override=('learning_rate',) for the other"
            notes.append(
                f"learning rate: saved {rest['learning_rate']:g}, now {present:g}. The run goes on with {kept:g}, not {left:g} ({how})."
            )
    return notes


def _restore_callbacks(trainer: Trainer, states: Mapping[str, Any]) -> list[str]:
    notes = []
    present = dict(keyed(trainer.callbacks))
    for key, state in states.items():
        if key in present:
            try:
                present[key].load_state_dict(state)
            except (KeyError, TypeError, AttributeError) as error:
                raise CheckpointMismatchError(
                    "the checkpoint does not fit this run:",
                    [
                        f"state of callback {key}: saved with {', '.join(map(str, state)) or 'nothing'}, and load_state_dict failed with {type(error).__name__}: {error}. "
                        "Pass override=('callbacks',) to start callbacks afresh"
                    ],
                ) from error
        elif state:
            notes.append(f"callback {key}: in the checkpoint, not in this run; its state is left aside.")
    notes += [
        f"callback {key}: new in this run; it starts afresh."
        for key, callback in present.items()
        if key not in states and callback.state_dict()
    ]
    return notes


# -- weights ------------------------------------------------------------------------------------------------------------------------------


def load_weights_into(module: Module, checkpoint: SavedCheckpoint, file: str = MODEL) -> None:
    """Set every weight; names, shapes and types must all fit, and nothing is changed where one does not.

    Raises:
        CheckpointMismatchError: lists each name with saved and present shape or type.
    """
    refuse_other_weights(module, checkpoint, file)
    saved = checkpoint.tensors(file)
    for name, tensor in module.state_dict().items():
        tensor.set_value(saved[name])


def refuse_other_weights(module: Module, checkpoint: SavedCheckpoint, file: str = MODEL) -> None:
    """Raise CheckpointMismatchError for names, shapes and types that do not fit."""
    saved = checkpoint.tensors(file)
    present = module.state_dict()
    problems = [
        f"{name}: in this module, not in the checkpoint.{did_you_mean(name, saved)}"
        for name in present
        if name not in saved
    ]
    problems += [
        f"{name}: in the checkpoint, not in this module.{did_you_mean(name, present)}"
        for name in saved
        if name not in present
    ]
    for name in present.keys() & saved.keys():
        shape, dtype = list(present[name].shape), str(present[name].dtype).rpartition(".")[2]
        saved_dtype = checkpoint.dtype_of(file, name)
        if list(saved[name].shape) != shape:
            problems.append(f"{name}: saved shape {list(saved[name].shape)}, now {shape}")
        elif saved_dtype != dtype:
            problems.append(f"{name}: saved as {saved_dtype}, now {dtype}")
    if problems:
        raise CheckpointMismatchError(
            f"the weights of {checkpoint.entry.path} do not fit {type(module).__name__}; nothing was loaded. To take those that fit into a fresh run, use init_from=InitFrom(path, strict=False):",
            sorted(problems),
        )


def load_weights_at(module: Module, path: str | Path, *, strict: bool = True) -> WeightsReport:
    """Weights from one of our checkpoints or a file of any Paddle tool; see checkpoint/weights.py."""
    from ..checkpoint.weights import load_weights

    return load_weights(module, path, strict=strict)


def hyperparameters_at(path: str | Path) -> dict[str, Any]:
    """The hyper-parameters that a checkpoint of ours holds; none for any other file."""
    from ..checkpoint import open_checkpoint

    try:
        return dict(open_checkpoint(path).state(TRAINER)["hyper_parameters"])
    except CheckpointNotFoundError:
        if not Path(path).exists() and not Path(f"{path}.pdparams").exists():
            raise
        return {}
    except KeyError as error:
        raise CheckpointError(f"{path} is no checkpoint of a Trainer: its state has no {error}") from error
