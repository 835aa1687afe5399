"""Interrupts trainings in every way: exceptions in user code, signals, kills; and goes on to the end.

    python tests/resume/interruptions.py crashes|signals|storm --work DIR [--count N] [--seed S]

Prints one line of JSON for each interruption; see harness.py for how runs are made and compared.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import harness
import variants

from paddlelite_trainer import Callback
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.fit.optimization import Optimization

paddle = harness.paddle


DID_NOT_FAIL = 3


class Boom(Exception):
    """The user's own error."""


# -- exceptions in user code -------------------------------------------------------------------------------------------
class Breaker(Callback):
    """Raises in one hook, once so many training batches are done."""

    def __init__(self, where: str, batches: int) -> None:
        self._batches = batches
        setattr(self, where, self._break)

    def _break(self, trainer: Any, module: Any, *arguments: Any) -> None:
        if trainer.progress.total_batches == self._batches and trainer.state == "fit" and not trainer.sanity_checking:
            raise Boom


def break_function(owner: Any, name: str, batches: int, module: list[Any]) -> None:
    """Let a function raise after it has done its work, once so many training batches are done."""
    original = getattr(owner, name)

    def broken(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        trainer = module[0]
        if trainer is not None and trainer.training_started and trainer.progress.total_batches == batches:
            raise Boom
        return result

    setattr(owner, name, broken)


class Introduce(Callback):
    """Makes the trainer known to functions that do not get it."""

    def __init__(self, box: list[Any]) -> None:
        self.box = box

    def on_train_start(self, trainer: Any, module: Any) -> None:
        trainer.training_started = True
        self.box[0] = trainer


HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
)
FUNCTIONS: dict[str, tuple[Any, str]] = {
    "__getitem__": (variants.Points, "sample"),
    "collate_fn": (variants, "collate"),
    "training_step": (variants.Net, "training_step"),
    "validation_step": (variants.Net, "validation_step"),
    "clipping": (Optimization, "clip"),
    "optimizer step": (paddle.optimizer.AdamW, "step"),
}
NOT_SAVED = {"on_train_batch_end", "optimizer step"}  # weights have moved since the last save point


def crash(where: str, batches: int, root: Path, points: Path, variant: str) -> None:
    """One run that fails; the process ends with 0 if what left `fit` was the very exception that was raised."""
    box: list[Any] = [None]
    last: list[Callback] = [Introduce(box)]
    if where in FUNCTIONS:
        break_function(*FUNCTIONS[where], batches, box)
    else:
        last.append(Breaker(where, batches))
    try:
        harness.run(variant, root, saves=False, points=points, callbacks=[keeper()], last=last)
    except Boom as error:
        assert error.args == () and error.__cause__ is None
        assert where in ("__getitem__", "collate_fn") or not getattr(error, "__notes__", None)
    else:
        os._exit(DID_NOT_FAIL)


def keeper() -> ModelCheckpoint:
    return ModelCheckpoint(save_on_exception=True, every_n_epochs=100, save_top_k=0)


def crashes(work: Path, count: int, seed: int) -> None:
    """Every place, at batches of all kinds: the first, in the middle, before a validation, the epoch's last."""
    generator = random.Random(seed)
    for variant in ("plain", "validation in the middle of windows", "iterable, own state"):
        root, points, log = work / "whole", work / "points", work / "log"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        whole = lambda root=root, points=points, v=variant: harness.run(  # noqa: E731
            v, root, saves=False, points=points, callbacks=[keeper()]
        )
        assert harness.in_fork(whole, log) == 0, log.read_text()
        expected, expected_logs = harness.read_points(points)[-1], cells(root / "run")
        in_windows = "windows" in variant  # where a batch may end without the optimizer having moved
        places = [(where, batch) for where in (*HOOKS, *FUNCTIONS) for batch in batches_for(where, variant)]
        for where, batch in generator.sample(places, min(count, len(places))):
            root, points = work / "broken", work / "broken-points"
            shutil.rmtree(root, ignore_errors=True)
            points.unlink(missing_ok=True)
            log.write_text("")
            code = harness.in_fork(lambda w=where, b=batch, r=root, p=points, v=variant: crash(w, b, r, p, v), log)
            saved = sorted(path.name for path in (root / "run" / "checkpoints").glob("step-*"))
            if code == DID_NOT_FAIL:  # looking ahead, data of a stream is fetched earlier
                continue
            problem = "" if code == 0 else log.read_text()[-2000:]
            moved = where == "optimizer step" or (where == "on_train_batch_end" and batch not in (0, 6, 15))
            if not problem and bool(saved) != (not moved if in_windows else where not in NOT_SAVED):
                problem = "saved" if saved else "not saved"
            points.unlink(missing_ok=True)
            again = lambda r=root, p=points, v=variant: harness.run(  # noqa: E731
                v, r, saves=False, points=p, callbacks=[keeper()]
            )
            if not problem and harness.in_fork(again, log):
                problem = log.read_text()[-2000:]
            if not problem:
                problem = harness.difference([expected], harness.read_points(points)[-1:])
            if not problem and cells(root / "run") != expected_logs:
                problem = "logs differ"
            print(
                json.dumps({"variant": variant, "where": where, "batch": batch, "saved": saved, "problem": problem}),
                flush=True,
            )


