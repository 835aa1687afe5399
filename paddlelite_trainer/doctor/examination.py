"""Examination: runs all checks, each group in a process of its own, so that a crash of Paddle is a finding too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .finding import WORST_FIRST, Finding, Verdict
from .machine import check_disk, check_shared_memory

GROUPS = {"build": 120.0, "training": 600.0, "several": 400.0}
"""{group of checks that need Paddle: seconds after which it is given up}"""
_PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Examination:
    """All findings, in the order of the checks."""

    quick: bool
    findings: Sequence[Finding]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The worst."""
        return min((one.verdict for one in self.findings), key=WORST_FIRST.index, default="ok")

    def as_dict(self) -> dict[str, Any]:
        findings = [one.as_dict() for one in self.findings]
        head = {"paddlelite_trainer": __version__, "quick": self.quick, "seconds": round(self.seconds, 1)}
        return {**head, "verdict": self.verdict, "findings": findings}


def examine(
    *, quick: bool, directory: Path, groups: Sequence[str] = tuple(GROUPS), tell: Callable[[str], None] = lambda _: None
) -> Examination:
    """Run every check; `tell` is told what is under way.

    directory: on the disk that is tried; nothing is left there.
    quick: fewer steps and rounds, in about a minute where everything would take five.
    """
    began, findings = time.monotonic(), []
    for group in groups:
        tell(group)
        findings += _in_a_process(group, quick)
        if group == "build":
            tell("memory and disk")
            findings += [check_shared_memory(), check_disk(directory)]
    return Examination(quick, [one.without_private() for one in findings], time.monotonic() - began)


def _in_a_process(group: str, quick: bool) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="paddlelite-doctor-") as scratch:
        out = Path(scratch) / "findings.jsonl"
        out.touch()
        command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.worker", group, str(out)]
        command += ["--quick"] if quick else []
        paths = [str(_PACKAGE), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "GLOG_minloglevel": "2", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=scratch,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        try:
            said, _ = process.communicate(timeout=GROUPS[group])
            how = _how_it_ended(process.returncode)
        except subprocess.TimeoutExpired:
            how = f"was not done after {GROUPS[group]:.0f} s, and was ended"
            said = ""
        finally:
            _end_all(process)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
    findings = [Finding(**line["finding"]) for line in lines if "finding" in line]
    if how:
        began = [line["began"] for line in lines if "began" in line]
        last = [line for line in said.splitlines() if line.strip()][-1:]
        words = f"its process {how}" + (f": {last[0].strip()}" if last else "")
        remedy = "attach the report to a bug report"
        findings.append(Finding(began[-1] if began else group, "failed", words, remedy))
    return findings


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}" if code else ""
    return f"was ended by {signal.Signals(-code).name}"


def _end_all(process: subprocess.Popen[str]) -> None:
    """It and all that it has started, its own session's alone."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()
