"""ProgressBar: where a run is; one line per epoch where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callback import imports_without_a_draw, is_terminal, print_line
from paddlelite_trainer.errors import ConfigurationError

_STAGE_WORDS = {"validate": "Validation", "test": "Test", "predict": "Prediction"}


class ProgressBar(Callback):
    """Shows epoch, batches, speed and the metrics logged with `prog_bar=True`.

    In a terminal and a notebook it is a bar, redrawn at most every `refresh_seconds`: between two redraws a batch costs
    one look at the clock, and metrics are brought from the device only for a redraw. Each epoch leaves a line above it.
    Where the output is a file or a pipe, it is one line per epoch, and one for each validation, test or prediction of
    its own. Prints appear above the bar, whole.

    Args:
        refresh_seconds: least time between redraws.
        leave: write the line per epoch above the bar too; False leaves nothing but the last bar.
    """

    comes_last_at_epoch_end = True

    def __init__(self, refresh_seconds: float = 0.25, leave: bool = True) -> None:
        if refresh_seconds < 0:
            raise ConfigurationError(f"ProgressBar(refresh_seconds=...) must be >= 0, got {refresh_seconds!r}")
        self.refresh_seconds = refresh_seconds
        self.leave = leave
        self._bar: Any = None
        self._train_task: Any = None
        self._other_task: Any = None
        self._other_done = 0
        self._next_redraw = math.inf
        self._epoch_started = 0.0
        self._batches = 0
        self._stage_started = 0.0

    def print(self, *values: Any, **options: Any) -> None:
        """print(), above the bar."""
        print_line(*values, **options)  # the bar's display takes standard output over while it is there

    # -- training ------------------------------------------------------------------------------------------------------
    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        self._open()

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._open()
        self._epoch_started = time.monotonic()
        self._show_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        self._epoch_started = time.monotonic()
        self._batches = 0
        self._show_epoch(trainer)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batches = batch_idx + 1
        if time.monotonic() >= self._next_redraw:
            self._update(trainer)
            self._redraw()

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self._bar is not None:
            self._update(trainer)
            self._redraw_if_due()
        if self._bar is None or self.leave:
            metrics = trainer.progress_bar_metrics or trainer.callback_metrics
            seconds = time.monotonic() - self._epoch_started
            parts = [_epoch_words(trainer), f"{self._batches} batches", f"{seconds:.1f} s", metrics_text(metrics)]
            trainer.print("  ".join(part for part in parts if part), flush=True)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._close()

    def _show_epoch(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        if self._train_task is not None:
            self._bar.remove_task(self._train_task)
        total = _finite(trainer.num_training_batches)
        self._train_task = self._bar.add_task(_epoch_words(trainer), total=total, metrics="")

    def _update(self, trainer: Trainer) -> None:
        self._bar.update(self._train_task, completed=self._batches, metrics=metrics_text(trainer.progress_bar_metrics))

    # -- validation, test, predict -------------------------------------------------------------------------------------
    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.sanity_checking:
            self._begin_stage("Sanity check", [])
        else:
            self._begin_stage("Validation", trainer.num_val_batches if trainer.state == "fit" else [])

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._other_done += 1
        if time.monotonic() >= self._next_redraw:
            self._bar.update(self._other_task, completed=self._other_done)
            self._redraw()

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self._end_stage(trainer)

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._begin_stage("Test", [])

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.on_validation_batch_end(trainer, module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self._end_stage(trainer)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        self._begin_stage("Prediction", [])

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.on_validation_batch_end(trainer, module, outputs, batch, batch_idx, dataloader_idx)

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        self._end_stage(trainer)

    def _begin_stage(self, words: str, lengths: Sequence[float]) -> None:
        self._other_done = 0
        self._stage_started = time.monotonic()
        self._open()
        if self._bar is not None:
            if self._train_task is not None:
                self._bar.update(self._train_task, completed=self._batches)
            self._other_task = self._bar.add_task(words, total=_finite(sum(lengths)) or None, metrics="")
            self._redraw_if_due()

    def _end_stage(self, trainer: Trainer) -> None:
        in_fit = trainer.state == "fit"
        if self._bar is None:
            if not in_fit:
                seconds = time.monotonic() - self._stage_started
                trainer.print(
                    f"{_STAGE_WORDS[str(trainer.state)]}: {self._other_done} batches, {seconds:.1f} s", flush=True
                )
        elif in_fit:
            self._bar.remove_task(self._other_task)
            self._other_task = None
            self._redraw_if_due()
        else:
            self._bar.update(self._other_task, completed=self._other_done, total=self._other_done)
            self._close()

    # -- the display ---------------------------------------------------------------------------------------------------
    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._close()

    def _open(self) -> None:
        if self._bar is None:
            self._bar = _rich_bar()
            if self._bar is not None:
                self._bar.start()
                self._next_redraw = 0.0

    def _redraw_if_due(self) -> None:
        if time.monotonic() >= self._next_redraw:
            self._redraw()

    def _redraw(self) -> None:
        self._bar.draw()
        self._next_redraw = time.monotonic() + self.refresh_seconds

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            if self._train_task is not None:
                bar.update(self._train_task, completed=self._batches)
            bar.live.transient = not bar.tasks  # else an empty line would stay
            bar.draw()
            bar.stop()
        self._train_task = self._other_task = None
        self._next_redraw = math.inf


def metrics_text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())


def _epoch_words(trainer: Trainer) -> str:
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"Epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")


def _finite(length: float) -> int | None:
    return None if math.isinf(length) else int(length)


def _rich_bar() -> Any:
    """A rich progress display with a `draw`, and drawn at no other time; or None where nobody would see it."""
    with imports_without_a_draw():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.table import Column
        from rich.text import Text

    console = Console()
    if console.is_jupyter:
        import importlib.util

        if importlib.util.find_spec("ipywidgets") is None:
            return None
    elif not is_terminal() or not console.is_terminal or console.is_dumb_terminal:
        return None

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            total = "?" if task.total is None else str(int(task.total))
            return Text(f"{int(task.completed):>{len(total)}}/{total}")

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = "" if task.time_remaining is None else f"<{_clock(task.time_remaining)}"
            speed = "" if task.speed is None else f"  {task.speed:.4g}/s"
            return Text(_clock(task.elapsed or 0.0) + left + speed, style="dim")

    class Metrics(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["metrics"], no_wrap=True, overflow="ellipsis")

    class Bar(Progress):
        def refresh(self) -> None:
            """rich calls it with every task that comes, and it takes a millisecond."""

        def draw(self) -> None:
            super().refresh()

    whole = Column(no_wrap=True)  # in a narrow terminal the metrics give way, and nothing else
    return Bar(
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=max(5, min(30, console.width // 8)), table_column=whole),
        Count(table_column=whole),
        Times(table_column=whole),
        Metrics(table_column=Column()),
        console=console,
        auto_refresh=False,  # a thread that redraws would take time from the training
        # In a notebook the cell shows prints beside the bar by itself, and IPython's display prints in its turn.
        redirect_stdout=not console.is_jupyter,
        redirect_stderr=not console.is_jupyter,
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
