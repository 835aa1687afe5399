"""What a checkpoint holds of a fit: collected at a save point, restored all at once."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from ..callback import keyed
from ..errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    did_you_mean,
)
from ..gradients import all_finite
from ..hyperparameters import stored, stored_of
from ..layers import in_eval_mode, put_into_modes
from ..machine import paddle_internals
from ..optimizers import optimizer_state
from ..progress import Progress
from ..run.epochs import epochs_before
from ..run.weights import MODEL, TRAINER, load_weights_into, shown_to_hooks
from .changes import check, fingerprint
from .logs import class_of, saved_logs
from .optimizer_parts import (
    OPTIMIZER,
    optimizer_tensors,
    rank_parts,
    restore_optimization,
    restore_optimizers,
    state_names,
)
from .rank_state import rank_tree, restore_random_states, restore_rank
from .saved import Saved, file_of_rank, open_saved

if TYPE_CHECKING:
    from ..checkpoint import Entry
    from ..module import Module
    from .fit import Fit
    from .mark import Mark

KEPT_WITH_WEIGHTS = (
    *("hyper_parameters", "hyper_parameters_name", "progress"),
    *("datamodule", "datamodule_hyper_parameters", "forward_inputs"),
)
"""What else a checkpoint of weights only holds."""
OVERRIDES = ("callbacks", "data", "learning_rate", "lr_schedulers", "optimizer", "precision", "stop")
"""What `fit(override=...)` accepts: parts of a checkpoint that are left aside in favour of the present settings."""


# -- save --------------------------------------------------------------------------------------------------------------


def save(
    fit: Fit, candidate: Entry | None, pins: Mapping[str, Sequence[str]], weights_only: bool, as_of: Mark | None
) -> Entry:
    """Write one checkpoint of everything, as of a mark where there is one; every rank calls it, rank 0 writes."""
    with nullcontext() if fit.engine is not None and fit.engine.keeps_cut else fit.whole_weights():
        return _save(fit, candidate, pins, weights_only, as_of)


def _save(
    fit: Fit, candidate: Entry | None, pins: Mapping[str, Sequence[str]], weights_only: bool, as_of: Mark | None
) -> Entry:
    """What is sharded each rank writes itself, into the same directory."""
    weights = model_weights(fit.module)
    if as_of is not None:
        weights = as_of.weights(weights)
    parts = rank_parts(fit, weights, weights_only=weights_only)
    found = fit.ranks.gather_object((rank_tree(fit, as_of), parts is None or is_healthy(fit)))
    if not fit.ranks.is_zero:
        if parts is not None:
            parts.take_part()
        return fit.ranks.on_rank_zero(_never)
    contents: dict[str, Any] | Exception
    try:
        # Here, for user's hooks belong to the thread they know.
        contents = _contents(fit, candidate, weights, [tree for tree, _ in found], weights_only, as_of)
        if parts is not None:
            contents["healthy"] &= all(is_sound for _, is_sound in found)
            contents["files"] = {name: one for name, one in contents["files"].items() if name not in parts.wholes}
            contents["files"].update(parts.mine)
            contents["others"] = parts
    except Exception as error:  # the other ranks wait, and are told
        contents = error

    def write() -> Entry:
        try:
            if isinstance(contents, Exception):
                raise contents
            assert fit.run.store is not None
            return fit.run.store.save(**contents, pins=pins, background=fit.settings.async_checkpoint)
        finally:
            if parts is not None:
                parts.give_up()  # where the save never came so far

    fit.journal.mark(anyway=True)
    return fit.ranks.on_rank_zero(write)


def candidate(fit: Fit) -> Entry:
    """The checkpoint that would be written now; rank 0 asks."""
    assert fit.run.store is not None
    healthy = is_healthy(fit)
    if not healthy:
        fit.tell_of_a_bad_loss()
    return fit.run.store.candidate(
        step=fit.progress.global_step,
        epoch=fit.progress.current_epoch,
        metrics=fit.book.as_numbers(),
        healthy=healthy,
    )


def _contents(
    fit: Fit,
    candidate: Entry | None,
    weights: dict[str, Any],
    ranks: Sequence[Mapping[str, Any]],
    weights_only: bool,
    as_of: Mark | None,
) -> dict[str, Any]:
    """What `CheckpointStore.save` is given, apart from pins."""
    files: dict[str, dict[str, Any]] = {MODEL: weights}
    states: dict[str, Any] = {}
    tree = trainer_tree(fit, as_of)
    own = dict(tree)
    for hook in fit.hooks.of("on_save_checkpoint"):
        hook(tree)
        _refuse_replaced(own, tree, hook)
    files.update(tree.pop("files"))
    optimizer_tensors = tree.pop("optimizer_tensors")
    if weights_only:
        users = {key: value for key, value in tree.items() if key not in own}
        states[TRAINER] = {"weights_only": True, **{key: tree[key] for key in KEPT_WITH_WEIGHTS}, **users}
    else:
        files[OPTIMIZER] = optimizer_tensors
        states[TRAINER] = tree
        states.update({file_of_rank(rank): state for rank, state in enumerate(ranks)})
    assert candidate is not None
    return {
        "step": candidate.step,
        "epoch": candidate.epoch,
        "files": files,
        "states": states,
        "metrics": candidate.metrics,
        "healthy": candidate.healthy,
        "info": {**environment(fit), **({"weights_only": True} if weights_only else {})},
    }


def _refuse_replaced(own: Mapping[str, Any], tree: Mapping[str, Any], hook: Any) -> None:
    """Raise ConfigurationError where a hook has put something in the place of what the trainer itself keeps."""
    for key, value in own.items():
        if key not in tree or tree[key] is not value:
            method = getattr(hook, "func", hook)  # callbacks' hooks are partials
            raise ConfigurationError(
                f"{method.__qualname__} has written checkpoint[{key!r}], which is the trainer's own: a run could not "
                f"go on from such a checkpoint. Keep it under a key of your own, such as {'my_' + key!r}."
            )


def _never() -> Entry:
    raise AssertionError("only rank 0 writes")


def model_weights(module: Module) -> dict[str, Any]:
    """The module's state_dict; keys are the bare layer's, without any wrapper's prefix."""
    return dict(module.state_dict())


