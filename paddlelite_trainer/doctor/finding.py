"""Finding: what one check has found out, and what is private in a text taken out of it."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "warning", "failed", "not possible here"]
WORST_FIRST: tuple[Verdict, ...] = ("failed", "warning", "ok", "not possible here")
_PATH = re.compile(r"(?<![\w/])~?(?:/[\w.@+~-]+)+/?")
_LONGEST = 600


@dataclass(frozen=True)
class Finding:
    """`words` say what was found and `remedy` what to do about it; `numbers` are what was measured."""

    check: str
    verdict: Verdict
    words: str
    remedy: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def without_private(self) -> Finding:
        """The same, with nothing in it that tells whose machine it is."""
        return Finding(self.check, self.verdict, public(self.words), public(self.remedy), self.numbers)


def failed(check: str, error: BaseException) -> Finding:
    """A check that ended with an exception."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Finding(check, "failed", words, "attach the report to a bug report")


def public(text: str) -> str:
    """The text without paths (a file's name stays), and without the names of user and host."""
    text = _PATH.sub(lambda found: f"<path>/{found[0].rstrip('/').rpartition('/')[2]}", text)
    for private, instead in ((socket.gethostname(), "<host>"), (_user(), "<user>")):
        if len(private) > 1:
            text = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", instead, text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container without a name for its user
        return os.environ.get("USER", "")
