"""StopRequests: whether a fit is over, and why."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from ..machine.signals import EXIT_PREEMPTED, SignalWatch

if TYPE_CHECKING:
    from ..machine.ranks import Ranks
    from ..progress import Progress
    from ..settings import Settings


class StopRequests:
    """The one owner of "is it over?"; docs/architecture.md, section 4.1, has the table.

    A limit (`max_epochs`, `max_steps`) ends the fit whatever else was asked for. A signal makes the process leave at
    the next save point. A request (`stop`, `should_stop`, EarlyStopping, `max_time`, Timer) is remembered, and
    carried out at the first save point at which `min_epochs` and `min_steps` are reached.
    """

    def __init__(self, settings: Settings, progress: Progress, ranks: Ranks) -> None:
        self.settings, self.progress, self.ranks = settings, progress, ranks
        self.signals = SignalWatch()
        self.reason: str | None = None
        self.for_good = True
        """Whether a run that stopped for this reason says so when it is started again."""
        self._own: tuple[str, bool] | None = None  # what this rank asked for; the other ranks' requests are not its own
        self._agreed_to_leave = self._request_is_agreed = False
        self._clock: float | None = None
        self._seconds_before = 0.0

    # -- asking --------------------------------------------------------------------------------------------------------
    def request(self, reason: str, *, for_good: bool = True) -> None:
        """Ask the fit to end, as Trainer.stop does."""
        self.reason, self.for_good, self._own = reason, for_good, (reason, for_good)

    def withdraw(self) -> None:
        """Take back what was asked for; on several ranks the one that asked must."""
        self.reason, self.for_good, self._own = None, True, None

    def start_clock(self) -> None:
        """Count training time from here on."""
        self._clock, self._seconds_before = time.monotonic(), self.progress.seconds

    def note_seconds(self) -> None:
        """Into the counters, for a checkpoint."""
        self.progress.note_seconds(self.seconds)

    def stop_clock(self) -> None:
        self.note_seconds()
        self._clock = None

    @property
    def seconds(self) -> float:
        """Training time of all processes that worked on this run."""
        if self._clock is None:
            return self.progress.seconds
        return self._seconds_before + time.monotonic() - self._clock

    # -- answering -----------------------------------------------------------------------------------------------------
    def end_before_an_epoch(self) -> bool:
        return self.end_here() or self.epochs_are_done

    def end_here(self) -> bool:
        """Asked at every save point: is this the last one? On the batch's way, so its conditions are written out."""
        progress, settings = self.progress, self.settings
        is_owed_something = progress.validation_is_due or progress.epoch_end_is_due
        if 0 <= settings.max_steps <= progress.global_step and not is_owed_something:
            return True
        if self.ranks.world_size > 1:  # clocks and signals differ between ranks: only what they agreed on counts
            if self._agreed_to_leave:
                return True
            if not self._request_is_agreed:
                return False
        elif self.signals.received is not None:
            return True
        elif settings.max_seconds is not None and self.reason is None and self.seconds >= settings.max_seconds:
            self.request(self._time_is_over(), for_good=False)  # a larger one goes on
        return (
            self.reason is not None
            and not is_owed_something
            and progress.current_epoch >= settings.min_epochs
            and progress.global_step >= settings.min_steps
        )

    def ask_clock(self) -> None:
        """On one process: whether `max_time` ends the fit here, so that savers know it; several ranks `agree`."""
        limit = self.settings.max_seconds
        if limit is not None and self.reason is None and self.seconds >= limit:
            self.request(self._time_is_over(), for_good=False)  # a larger one goes on

    def agree(self) -> bool:
        """Clocks, signals and requests may differ between ranks; from here on all have the same.

        Returns whether a signal came.
        """
        limit = self.settings.max_seconds
        over = limit is not None and self.seconds >= limit
        everyones = self.ranks.gather_object((self.signals.received, self._own, over))
        self.signals.agree_on(next((received for received, *_ in everyones if received is not None), None))
        asked = next((own for _, own, _ in everyones if own is not None), None)
        self.reason, self.for_good = asked or (None, True)
        if self.reason is None and any(over for *_, over in everyones):
            self.reason, self.for_good = self._time_is_over(), False
        self._request_is_agreed = self.reason is not None
        self._agreed_to_leave = self.signals.received is not None
        return self._agreed_to_leave

    def _time_is_over(self) -> str:
        return f"max_time of {timedelta(seconds=self.settings.max_seconds or 0)} is over"

    @property
    def epochs_are_done(self) -> bool:
        limit = self.settings.max_epochs
        return limit is not None and 0 <= limit <= self.progress.current_epoch

    @property
    def steps_are_done(self) -> bool:
        return 0 <= self.settings.max_steps <= self.progress.global_step

    @property
    def is_allowed(self) -> bool:
        """Whether a request may be carried out already."""
        progress, settings = self.progress, self.settings
        return progress.current_epoch >= settings.min_epochs and progress.global_step >= settings.min_steps

    @property
    def training_is_over(self) -> bool:
        """Whether training has ended, as against a process that is asked to go."""
        if self.progress.owes_something:
            return False
        if self.signals.received is None and not self._agreed_to_leave:
            return True
        asked = self.reason is not None and self.is_allowed
        return asked or self.epochs_are_done or self.steps_are_done

    @property
    def already_over(self) -> str | None:
        """What to say where a run that goes on has nothing left to do."""
        progress, settings = self.progress, self.settings
        if progress.owes_something:
            return None
        if self.reason is not None and self.is_allowed:
            where = f"epoch {progress.current_epoch}, step {progress.global_step}"
            return f"Already stopped at {where}: {self.reason}. Nothing to do; override=('stop',) goes on."
        if self.epochs_are_done:
            done = f"{progress.current_epoch}/{settings.max_epochs} epochs"
            return f"Already finished {done}: nothing to do. A larger max_epochs goes on."
        if self.steps_are_done:
            done = f"{progress.global_step}/{settings.max_steps} steps"
            return f"Already finished {done}: nothing to do. A larger max_steps goes on."
        if settings.max_seconds is not None and progress.seconds >= settings.max_seconds and self.is_allowed:
            trained = timedelta(seconds=int(progress.seconds))
            return f"Already trained for {trained} of max_time: nothing to do. A larger max_time goes on."
        return None

    def as_exception(self) -> BaseException:
        """What the signal received would raise."""
        return SystemExit(EXIT_PREEMPTED) if self.signals.received == signal.SIGTERM else KeyboardInterrupt()

    def how_it_ended(self, outcome: str, error: BaseException | None) -> str:
        """What run.json keeps: "finished", "stopped: why", "failed: error" or "interrupted: signal"."""
        received = self.signals.received
        if received is not None and isinstance(error, (SystemExit, KeyboardInterrupt, type(None))):
            return f"interrupted: {received.name}"
        if error is not None:
            kind = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            return f"{kind}: {type(error).__name__}: {error}"
        return outcome if self.reason is None else f"stopped: {self.reason}"

    # -- a checkpoint's part -------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, str | None]:
        """The reason that a run started again is to know of; whoever asks not for good decides anew."""
        return {"stop_reason": self.reason if self.for_good else None}

    def load_state_dict(self, state: dict[str, str | None]) -> None:
        reason = state["stop_reason"]
        self.reason, self.for_good = reason, True
        self._own = None if reason is None else (reason, True)
