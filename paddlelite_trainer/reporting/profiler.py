"""Where the time of a fit went: a table at its end, or a trace by paddle.profiler."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import paddle

if TYPE_CHECKING:
    from ..data.source import BatchSource
    from ..trainer import Trainer


class Profiler(Protocol):
    """What Trainer asks of a profiler."""

    def attach(self, trainer: Trainer) -> None:
        """Called when all is ready for the first batch."""

    def finish(self, trainer: Trainer) -> None:
        """Called when the fit has ended, after an error too."""


def make_profiler(kind: Literal["simple", "paddle"] | None) -> Profiler | None:
    """The profiler that Trainer(profiler=...) names."""
    if kind is None:
        return None
    return SimpleProfiler() if kind == "simple" else PaddleProfiler()


class SimpleProfiler:
    """Seconds by part, each part's own without the parts inside it; 1 to 2 us for each part and batch.

    On an accelerator work is asynchronous: a part is charged for launching its work, and whoever reads a result first for waiting.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._inner: list[float] = []
        self._owners: dict[str, str] = {}  # of hooks, by their parts
        self._started = 0.0
        self._first_step = 0

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, with its time charged to `part`."""
        seconds, calls, inner, clock = self.seconds, self.calls, self._inner, time.perf_counter
        seconds.setdefault(part, 0.0)
        calls.setdefault(part, 0)

        @functools.wraps(work)
        def run(*arguments: Any, **options: Any) -> Any:
            inner.append(0.0)
            started = clock()
            try:
                return work(*arguments, **options)
            finally:
                whole = clock() - started
                seconds[part] += whole - inner.pop()
                calls[part] += 1
                if inner:
                    inner[-1] += whole

        return run

    def attach(self, trainer: Trainer) -> None:
        self.seconds.clear()
        self.calls.clear()
        self._inner.clear()
        self._owners.clear()
        for method, part in _PARTS.items():
            # On the object, over the class's method: the loop looks names up there, and without a profiler pays nothing.
            setattr(trainer, method, self.timed(part, getattr(trainer, method)))
        for hook, calls in trainer._hooks.items():
            trainer._hooks[hook] = [self._timed_hook(hook, call) for call in calls]
        for collector in (trainer._train_metrics, trainer._val_metrics):
            collector.log = self.timed("self.log", collector.log)  # type: ignore[method-assign]
        self._watch(trainer._train_source, "waiting for data")
        for source in trainer._val_sources:
            self._watch(source, "waiting for validation data")
        # These give new ones in the course of a fit.
        sources, preparation = trainer._sources, trainer._batch_preparation

        def watched_sources(*which: Any) -> list[BatchSource]:
            return [self._watch(source, "waiting for data") for source in sources(*which)]

        def timed_preparation(*which: Any) -> Callable[[Any], Any] | None:
            prepare = preparation(*which)
            return None if prepare is None else self.timed("batches to the device", prepare)

        trainer.__dict__.update(_sources=watched_sources, _batch_preparation=timed_preparation)
        self._first_step = trainer.global_step
        self._started = time.perf_counter()

    def _timed_hook(self, hook: str, call: Any) -> Callable[..., Any]:
        method = getattr(call, "func", call)  # callbacks' hooks are partials with the trainer and the module
        owner = type(getattr(method, "__self__", method)).__name__
        part = f"{owner}.{hook}"
        self._owners[part] = owner
        return self.timed(part, call)

    def _watch(self, source: Any, part: str) -> Any:
        epoch, fetch = source.epoch, self.timed(part, next)
        end = object()

        def watched(*position: Any, **options: Any) -> Iterator[Any]:
            batches = epoch(*position, **options)
            while (batch := fetch(batches, end)) is not end:
                yield batch
            self.calls[part] -= 1  # calls are batches

        source.epoch = watched
        return source

    def finish(self, trainer: Trainer) -> None:
        if not self._started:
            return
        total = time.perf_counter() - self._started
        for method in (*_PARTS, "_sources", "_batch_preparation"):
            trainer.__dict__.pop(method, None)
        for collector in (trainer._train_metrics, trainer._val_metrics):
            collector.__dict__.pop("log", None)
        self.seconds["everything else"] = total - sum(self.seconds.values())
        self._started = 0.0
        heading = f"Where the {total:.3f} s of this fit went, steps {self._first_step} to {trainer.global_step}, without what came before the first batch:"
        text = f"{heading}\n{self.table(total)}"
        source = trainer._train_source
        if source is not None and source.prefetch is not None:
            text += f"\n{source.prefetch.describe()}"
        trainer.print(text)
        if trainer.run_dir is not None and trainer.is_global_zero:
            with (trainer.run_dir / "profile.txt").open("a", encoding="utf-8") as file:  # each process adds its own
                file.write(text + "\n\n")

    def table(self, total: float) -> str:
        """Parts with the most time first; a callback's hooks of less than a thousandth in one row."""
        seconds, calls = dict(self.seconds), dict(self.calls)
        for part, owner in self._owners.items():
            if seconds[part] < total / 1000:
                rest = f"{owner}, its other hooks"
                seconds[rest] = seconds.get(rest, 0.0) + seconds.pop(part)
                calls[rest] = calls.get(rest, 0) + calls.pop(part)
        width = max(len(part) for part in seconds)
        lines = [f"{'part':<{width}}  {'seconds':>9}  {'share':>6}  {'calls':>9}  {'us a call':>10}"]
        for part, own in sorted(seconds.items(), key=lambda row: -row[1]):
            count = calls.get(part, 0)
            if not count and part in calls:
                continue  # never came
            each = f"{own / count * 1e6:>10,.1f}" if count else ""
            lines.append(f"{part:<{width}}  {own:>9.3f}  {own / total:>6.1%}  {count or '':>9}  {each}".rstrip())
        return "\n".join([*lines, f"{'all':<{width}}  {total:>9.3f}  {1:>6.1%}"])


# Methods of the Trainer, and what the table calls the time in them.
_PARTS = {
    "_step": "training_step",
    "_backward": "backward",
    "_step_optimizer": "optimizer step",
    "_schedule_step": "learning rate schedules",
    "_validate_in_fit": "validation",
    "_log_steps": "logging: reading values",
    "log_metrics": "logging: writing",
    "_save_point": "checkpoints: deciding",
    "_take_checkpoint": "checkpoints: writing",
    "_await_save": "checkpoints: waiting for one in the background",
}


class PaddleProfiler:
    """paddle.profiler over batches 10 to 20; its trace, for chrome://tracing, goes to `<run_dir>/paddle_profile`."""

    FIRST, LAST = 10, 20

    def __init__(self) -> None:
        self._profiler: Any = None

    def attach(self, trainer: Trainer) -> None:
        folder = Path(trainer.run_dir or trainer.default_root_dir) / "paddle_profile"
        self._profiler = paddle.profiler.Profiler(
            scheduler=(self.FIRST, self.LAST), on_trace_ready=paddle.profiler.export_chrome_tracing(str(folder))
        )
        self._profiler.start()
        trainer._hooks["on_train_batch_end"] = [*trainer._hooks.get("on_train_batch_end", ()), self._step]

    def _step(self, *_: Any) -> None:
        self._profiler.step()

    def finish(self, trainer: Trainer) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
