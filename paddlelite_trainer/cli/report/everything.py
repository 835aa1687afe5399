"""Everything of one run, and of many, as plain data for the page; what cannot be read is told."""

from __future__ import annotations

import json
import re
import time
import warnings
from array import array
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ...checkpoint.links import CHECKPOINTS
from ...checkpoint.lookup import Found, Row, listed
from ...checkpoint.pins import PINS_FILE
from ...errors import CheckpointError
from ...reporting.train_log import TRAIN_LOG
from ...run.directory import RunInfo, read_run
from ...run.epochs import epochs_before
from ...run.journal import JOURNAL
from ...run.whose import RUN_FILE
from .curves import METRICS, Table, curve_of, number, read_metrics
from .places import names_of, runs_below
from .sessions import Session, clock_of, flat, read_journal, settings_in, told
from .told import PROFILE, log_of, profiles_of

HPARAMS, CONFIG = "hparams.json", "config.yaml"
_MOST_OF_A_CONFIG = 40_000  # characters
_READ = (RUN_FILE, JOURNAL, METRICS, TRAIN_LOG, PROFILE, HPARAMS, CONFIG, CHECKPOINTS, f"{CHECKPOINTS}/{PINS_FILE}")
_ALL_POINTS, _MOST_POINTS, _FEWEST_POINTS = 20_000, 2_000, 150  # of one name over all runs, of one curve
_MONITOR = re.compile(r"ModelCheckpoint\(.*?monitor='([^']+)'(?:.*?mode='(min|max)')?")