def trainer_tree(fit: Fit, as_of: Mark | None = None) -> dict[str, Any]:
    """All that is neither weights nor random states: the one list of what a checkpoint holds.

    `restore` reads it back.
    """
    optimization, schedules, subject = fit.optimization, fit.schedules, fit.subject
    assert optimization is not None and schedules is not None and subject is not None and fit.run.path is not None
    optimizers = [optimizer_state(one, state_names(fit))[1] for one in optimization.optimizers]
    marked = as_of.callbacks if as_of is not None else {}
    callbacks = {
        key: marked[key] if key in marked else callback.state_dict() for key, callback in keyed(subject.callbacks)
    }
    return {
        "optimizer_tensors": optimizer_tensors(fit),
        "files": {},
        "weights_only": False,
        "seed": fit.seed,
        "progress": fit.progress.state_dict(),
        "optimizers": optimizers,
        "lr_schedulers": schedules.state_dict(),
        "precision": fit.precision.state_dict(),
        "callback_metrics": fit.book.as_numbers(),
        **fit.epochs.in_checkpoint(fit.book.history, fit.run.path),
        "epoch_record": fit.book.epoch_record,
        "callbacks": callbacks,
        "loggers": saved_logs(fit.book.loggers, as_of),
        "logger_classes": [class_of(logger) for logger in fit.book.loggers],
        **fit.stopping.state_dict(),
        "datamodule": subject.datamodule.state_dict() if subject.datamodule is not None else {},
        "datamodule_hyper_parameters": stored_of(subject.datamodule),
        "hyper_parameters": stored(fit.module.hparams),
        "hyper_parameters_name": fit.module.hparams_name,
        "forward_inputs": fit.module.forward_inputs.described,
        "added_param_groups": optimization.added_param_groups,
        "untrained": untrained(fit),
        "eval_layers": in_eval_mode(fit.module),
        "run": fingerprint(fit),
        "added": fit.saver is not None and fit.saver.adds,
    }


def environment(fit: Fit) -> dict[str, Any]:
    """What `paddlelite ckpt show` tells of where a checkpoint was made."""
    from .. import __version__

    return {
        "paddlelite_trainer": __version__,
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": fit.device.name,
        "precision": fit.precision.effective,
        "world_size": fit.ranks.world_size,
        "strategy": fit.settings.strategy.name,
        "module": type(fit.module).__qualname__,
        "max_epochs": fit.settings.max_epochs,
    }


def untrained(fit: Fit) -> list[str]:
    """Names of the parameters that do not learn, apart from those that toggle_optimizer holds back for the moment."""
    toggled = fit.optimization.toggled if fit.optimization is not None else []
    held_back = {id(parameter) for parameter, was_untrained in toggled if not was_untrained}
    return sorted(
        name
        for name, parameter in fit.module.named_parameters()
        if parameter.stop_gradient and id(parameter) not in held_back
    )


def is_healthy(fit: Fit) -> bool:
    """Whether the last loss, every weight and every optimizer value are finite; one copy to the host for each 1,000."""
    assert fit.optimization is not None
    values = list(fit.module.state_dict().values())
    if fit.engine is not None:
        values = fit.engine.held(values)
    for optimizer in fit.optimization.optimizers:
        for by_parameter in paddle_internals.accumulators(optimizer).values():
            values += by_parameter.values()
        values += paddle_internals.master_weights(optimizer).values()
    loss = fit.optimization.last_loss_tensor
    if loss is not None:
        values.append(loss)
    # Paddle makes `size` in Python, by NumPy.
    floats = [value for value in values if value.is_floating_point() and 0 not in value.shape]
    # Each tensor's result takes 8 kB in Paddle, however small it is.
    return all(all_finite(floats[start : start + 1000]) for start in range(0, len(floats), 1000))


