"""Trains a variant once without interruption, then goes on from every one of its save points and compares all state.

    python tests/resume/harness.py --work DIR [--every N] [VARIANT ...]

Every run is a process of its own, forked before Paddle has done anything but be imported; one run in an interpreter of
its own (`--run`) shows that this is as good as a fresh process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
import numpy as np  # noqa: E402
import paddle  # noqa: E402

import conftest  # noqa: E402, F401  maps callbacks/ into the package
from paddlelite_trainer import (  # noqa: E402
    Callback,
    CSVLogger,
    TensorBoardLogger,
    Trainer,
    seed_everything,
)
from paddlelite_trainer.fit import state as training_state  # noqa: E402
from paddlelite_trainer.machine.rng import random_states  # noqa: E402

STEP = "step-"


# -- what is compared --------------------------------------------------------------------------------------------------
def digest(value: Any) -> str:
    """sha256 of a tree, of tensors by type, shape and bytes; when things were done is left out."""
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()[:16]


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in value:  # in order: columns of a file and columns of a plot follow it
            if "seconds" not in str(key) and key != "step_due":  # when a checkpoint was taken last
                hasher.update(f"{key}=".encode())
                _feed(hasher, value[key])
    elif isinstance(value, (list, tuple)):
        hasher.update(f"[{len(value)}".encode())
        for item in value:
            _feed(hasher, item)
    elif isinstance(value, paddle.Tensor):
        _feed(hasher, value.numpy())
    elif isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        hasher.update(value)
    elif isinstance(value, float):
        hasher.update(float(value).hex().encode())
    else:
        hasher.update(repr(value).encode())


def state_of(trainer: Trainer) -> dict[str, str]:
    """One digest for each part of all that a run is."""
    tree = training_state.trainer_tree(trainer._fit)
    del tree["loggers"]  # file positions; the files themselves are compared
    tree["optimizer_tensors"] = dict(sorted(tree["optimizer_tensors"].items()))
    parts = {name: digest(part) for name, part in tree.items()}
    parts["weights"] = digest(dict(trainer.model.state_dict()))
    parts["rates"] = digest([float(optimizer.get_lr()) for optimizer in trainer.optimizers])
    parts["random"] = digest(random_states())
    return parts


class Recorder(Callback):
    """Writes down the state at each save point, and keeps a checkpoint of each where `saves` is true."""

    def __init__(self, path: Path, saves: bool) -> None:
        self.path, self.saves = path, saves
        self.points = 0
        self.hooks: dict[str, int] = {}
        self.seen: list[str] = []  # every batch, in order

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points, "hooks": dict(self.hooks), "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points, self.hooks = state_dict["points"], dict(state_dict["hooks"])
        self.seen = list(state_dict["seen"])

    def _count(self, hook: str) -> None:
        self.hooks[hook] = self.hooks.get(hook, 0) + 1

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._count("on_train_epoch_start")
        self.drawn = [float(np.random.rand()), float(paddle.rand([1]).numpy()[0])]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._count("on_train_batch_start")

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self._count("on_before_optimizer_step")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._count("on_train_batch_end")
        self.seen.append(digest(batch)[:8])

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._count("on_validation_start")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._count("on_validation_end")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._count("on_train_epoch_end")
        module.log("drawn_at_epoch_end", float(np.random.rand()) + float(paddle.rand([1]).numpy()[0]))

    def on_train_start(self, trainer: Any, module: Any) -> None:
        np.random.rand()  # what is drawn before the first batch must not shift a resumed run's numbers
        paddle.rand([1])

    def on_save_point(self, trainer: Any, module: Any, save_point: Any) -> Any:
        if save_point.reason in ("stop", "lr_drop"):  # taken or not as the process goes
            return None
        self.points += 1
        with self.path.open("a") as file:
            print(json.dumps([save_point.reason, trainer.global_step, state_of(trainer)]), file=file)
        return {f"point-{self.points}": [save_point.candidate.name]} if self.saves else None


# -- one run -----------------------------------------------------------------------------------------------------------
def run(
    variant: str,
    root: Path,
    *,
    saves: bool,
    points: Path,
    callbacks: Sequence[Callback] = (),
    last: Sequence[Callback] = (),
    **trainer_settings: Any,
) -> None:
    """Fit in `root`, going on from its newest checkpoint if there is one; ends with the state of the end.

    `last` are callbacks called after all others.
    """
    from variants import LONG, VARIANTS

    # A fresh run's weights are always the same, a resumed one's must all come from its checkpoint.
    seed_everything(7 if not list(root.glob("run/checkpoints/step-*")) else os.getpid())
    setup = {**VARIANTS, **LONG}[variant]()
    settings: dict[str, Any] = {
        "default_root_dir": root,
        "run_name": "run",
        "logger": [CSVLogger(), TensorBoardLogger()],
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "async_checkpoint": False,
        "seed": 11,
    }
    settings.update(setup.trainer)
    settings.update(trainer_settings)
    trainer = Trainer(**settings, callbacks=[*callbacks, *setup.callbacks, Recorder(points, saves), *last])
    trainer.fit(setup.module, setup.train, setup.val, ckpt_path="last")
    with points.open("a") as file:
        print(json.dumps(["end", trainer.global_step, state_of(trainer)]), file=file)


@contextlib.contextmanager
def _silenced(log: Path) -> Iterator[None]:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
        yield


def in_fork(work: Callable[[], None], log: Path) -> int:
    """Run in a forked child; its exit code. What it prints goes to `log`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with _silenced(log):
                try:
                    work()
                    code = 0
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- all runs of a variant ---------------------------------------------------------------------------------------------
def copy_as_killed_at(run_dir: Path, step_dir: str, target: Path) -> None:
    """The run directory as it would be had the process died right after this checkpoint; logs have gone on a little."""
    (target / "run" / "checkpoints").mkdir(parents=True)
    for item in run_dir.iterdir():
        if item.is_file() and not item.is_symlink() and item.name != ".lock":
            shutil.copy2(item, target / "run" / item.name)
    shutil.copytree(
        run_dir / "checkpoints" / step_dir, target / "run" / "checkpoints" / step_dir, copy_function=os.link
    )


