"""The only counters of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """Where a fit is. fit/loop.py and fit/optimization.py write it, and what restores a state; everyone may read it."""

    current_epoch: int = 0
    """Completed epochs, so also the index of the running one."""
    epoch_is_open: bool = False
    """Whether `on_train_epoch_start` of the running epoch has been called."""
    batches_in_epoch: int = 0
    """Batches of the running epoch that are completely done."""
    batches_in_window: int = 0
    """Batches of the open accumulation window whose gradients are waiting for an optimizer step."""
    skipped_in_window: int = 0
    """Batches without a loss since the open accumulation window began."""
    global_step: int = 0
    """Completed optimizer steps."""
    total_batches: int = 0
    """Training batches done in all epochs."""
    validation_is_due: bool = False
    """A validation belongs to the last batch and was not run to its end."""
    epoch_end_is_due: bool = False
    """All batches of the running epoch are done, and its end was not run to its end."""
    schedulers_are_due: bool = False
    """The schedules of interval "step" are still where they were before the last optimizer step."""
    seconds: float = 0.0
    """Training time of all processes that worked on this run."""
    validated_at: float = 0.0
    """`seconds` at the end of the last validation, where validations go by time."""
    steps_begun: int = field(default=0, metadata={"saved": False})
    """Optimizer steps of this process that were begun, whether or not they came to their end."""

    @property
    def position(self) -> tuple[Any, ...]:
        """Tells two states of one run apart."""
        return self.global_step, self.total_batches, self.current_epoch, self.epoch_is_open, self.validation_is_due

    @property
    def owes_something(self) -> bool:
        """Whether what belongs to the last batch, a validation or the epoch's end, was not run to its end."""
        return self.validation_is_due or self.epoch_end_is_due

    def begin_epoch_again(self) -> None:
        """Go back to the start of the running epoch; what was learned in it stays."""
        self.epoch_is_open = self.validation_is_due = self.epoch_end_is_due = False
        self.batches_in_epoch = self.batches_in_window = 0

    def begin_step(self) -> None:
        """Before an optimizer's step, which may fail halfway."""
        self.steps_begun += 1

    def end_step(self, *, schedulers_are_due: bool) -> None:
        self.global_step += 1
        self.schedulers_are_due = schedulers_are_due

    def note_skipped(self) -> None:
        """A batch had no loss."""
        if self.batches_in_window:
            self.skipped_in_window += 1

    def forget_skipped(self) -> None:
        self.skipped_in_window = 0

    def owe_validation(self, is_due: bool) -> None:
        self.validation_is_due = is_due

    def note_validated_at(self, seconds: float) -> None:
        self.validated_at = seconds

    def note_schedules_stepped(self) -> None:
        self.schedulers_are_due = False

    def note_seconds(self, seconds: float) -> None:
        self.seconds = seconds

    def open_epoch(self) -> None:
        self.epoch_is_open = True

    def owe_epoch_end(self) -> None:
        self.epoch_end_is_due = True

    def go_on_in_epoch_at(self, batches: int) -> None:
        """The running epoch's position, for another number of ranks."""
        self.batches_in_epoch = batches

    def close_epoch(self) -> None:
        self.current_epoch += 1
        self.batches_in_epoch = 0
        self.epoch_is_open = self.epoch_end_is_due = False

    @contextlib.contextmanager
    def seen_at(self, epoch: int) -> Iterator[None]:
        """Within, it looks as if `epoch` ran, for a method that is called late."""
        present, self.current_epoch = self.current_epoch, epoch
        try:
            yield
        finally:
            self.current_epoch = present

    def go_on_at(self, epoch: int, step: int, batches: int) -> None:
        """Count on from where another tool's training had come."""
        self.current_epoch, self.global_step, self.total_batches = epoch, step, batches

    def state_dict(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.metadata.get("saved", True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for one in fields(self):  # a checkpoint of an earlier version does not have them all
            if one.metadata.get("saved", True):
                setattr(self, one.name, state.get(one.name, one.default))

    snapshot, restore = state_dict, load_state_dict
