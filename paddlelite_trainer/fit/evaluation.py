"""One pass over validation, test or prediction data."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import paddle

from ..module import is_written

if TYPE_CHECKING:
    from ..data.source import BatchSource
    from ..reporting.metrics import MetricCollector
    from ..trainer import Stage, Trainer


class EvaluationAbandoned(Exception):
    """A signal came during validation, which will be run anew by the resumed run."""


def evaluate(
    trainer: Trainer,
    stage: Stage,
    sources: Sequence[BatchSource],
    collector: MetricCollector,
    *,
    limit: int | None = None,
    keep_outputs: bool = False,
) -> list[Any]:
    """Run one evaluation epoch; returns each loader's metrics, or each loader's outputs for predict.

    The module's and every sublayer's train or eval mode is as before afterwards, after an error too.
    """
    word = {"validate": "validation"}.get(stage, stage)
    step = getattr(trainer.model, f"{word}_step")
    takes_index = is_written(trainer.model, f"{word}_step")  # Module's own predict_step has no use for it
    before = (trainer._collector, trainer._logs_steps, trainer.training)
    modes = [(layer, layer.training) for layer in trainer.model.sublayers(include_self=True)]
    collector.clear()
    collector.batch_size = trainer._current_batch_size
    trainer._collector, trainer._logs_steps, trainer.training = (
        (None if stage == "predict" else collector),
        False,
        False,
    )
    flag = {"validate": "validating", "test": "testing", "predict": "predicting"}[stage]
    setattr(trainer, flag, True)
    trainer._sources_in_use = sources
    autocast = trainer.precision.autocast
    batch_start, batch_end = (
        trainer._hooks.get(f"on_{word}_batch_start", ()),
        trainer._hooks.get(f"on_{word}_batch_end", ()),
    )
    results: list[Any] = []
    try:
        trainer.model.eval()
        with paddle.no_grad():
            trainer._call(f"on_{word}_start")
            trainer._call(f"on_{word}_epoch_start")
            for index, source in enumerate(sources):
                more = (index,) if len(sources) > 1 else ()
                step_more = more if takes_index else ()
                trainer._dataloader_suffix = f"/dataloader_idx_{index}" if more else ""
                prepare_batch = trainer._batch_preparation(source, index)
                outputs_kept: list[Any] = []
                with contextlib.closing(_limited(source, limit)) as batches:
                    for batch_idx, batch in enumerate(batches):
                        if prepare_batch is not None:
                            batch = prepare_batch(batch)
                        trainer._batch = batch
                        for hook in batch_start:
                            hook(batch, batch_idx, *more)
                        if autocast is None:
                            outputs = step(batch, batch_idx, *step_more)
                        else:
                            with autocast():
                                outputs = step(batch, batch_idx, *step_more)
                        for hook in batch_end:
                            hook(outputs, batch, batch_idx, *more)
                        if keep_outputs:
                            outputs_kept.append(outputs)
                        if trainer.signals.received is not None and trainer.ranks.world_size == 1:
                            raise EvaluationAbandoned
                results.append(outputs_kept)
            trainer._dataloader_suffix = ""
            if stage != "predict":  # hooks find this evaluation's values, and may log more
                values = _values_over_ranks(trainer, collector)
                if trainer.state != "fit":
                    trainer._evaluated_apart.update(values.keys() - trainer.metrics_of_the_fit().keys())
                trainer._publish(values)
            trainer._call(f"on_{word}_epoch_end")
            if stage != "predict":
                results = _results(trainer, collector, len(sources))
            trainer._call(f"on_{word}_end")
    finally:
        trainer._collector, trainer._logs_steps, trainer.training = before
        setattr(trainer, flag, False)
        trainer._dataloader_suffix = ""
        collector.clear()  # paddle metrics too: a checkpoint must not hold their counts as the next evaluation's beginning
        for layer, mode in modes:
            layer.training = mode
    return results


def _limited(source: BatchSource, limit: int | None) -> Generator[Any, None, None]:
    for count, batch in enumerate(source.epoch(0)):
        if limit is not None and count >= limit:
            return
        yield batch


def _results(trainer: Trainer, collector: MetricCollector, loaders: int) -> list[dict[str, float]]:
    values = _values_over_ranks(trainer, collector)
    if not trainer.sanity_checking:
        trainer._publish(values)
        trainer._progress_bar_metrics.update(collector.epoch_values(prog_bar=True))
        to_log = {**collector.step_values(logger=True), **collector.epoch_values(logger=True)}
        if to_log:
            trainer.log_metrics(to_log)
    else:
        trainer._callback_metrics.update(values)
    if loaders == 1:
        return [dict(values)]
    marked = [f"/dataloader_idx_{index}" for index in range(loaders)]
    return [
        {
            name: value
            for name, value in values.items()
            if name.endswith(mark) or not any(name.endswith(other) for other in marked)
        }
        for mark in marked
    ]


def _values_over_ranks(trainer: Trainer, collector: MetricCollector) -> dict[str, float]:
    if trainer.ranks.world_size > 1:
        collector.reduce_over(trainer.ranks.gather_object)
    return collector.callback_values(epoch_end=True)
