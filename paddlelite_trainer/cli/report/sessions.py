"""Sessions: the processes that worked on a run, as its journal tells them, and when each step that counts was made."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ...run.directory import RunInfo
from ...run.journal import JOURNAL

Mark = tuple[int, int, float]
"""Step, completed epochs, seconds since 1970."""


@dataclass
class Session:
    """One fit of one process. `ended` is None where nobody wrote an end: it was killed, or it runs."""

    first: dict[str, Any]
    marks: list[Mark]
    ended: str | None = None

    def end(self, outcome: str) -> None:
        self.ended = outcome

    @property
    def began(self) -> float:
        return self.marks[0][2]

    @property
    def last(self) -> float:
        """When it was last heard of."""
        return self.marks[-1][2]

    @property
    def furthest(self) -> int:
        return max(step for step, _, _ in self.marks)


@dataclass
class Journal:
    """The sessions of a run, in order, and what of the file could not be read."""

    sessions: list[Session] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_journal(run: Path) -> Journal:
    """Read the journal as far as it can be read; of a run before there were journals it has no sessions."""
    journal, broken = Journal(), 0
    try:
        content = (run / JOURNAL).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return journal
    except OSError as error:
        journal.problems.append(f"{JOURNAL} cannot be read: {error}")
        return journal
    for line in content.splitlines():
        try:
            record = json.loads(line)
            mark = (int(record["step"]), int(record["epoch"]), datetime.fromisoformat(record["time"]).timestamp())
            event = record["event"]
        except (ValueError, KeyError, TypeError, OverflowError):
            broken += bool(line.strip())
            continue
        if event == "began":
            journal.sessions.append(Session(record, [mark]))
        elif journal.sessions:
            journal.sessions[-1].marks.append(mark)
            if event == "ended":
                journal.sessions[-1].end(str(record.get("outcome")))
    if broken:
        journal.problems.append(f"{JOURNAL}: {broken} torn line{'s' if broken > 1 else ''}, left out")
    return journal


def clock_of(sessions: list[Session]) -> list[list[float]]:
    """[step, seconds worked on the run, seconds since 1970] at moments of the steps that count; steps never fall.

    Of a session's steps those count that no later one has made again; its seconds count all, those of lost work too.
    Two moments of one step are a pause: the step was made at the first of them.
    """
    clock: list[list[float]] = []
    for session, before in zip(sessions, _seconds_before(sessions)):
        for step, _, when in session.marks:
            here = [step, round(before + when - session.began, 3), when]
            lost = None
            while clock and clock[-1][0] > step:
                lost = clock.pop()
            if lost is not None and clock and clock[-1][0] < step:
                clock.append(_between(clock[-1], lost, step))
            begins = when == session.began
            if not clock or clock[-1][0] < step or begins:
                clock.append(here)
    return clock


def _between(one: list[float], other: list[float], step: float) -> list[float]:
    share = (step - one[0]) / (other[0] - one[0])
    return [step, *(round(a + share * (b - a), 3) for a, b in zip(one[1:], other[1:]))]


def _seconds_before(sessions: list[Session]) -> list[float]:
    """What was worked before each session, of all work."""
    before, total = [], 0.0
    for session in sessions:
        before.append(total)
        total += max(session.last - session.began, 0.0)
    return before


def told(sessions: list[Session], info: RunInfo | None) -> list[dict[str, Any]]:
    """Each session as a row: when, where, from which step to which, what was lost, what was changed, how it ended."""
    rows = []
    for index, (session, before) in enumerate(zip(sessions, _seconds_before(sessions))):
        later = sessions[index + 1] if index + 1 < len(sessions) else None
        goes_on_at = later.marks[0][0] if later else None
        ended, is_over = _how_it_ended(session, later is not None, info)
        rows.append(
            {
                "began": session.began,
                "last": session.last,
                "worked_from": round(before, 3),
                "worked_to": round(before + session.last - session.began, 3),
                "from": session.marks[0][0],
                # Marks are up to a second or more apart, and the checkpoint that is gone on from may be newer.
                "to": max(session.furthest, goes_on_at or 0),
                "lost": max(0, session.furthest - goes_on_at) if goes_on_at is not None else 0,
                "went_on_from": session.first.get("went_on_from"),
                "host": session.first.get("host"),
                "process": session.first.get("process"),
                "command": session.first.get("command"),
                "ended": ended,
                "is_over": is_over,
                "killed": ended.startswith("killed"),
                "changed": _changes(sessions[index - 1].first, session.first) if index else [],
            }
        )
    return rows


def _how_it_ended(session: Session, others_follow: bool, info: RunInfo | None) -> tuple[str, bool]:
    if session.ended is not None:
        return session.ended, True
    status = info.status if info is not None else "running"
    if others_follow or status != "running":
        return "killed: no end was written", True
    return "running", False


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What this process was given that the one before it was not."""
    old, new = settings_in(before), settings_in(after)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [_change(name, before, after) or f"{name}: {old.get(name, '-')} → {new.get(name, '-')}" for name in changed]


def _change(name: str, before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Of lists, such as callbacks, what was left out and what was added."""
    group, _, key = name.partition(".")
    one, other = (record[group].get(key) if isinstance(record.get(group), dict) else None for record in (before, after))
    if not (isinstance(one, list) and isinstance(other, list)):
        return None
    gone, new = [item for item in one if item not in other], [item for item in other if item not in one]
    parts = [f"without {text_of(gone)}"] * bool(gone) + [f"with {text_of(new)}"] * bool(new)
    return f"{name}: {', '.join(parts) or 'in another order'}"


def settings_in(record: dict[str, Any]) -> dict[str, str]:
    """Environment, Trainer's arguments and hyper-parameters of a session, flat, as texts."""
    return {
        name: text
        for group in ("hyper_parameters", "trainer", "environment")
        for name, text in flat(record.get(group), f"{group}.").items()
        if name not in ("environment.max_epochs", "trainer.run_name")  # said elsewhere
    }


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """A nested dict as {"a.b": text}; lists are one text."""
    if not isinstance(tree, dict):
        return {}
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and set(value) == {"$", "items"}:  # as a checkpoint keeps keys that are no text
            found[f"{prefix}{name}"] = text_of(value["items"])
        elif isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = text_of(value)
    return found


def text_of(value: Any) -> str:
    """A value in a cell of a table."""
    if isinstance(value, list):
        text = ", ".join(map(text_of, value)) if value else "none"
    else:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 400 else f"{text[:397]}..."
