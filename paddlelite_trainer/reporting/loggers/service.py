"""ServiceLogger: what loggers have in common that send a run to a service, which may be down and takes nothing back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .append_only import AppendOnlyFile
from .base import EpochCurve, Logger, flat, number_of, refuse_missing
from .nothing import Nothing


class ServiceLogger(Logger):
    """Base class of loggers to a service: a run is one run there, without a gap and with no point twice.

    What is logged goes to the service, and line by line into `<service>.jsonl` in the run's directory, which a resumed
    run goes on with as with all its logs. No service takes points back. So where a killed run goes on, its
    logger asks the service what it has: a point that it has already is not sent again, and one that it lacks, since the
    kill was faster than the library, is. A run that goes back to an older checkpoint is on a branch, and another run at
    the service. What a library raises is told once, as a warning; nothing more is sent then, training goes on, and as
    the fit ends, and whenever the run is opened again, what the service lacks is tried once more.

    A subclass says how its library is driven: `connect`, `stored_steps`, `send`, `disconnect`, and what else it can.

    Args:
        log_model: send the best checkpoint along as a fit ends by itself, the newest where nothing is monitored.
    """

    LIBRARY: str
    """The name that is imported; also that of the extra and of the file."""

    def __init__(self, *, log_model: bool = False) -> None:
        refuse_missing(type(self).__name__, self.LIBRARY, self.LIBRARY)
        self.log_model = log_model
        """Whether the best checkpoint, or the newest where nothing is monitored, goes along as the fit ends."""
        self._run: Any = None
        self._rows: AppendOnlyFile | None = None
        self._last_step = 0
        self._epoch = EpochCurve()
        self._is_away = False
        self._is_behind = False
        self._has_told = False
        self._stored: Mapping[str, Collection[int]] = {}
        self._hyperparams: Mapping[str, Any] = {}
        self._checkpoints: Any = None

    # -- what a subclass writes ----------------------------------------------------------------------------------------
    def connect(self, *, resumed: bool) -> Any:
        """Open the run that `run_id` names, there or new, and return what is to be `experiment`."""
        raise NotImplementedError

    def stored_steps(self) -> Mapping[str, Collection[int]]:
        """{name: steps of which the service has a point}, of a run that was there."""
        raise NotImplementedError

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        """Send numbers, and what `send_media` makes; `self.experiment` is there."""
        raise NotImplementedError

    def send_hyperparams(self, params: Mapping[str, str | int | float | bool]) -> None:
        """Override it to send hyper-parameters, nested ones by names like `net.width`."""

    def send_summary(self, metrics: Mapping[str, float]) -> None:
        """Override it to send a fit's last values, for the table of runs."""

    def send_checkpoint(self, path: Path, name: str) -> None:
        """Override it to send the checkpoint in `path` along under `name`, with `log_model=True`."""

    def disconnect(self, status: str) -> None:
        """End the run there, "finished" or "failed"; all that was sent has arrived when it returns."""
        raise NotImplementedError

    # -- what the Trainer calls ----------------------------------------------------------------------------------------
    @property
    def run_id(self) -> str:
        """The run's id, the same in every process that goes on with it."""
        assert self._run_id is not None, "there is an id once `open` was called"
        return self._run_id

    @property
    def is_open(self) -> bool:
        return self._run_dir is not None

    @property
    def experiment(self) -> Any:
        """The library's own object; where nothing is written, one that takes everything and does nothing."""
        if self._stands_aside or self._is_away:
            return Nothing()
        if self._run is None and self.run_dir:  # which says what is wrong where there is no run yet
            self._begin(resumed=True)
        return Nothing() if self._run is None else self._run

    def open(self, run_dir: Path, run_id: str, resumed: bool, state: Mapping[str, Any] | None) -> None:
        self._end("failed")  # another run's, of an earlier fit that nobody ended
        self._is_away = False
        if (run_dir, run_id) != (self._run_dir, self._run_id):
            self._hyperparams, self._checkpoints, self._is_behind, self._has_told = {}, None, False, False
        super().open(run_dir, run_id, resumed, state)
        # Points come again, or some have not arrived.
        self._is_behind = self._is_behind or (resumed and state is not None) or "-" in run_id
        self._begin(resumed=resumed)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._stands_aside:
            return
        step = self._last_step if step is None else int(step)
        values = {name: number_of(name, value) for name, value in self._epoch.once(metrics, step).items()}
        self._last_step = max(self._last_step, step)
        if self._rows is None:
            self._rows = AppendOnlyFile(self._path)
        self._rows.append((json.dumps({"step": step, **values}) + "\n").encode())
        self._spare(self._send_new, values, step)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self._hyperparams = dict(params)
        self._spare(self.send_hyperparams, flat(params))

    def send_media(self, name: str, make: Callable[[], Any], step: int) -> None:
        """Log what is no number, where the service has none of this name and step yet; it is not kept in the file."""
        if self._is_away or self._stands_aside or step in self._stored.get(name, ()):
            return
        try:
            made = make()
        except Exception as error:  # the library lacks something for it; numbers go on
            warnings.warn(f"{type(self).__name__} cannot log {name!r}: {error}", stacklevel=2)
            return
        self._spare(self.send, {name: made}, step)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        if self._is_away:
            self._is_away = False
            self._begin(resumed=True)
        self._spare(self.send_summary, metrics)
        if self.log_model and self._checkpoints is not None:
            best, newest = self._checkpoints.best_model_path, self._checkpoints.last_model_path
            if best or newest:
                self._spare(self.send_checkpoint, Path(best or newest).resolve(), "best" if best else "last")

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._checkpoints = checkpoint_callback

    def save(self) -> None:
        if self._rows is not None:
            self._rows.sync()

    def finalize(self, status: str) -> None:
        self._end(status)

    def state_dict(self) -> dict[str, Any]:
        """How long the file of rows is."""
        if self._rows is not None:
            self._rows.flush()
        size = self._path.stat().st_size if self._path.exists() else 0
        return {"bytes": size, "last_step": self._last_step, "epoch": self._epoch.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._close_rows()
        self._last_step = int(state_dict.get("last_step", 0))
        self._epoch = EpochCurve(state_dict.get("epoch"))
        size = int(state_dict.get("bytes", 0))
        if self._path.exists() and self._path.stat().st_size > size:
            os.truncate(self._path, size)

    # -- how -----------------------------------------------------------------------------------------------------------
    @property
    def _path(self) -> Path:
        return self.run_dir / f"{self.LIBRARY}.jsonl"

    def _begin(self, *, resumed: bool) -> None:
        self._spare(self._connect_and_catch_up, resumed)

    def _connect_and_catch_up(self, resumed: bool) -> None:
        with _handlers_kept():
            self._run = self.connect(resumed=resumed)
        self._stored = {}
        if self._is_behind:
            self._stored = self.stored_steps() if resumed else {}
            for row in self._logged():
                self._send_new(row, row.pop("step"))
        self._is_behind = False
        if self._hyperparams:
            self.send_hyperparams(flat(self._hyperparams))

    def _logged(self) -> Iterator[dict[str, Any]]:
        self.save()
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def _send_new(self, values: Mapping[str, float], step: int) -> None:
        if self._run is None:
            self._begin(resumed=True)
        new = {name: value for name, value in values.items() if step not in self._stored.get(name, ())}
        if new and self._run is not None:
            self.send(new, step)

    def _end(self, status: str) -> None:
        self._close_rows()
        if self._run is not None:
            self._spare(self.disconnect, status)
        self._run = None

    def _close_rows(self) -> None:
        if self._rows is not None:
            self._rows.sync()
            self._rows.close()
            self._rows = None

    def _spare(self, call: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """Nothing that the library raises ends the training; once it has, nothing more is asked of it."""
        if self._is_away or self._stands_aside:
            return
        try:
            call(*arguments, **named)
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """Say once what is wrong with the service, and send nothing more until the run is opened again."""
        self._is_away = self._is_behind = True
        self._run = None
        if self._has_told:
            return
        self._has_told = True
        what = " ".join(str(error).split())[:300].rstrip(".")
        warnings.warn(
            f"{type(self).__name__} cannot reach its service, or is refused ({type(error).__name__}: {what}). Training "
            f"goes on; what is logged is kept in {self._path}, and sent when the service answers: that is tried as the "
            "fit ends, and when the run is opened again",
            stacklevel=2,
        )


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back the handlers of signals that a library replaces: a signal is the Trainer's to answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
