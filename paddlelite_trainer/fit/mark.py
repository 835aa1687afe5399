"""Mark: a moment of a fit that a checkpoint can still be made of when the batch, validation or epoch's end after it failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..callback import Callback, overridden
from ..machine.rng import isolated_random_states, random_snapshot, set_random_snapshot
from ..optimizers import apply_snapshot, scheduler_snapshot
from ..reporting.metrics import numbers_of, paddle_metrics_of, set_numbers
from .state import keyed, positions_in_logs

if TYPE_CHECKING:
    from ..trainer import Trainer

# Of an open window a batch may have ended; else on_train_batch_end comes when the weights have moved.
BATCH = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
VALIDATION = tuple(
    f"on_validation_{name}" for name in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
)
EPOCH_END = ("on_train_epoch_end",)


class Mark:
    """Remembers, in tens of microseconds, all that may change before the next optimizer step; weights it does not copy.

    So it holds until an optimizer moves. Remembered are counters, random states, buffers and running means, metrics,
    the data position, schedules, and the state of those callbacks that one of `hooks` could change.
    """

    def __init__(self, trainer: Trainer, hooks: tuple[str, ...]) -> None:
        self.gradients_hold = hooks is not BATCH
        """Whether what waits for an optimizer step is the same still; a batch adds to it, and a mark before one has none."""
        self._progress = replace(trainer.progress)
        self._random = random_snapshot()
        self._unlearned = {
            name: tensor.clone()
            for name, tensor in trainer.model.state_dict().items()
            if _may_change_in_forward(tensor)
        }
        self._train_metrics = trainer._train_metrics.copy()
        self._paddle_metrics = [(metric, numbers_of(metric)) for metric in paddle_metrics_of(trainer.model).values()]
        self._callback_metrics = dict(trainer._callback_metrics)
        self._epoch_record = dict(trainer._epoch_record)
        self._history_length = len(trainer.history)
        self._source = trainer._train_source.state_dict() if trainer._train_source is not None else None
        self._schedules = [scheduler_snapshot(config.scheduler) for config in trainer.lr_scheduler_configs]
        self.callbacks = {
            key: _copied(callback.state_dict())
            for key, callback in keyed(trainer.callbacks)
            if overridden(callback, "state_dict", Callback)
            and any(overridden(callback, hook, Callback) for hook in hooks)
        }
        """{state key: state}, which a checkpoint takes instead of what these callbacks say later."""
        self.loggers: list[Any] | None = None
        """Positions in the logs; None while nothing was logged since."""

    @property
    def source(self) -> dict[str, Any] | None:
        return self._source

    def weights(self, present: Mapping[str, Any]) -> dict[str, Any]:
        """The module's state_dict as it was."""
        return {**present, **self._unlearned}

    def remember_logs(self, trainer: Trainer) -> None:
        """To be called before anything is logged: positions cost a write to the files, so they are not asked for earlier."""
        if self.loggers is None:
            self.loggers = positions_in_logs(trainer)

    @contextlib.contextmanager
    def applied(self, trainer: Trainer) -> Iterator[None]:
        """Within, the trainer's own state is as it was; afterwards it is as it has become."""
        now = Mark.__new__(Mark)
        now._progress, now._train_metrics = replace(trainer.progress), trainer._train_metrics
        now._paddle_metrics = [(metric, numbers_of(metric)) for metric, _ in self._paddle_metrics]
        now._callback_metrics, now._epoch_record = trainer._callback_metrics, trainer._epoch_record
        now._schedules = [scheduler_snapshot(config.scheduler) for config in trainer.lr_scheduler_configs]
        later = trainer.history[self._history_length :]
        try:
            with isolated_random_states():
                set_random_snapshot(self._random)
                del trainer.history[self._history_length :]
                self._put_into(trainer)
                trainer._train_metrics = self._train_metrics.copy()
                trainer._saving_mark = self
                yield
        finally:
            trainer._saving_mark = None
            now._put_into(trainer)
            trainer.history += later

    def _put_into(self, trainer: Trainer) -> None:
        trainer.progress.load_state_dict(self._progress.state_dict())
        trainer._train_metrics = self._train_metrics
        trainer._callback_metrics, trainer._epoch_record = self._callback_metrics, self._epoch_record
        for metric, numbers in self._paddle_metrics:
            set_numbers(metric, numbers)
        for config, snapshot in zip(trainer.lr_scheduler_configs, self._schedules):
            apply_snapshot(config.scheduler, snapshot)
        trainer._known_candidate = None


def _may_change_in_forward(tensor: Any) -> bool:
    # Buffers; and running means, which Paddle makes parameters that are not trained. A frozen weight has more axes.
    return bool(tensor.stop_gradient) and (not hasattr(tensor, "trainable") or tensor.ndim <= 1)


def _copied(tree: Any) -> Any:
    """A copy of everything but tensors, which callbacks change in optimizer steps and not between them."""
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_copied(value) for value in tree] if isinstance(tree, list) else tuple(map(_copied, tree))
    return tree.copy() if isinstance(tree, np.ndarray) else tree
