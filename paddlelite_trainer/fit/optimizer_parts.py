"""What a checkpoint holds of the optimizers, whichever rank has it, and how it comes back to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.parts import slice_of
from ..errors import CheckpointMismatchError, ConfigurationError
from ..machine.engine import Engine
from ..optimizers import optimizer_state, restore_optimizer
from ..run.weights import MODEL
from .rank_parts import RankParts

if TYPE_CHECKING:
    from .fit import Fit
    from .saved import Saved

OPTIMIZER = "optimizer.pdopt"


def optimizer_tensors(fit: Fit) -> dict[str, Any]:
    """What this rank has of the optimizers' state."""
    assert fit.optimization is not None
    tensors: dict[str, Any] = {}
    for index, optimizer in enumerate(fit.optimization.optimizers):
        own, _ = optimizer_state(optimizer, state_names(fit))
        tensors.update({f"optimizer_{index}/{name}": tensor for name, tensor in own.items()})
    return tensors


def rank_parts(fit: Fit, weights: Mapping[str, Any], *, weights_only: bool) -> RankParts | None:
    """What this rank writes of a checkpoint itself, of these weights too; None where rank 0 has everything."""
    engine = fit.engine
    if engine is None or not engine.is_sharded:
        return None
    mine: dict[str, dict[str, Any]] = {}
    cut: dict[str, Mapping[str, tuple[int, ...]]] = {}
    if not weights_only:
        mine[OPTIMIZER] = optimizer_tensors(fit)
        cut[OPTIMIZER] = engine.cut(mine[OPTIMIZER])
    if engine.keeps_cut:
        slices = engine.slices(weights)
        mine[MODEL] = {name: slices[name][0] if name in slices else weight for name, weight in weights.items()}
        cut[MODEL] = {name: tuple(weights[name].shape) for name in slices}
    for callback in fit.subject.callbacks if fit.subject is not None else ():
        for file, (tensors, of_slices) in getattr(callback, "files_in_slices", _none)(fit.module).items():
            if file in mine:
                raise ConfigurationError(f"two callbacks keep {file}: give one of them another name")
            mine[file], cut[file] = tensors, {name: tuple(weights[name].shape) for name in of_slices}
    if fit.ranks.rank and engine.everyone_keeps:  # the rest is rank 0's to write
        mine = {file: {name: tensors[name] for name in tensors if name in cut[file]} for file, tensors in mine.items()}
    return RankParts(fit.ranks, mine, cut) if mine else None


def _none(module: Any) -> dict[str, Any]:
    return {}


def state_names(fit: Fit) -> Mapping[str, str]:
    """{name in Paddle, by which the optimizers keep state: name in the module}."""
    assert fit.optimization is not None
    names = fit.optimization.parameter_names
    return names if fit.engine is None else fit.engine.state_names(names)


def restore_optimization(fit: Fit, saved: Saved, override: Sequence[str]) -> list[str]:
    """Parameter groups first, then the optimizers' state for them, then schedules."""
    assert fit.schedules is not None
    _add_param_groups_of(fit, saved.tree["added_param_groups"])
    if "optimizer" in override:
        return ["optimizers and schedules: they start afresh, as override asks."]
    notes = restore_optimizers(fit, saved, "learning_rate" in override)
    if "lr_schedulers" not in override:
        notes += fit.schedules.load_state_dict(saved.tree["lr_schedulers"])
    else:
        notes.append("schedules: they start afresh, as override asks.")
    return notes


def restore_optimizers(fit: Fit, saved: Saved, keep_learning_rate: bool) -> list[str]:
    assert fit.optimization is not None
    notes = []
    names = fit.optimization.parameter_names
    engine = fit.engine if fit.engine is not None else Engine()
    elsewhere = {structured for name, structured in names.items() if not engine.keeps(name)}
    for index, (optimizer, rest) in enumerate(zip(fit.optimization.optimizers, saved.tree["optimizers"])):
        own = _own_state(saved, engine, f"optimizer_{index}/", elsewhere)
        before = rest["learning_rate"]
        present = None if before is None else float(optimizer.get_lr())
        with engine.state_in(optimizer):
            restore_optimizer(optimizer, state_names(fit), own, rest, keep_learning_rate=keep_learning_rate)
        if present is not None and present != before and not fit.hooks.rates_are_set_by_a_callback:
            kept, left = (present, before) if keep_learning_rate else (before, present)
            how = "as override asks" if keep_learning_rate else "pass override=('learning_rate',) for the other"
            notes.append(
                f"learning rate: saved {before:g}, now {present:g}. "
                f"The run goes on with {kept:g}, not {left:g} ({how})."
            )
    return notes


def restore_own(fit: Fit, optimizer: Any, tensors: Mapping[str, np.ndarray], rest: Mapping[str, Any]) -> None:
    """Give an optimizer what this rank keeps of a state that another tool has saved whole, by parameter's name."""
    assert fit.optimization is not None
    engine = fit.engine if fit.engine is not None else Engine()
    elsewhere = {structured for name, structured in fit.optimization.parameter_names.items() if not engine.keeps(name)}
    own = {}
    for name, array in tensors.items():
        parameter = name.rpartition("/")[0]
        if parameter not in elsewhere:
            bounds = engine.part_of(parameter, tuple(array.shape))
            own[name] = array if bounds is None else slice_of(array, *bounds)
    with engine.state_in(optimizer):
        restore_optimizer(optimizer, state_names(fit), own, rest)


def _own_state(saved: Saved, engine: Engine, prefix: str, elsewhere: set[str]) -> dict[str, Any]:
    """Of an optimizer's saved state what this rank keeps; no more is read."""
    own = {}
    for full, shape in saved.checkpoint.shapes(OPTIMIZER).items():
        name = full.removeprefix(prefix)
        parameter = name.rpartition("/")[0]
        if name == full or parameter in elsewhere:
            continue
        bounds = engine.part_of(parameter, shape)
        read = saved.checkpoint
        own[name] = read.tensor(OPTIMIZER, full) if bounds is None else read.piece(OPTIMIZER, full, *bounds)
    return own


def _add_param_groups_of(fit: Fit, groups: Sequence[Mapping[str, Any]]) -> None:
    assert fit.optimization is not None
    parameters = dict(fit.module.named_parameters())
    for group in groups:
        missing = [name for name in group["parameters"] if name not in parameters]
        if missing:
            raise CheckpointMismatchError(
                "the checkpoint does not fit this run:",
                [
                    "a parameter group was added to the optimizer during the run, with "
                    f"{', '.join(missing)}, which this module does not have"
                ],
            )
        fit.optimization.add_param_group(
            [parameters[name] for name in group["parameters"]],
            optimizer_index=group["optimizer_index"],
            learning_rate=group["learning_rate"],
            weight_decay=group["weight_decay"],
        )
