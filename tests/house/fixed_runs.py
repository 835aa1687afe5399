"""Performs fixed small trainings and prints hashes of all they left behind, to compare two states of the package.

    python tests/house/fixed_runs.py                                  # a table of names and hashes
    python tests/house/fixed_runs.py --only plain lbfgs --parts       # with a hash of each part
    python tests/house/fixed_runs.py --beside ../before               # there too; exit code 1 where any differs

Hashes hold for one machine and one Paddle. What is not compared is `fingerprint.MASKED`. A run that fails is told
with the end of what it printed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS_OF_A_RUN = 120
Parts = dict[str, str]
"""{part: hash}, or {"failed": why} and {"skipped": why}."""


def main() -> int:
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="fixed-runs-") as scratch:
        work = (options.work or Path(scratch)).resolve()
        if options.inside:
            perform_here(options.inside, work, options.checkout)
            return 0
        if options.beside:
            return compare_checkouts(options, work)
        found = perform(options.only, work, options.checkout)
    for name, parts in found.items():
        print(f"{name:<52} {_told(parts)}")
        if options.parts:
            print("".join(f"    {part:<48} {value[:16]}\n" for part, value in parts.items()), end="")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any("failed" in parts for parts in found.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these runs")
    parser.add_argument("--parts", action="store_true", help="print the hash of each part too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the hashes of all parts here")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose package runs; default: this one's")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="perform them there too, and compare")
    parser.add_argument("--python", default=sys.executable, help="the interpreter for CHECKOUT; default: this one")
    parser.add_argument("--work", type=Path, help="keep what the runs write in this folder")
    parser.add_argument("--inside", metavar="NAME", help=argparse.SUPPRESS)  # a run in a process of its own
    return parser.parse_args()


# -- two checkouts -----------------------------------------------------------------------------------------------------
def compare_checkouts(options: argparse.Namespace, work: Path) -> int:
    """Perform everything in both; print what differs and return the exit code."""
    sides = {"here": (sys.executable, options.checkout), "beside": (options.python, options.beside)}
    found = {}
    for side, (python, checkout) in sides.items():
        (work / side).mkdir(parents=True, exist_ok=True)
        result = work / f"{side}.json"
        command = [python, __file__, "--checkout", str(checkout.resolve()), "--json", str(result)]
        command += ["--work", str(work / side), *(["--only", *options.only] if options.only else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not result.exists():
            print(f"{side}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
            return 1
        found[side] = json.loads(result.read_text())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    same = [_compare(name, parts, found["beside"][name]) for name, parts in found["here"].items()]
    return int(not all(same))


def _compare(name: str, here: Parts, beside: Parts) -> bool:
    if "failed" in here or "failed" in beside:
        print(f"{name:<52} here {_told(here)}\n{'':<52} beside {_told(beside)}")
        return False
    differing = sorted(part for part in here.keys() | beside.keys() if here.get(part) != beside.get(part))
    print(f"{name:<52} {'differs in: ' + ', '.join(differing) if differing else 'same'}", flush=True)
    return not differing


def _told(parts: Parts) -> str:
    for word in ("failed", "skipped"):
        if word in parts:
            return f"{word}: {parts[word]}"
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# -- performing --------------------------------------------------------------------------------------------------------
def perform(names: list[str], work: Path, checkout: Path) -> dict[str, Parts]:
    """Each run in a process of its own, one after the other."""
    runs = _load_runs(checkout)
    unknown = set(names) - set(runs.RUNS)
    if unknown:
        sys.exit(f"no run is called {', '.join(sorted(unknown))}; there are {', '.join(runs.RUNS)}")
    ways = {"cpu": _in_fork, "fake_gpu": _on_fake_gpu, "two ranks": _on_two_ranks}
    found = {}
    for name in names or runs.RUNS:
        room = work / name
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        print(f"{name} ...", file=sys.stderr)
        found[name] = ways[runs.ELSEWHERE.get(name, "cpu")](name, room, checkout)
    return found


def perform_here(name: str, room: Path, checkout: Path) -> None:
    """The run itself, in this process; leaves its parts in the room, one file a rank."""
    runs = _load_runs(checkout)
    place = importlib.import_module("room").Room(room, "fake_gpu" if runs.ELSEWHERE.get(name) == "fake_gpu" else "cpu")
    importlib.import_module("paddlelite_trainer").seed_everything(7)
    runs.RUNS[name](place)
    _parts_file(room, int(os.environ.get("PADDLE_TRAINER_ID", "0"))).write_text(json.dumps(place.parts()))


def _in_fork(name: str, room: Path, checkout: Path) -> Parts:
    """In a forked child: Paddle has done nothing yet but be imported."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(SECONDS_OF_A_RUN)
            with (room / "log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                sys.stdout = sys.stderr = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
                try:
                    perform_here(name, room, checkout)
                    code = 0
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return _result(room, code, (room / "log").read_text(errors="replace"))


def _on_fake_gpu(name: str, room: Path, checkout: Path) -> Parts:
    fake_gpu = importlib.import_module("fake_gpu")
    outcomes = importlib.import_module("_pytest.outcomes")
    try:
        environment = fake_gpu.environment()
    except outcomes.Skipped as reason:
        return {"skipped": str(reason)}
    return _in_subprocess([sys.executable], name, room, checkout, environment)


def _on_two_ranks(name: str, room: Path, checkout: Path) -> Parts:
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(room / "launch")]
    parts = _in_subprocess([sys.executable, "-W", "ignore", *launch], name, room, checkout, dict(os.environ))
    if "failed" in parts:
        return parts
    of_rank_1 = json.loads(_parts_file(room, 1).read_text())
    of_process = ("final weights", "final optimizers", "returned")
    return parts | {f"{part} of rank 1": of_rank_1[part] for part in of_process}


def _in_subprocess(start: list[str], name: str, room: Path, checkout: Path, environment: dict[str, str]) -> Parts:
    command = [*start, __file__, "--inside", name, "--work", str(room), "--checkout", str(checkout.resolve())]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS_OF_A_RUN, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {SECONDS_OF_A_RUN} s"}
    return _result(room, done.returncode, done.stdout + done.stderr)


def _result(room: Path, code: int, printed: str) -> Parts:
    path = _parts_file(room, 0)
    if code or not path.exists():
        return {"failed": f"exit code {code}\n{printed[-3000:]}"}
    parts: Parts = json.loads(path.read_text())
    return parts


def _parts_file(room: Path, rank: int) -> Path:
    return room / f"parts-of-rank-{rank}.json"


# -- whose package -----------------------------------------------------------------------------------------------------
def _load_runs(checkout: Path) -> Any:
    """The runs, on the package that lies in `checkout`, whatever is installed."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ["PADDLELITE_CPU_THREADS"] = "1"  # some operators round otherwise with several threads
    sys.path[:0] = [str(checkout.resolve()), str(HERE), str(HERE.parent)]
    package = importlib.import_module("paddlelite_trainer")
    assert Path(package.__file__ or "").parents[1] == checkout.resolve(), f"{package.__file__} is not in {checkout}"
    folder = checkout.resolve() / "callbacks"
    name = "paddlelite_trainer.callbacks"
    if folder.is_dir() and name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return importlib.import_module("runs")


if __name__ == "__main__":
    sys.exit(main())
