"""Durations as users write them: 'DD:HH:MM:SS', a timedelta, or timedelta's arguments in a dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from .errors import ConfigurationError, ConfigurationTypeError

Duration = str | timedelta | Mapping[str, int]


def seconds(duration: Duration | None, owner: str, argument: str) -> float | None:
    """How many seconds `owner(argument=duration)` asks for; None for None.

    Raises:
        ConfigurationError: text of another form, a key that timedelta does not have, more than a timedelta can hold.
        ConfigurationTypeError: neither text, a timedelta nor a mapping.
    """
    if duration is None:
        return None
    given = dict(duration) if isinstance(duration, Mapping) else duration
    try:
        return _as_timedelta(given, owner, argument).total_seconds()
    except OverflowError as error:
        raise ConfigurationError(
            f"{owner}({argument}={given!r}) is longer than datetime.timedelta can hold: {error}"
        ) from error


def _as_timedelta(duration: str | timedelta | dict[str, int], owner: str, argument: str) -> timedelta:
    if isinstance(duration, timedelta):
        return duration
    if isinstance(duration, dict):
        try:
            return timedelta(**duration)
        except TypeError as error:
            raise ConfigurationError(
                f"{owner}({argument}={duration!r}): {error}; its keys are those of datetime.timedelta"
            ) from error
    if isinstance(duration, str):
        match = re.fullmatch(r"(\d+):(\d+):(\d+):(\d+)", duration.strip())
        if match is None:
            raise ConfigurationError(
                f"{owner}({argument}=...) as text is 'DD:HH:MM:SS' (days, hours, minutes, seconds), got {duration!r}; "
                "'00:12:00:00' is twelve hours"
            )
        days, hours, minutes, rest = map(int, match.groups())
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=rest)
    raise ConfigurationTypeError(
        f"{owner}({argument}=...) is 'DD:HH:MM:SS', a timedelta or a dict of its arguments, got {duration!r}"
    )
