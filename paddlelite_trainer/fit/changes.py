"""What may differ between a checkpoint and the run that goes on from it: refused, allowed and told, or overridden."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import paddle

from ..errors import CheckpointMismatchError, did_you_mean
from ..hyperparameters import stored
from ..machine import paddle_internals
from ..optimizers import parameters_of

if TYPE_CHECKING:
    from .fit import Fit
    from .saved import Saved

TOLD = {
    "world_size": "number of processes",
    "precision": "precision",
    "accumulate_grad_batches": "accumulate_grad_batches",
    "gradient_clip_val": "gradient_clip_val",
    "paddle": "Paddle",
    "cpu_threads": "threads of a CPU operator",
    "samples": "samples in the training data",
    "split": "which samples are trained on (Subset.indices; seed what splits the data)",
    "batch_size": "batch size",
    "batches_per_epoch": "batches per epoch",
}
"""{field of `fingerprint`: its name in sentences}; a difference is allowed, and said once."""
POSITION_DEPENDS_ON = ("world_size", "samples", "split", "batch_size", "batches_per_epoch")
"""Fields that may only differ between epochs: within one, the position would mean other samples."""


def fingerprint(fit: Fit) -> dict[str, Any]:
    """The settings whose change a resume must report."""
    source = fit.data.train if fit.data is not None else None
    loader = source.loader if source is not None else None
    settings = fit.settings
    return {
        "world_size": fit.ranks.world_size,
        "precision": fit.precision.effective,
        "accumulate_grad_batches": dict(settings.accumulation),
        "batches_per_epoch": source.whole_length if source is not None else None,
        "samples": _length(getattr(loader, "dataset", None)),
        "split": _split(getattr(loader, "dataset", None)),
        "batch_size": getattr(getattr(loader, "batch_sampler", None), "batch_size", None),
        "paddle": paddle.__version__,
        "cpu_threads": fit.cpu_threads,
        "gradient_clip_val": settings.gradient_clip_val,
        "max_epochs": settings.max_epochs,
        "max_steps": settings.max_steps,
        "optimizer_constants": [
            paddle_internals.constants(one) for one in (fit.optimization.optimizers if fit.optimization else ())
        ],
    }


def check(fit: Fit, saved: Saved, override: Collection[str]) -> list[str]:
    """Sentences about what is allowed to differ and does.

    Raises:
        CheckpointMismatchError: lists everything that must not differ, with saved and present value and the remedy.
    """
    tree = saved.tree
    now = fingerprint(fit)
    before = {"split": now["split"], **tree["run"]}  # an earlier version did not save it
    compared, problems, notes = now, [], []
    if saved.ranks != fit.ranks.world_size:
        compared = {**now, "world_size": saved.ranks, **_as_before(fit, saved)}
        notes.append(_another_number_of_ranks(fit, saved, before, now))
    changed = [field for field in TOLD if before.get(field) != compared[field]]
    if tree["progress"]["epoch_is_open"] and "data" not in override:
        where = f"in the middle of epoch {tree['progress']['current_epoch']}"
        instead = "Use the saved one until the epoch ends, or pass override=('data',) to begin this epoch again"
        problems = [
            f"{TOLD[field]}: saved {before.get(field)}, now {compared[field]}, {where}. {instead}"
            for field in changed
            if field in POSITION_DEPENDS_ON
        ]
        why_not = _why_not_dealt_again(fit, saved)
        if why_not is not None:
            kind = f"{TOLD['world_size']}: saved {saved.ranks}, now {fit.ranks.world_size}"
            problems.append(f"{kind}, {where}, and {why_not}. {instead}")
    if "optimizer" not in override:
        problems += _optimizer_problems(fit, saved)
        if "lr_schedulers" not in override:
            problems += _scheduler_problems(fit, tree["lr_schedulers"])
    if problems:
        raise CheckpointMismatchError("the checkpoint does not fit this run:", problems)
    told = [
        f"{TOLD[field]}: saved {before.get(field)}, now {now[field]}. "
        "The run goes on with the present one, and no longer as it would have."
        for field in changed
    ]
    return [
        *notes,
        *told,
        *(_constants(before.get("optimizer_constants", []), now) if "optimizer" not in override else ()),
        *_hyper_parameters(tree["hyper_parameters"], stored(fit.module.hparams)),
    ]


def _constants(saved: Sequence[Mapping[str, float]], now: Mapping[str, Any]) -> list[str]:
    """Of the optimizers; their state is restored, and what they were built with is the present one's."""
    several = len(saved) > 1
    return [
        f"{name} of optimizer{f' {index}' if several else ''}: saved {old[name]}, now {new[name]}. "
        "The run goes on with the present one, and no longer as it would have."
        for index, (old, new) in enumerate(zip(saved, now["optimizer_constants"]))
        for name in new
        if name in old and old[name] != new[name]
    ]


# -- another number of ranks -------------------------------------------------------------------------------------------
def _position(saved: Saved) -> Mapping[str, Any]:
    return saved.of_rank(0)["data"] or {}