# -- restore -----------------------------------------------------------------------------------------------------------


def checked_override(override: Sequence[str]) -> tuple[str, ...]:
    names = (override,) if isinstance(override, str) else tuple(override)
    for name in names:
        if name not in OVERRIDES:
            raise ConfigurationError(
                f"fit(override=...) takes {', '.join(OVERRIDES)}; got {name!r}.{did_you_mean(name, OVERRIDES)}"
            )
    return names


def give_back(fit: Fit, saved: Saved, override: Sequence[str]) -> list[str]:
    """What users keep of their own, before they are asked for loaders and optimizers; returns sentences about it."""
    subject = fit.subject
    assert subject is not None
    if subject.datamodule is not None and saved.tree["datamodule"]:
        subject.datamodule.load_state_dict(saved.tree["datamodule"])
    _call_on_load(fit, saved)
    return [] if "callbacks" in override else _restore_callbacks(subject.callbacks, saved.tree["callbacks"])


def _call_on_load(fit: Fit, saved: Saved) -> None:
    for hook in fit.hooks.of("on_load_checkpoint"):
        hook(shown_to_hooks(saved.checkpoint, saved.tree))


def restore(fit: Fit, saved: Saved, override: Sequence[str]) -> list[str]:
    """Put the trainer's own state back; returns sentences about what differs from the saved run.

    Nothing is changed where it raises for a mismatch of shapes or names.
    """
    tree, data = saved.tree, fit.data
    assert data is not None
    data.reload_as_before(Progress(**tree["progress"]))
    fit.module.forward_inputs.recall(tree.get("forward_inputs"))
    notes = check(fit, saved, override)
    if not {"optimizer", "precision"} & set(override):  # first: in another precision the weights' types differ too
        fit.precision.load_state_dict(tree["precision"])
    _load_weights(fit, saved)
    names = set(tree["untrained"])
    for name, parameter in fit.module.named_parameters():
        parameter.stop_gradient = name in names
    if "eval_layers" in tree:  # else it is of an earlier version
        put_into_modes(fit.module, tree["eval_layers"])
    notes += restore_optimization(fit, saved, override)
    fit.progress.load_state_dict(tree["progress"])
    if "data" in override and fit.progress.epoch_is_open:
        fit.progress.begin_epoch_again()
        notes.append(f"data: epoch {fit.progress.current_epoch} begins again, as override asks.")
    older, finding = epochs_before(tree, saved.entry.path)
    notes += [] if finding is None else [f"history: {finding}."]
    fit.book.load_state_dict(tree, older)
    if "stop" not in override:
        fit.stopping.load_state_dict(tree)
    notes += restore_rank(fit, saved, override)
    if fit.progress.epoch_is_open:
        fit.book.publish_steps()
    if fit.schedules is not None:
        fit.schedules.note_restored()
    restore_random_states(fit, saved)
    progress = fit.progress
    where = f"epoch {progress.current_epoch}, batch {progress.batches_in_epoch}, step {progress.global_step}"
    notes.append(f"Resumed from {saved.entry.path}: {where}.")
    return notes


def _load_weights(fit: Fit, saved: Saved) -> None:
    """Of what is cut each rank reads its own."""
    slices = {} if fit.engine is None else fit.engine.slices(fit.module.state_dict())
    load_weights_into(fit.module, saved.checkpoint, slices=slices)


def roll_back(fit: Fit) -> Entry:
    """Put back weights, optimizers and loss scale of the newest healthy checkpoint; see Trainer.roll_back."""
    entry = fit.ranks.on_rank_zero(lambda: fit.run.checkpoints.newest(complete=True))
    if entry is None or not entry.healthy:
        raise CheckpointNotFoundError(
            "there is no healthy checkpoint in this run to roll back to. Save one at the start, or more often."
        )
    saved = open_saved(entry)
    fit.progress.begin_step()  # what a mark remembers of the weights is over
    _call_on_load(fit, saved)
    _load_weights(fit, saved)
    restore_optimizers(fit, saved, keep_learning_rate=True)
    fit.precision.load_state_dict(saved.tree["precision"])
    return entry


def _restore_callbacks(callbacks: Sequence[Any], states: Mapping[str, Any]) -> list[str]:
    notes = []
    present = dict(keyed(callbacks))
    for key, state in states.items():
        if key in present:
            try:
                present[key].load_state_dict(state)
            except (KeyError, TypeError, AttributeError) as error:
                held = ", ".join(map(str, state)) or "nothing"
                raise CheckpointMismatchError(
                    "the checkpoint does not fit this run:",
                    [
                        f"state of callback {key}: saved with {held}, and load_state_dict failed with "
                        f"{type(error).__name__}: {error}. "
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
