"""The command that examines this machine: `paddlelite doctor`; Paddle is loaded in processes of its own."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..reporting.terminal import console, is_terminal, say
from .output import OK, PROBLEMS, print_json

REPORT = "paddlelite-doctor.json"
NARROW, WIDE = 80, 120


def doctor(arguments: argparse.Namespace) -> int:
    from ..doctor import examine

    directory, report = Path(arguments.directory).expanduser(), Path(arguments.report).expanduser()
    if not directory.is_dir():
        raise ConfigurationError(f"--directory {directory} is no directory: name one on the disk that runs are kept on")
    examination = examine(quick=arguments.quick, directory=directory, tell=_tell)
    found = examination.as_dict()
    report.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    if arguments.json:
        print_json(found)
    else:
        _print(examination)
        say(f"{_in_words(examination)} {report} holds all of it, and nothing private: attach it to a bug report.")
    return PROBLEMS if examination.verdict == "failed" else OK


def _tell(group: str) -> None:
    """What is under way; minutes may pass."""
    if sys.stderr.isatty():
        print(f"\r\033[Kexamining: {group} ...", end="\r", file=sys.stderr, flush=True)
    else:
        print(f"examining: {group}", file=sys.stderr, flush=True)


def _print(examination: Any) -> None:
    from rich.table import Table

    screen = console()
    width = min(screen.width, WIDE) if is_terminal() else NARROW
    styles = {"failed": "bold red", "warning": "yellow", "ok": "green", "not possible here": "dim"}
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("check", max_width=24)
    table.add_column("", no_wrap=True)
    table.add_column("what was found, and what to do", overflow="fold")
    for one in examination.findings:
        words = one.words + (f"\nTo do: {one.remedy}" if one.remedy else "")
        verdict = "-" if one.verdict == "not possible here" else one.verdict
        table.add_row(one.check, f"[{styles[one.verdict]}]{verdict}[/]", words.replace("[", r"\["))
    with screen.capture() as captured:
        screen.print(table, width=width)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def _in_words(examination: Any) -> str:
    counts = dict.fromkeys(("ok", "warning", "failed", "not possible here"), 0)
    for one in examination.findings:
        counts[one.verdict] += 1
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{listed} (-), in {examination.seconds:.0f} s." if counts["not possible here"] else f"{listed}."