class Collection:
    """The runs below some paths. `read` is quick where little has changed since the last one: a run is read anew only
    where one of its files has, and runs that came since are found.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = list(paths)
        self._kept: dict[Path, tuple[Any, dict[str, Any]]] = {}
        runs_below(self._paths)  # a wrong path is an error at once

    def read(self) -> dict[str, Any]:
        """All that the page shows: `made`, and `runs`."""
        runs = runs_below(self._paths)
        points = max(_FEWEST_POINTS, min(_MOST_POINTS, _ALL_POINTS // len(runs)))
        told = []
        for path, name in zip(runs, names_of(runs)):
            info = read_run(path)
            key = (points, info, [_stamp(path / file) for file in _READ])
            if self._kept.get(path, (None,))[0] != key:
                self._kept[path] = (key, run_at(path, info, points))
            told.append({"name": name, **self._kept[path][1]})
        return {"made": time.time(), "runs": told}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def run_at(path: Path, info: RunInfo | None, points: int) -> dict[str, Any]:
    """What one run directory holds; curves have at most `points` values each."""
    table, journal, log = read_metrics(path / METRICS), read_journal(path), log_of(path)
    profiles, profile_problems = profiles_of(path)
    rows, checkpoint_problems = _checkpoints_of(path)
    is_running = info is not None and info.status == "running"
    problems = [*table.problems, *journal.problems, *log.pop("problems"), *profile_problems, *checkpoint_problems]
    if is_running:  # lines are being written at this moment
        problems = [problem for problem in problems if "torn" not in problem and "has no end" not in problem]
    if info is None:
        problems.append(f"{RUN_FILE} is missing or cannot be read: how the run ended is not known")
    if not table.values:
        problems += _from_history(rows, table, path)
    sessions = told(journal.sessions, info)
    state = _newest_state(rows)[1] if not journal.sessions else {}
    monitor, mode = _monitor_of(journal.sessions, rows)
    epochs = _epoch_ends(table.values.pop("epoch", ((), ())), journal.sessions, rows)
    return {
        "path": str(path),
        "status": info.status if info else "unknown",
        "reason": info.reason if info else None,
        "began": sessions[0]["began"] if sessions else _seconds(info.started if info else None),
        "ended": None if is_running else _ended(sessions, info),
        "worked": _worked(sessions, info),
        "is_exact": bool(sessions),
        "step": _furthest(table, rows, sessions),
        "epoch": int(epochs[-1][1]),
        "sessions": sessions,
        "clock": clock_of(journal.sessions),
        "epochs": epochs,
        "curves": {name: curve_of(*pair, points) for name, pair in table.values.items() if len(pair[0])},
        "last": {name: number(pair[1][-1]) for name, pair in table.values.items() if len(pair[1])},
        "monitor": monitor,
        "mode": mode,
        "best": _best(rows, monitor, mode, table),
        "checkpoints": [_checkpoint(row) for row in rows],
        "settings": _settings(path, journal.sessions, rows, state),
        "config": _text_of(path / CONFIG),
        "profiles": profiles,
        "log": log,
        "problems": problems,
    }


# -- checkpoints -----------------------------------------------------------------------------------------------------
def _checkpoints_of(run: Path) -> tuple[list[Row], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rows = list(listed(Found(run, None), verify=False))
        except (CheckpointError, OSError) as error:
            return [], [f"the checkpoints cannot be listed: {error}"]
    problems = [str(warning.message) for warning in caught]
    return rows, problems + [f"{row.name}: {'; '.join(row.problems)}" for row in rows if row.problems]


def _checkpoint(row: Row) -> dict[str, Any]:
    entry = row.entry
    common = {"name": row.name, "pins": list(row.pins), "state": row.state, "weights_only": row.weights_only}
    if entry is None:
        return {**common, "step": None, "epoch": None, "metrics": {}, "bytes": None, "created": None, "healthy": None}
    return {
        **common,
        "step": entry.step,
        "epoch": entry.epoch,
        "metrics": {name: number(value) for name, value in entry.metrics.items()},
        "bytes": entry.nbytes,
        "created": _seconds(entry.created),
        "healthy": entry.healthy,
    }


def _monitor_of(sessions: Sequence[Session], rows: Sequence[Row]) -> tuple[str | None, str | None]:
    """The metric that decides which checkpoint is best, and whether it is to be small or large, where that is told."""
    callbacks = (sessions[-1].first.get("trainer") or {}).get("callbacks") if sessions else None
    for key in callbacks if isinstance(callbacks, list) else ():
        match = _MONITOR.match(str(key))
        if match is not None:
            return match[1], match[2]
    pins = [pin for row in rows for pin in row.pins if pin.startswith("best_")]
    known = {name.replace("/", "_"): name for row in rows if row.entry for name in row.entry.metrics}
    named = next((known[pin[5:]] for pin in pins if pin[5:] in known), None)
    return named, None


def _best(rows: Sequence[Row], monitor: str | None, mode: str | None, table: Table) -> dict[str, Any] | None:
    """The checkpoint that the run itself holds as its best, else the best value of the monitored curve."""
    if monitor is None:
        return None
    held = [row for row in rows if row.entry and "best" in row.pins and monitor in row.entry.metrics]
    sign = -1.0 if mode == "max" else 1.0
    if held and (mode is not None or len(held) == 1):
        row = min(held, key=lambda row: sign * row.entry.metrics[monitor])  # type: ignore[union-attr]
        assert row.entry is not None
        return {"value": number(row.entry.metrics[monitor]), "step": row.entry.step, "checkpoint": row.name}
    steps, values = table.values.get(monitor, ((), ()))
    finite = [(sign * value, step) for step, value in zip(steps, values) if abs(value) < float("inf")]
    if mode is None or not finite:
        return None
    value, step = min(finite)
    return {"value": number(sign * value), "step": number(step), "checkpoint": None}


def _newest_state(rows: Sequence[Row]) -> tuple[Path, dict[str, Any]]:
    """Where it lies and what the newest readable checkpoint holds of the trainer, for runs that have no journal."""
    for row in reversed(rows):
        if row.entry is not None:
            try:  # the one file alone: the others may be large
                state = json.loads((row.path / "trainer.json").read_bytes())
            except (OSError, ValueError):
                continue
            return row.path, state if isinstance(state, dict) else {}
    return Path(), {}


def _from_history(rows: Sequence[Row], table: Table, run: Path) -> list[str]:
    """Without a CSVLogger the newest checkpoint's history has a value for each epoch."""
    path, state = _newest_state(rows)
    older, finding = epochs_before(state, path)
    for record in (*older, *state.get("history", ())):
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step":
                steps, values = table.values.setdefault(name, (array("d"), array("d")))
                steps.append(float(record["step"]))
                values.append(float(value))
    if (run / METRICS).exists() and not table.values:
        return [] if table.problems else [f"{METRICS} has no values yet"]
    said = "the curves are the epochs' values out of the newest checkpoint" if table.values else "there are no curves"
    told = f"no {METRICS}: {said}; Trainer(logger=...) with a CSVLogger keeps them"
    return [told] if finding is None else [told, finding]


