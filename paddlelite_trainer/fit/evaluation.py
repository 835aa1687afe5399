"""Evaluation: one pass over validation, test or prediction data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import paddle

from ..data.batch_size import weight_of
from ..layers import modes, put_modes_back, saved_statistics
from ..reporting.metrics import MetricCollector
from .steps import step_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..data.source import BatchSource
    from ..machine.engine import Engine
    from ..reporting.log_target import LogTarget
    from .subject import Subject

Stage = Literal["validate", "test", "predict"]
_WORDS = {"validate": "validation", "test": "test", "predict": "predict"}


class EvaluationAbandoned(Exception):
    """A signal came during validation, which will be run anew by the resumed run."""


@dataclass(frozen=True)
class InStep:
    """All ranks take an evaluation's batches together, since each of its layers gathers its weights from all."""

    engine: Engine
    batches: Sequence[int]
    """Of each loader, those of the rank that has most."""


class Evaluation:
    """One evaluation: its data, what it collects, the batch at hand.

    `take` is given the collector when there are values to publish, and whether it is to log them, and returns them.
    """

    optimization = None  # nothing learns

    def __init__(
        self,
        stage: Stage,
        target: LogTarget,
        collector: MetricCollector,
        take: Callable[[MetricCollector, bool], dict[str, float]],
        *,
        limit: int | None = None,
        keep_outputs: bool = False,
        stop_early: Callable[[], bool] | None = None,
        in_step: InStep | None = None,
    ) -> None:
        self.stage, self.target, self.collector, self.take = stage, target, collector, take
        self.limit, self.keep_outputs, self.stop_early = limit, keep_outputs, stop_early
        self.in_step = in_step
        self.word = _WORDS[stage]
        self.subject: Subject | None = None
        self.sources: Sequence[BatchSource] = ()
        self.source: BatchSource | None = None
        """The one whose batch is at hand."""
        self.ckpt_path: Path | None = None
        self.batch: Any = None
        self._logged_by: dict[str, set[int]] = {}  # which loaders' batches have logged a name
        self.is_at_work = False
        """Between setup and teardown."""

    def use_weights_of(self, path: Path) -> None:
        self.ckpt_path = path

    def begin(self, subject: Subject) -> None:
        self.subject = subject

    def run(self, subject: Subject, sources: Sequence[BatchSource]) -> list[Any]:
        """Each loader's metrics, or each loader's outputs for predict.

        The module's and every sublayer's train or eval mode is as before afterwards, after an error too.
        """
        self.sources, self.is_at_work = sources, True
        module = subject.module
        found = modes(module)
        self.collector.clear()
        self.collector.look_at(self._batch_size)
        try:
            with self.target.into(None if self.stage == "predict" else self.collector), paddle.no_grad():
                module.eval()
                return self._pass(subject)
        finally:
            self.batch, self.is_at_work = None, False
            # Paddle's metrics too: a checkpoint must not hold their counts as the next evaluation's beginning.
            self.collector.clear()
            put_modes_back(found)

    def _pass(self, subject: Subject) -> list[Any]:
        call, word = subject.hooks.call, self.word
        call(f"on_{word}_start")
        call(f"on_{word}_epoch_start")
        outputs, ranks = [], subject.loading.ranks
        with ranks.those_of_rank_zero(saved_statistics(subject.module) if ranks.world_size > 1 else {}):
            for index, source in enumerate(self.sources):
                before = self.collector.amounts()
                outputs.append(self._over(subject, source, index))
                for name, amount in self.collector.amounts().items():
                    if amount != before.get(name):
                        self._logged_by.setdefault(name, set()).add(index)
        self.target.add_to_names("")
        if self.stage == "predict":
            call(f"on_{word}_epoch_end")
            call(f"on_{word}_end")
            return [ranks.dealt_out_again(one) for one in outputs] if self.keep_outputs else outputs
        self.take(self.collector, False)  # hooks find this evaluation's values, and may log more
        call(f"on_{word}_epoch_end")
        values = self.take(self.collector, True)
        late = MetricCollector()
        late.look_at(self._batch_size)
        self.target.collect(late, on_step=False)
        call(f"on_{word}_end")
        values.update(self.take(late, True))
        return self._by_loader(values, {**self.collector.names_of_epochs(), **late.names_of_epochs()})

    def _over(self, subject: Subject, source: BatchSource, index: int) -> list[Any]:
        """The batches of one loader: the way of a batch, as in fit/loop.py but without learning."""
        hooks, loading = subject.hooks, subject.loading
        several = len(self.sources) > 1
        more = (index,) if several else ()
        step = step_of(subject.module, self.stage, len(self.sources))
        self.target.add_to_names(f"/dataloader_idx_{index}" if several else "")
        self.source = source
        prepare, autocast = loading.preparation(source, index), loading.precision.autocast
        starts, ends = hooks.of(f"on_{self.word}_batch_start"), hooks.of(f"on_{self.word}_batch_end")
        kept: list[Any] = []
        in_step, done = self.in_step, 0
        with contextlib.closing(_limited(source, self.limit)) as batches:
            for batch_idx, batch in enumerate(batches):
                if prepare is not None:
                    batch = prepare(batch)
                self.batch = batch
                if in_step is not None:
                    in_step.engine.begin_batch()
                    done += 1
                for hook in starts:
                    hook(batch, batch_idx, *more)
                if autocast is None:
                    outputs = step(batch, batch_idx, *more)
                else:
                    with autocast():
                        outputs = step(batch, batch_idx, *more)
                for hook in ends:
                    hook(outputs, batch, batch_idx, *more)
                if self.keep_outputs:
                    kept.append(outputs)
                if self.stop_early is not None and self.stop_early():
                    raise EvaluationAbandoned
        if in_step is not None:
            for _ in range(done, in_step.batches[index]):
                in_step.engine.go_along()
        return kept

    def _batch_size(self) -> int:
        source = self.source
        return 1 if source is None else source.samples or weight_of(self.batch, source.batch_size)

    def _by_loader(self, values: Mapping[str, float], names: Mapping[str, str]) -> list[dict[str, float]]:
        """The epoch's values of each loader: those that its batches have logged, and those that none's have."""
        everyone = set(range(len(self.sources)))
        return [
            {
                name: value
                for name, value in values.items()
                if name in names and index in self._logged_by.get(names[name], everyone)
            }
            for index in sorted(everyone)
        ]


def _limited(source: BatchSource, limit: int | None) -> Generator[Any, None, None]:
    for count, batch in enumerate(source.epoch(0)):
        if limit is not None and count >= limit:
            return
        yield batch