def _as_before(fit: Fit, saved: Saved) -> dict[str, Any]:
    """What the present data would have been for as many ranks as saved."""
    source = fit.data.train if fit.data is not None else None
    return {"batches_per_epoch": source.length_before(_position(saved), saved.ranks) if source is not None else None}


def _why_not_dealt_again(fit: Fit, saved: Saved) -> str | None:
    if saved.ranks == fit.ranks.world_size or fit.data is None:
        return None
    return fit.data.train.why_not_dealt_again(_position(saved), saved.ranks)


def _another_number_of_ranks(fit: Fit, saved: Saved, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changes with it, and how to keep what a step sees; nothing is scaled for the user."""
    epoch = saved.tree["progress"]["current_epoch"]
    ranks, window = fit.ranks.world_size, fit.settings.window_of(epoch)
    earlier = before["accumulate_grad_batches"]
    window_before = earlier[max(first for first in earlier if first <= epoch)]
    words = f"number of processes: saved {saved.ranks}, now {ranks}. "
    if saved.tree["progress"]["epoch_is_open"]:
        words += f"What is left of epoch {epoch} is dealt out anew, in the same order. "
    if now["batches_per_epoch"] != before["batches_per_epoch"] and window == window_before:
        words += (
            f"An epoch has {now['batches_per_epoch']} batches on each, where it had {before['batches_per_epoch']}: "
            "what goes by batches or steps (max_steps, schedules, warm-up) is another share of the data now. "
        )
    factor = ranks * window / (saved.ranks * window_before)
    if factor == 1:
        return words + "A step sees as many samples as before."
    times = f"{factor:.3g}"
    return words + (
        f"A step sees {times} times as many samples, and nothing is scaled for you: {_keeping(factor, window, now)}"
        f"recipes multiply the learning rate by {times}, of Adam and its kin by {factor**0.5:.3g}."
    )


def _keeping(factor: float, window: int, now: Mapping[str, Any]) -> str:
    """The words for how a step sees as many samples as before."""
    if window / factor == int(window / factor):
        return f"accumulate_grad_batches={int(window / factor)} keeps what a step sees, else "
    size = now["batch_size"]
    if size and size / factor == int(size / factor):
        return f"batch_size={int(size / factor)} from the next epoch on keeps what a step sees, else "
    return ""


def _hyper_parameters(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    # By what they print, since they may be arrays and anything else.
    return [
        f"hyper-parameter {name}: saved {saved[name]!r:.60}, now {now[name]!r:.60}; "
        "the module was built with the present one."
        for name in now
        if name in saved and repr(saved[name]) != repr(now[name])
    ]


def _optimizer_problems(fit: Fit, saved: Saved) -> list[str]:
    assert fit.optimization is not None
    states, optimizers = saved.tree["optimizers"], fit.optimization.optimizers
    afresh = "or pass override=('optimizer',) to start"
    if len(states) != len(optimizers):
        return [f"number of optimizers: saved {len(states)}, now {len(optimizers)}. Use as many, {afresh} them afresh"]
    problems = []
    added = {name for group in saved.tree["added_param_groups"] for name in group["parameters"]}
    names = saved.checkpoint.tensors("optimizer.pdopt")
    for index, (optimizer, state) in enumerate(zip(optimizers, states)):
        which = f" {index}" if len(states) > 1 else ""
        if state["class"] != type(optimizer).__name__:
            problems.append(
                f"class of optimizer{which}: saved {state['class']}, now {type(optimizer).__name__}. "
                f"Use the saved class, {afresh} it afresh"
            )
            continue
        prefix = f"optimizer_{index}/"
        mine = {fit.optimization.parameter_names[parameter.name] for parameter in parameters_of(optimizer)} | added
        with_state = {name[len(prefix) :].rsplit("/", 1)[0] for name in names if name.startswith(prefix)}
        problems += [
            f"optimizer{which}'s state of parameter {name}: saved, and now it has no such parameter."
            f"{did_you_mean(name, mine)} Give it the parameter, {afresh} it afresh"
            for name in sorted(with_state - mine)
        ]
    return problems


def _scheduler_problems(fit: Fit, states: list[Mapping[str, Any]]) -> list[str]:
    assert fit.schedules is not None
    present = fit.schedules.configs
    remedy = "pass override=('lr_schedulers',) to go on with the present ones from their start"
    if len(states) != len(present):
        return [f"number of schedulers: saved {len(states)}, now {len(present)}. Use as many, or {remedy}"]
    pairs = [(state["now"]["class"], type(config.scheduler).__name__) for state, config in zip(states, present)]
    return [
        f"class of scheduler: saved {old}, now {new}. Use the saved class, or {remedy}"
        for old, new in pairs
        if old != new
    ]


def _split(dataset: Any) -> str | None:
    """Tells two splits of one dataset apart, by 64 of a Subset's indices; None of anything else."""
    if not isinstance(dataset, paddle.io.Subset) or len(dataset.indices) == 0:
        return None
    indices = list(dataset.indices[:: max(1, len(dataset.indices) // 64)])
    return hashlib.sha256(repr([int(index) for index in indices]).encode()).hexdigest()[:12]


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, ValueError, AttributeError, RuntimeError):  # Paddle's IterableDataset raises RuntimeError
        return None
