"""What a checkpoint holds of each rank: saved by all of them, and given back to as many or to another number of ranks.

With another number, by these rules (W ranks saved, the checkpoint is resumed on more or fewer):
- what of the running epoch was left is dealt out anew, `data/share.py`;
- sums of metrics, and the counts of Paddle's own, are added up and go to rank 0: an epoch's value is taken over all
  ranks in the end. Other objects that count stay with the rank that they were on, as far as there is one;
- gradients of an open accumulation window: each rank has their mean, so the window's mean is what it would be;
- BatchNorm's statistics, and tensors outside the state_dict: rank r has those of rank r % W;
- random numbers: ranks below W go on with their own, others are seeded from (seed, "rank", rank, batches done).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from ..checkpoint.tensors import from_bfloat16, to_bfloat16
from ..gradients import put_gradient_back, saved_gradient
from ..layers import saved_statistics
from ..machine.rng import derive_seed, random_states, seed_generators, set_random_states
from ..reporting.metrics import counts_added_up, dealt_again, paddle_metrics_of, set_counts, stored_counts

if TYPE_CHECKING:
    from .fit import Fit
    from .mark import Mark
    from .saved import Saved


def rank_tree(fit: Fit, as_of: Mark | None = None) -> dict[str, Any]:
    """What differs between ranks: random states, the epoch's sums, the loader's position, BatchNorm's statistics."""
    assert fit.data is not None and fit.optimization is not None
    buffers: dict[str, Any] = {}
    if fit.ranks.world_size > 1:
        buffers = {name: value.numpy() for name, value in saved_statistics(fit.module).items()}
    # A validation may be given up within a window; and in manual optimization a user may accumulate over batches.
    has_gradients = fit.progress.batches_in_window > 0 or not fit.optimization.is_automatic
    if as_of is not None and not as_of.gradients_hold:
        has_gradients = False
    names = fit.optimization.parameter_names
    return {
        "random": random_states(),
        "metrics": fit.book.train.state_dict(epoch_is_over=fit.data.train.is_last),
        "paddle_metrics": _metric_counts(fit),
        "data": as_of.source if as_of is not None else fit.data.train.state_dict(),
        "gradients": {
            names[parameter.name]: saved_gradient(parameter.grad)
            for parameter in (fit.optimization.gradients() if has_gradients else ())
        },
        "buffers": buffers,
        "plain_tensors": fit.plain_tensors.changed(),
        "filled": fit.plain_tensors.filled(),
    }


def _metric_counts(fit: Fit) -> dict[str, Any]:
    counts = {}
    for place, metric in paddle_metrics_of(fit.module).items():
        counts[place], left = stored_counts(metric)
        for name in left:
            fit.tell_once(
                f"{name!r} of the metric {place} ({type(metric).__name__}) holds what a checkpoint cannot: a run "
                "that is resumed within an epoch counts only the rest of it. Keep numbers, strings or arrays in it."
            )
    return counts


def restore_rank(fit: Fit, saved: Saved, override: Sequence[str]) -> list[str]:
    """Put back what is this rank's; returns sentences about what could not be."""
    assert fit.data is not None
    here = fit.ranks
    notes: list[str] = []
    if saved.ranks == here.world_size:
        rank = saved.of_rank(here.rank)
        for place, metric in paddle_metrics_of(fit.module).items():
            if place in rank["paddle_metrics"]:
                set_counts(metric, rank["paddle_metrics"][place])
    else:
        rank, notes = _of_another_number(fit, saved)
    fit.book.train.load_state_dict(rank["metrics"])
    parameters = dict(fit.module.named_parameters())
    for name, gradient in rank["gradients"].items():
        put = partial(put_gradient_back, saved=gradient)
        put(parameters[name]) if fit.engine is None else fit.engine.put_gradient_back(parameters[name], put)
    if "data" not in override and rank["data"] is not None:
        fit.data.train.load_state_dict(rank["data"])
        if not fit.progress.epoch_is_open:
            fit.data.train.begin_whole()
        elif saved.ranks != here.world_size:
            fit.progress.go_on_in_epoch_at(fit.data.train.batches_done)
    fit.plain_tensors.put_back(rank.get("plain_tensors", {}))  # an earlier version has none
    present = fit.module.state_dict()
    for name, value in rank["buffers"].items():
        present[name].set_value(value)
    return notes + fit.plain_tensors.lost(rank.get("filled", {}))


def restore_random_states(fit: Fit, saved: Saved) -> None:
    """This rank's generators; to be called when nothing will be drawn any more before the first batch."""
    rank, seed = fit.ranks.rank, fit.seed
    assert seed is not None
    if rank >= saved.ranks:
        seed_generators(derive_seed(seed, "rank", rank, fit.progress.total_batches))
        return
    states = saved.of_rank(rank)["random"]
    set_random_states(states)
    if states["paddle"]["cpu"] is None:  # saved by a Paddle that cannot tell it
        paddle.seed(derive_seed(seed, "resumed at", fit.progress.total_batches))


def _of_another_number(fit: Fit, saved: Saved) -> tuple[dict[str, Any], list[str]]:
    """What this rank goes on with where another number of ranks had saved; paddle metrics are set already."""
    assert fit.data is not None
    rank, ranks, progress = fit.ranks.rank, fit.ranks.world_size, fit.progress
    everyones = [saved.of_rank(one) for one in range(saved.ranks)]
    own = dict(everyones[rank % saved.ranks])
    own["metrics"] = dealt_again([one["metrics"] for one in everyones], rank)
    own["gradients"] = means_over_ranks([one["gradients"] for one in everyones])
    source, position = fit.data.train, everyones[0]["data"]
    if position is not None and progress.epoch_is_open and source.why_not_dealt_again(position, saved.ranks) is None:
        own["data"] = source.dealt_again({**position, "batches_done": progress.batches_in_epoch}, saved.ranks)
    left = []
    for place, metric in paddle_metrics_of(fit.module).items():
        counts = [one["paddle_metrics"][place] for one in everyones if place in one["paddle_metrics"]]
        metric.reset()
        sums = counts_added_up(metric, counts) if counts else None
        if sums is not None and rank == 0:
            set_counts(metric, sums)
        elif sums is None and counts and rank < len(counts):
            set_counts(metric, counts[rank])
        if sums is None and len(counts) > ranks and progress.epoch_is_open:
            left.append(f"{place} ({type(metric).__name__})")
    if not left:
        return own, []
    return own, [
        f"what {', '.join(left)} had counted on rank {ranks} and above in this epoch is left aside: how the counts of "
        "such an object are put together is not known here."
    ]


def means_over_ranks(everyones: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over ranks of each gradient, of its own type; of one process alone it may be sparse."""
    if len(everyones) == 1:
        return dict(everyones[0])
    names = dict.fromkeys(name for one in everyones for name in one)
    return {name: _mean([np.asarray(one[name]) for one in everyones if name in one], len(everyones)) for name in names}


def _mean(gradients: Sequence[np.ndarray], count: int) -> np.ndarray:
    dtype = gradients[0].dtype
    if dtype == np.uint16:  # no gradient is of whole numbers: they are bfloat16's bits
        return to_bfloat16(np.asarray(sum(map(from_bfloat16, gradients)) / np.float32(count)))
    wide = np.promote_types(dtype, np.float32)
    return np.asarray(sum(one.astype(wide) for one in gradients) / np.float32(count)).astype(dtype)