def batches_for(where: str, variant: str) -> list[int]:
    """Numbers of batches done at which this place is reached."""
    if where == "on_train_epoch_end":
        return [15, 30]
    if "validation" in where:
        return [3, 9, 12] if variant.startswith("validation") else [15, 30]
    if where in ("on_before_optimizer_step", "clipping", "optimizer step") and variant.startswith("validation"):
        return [1, 5, 14, 16]
    return [0, 6, 14, 15, 22]


# -- signals -----------------------------------------------------------------------------------------------------------
class Slowed(Callback):
    """Makes every phase long enough to be met, and says in shared memory where the run is."""

    def __init__(self, board: mmap.mmap) -> None:
        self._board = board

    def _note(self, phase: str, trainer: Any, seconds: float) -> None:
        self._board[:48] = f"{trainer.global_step} {phase}".encode().ljust(48)
        time.sleep(seconds)

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self._note("setup", trainer, 0.15)

    def on_sanity_check_start(self, trainer: Any, module: Any) -> None:
        self._note("sanity validation", trainer, 0.0)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._note("before the first step", trainer, 0.1)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._note("training", trainer, 0.004)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._note("training", trainer, 0.004)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, _: int = 0) -> None:
        self._note("sanity validation" if trainer.sanity_checking else "validation", trainer, 0.06)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._note("epoch's end", trainer, 0.03)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        self._note("save", trainer, 0.05)


