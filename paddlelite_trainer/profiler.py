"""Where the time of a fit went: a table at its end, or a trace by paddle.profiler."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import paddle

if TYPE_CHECKING:
    from .trainer import Trainer


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
        self._started = 0.0

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
        for attribute, part in (
            ("_step", "training_step"),
            ("_backward", "backward"),
            ("_step_optimizer", "optimizer step"),
            ("_validate_in_fit", "validation"),
            ("_save_point", "save points: deciding"),
            ("_take_checkpoint", "save points: writing"),
            ("log_metrics", "logging"),
        ):
            # On the object, over the class's method: the loop looks names up there, and without a profiler pays nothing.
            setattr(trainer, attribute, self.timed(part, getattr(trainer, attribute)))
        for hook, calls in trainer._hooks.items():
            trainer._hooks[hook] = [self.timed(f"{_owner(call)}.{hook}", call) for call in calls]
        source = trainer._train_source
        if source is not None:
            epoch = source.epoch
            source.epoch = lambda *position, **options: self._waiting(epoch(*position, **options))  # type: ignore[method-assign]
        self._started = time.perf_counter()

    def _waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        end = object()
        fetch = self.timed("waiting for data", functools.partial(next, batches, end))
        while (batch := fetch()) is not end:
            yield batch

    def finish(self, trainer: Trainer) -> None:
        if not self._started:
            return
        total = time.perf_counter() - self._started
        for attribute in (
            "_step",
            "_backward",
            "_step_optimizer",
            "_validate_in_fit",
            "_save_point",
            "_take_checkpoint",
            "log_metrics",
        ):
            trainer.__dict__.pop(attribute, None)
        self.seconds["the loop itself"] = total - sum(self.seconds.values())
        self._started = 0.0
        text = self.table(total)
        trainer.print(text)
        if trainer.run_dir is not None and trainer.is_global_zero:
            (trainer.run_dir / "profile.txt").write_text(text + "\n", encoding="utf-8")

    def table(self, total: float) -> str:
        """Parts with the most time first."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        width = max(len(part) for part, _ in rows)
        lines = [f"{'part':<{width}}  {'seconds':>9}  {'share':>6}  {'calls':>9}  {'us a call':>10}"]
        for part, seconds in rows:
            calls = self.calls.get(part, 0)
            if seconds == 0.0 and not calls:
                continue
            each = f"{seconds / calls * 1e6:>10,.1f}" if calls else " " * 10
            lines.append(
                f"{part:<{width}}  {seconds:>9.3f}  {seconds / total:>6.1%}  {calls or '':>9}  {each}".rstrip()
            )
        return "\n".join([*lines, f"{'all':<{width}}  {total:>9.3f}"])


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


def _owner(call: Any) -> str:
    method = getattr(call, "func", call)  # callbacks' hooks are partials with the trainer and the module
    return type(getattr(method, "__self__", method)).__name__
