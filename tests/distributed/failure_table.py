"""Twelve ways in which one of two ranks can fail, each tried several times, and a table of how that ended.

python tests/distributed/failure_table.py [--repeats 5] [--cases WORDS]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("failures.py")
UNDISTURBED = "nobody fails"
CASES = [
    "1 raises in the step",
    "0 raises in a hook",
    "1 raises in a loader's worker",
    "1 raises in validation",
    "0 is killed in the step",
    "1 is killed in the step",
    "1 leaves by os._exit in the step",
    "1 crashes in validation",
    "1 runs out of memory in the step",
    "0 full disk in a save",
    "1 hangs in the dataset",
    "1 hangs in a loader's worker",
]
"""A hang is over after 3 s here: Trainer(rank_timeout=...)."""
SECONDS_OF_A_CASE = 200


def run(cases: list[str]) -> dict[str, dict[str, Any]]:
    """How each job ended; each is followed by its own command once more."""
    everything = [UNDISTURBED, *(f"{case}{more}" for case in cases for more in ("", ", again"))]
    with tempfile.TemporaryDirectory() as out:
        environment = {**os.environ, "GLOG_minloglevel": "2"}
        command = [sys.executable, "-W", "ignore", str(SCRIPT), out, *everything]
        seconds = SECONDS_OF_A_CASE * len(cases)
        subprocess.run(command, capture_output=True, timeout=seconds, env=environment, check=False)
        return dict(map(json.loads, (Path(out) / "results.jsonl").read_text().splitlines()))


def last_words(job: dict[str, Any], failed: int) -> str:
    """What rank 0 of the job said last: of the failure, without the place and the log."""
    said = job["logs"][0 if failed else 1].strip().splitlines()
    line = next((one for one in reversed(said) if " failed first: " in one), said[-1] if said else "nothing")
    return line.replace(socket.gethostname(), "HOST")


def row(case: str, jobs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    found, again = [one.get(case) for one in jobs], [one.get(f"{case}, again") for one in jobs]
    ended = [one for one in found if one is not None and "never ended" not in one["codes"]]
    same = 0
    for after, of_run in zip(again, jobs):
        parts = ("weights", "step")
        ends, whole = after["ends"] if after else [None], of_run[UNDISTURBED]["ends"]
        same += all(
            one is not None and all(one[part] == other[part] for part in parts) for one, other in zip(ends, whole)
        )
    seconds = [one["seconds"] for one in ended if one["seconds"] is not None]
    return {
        "case": case,
        "ended": len(ended),
        "seconds": [min(seconds, default=0.0), max(seconds, default=0.0)],
        "orphans": sum(one["orphans"] for one in found if one is not None),
        "named": sum(f"Rank {case[0]} on " in last_words(one, int(case[0])) for one in ended),
        "same bits": same,
        "last": last_words(ended[-1], int(case[0])) if ended else "never ended",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", default="", help="only those whose name has these words")
    given = parser.parse_args()
    cases, count = [case for case in CASES if given.cases in case], given.repeats
    jobs = [run(cases) for _ in range(count)]
    print(
        "case                              ended  seconds      orphans  named  same bits   last words of the other rank"
    )
    for one in (row(case, jobs) for case in cases):
        low, high = one["seconds"]
        print(
            f"{one['case']:<33} {one['ended']:>3}/{count}  {low:>4.1f} to {high:>4.1f}  {one['orphans']:>6}"
            f"  {one['named']:>4}/{count}  {one['same bits']:>5}/{count}     {one['last'][:90]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
