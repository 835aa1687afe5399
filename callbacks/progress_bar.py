"""ProgressBar: where a run is, as a bar in a terminal or notebook, and as lines in a pipe or a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callback import batch_size_of, print_line
from paddlelite_trainer.errors import ConfigurationError, explains_unknown_arguments

from .progress_display import Columns, clock, rate
from .progress_display import rich_bar as _rich_bar

_STAGE_WORDS = {"validate": "Validation", "test": "Test", "predict": "Prediction"}


class ProgressBar(Callback):
    """Shows epoch, batches, speed, the loss and the metrics logged with `prog_bar=True`.

    In a terminal and a notebook it is a bar, redrawn at most every `refresh_seconds`, and each epoch leaves a line.
    Where the output is a file or a pipe there are those lines of the epochs, one for each validation, test or
    prediction of its own, and within an epoch or a validation a line every `every_n_steps` and `every_seconds`:

        epoch 3/100  step 120/440  lr 0.001  loss 0.42  ips 812/s  wait 4 %  eta 1:12:03

    `ips` are samples a second, validation apart, `wait` is the share of the time spent waiting for data, `eta` the time
    to the end of the fit. The lines are in the run's `train.log` in any case. Prints appear above the bar, whole.

    Between them a batch costs one look at the clock: loss and metrics are brought from the device only to be shown.

    Args:
        refresh_seconds: least time between redraws.
        leave: write the line per epoch above the bar too; False leaves nothing but the last bar.
        every_n_steps: a line after so many batches of an epoch or an evaluation; None leaves it to the clock.
        every_seconds: a line at the latest after this time; None for none by the clock.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    comes_last_at_epoch_end = True

    @explains_unknown_arguments(
        {
            "refresh_rate": "pass refresh_seconds=",
            "process_position": "there is one bar",
            "theme": "derive a bar of your own from Callback",
            "console_kwargs": "derive a bar of your own from Callback",
        }
    )
    def __init__(
        self,
        refresh_seconds: float = 0.25,
        *,
        leave: bool = True,
        every_n_steps: int | None = None,
        every_seconds: float | None = 10.0,
    ) -> None:
        if refresh_seconds < 0:
            raise ConfigurationError(f"ProgressBar(refresh_seconds=...) must be >= 0, got {refresh_seconds!r}")
        if every_n_steps is not None and (type(every_n_steps) is not int or every_n_steps < 1):
            raise ConfigurationError(f"ProgressBar(every_n_steps=...) must be an int >= 1, got {every_n_steps!r}")
        if every_seconds is not None and not every_seconds > 0:
            raise ConfigurationError(f"ProgressBar(every_seconds=...) must be > 0 or None, got {every_seconds!r}")
        self.refresh_seconds = refresh_seconds
        self.leave = leave
        self.every_n_steps = every_n_steps
        self.every_seconds = every_seconds
        self._bar: Any = None
        self._train_task: Any = None
        self._other_task: Any = None
        self._other_done = 0
        self._other_words, self._other_total = "", 0.0
        self._next_redraw = self._next_line = self._next_look = math.inf
        self._next_line_at = math.inf  # batches of the epoch or the evaluation
        self._epoch_started = 0.0
        self._epoch_has_its_line = False
        self._batches = 0
        self._stage_started = 0.0
        self._pace = Pace()
        self._columns = Columns()

    def get_metrics(self, trainer: Trainer, module: Module) -> dict[str, float]:
        """What is shown beside the loss: what was logged with `prog_bar=True`. Override it to show other values."""
        return dict(trainer.progress_bar_metrics)

    def print(self, *values: Any, **options: Any) -> None:
        """print(), above the bar."""
        if hasattr(self._bar, "clear"):  # on another's terminal
            self._bar.clear()
        print_line(*values, **options)  # the bar's display takes standard output over while it is there

    # -- training ------------------------------------------------------------------------------------------------------
    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        self._open(trainer)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._open(trainer)
        self._pace.begin(trainer)
        self._begin_epoch(trainer, batches=trainer.progress.batches_in_epoch)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        self._begin_epoch(trainer)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batches = batch_idx + 1
        if time.monotonic() >= self._next_look or self._batches >= self._next_line_at:
            self._look(trainer, outputs, batch)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        loss = trainer.last_loss
        if self._bar is not None:
            self._update(trainer, loss)
            self._redraw_if_due()
        metrics = with_loss(self.get_metrics(trainer, module) or trainer.callback_metrics, loss)
        line = self._epoch_line(trainer, metrics)
        if self._bar is None or self.leave:
            self._epoch_has_its_line = True
            trainer.print(line, flush=True)
        else:
            trainer.train_log.write(line)

    def _epoch_line(self, trainer: Trainer, metrics: Mapping[str, float]) -> str:
        seconds, last = time.monotonic() - self._epoch_started, trainer.max_epochs
        cells = {
            "": f"{_epoch_words(trainer):<{len(f'Epoch {last}/{last}')}}",
            " batches": f"{self._batches} batches",
            " seconds": f"{seconds:.1f} s" if seconds < 600 else clock(seconds),
            **{name: f"{name} {float(value):<7.4g}" for name, value in metrics.items()},
        }
        return self._columns.line(cells)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._close()

    def _begin_epoch(self, trainer: Trainer, batches: int = 0) -> None:
        self._epoch_has_its_line = False
        self._epoch_started = time.monotonic()
        self._batches = batches
        self._pace.mark(trainer, batches)
        self._plan_line(self._batches)
        if self._bar is None:
            return
        if self._train_task is not None:
            self._bar.remove_task(self._train_task)
        total = _finite(trainer.num_training_batches)
        self._train_task = self._bar.add_task(_epoch_words(trainer), total=total, metrics="")

    def _look(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Something is due: a redraw, a line, or both."""
        now, loss = time.monotonic(), _loss_in(outputs)
        if now >= self._next_redraw:
            self._update(trainer, loss)
            self._redraw()
        if now >= self._next_line or self._batches >= self._next_line_at:
            self._write_line(trainer, self._step_line(trainer, loss, batch))
            self._plan_line(self._batches)
        self._next_look = min(self._next_redraw, self._next_line)

    def _plan_line(self, done: int) -> None:
        """When the next line is due, which begins anew with an epoch, a validation, and each line."""
        every = self.every_n_steps
        self._next_line_at = math.inf if every is None else (done // every + 1) * every
        self._next_line = math.inf if self.every_seconds is None else time.monotonic() + self.every_seconds
        self._next_look = min(self._next_redraw, self._next_line)

    def _write_line(self, trainer: Trainer, line: str) -> None:
        if self._bar is None:
            trainer.print(line, flush=True)
        else:  # the bar shows it
            trainer.train_log.write(line)

    def _step_line(self, trainer: Trainer, loss: float | None, batch: Any) -> str:
        samples, waited = self._pace.since_mark(trainer, self._batches, batch_size_of(batch))
        left = self._pace.seconds_left(trainer)
        # With accumulation a step is several batches.
        word = "step" if trainer.accumulate_grad_batches == 1 else "batch"
        rates = ", ".join(f"{float(optimizer.get_lr()):.4g}" for optimizer in trainer.optimizers)
        parts = [
            _epoch_words(trainer, "epoch"),
            f"{word} {self._batches}{_of(trainer.num_training_batches)}",
            f"lr {rates}",
            metrics_text(with_loss(self.get_metrics(trainer, trainer.model), loss)),
            f"ips {rate(samples)}/s",
            f"wait {100 * waited:.0f} %",
            "" if left is None else f"eta {clock(left)}",
        ]
        return "  ".join(part for part in parts if part)

    def _update(self, trainer: Trainer, loss: float | None) -> None:
        metrics = with_loss(self.get_metrics(trainer, trainer.model), loss)
        self._bar.update(self._train_task, completed=self._batches, metrics=metrics_text(metrics))

    # -- validation, test, predict -------------------------------------------------------------------------------------
    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.sanity_checking:
            self._begin_stage(trainer, "Sanity check", trainer.num_sanity_val_batches)
        else:
            self._begin_stage(trainer, "Validation", trainer.num_val_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._other_done += 1
        if time.monotonic() >= self._next_look or self._other_done >= self._next_line_at:
            self._look_at_stage(trainer)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self._end_stage(trainer)

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._begin_stage(trainer, "Test", trainer.num_test_batches)

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.on_validation_batch_end(trainer, module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self._end_stage(trainer)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        self._begin_stage(trainer, "Prediction", trainer.num_predict_batches)

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.on_validation_batch_end(trainer, module, outputs, batch, batch_idx, dataloader_idx)

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        self._end_stage(trainer)

    def _begin_stage(self, trainer: Trainer, words: str, lengths: Sequence[float]) -> None:
        self._other_done, self._other_words, self._other_total = 0, words, sum(lengths)
        self._stage_started = time.monotonic()
        self._open(trainer)
        self._plan_line(0)
        if self._bar is not None:
            if self._train_task is not None:
                self._bar.update(self._train_task, completed=self._batches)
            self._other_task = self._bar.add_task(words, total=_finite(self._other_total) or None, metrics="")
            self._redraw_if_due()

    def _look_at_stage(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now >= self._next_redraw:
            self._bar.update(self._other_task, completed=self._other_done)
            self._redraw()
        if now >= self._next_line or self._other_done >= self._next_line_at:
            done, total, seconds = self._other_done, self._other_total, now - self._stage_started
            parts = [_epoch_words(trainer, "epoch")] if trainer.state == "fit" else []
            parts.append(f"{self._other_words.lower()} {done}{_of(total)}")
            if not math.isinf(total):
                parts.append(f"eta {clock(seconds / done * (total - done))}")
            self._write_line(trainer, "  ".join(parts))
            self._plan_line(done)
        self._next_look = min(self._next_redraw, self._next_line)

    def _end_stage(self, trainer: Trainer) -> None:
        self._pace.leave_out(time.monotonic() - self._stage_started)
        self._plan_line(self._batches)
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

    def _open(self, trainer: Trainer) -> None:
        if self._bar is None and trainer.is_global_zero:
            self._bar = _rich_bar()
            if self._bar is not None:
                self._bar.start()
                self._next_redraw = self._next_look = 0.0

    def _redraw_if_due(self) -> None:
        if time.monotonic() >= self._next_redraw:
            self._redraw()

    def _redraw(self) -> None:
        self._bar.draw()
        self._next_redraw = time.monotonic() + self.refresh_seconds

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            if self._train_task is not None and self._epoch_has_its_line:
                bar.remove_task(self._train_task)
            elif self._train_task is not None:
                bar.update(self._train_task, completed=self._batches)
            bar.live.transient = not bar.tasks  # else an empty line would stay
            bar.draw()
            bar.stop()
        self._train_task = self._other_task = None
        self._next_redraw = self._next_look = self._next_line = self._next_line_at = math.inf


class Pace:
    """How fast the steps of a fit go, and how many seconds are left; ProgressBar alone writes it."""

    def __init__(self) -> None:
        self._started, self._seconds_before = 0.0, 0.0
        self._first_step = self._first_batch = 0
        self._marked, self._batches, self._waited = 0.0, 0, 0.0

    def begin(self, trainer: Trainer) -> None:
        self._started, self._seconds_before = time.monotonic(), trainer.progress.seconds
        self._first_step, self._first_batch = trainer.global_step, trainer.progress.total_batches

    def mark(self, trainer: Trainer, batches: int) -> None:
        """From here on the next line counts."""
        self._marked, self._batches, self._waited = time.monotonic(), batches, trainer.data_wait_seconds

    def leave_out(self, seconds: float) -> None:
        """A validation's time is none of the training's."""
        self._marked += seconds

    def since_mark(self, trainer: Trainer, batches: int, batch_size: int) -> tuple[float, float]:
        """Samples a second of all ranks, and the share of the time spent waiting for data; then `mark`."""
        seconds = max(time.monotonic() - self._marked, 1e-9)
        samples = (batches - self._batches) * batch_size * trainer.world_size
        waited = min(max(trainer.data_wait_seconds - self._waited, 0.0) / seconds, 1.0)  # a loader may be a new one
        self.mark(trainer, batches)
        return samples / seconds, waited

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Of the whole fit, validations and saves at their present share; None where nobody can know."""
        seconds = time.monotonic() - self._started
        batches, steps = trainer.progress.total_batches + 1, trainer.global_step  # this batch is done but for its hooks
        limits = []
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            all_batches = trainer.max_epochs * trainer.num_training_batches
            limits.append(seconds / (batches - self._first_batch) * (all_batches - batches))
        if trainer.max_steps >= 0 and steps > self._first_step:
            limits.append(seconds / (steps - self._first_step) * (trainer.max_steps - steps))
        if trainer.max_seconds is not None:
            limits.append(trainer.max_seconds - self._seconds_before - seconds)
        left = min(limits, default=math.inf)
        return None if math.isinf(left) else max(left, 0.0)


def metrics_text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())


_OWN_NAMES_OF_A_LOSS = {"loss", "train_loss", "train/loss", "loss_step", "train_loss_step", "train_loss_epoch"}


def with_loss(metrics: Mapping[str, float], loss: float | None) -> Mapping[str, float]:
    """The loss that training_step returned, before the metrics, unless one of them is the loss itself."""
    return metrics if loss is None or _OWN_NAMES_OF_A_LOSS & metrics.keys() else {"loss": loss, **metrics}


def _loss_in(outputs: Any) -> float | None:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, paddle.Tensor) or loss.size != 1 or not loss.is_floating_point():
        return None
    return float(loss.astype("float32").item())


def _of(total: float) -> str:
    return "" if math.isinf(total) or not total else f"/{int(total)}"


def _epoch_words(trainer: Trainer, word: str = "Epoch") -> str:
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"{word} {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")


def _finite(length: float) -> int | None:
    return None if math.isinf(length) else int(length)