def logged(run_dir: Path) -> dict[str, Any]:
    """Everything in the logs: the CSV file's bytes, and TensorBoard's (tag, step, value) in order."""
    from tensorboardX.proto.event_pb2 import Event

    scalars = []
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + length])
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            position += length + 16
    csv = run_dir / "metrics.csv"
    return {"csv": csv.read_bytes() if csv.exists() else b"", "tensorboard": scalars}


def read_points(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checkpoint_order(name: str) -> tuple[int, int]:
    step, _, revision = name.removeprefix(STEP).partition("-r")
    return int(step), int(revision or 0)


def try_variant(variant: str, work: Path, *, every: int = 1, fresh: bool = False) -> dict[str, Any]:
    """Train, go on from every `every`-th checkpoint, compare; returns counts and what differed."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    started = time.monotonic()
    log = work / "log"
    reference = work / "points"
    code = in_fork(lambda: run(variant, work / "whole", saves=True, points=reference), log)
    if code:
        return {"variant": variant, "tried": 0, "identical": 0, "problems": [log.read_text()[-3000:]]}
    whole = read_points(reference)
    expected_logs = logged(work / "whole" / "run")
    names = sorted(
        (path.name for path in (work / "whole" / "run" / "checkpoints").glob("step-*")), key=checkpoint_order
    )
    assert len(names) == len(whole) - 1, f"{variant}: {len(names)} checkpoints of {len(whole) - 1} save points"
    problems, tried = [], 0
    for index in sorted({*range(0, len(names), every), len(names) - 1}):
        tried += 1
        root, points = work / "resumed", work / "resumed-points"
        shutil.rmtree(root, ignore_errors=True)
        points.unlink(missing_ok=True)
        copy_as_killed_at(work / "whole" / "run", names[index], root)
        log.write_text("")
        if fresh:
            command = [sys.executable, __file__, "--run", variant, "--work", str(root), "--points", str(points)]
            with log.open("a") as file:
                code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        else:
            code = in_fork(lambda root=root, points=points: run(variant, root, saves=False, points=points), log)
        what = (
            difference(whole[index + 1 :], read_points(points)) if code == 0 else f"failed:\n{log.read_text()[-3000:]}"
        )
        if not what and logged(root / "run") != expected_logs:
            what = "logs differ"
        if what:
            problems.append(f"from {names[index]} (save point {index + 1} of {len(names)}): {what}")
    return {
        "variant": variant,
        "tried": tried,
        "identical": tried - len(problems),
        "steps": whole[-1][1],
        "problems": problems,
        "seconds": round(time.monotonic() - started, 1),
    }


def difference(expected: list[Any], found: list[Any]) -> str:
    for number, (wanted, got) in enumerate(zip(expected, found)):
        if wanted != got:
            parts = sorted(name for name in wanted[2] if wanted[2][name] != got[2].get(name))
            return f"{number} save points later ({wanted[:2]}, now {got[:2]}) these differ: {', '.join(parts)}"
    return "" if len(expected) == len(found) else f"{len(found)} save points instead of {len(expected)}"


def main() -> None:
    from variants import VARIANTS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", default=[])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="an interpreter of its own for each run")
    parser.add_argument("--run", metavar="VARIANT")
    parser.add_argument("--points", type=Path)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.work, saves=False, points=options.points)
        return
    failed = False
    for variant in options.variants or VARIANTS:
        result = try_variant(variant, options.work / variant, every=options.every, fresh=options.fresh)
        failed |= bool(result["problems"])
        print(json.dumps(result), flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