# -- time ------------------------------------------------------------------------------------------------------------
def _seconds(date: str | None) -> float | None:
    try:
        return float(datetime.fromisoformat(date or "").timestamp())
    except (TypeError, ValueError, OverflowError):
        return None


def _ended(sessions: list[dict[str, Any]], info: RunInfo | None) -> float | None:
    told_end = _seconds(info.ended) if info else None
    return told_end if told_end is not None else sessions[-1]["last"] if sessions else None


def _worked(sessions: list[dict[str, Any]], info: RunInfo | None) -> float | None:
    """Seconds that processes have worked on it, as far as is known."""
    if sessions:
        return float(sessions[-1]["worked_to"])
    began, ended = (_seconds(info.started), _seconds(info.ended)) if info and info.sessions == 1 else (None, None)
    return ended - began if began is not None and ended is not None else None


def _furthest(table: Table, rows: Sequence[Row], sessions: list[dict[str, Any]]) -> int:
    logged = [max(steps) for steps, _ in table.values.values() if len(steps)]
    saved = [row.entry.step for row in rows if row.entry]
    return int(max([step for step in logged if step < float("inf")] + saved + [s["to"] for s in sessions[-1:]] + [0]))


def _epoch_ends(column: Any, sessions: Sequence[Session], rows: Sequence[Row]) -> list[list[float]]:
    """[step, completed epochs], both rising: where each epoch ended, as exactly as is known.

    Rows of metrics.csv have the index of the running epoch, so an epoch's last row is at its end or shortly before.
    Journal and checkpoints have the number of those that are done.
    """
    done = [(row.entry.step, row.entry.epoch) for row in rows if row.entry]
    done += [(step, epoch) for session in sessions[-1:] for step, epoch, _ in session.marks]
    last: dict[int, float] = {}
    for step, epoch in zip(*column):
        if abs(epoch) < 1e9 and abs(step) < float("inf"):
            last[int(epoch) + 1] = max(step, last.get(int(epoch) + 1, 0.0))
    in_rows = set(last)
    for step, epoch in sorted(done, reverse=True):  # the first that knows of it is the nearest
        if epoch and epoch not in in_rows:
            last[epoch] = float(step)
    newest, known = max(last, default=0), max((epoch for _, epoch in done), default=0)
    ends = [
        [0.0, 0.0],
        *([step, float(epoch)] for epoch, step in sorted(last.items()) if epoch < newest or epoch <= known),
    ]
    if newest > known and len(ends) > 1 and ends[-1][0] > 0:  # of the running one as much as its steps tell
        length = ends[-1][0] / ends[-1][1]
        ends.append([last[newest], ends[-1][1] + min((last[newest] - ends[-1][0]) / length, 1.0)])
    rising = [ends[0]]
    for step, epoch in ends[1:]:
        if step > rising[-1][0]:
            rising.append([number(step), round(epoch, 4)])
    return rising


# -- settings --------------------------------------------------------------------------------------------------------
def _settings(run: Path, sessions: Sequence[Session], rows: Sequence[Row], state: dict[str, Any]) -> dict[str, str]:
    """Hyper-parameters, Trainer's arguments and environment, flat: of the newest process, else of the checkpoints."""
    if sessions:
        return settings_in(sessions[-1].first)
    info = rows[-1].entry.info if rows and rows[-1].entry else {}
    hyper_parameters = state.get("hyper_parameters") or _json_of(run / HPARAMS)
    return {
        **flat(hyper_parameters, "hyper_parameters."),
        **flat(state.get("run"), "trainer."),
        **flat(info, "environment."),
    }


def _text_of(path: Path) -> str | None:
    """What `paddlelite fit` was configured with, where it was."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:_MOST_OF_A_CONFIG]
    except OSError:
        return None


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
