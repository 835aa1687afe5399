"""Where the time of a fit went: a table at its end, or a trace by paddle.profiler."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import paddle

if TYPE_CHECKING:
    from ..progress import Progress

Timed = Callable[[str, Callable[..., Any]], Callable[..., Any]]


class TimedRun(Protocol):
    """What a profiler needs of a fit."""

    @property
    def progress(self) -> Progress: ...
    @property
    def hooks(self) -> Any: ...
    @property
    def run(self) -> Any: ...
    @property
    def ranks(self) -> Any: ...
    @property
    def settings(self) -> Any: ...
    @property
    def prefetch_says(self) -> str: ...
    @property
    def print(self) -> Callable[..., None]: ...

    def time_with(self, timed: Timed, timed_hook: Timed) -> None:
        """Replace its parts' work by what `timed` makes of it."""


class Profiler(Protocol):
    """What a fit asks of a profiler."""

    def attach(self, run: TimedRun) -> None:
        """Called when all is ready for the first batch."""

    def finish(self, run: TimedRun) -> None:
        """Called when the fit has ended, after an error too."""


def make_profiler(kind: Literal["simple", "paddle"] | None) -> Profiler | None:
    """The profiler that Trainer(profiler=...) names."""
    if kind is None:
        return None
    return SimpleProfiler() if kind == "simple" else PaddleProfiler()


class SimpleProfiler:
    """Seconds by part, each part's own without the parts inside it; 1 to 2 us for each part and batch.

    On an accelerator work is asynchronous: a part is charged for launching its work, and whoever reads a result first
    for waiting.
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
            except StopIteration:  # waiting for a batch that never came
                calls[part] -= 1
                raise
            finally:
                whole = clock() - started
                seconds[part] += whole - inner.pop()
                calls[part] += 1
                if inner:
                    inner[-1] += whole

        return run

    def attach(self, run: TimedRun) -> None:
        for counts in (self.seconds, self.calls, self._inner, self._owners):
            counts.clear()  # type: ignore[attr-defined]
        run.time_with(self.timed, self._timed_hook)
        self._first_step = run.progress.global_step
        self._started = time.perf_counter()

    def _timed_hook(self, hook: str, call: Any) -> Callable[..., Any]:
        method = getattr(call, "func", call)  # callbacks' hooks are partials with the trainer and the module
        owner = type(getattr(method, "__self__", method)).__name__
        part = f"{owner}.{hook}"
        self._owners[part] = owner
        return self.timed(part, call)

    def finish(self, run: TimedRun) -> None:
        if not self._started:
            return
        total = time.perf_counter() - self._started
        self.seconds["everything else"] = total - sum(self.seconds.values())
        self._started = 0.0
        steps = f"steps {self._first_step} to {run.progress.global_step}"
        heading = f"Where the {total:.3f} s of this fit went, {steps}, without what came before the first batch:"
        text = "\n".join(filter(None, [heading, self.table(total), run.prefetch_says]))
        run.print(text)
        if run.run.path is not None and run.ranks.is_zero:
            with (run.run.path / "profile.txt").open("a", encoding="utf-8") as file:  # each process adds its own
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


class PaddleProfiler:
    """paddle.profiler over batches 10 to 20; its trace, for chrome://tracing, goes to `<run_dir>/paddle_profile`."""

    FIRST, LAST = 10, 20

    def __init__(self) -> None:
        self._profiler: Any = None

    def attach(self, run: TimedRun) -> None:
        folder = Path(run.run.path or run.settings.default_root_dir) / "paddle_profile"
        self._profiler = paddle.profiler.Profiler(
            scheduler=(self.FIRST, self.LAST), on_trace_ready=paddle.profiler.export_chrome_tracing(str(folder))
        )
        self._profiler.start()
        run.hooks.add("on_train_batch_end", self._step)

    def _step(self, *_: Any) -> None:
        self._profiler.step()

    def finish(self, run: TimedRun) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
