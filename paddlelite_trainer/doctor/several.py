"""Checks between devices: a process on each, started by Paddle's launcher, talks to the others and trains with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..machine.device import available_devices, resolve_device
from .finding import Finding

JOB = Path(__file__).with_name("job.py")
SECONDS = 300
CPU_PROCESSES = 2


def checks(quick: bool) -> Iterator[tuple[str, Callable[[], Finding | list[Finding]]]]:
    yield "several devices", lambda: check_several(quick)


def check_several(quick: bool) -> Finding | list[Finding]:
    check, kind = "several devices", resolve_device().type
    count = available_devices()[kind] if kind != "cpu" else CPU_PROCESSES
    if count == 1:
        return Finding(check, "not possible here", f"there is one {kind}")
    if quick:
        count = min(count, 2)
    said, found = _job(kind, count, quick)
    if found is None:
        last = [line for line in said.splitlines() if line.strip()][-2:]
        remedy = (
            "try NCCL_DEBUG=INFO with a script of your own; a container needs --shm-size=1g; machines without direct "
            "access between GPUs need NCCL_P2P_DISABLE=1"
        )
        words = f"{count} processes did not come to their end: {' '.join(' '.join(last).split())}"
        return Finding(check, "failed", words, remedy if kind == "gpu" else "attach the report to a bug report")
    return [_of_collectives(kind, count, found), *_of_strategies(found)]


def _job(kind: str, count: int, quick: bool) -> tuple[str, dict[str, Any] | None]:
    """What the job said, and what it found out; None where it did not come to its end."""
    with tempfile.TemporaryDirectory(prefix="paddlelite-doctor-") as scratch:
        out = Path(scratch) / "found.json"
        devices = ["--devices", ",".join(map(str, range(count)))]
        chosen = devices if kind != "cpu" else ["--nproc_per_node", str(count)]
        command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", *chosen]
        command += ["--log_dir", f"{scratch}/log", str(JOB), str(out), *(["--quick"] if quick else [])]
        settings = {"PADDLE_DISTRI_BACKEND": "gloo"} if kind == "cpu" else {}
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **settings},
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
            said = done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            said = f"not done after {SECONDS} s"
        return said, json.loads(out.read_text()) if out.exists() else None


def _of_collectives(kind: str, count: int, found: dict[str, Any]) -> Finding:
    check, sums = "collectives between devices", found["sums"]
    numbers = {"ranks": count, "backend": found["backend"], "mb_per_second": found["mb_per_second"]}
    words = f"{count} x {kind} on {found['backend']}"
    if not all(sums.values()):
        wrong = ", ".join(name for name, right in sums.items() if not right)
        return Finding(check, "failed", f"{words}: wrong sums of {wrong}", "check cables, driver and NCCL", numbers)
    words += f": all_reduce, broadcast and gathering are right; {found['mb_per_second']} MB/s in all_reduce"
    return Finding(check, "ok", words, numbers=numbers)


def _of_strategies(found: dict[str, Any]) -> list[Finding]:
    findings, replicas = [], found["strategies"].get("ddp", {})
    for strategy, one in found["strategies"].items():
        check = f"strategy {strategy}"
        if "error" in one:
            findings.append(Finding(check, one["verdict"], one["error"]))
            continue
        numbers = {key: one[key] for key in ("us_a_step", "memory_mb") if key in one}
        words = f"{one['us_a_step']} us a step of a tiny network"
        if not one["agree"]:
            remedy = "attach the report to a bug report: ranks must agree"
            findings.append(Finding(check, "failed", "the ranks have other weights in the end", remedy, numbers))
        elif one["bits"] != replicas.get("bits") and "bits" in replicas:
            remedy = "sums in another order differ in the last digit; more than 1e-5 is worth a bug report"
            findings.append(Finding(check, "warning", f"{words}; other bits than ddp", remedy, numbers))
        else:
            same = "" if strategy == "ddp" else ", the bits of ddp"
            findings.append(Finding(check, "ok", f"all ranks have the same weights{same}; {words}", numbers=numbers))
    return findings
