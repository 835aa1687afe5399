"""What the tests of the report share: run directories written by hand, and a page taken apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

BEGAN = 1_790_000_000  # seconds since 1970


def write_run(path: Path, metrics: str | None = None, *, status: str = "finished", **record: Any) -> Path:
    """A run's run.json, and its metrics.csv if there are any."""
    path.mkdir(parents=True, exist_ok=True)
    told = {"status": status, "reason": None, "pid": 1, "host": "elsewhere", "started": "2026-09-21T14:13:20+00:00"}
    told |= {"ended": "2026-09-21T15:13:20+00:00", "command": "python train.py", "sessions": 1, **record}
    (path / "run.json").write_text(json.dumps(told))
    if metrics is not None:
        (path / "metrics.csv").write_text(metrics)
    return path


def write_journal(path: Path, *events: tuple[Any, ...]) -> None:
    """(seconds, event, step, epoch[, fields]) a line."""
    from datetime import datetime, timezone

    lines = []
    for seconds, event, step, epoch, *fields in events:
        when = datetime.fromtimestamp(BEGAN + seconds, timezone.utc).isoformat(timespec="milliseconds")
        lines.append(json.dumps({"time": when, "event": event, "step": step, "epoch": epoch, **dict(*fields)}))
    path.mkdir(parents=True, exist_ok=True)
    (path / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))


class Page(HTMLParser):
    """A report taken apart as a browser does it: its elements, the text of each script, and what refers elsewhere."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)
            self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] == ["script"]:
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])

    @property
    def policy(self) -> str:
        (found,) = [attributes["content"] for tag, attributes in self.elements if "http-equiv" in attributes]
        return str(found)