def start(work: Callable[[], None], log: Path) -> int:
    """A forked child that ends as Python ends: with its exit code, or by KeyboardInterrupt's signal."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with harness._silenced(log):
            try:
                work()
                code = 0
            except SystemExit as error:
                code = int(str(error.code))
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                harness.traceback.print_exc()
    finally:
        os._exit(code)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(child: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def signals(work: Path, count: int, seed: int) -> None:
    """`count` SIGTERMs, SIGINTs, and pairs of each, at random moments; each run is then finished and compared."""
    generator = random.Random(seed)
    work.mkdir(parents=True, exist_ok=True)
    log = work / "log"
    for variant in ("plain", "workers 2"):
        board = mmap.mmap(-1, 48)
        root, points = work / "whole", work / "points"
        shutil.rmtree(root, ignore_errors=True)
        points.unlink(missing_ok=True)

        def fit(root: Path, points: Path, variant: str = variant, board: mmap.mmap = board) -> None:
            keep = ModelCheckpoint(every_n_train_steps=7, save_top_k=0)
            harness.run(variant, root, saves=False, points=points, callbacks=[keep], last=[Slowed(board)])

        started = time.monotonic()
        assert harness.in_fork(lambda: fit(root, points), log) == 0, log.read_text()  # noqa: B023
        duration = time.monotonic() - started
        expected, expected_logs = harness.read_points(points)[-1], cells(root / "run")
        for number in range(count):
            name = ("SIGTERM", "SIGINT")[number % 2]
            twice = number % 5 == 4
            root, points = work / "cut", work / "cut-points"
            shutil.rmtree(root, ignore_errors=True)
            points.unlink(missing_ok=True)
            log.write_text("")
            board[:48] = b"0 start".ljust(48)
            child = start(lambda: fit(root, points), log)  # noqa: B023
            time.sleep(generator.uniform(0.03, 0.97 * duration))
            where, workers = bytes(board[:48]).decode().strip(), children_of(child)
            sent = time.monotonic()
            os.kill(child, getattr(signal, name))
            if twice:
                time.sleep(0.02)
                sent = time.monotonic()
                try:
                    os.kill(child, getattr(signal, name))
                except ProcessLookupError:
                    pass
            code = wait_for(child, 20)
            seconds = time.monotonic() - sent
            time.sleep(0.05)
            orphans = [pid for pid in workers if is_running(pid)]
            names = [path.name for path in (root / "run" / "checkpoints").glob("step-*")]
            saved = max((harness.checkpoint_order(name)[0] for name in names), default=0)
            problem = "" if code is not None else log.read_text()[-2000:]
            points.unlink(missing_ok=True)
            if not problem and harness.in_fork(lambda: fit(root, points), log):  # noqa: B023
                problem = log.read_text()[-2000:]
            problem = problem or harness.difference([expected], harness.read_points(points)[-1:])
            if not problem and cells(root / "run") != expected_logs:
                problem = "logs differ"
            step, _, phase = where.partition(" ")
            line = {"variant": variant, "signal": name, "twice": twice, "phase": phase, "code": code}
            line |= {"seconds": round(seconds, 2), "lost": max(0, int(step) - saved), "orphans": orphans}
            print(json.dumps({**line, "problem": problem}), flush=True)


# -- a storm of kills --------------------------------------------------------------------------------------------------
def cells(run_dir: Path) -> dict[str, Any]:
    """What was logged, however its rows were cut: {(step, name): values in order}, from CSV and TensorBoard files."""
    logs = harness.logged(run_dir)
    found: dict[str, list[float]] = {}
    for row in csv.DictReader(io.StringIO(logs["csv"].decode())):
        for name, value in row.items():
            if value and name not in ("step", "epoch"):
                found.setdefault(f"csv {row['step']} {name}", []).append(float(value))
    for tag, step, value in logs["tensorboard"]:
        if tag != "epoch":
            found.setdefault(f"tensorboard {step} {tag}", []).append(value)
    return dict(sorted(found.items()))


def storm(work: Path, count: int, seed: int) -> None:
    """`count` times start, kill at a random moment, start again; then let it end and compare."""
    generator = random.Random(seed)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log = work / "log"

    def fit(root: Path, points: Path, *last: Callback) -> None:
        keep = ModelCheckpoint(every_n_train_steps=2, save_top_k=0, save_on_exception=True)
        harness.run("storm", root, saves=False, points=points, callbacks=[keep], last=last)

    started = time.monotonic()
    assert harness.in_fork(lambda: fit(work / "whole", work / "points"), log) == 0, log.read_text()
    duration = time.monotonic() - started
    expected, expected_logs = harness.read_points(work / "points")[-1], cells(work / "whole" / "run")
    root, points = work / "killed", work / "killed-points"
    ended: dict[str, int] = {}
    while sum(ended.values()) < count:
        how = generator.choice(["SIGKILL", "SIGTERM", "exception"])
        log.write_text("")
        board = mmap.mmap(-1, 1)
        child = start(lambda: fit(root, points, OnDemand(board)), log)  # noqa: B023
        time.sleep(generator.uniform(0.12, 0.2 + 1.2 * duration / count))
        if how == "exception":
            board[0] = 1
        else:
            os.kill(child, getattr(signal, how))
        code = wait_for(child, 60)
        right = {"SIGKILL": (-signal.SIGKILL,), "SIGTERM": (75, -signal.SIGTERM), "exception": (1,)}[how]
        if code == 0:  # it was faster; begin another round of the same run's last part
            how = "ended before"
        elif code not in right or (how == "exception" and "Boom" not in log.read_text()):
            print(json.dumps({"problem": f"{how}: exit code {code}\n{log.read_text()[-2000:]}"}), flush=True)
            return
        ended[how] = ended.get(how, 0) + 1
        if code == 0:
            break
    points.unlink(missing_ok=True)
    code = harness.in_fork(lambda: fit(root, points), log)
    problem = log.read_text()[-2000:] if code else harness.difference([expected], harness.read_points(points)[-1:])
    if not problem and cells(root / "run") != expected_logs:
        problem = "logs differ"
    print(json.dumps({"cycles": ended, "steps": expected[1], "problem": problem}), flush=True)


class OnDemand(Callback):
    """Raises in the next batch when asked through shared memory."""

    def __init__(self, board: mmap.mmap) -> None:
        self._board = board

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        if self._board[0]:
            raise Boom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["crashes", "signals", "storm"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10**6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    {"crashes": crashes, "signals": signals, "storm": storm}[options.what](options.work, options.count, options.seed)


if __name__ == "__main__":
    main()
