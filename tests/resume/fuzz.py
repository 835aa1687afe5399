"""Random configurations interrupted at random moments: each must end as the undisturbed run does.

    python tests/resume/fuzz.py 0 100            # the configurations of seeds 0 to 99
    python tests/resume/fuzz.py 42 1 --reduce    # and with the fewest choices that still differ

A configuration is drawn from its seed alone. A run lives one to four times; a life ends by an exception, a signal or a
kill, at any hook, in a step, in a dataset or in a save. A kill is a copy of the run's directory as it is at that
moment, which the next life finds, perhaps with a torn log, without its links, or with what a save had left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import numpy as np  # noqa: E402
import paddle  # noqa: E402
from fuzz_parts import DATA, OPTIMIZERS, SCHEDULES, UNKNOWN_LENGTH, Net, Points  # noqa: E402
from harness import digest, logged, state_of  # noqa: E402
from models import as_if_started_again  # noqa: E402

from paddlelite_trainer import Callback, CSVLogger, DataModule, TensorBoardLogger, Trainer  # noqa: E402
from paddlelite_trainer.callbacks import (  # noqa: E402
    EarlyStopping,
    ExponentialMovingAverage,
    LRMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

# -- choices -----------------------------------------------------------------------------------------------------------
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "each epoch": {},
    "the best": {"monitor": "val"},
    "the best, by steps": {"monitor": "val", "every_n_train_steps": 5},
    "the best three of training": {"monitor": "loss", "save_top_k": 3, "every_n_train_steps": 2},
    "every step": {"every_n_train_steps": 1},
    "the last two": {"every_n_train_steps": 3, "keep_last_n": 2},
    "all": {"every_n_train_steps": 4, "save_top_k": -1, "save_last": False},
    "before drops": {"save_before_lr_drop": True},
    "every other epoch": {"every_n_epochs": 2},
    "after validations": {"monitor": "val", "save_on_train_epoch_end": False},
}
VALIDATIONS: dict[str, dict[str, Any]] = {
    "each epoch": {},
    "every two batches": {"val_check_interval": 2},
    "every batch": {"val_check_interval": 1},
    "every four over epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "every other epoch": {"check_val_every_n_epoch": 2},
}
# The first of each is the simplest, which a reduction tries to go back to.
CHOICES: dict[str, list[str]] = {
    "data": list(DATA),
    "optimizer": list(OPTIMIZERS),
    "schedule": list(SCHEDULES),
    "interval": ["epoch", "step"],
    "manual": ["no", "no", "no", "every batch", "every third batch"],
    "accumulate": ["1", "1", "2", "4", "{0: 1, 1: 3}"],
    "clip": ["None", "0.5"],
    "validation": list(VALIDATIONS),
    "checkpoints": list(CHECKPOINTS),
    "early stopping": ["no", "no", "patience 1", "restores"],
    "averages": ["no", "no", "ema", "swa"],
    "max_steps": ["-1", "-1", "9", "12"],
    "max_epochs": ["2", "3"],
    "min_steps": ["0", "0", "8"],
    "asynchronous": ["False", "True"],
    "sanity": ["0", "1"],
    "monitor": ["no", "step"],
    "own callback": ["no", "yes"],
    "changes": ["no", "no", "yes"],
}
HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_optimizer_step",
    "on_after_backward",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "on_before_backward",
    "on_before_zero_grad",
    "on_save_checkpoint",
    "the step",
    "a sample",
)
WAYS = {
    "exception": RuntimeError("planned"),
    "an exception of no kind": BaseException("planned"),
    "sys.exit": SystemExit(3),
    "Ctrl-C": KeyboardInterrupt(),
    "SIGTERM": signal.SIGTERM,
    "SIGINT": signal.SIGINT,
    "kill": None,
    "kill, torn logs": None,
    "kill, no links": None,
    "kill, litter": None,
}
Life = tuple[str, int, str]


def drawn(seed: int) -> tuple[dict[str, str], list[Life]]:
    """The configuration and the lives of a seed."""
    numbers = random.Random(seed)
    choice = {name: numbers.choice(options) for name, options in CHOICES.items()}
    lives = [
        (numbers.choice(HOOKS), numbers.randrange(1, 9), numbers.choice(list(WAYS)))
        for _ in range(numbers.choice((1, 1, 2, 4)))
    ]
    return made_possible(choice), lives


def made_possible(choice: dict[str, str]) -> dict[str, str]:
    """Without what the trainer refuses."""
    choice = dict(choice)
    if choice["manual"] != "no":
        choice.update(accumulate="1", clip="None", **{"early stopping": "no"})
        if choice["schedule"].startswith("plateau"):
            choice["schedule"] = "step"
    if choice["schedule"] == "plateau of validation":
        choice["interval"] = "epoch"
    if choice["optimizer"] in ("Rprop", "LBFGS"):  # take no schedule
        choice["schedule"] = "none"
    if choice["optimizer"] == "LBFGS":  # steps by itself, with gradients as they are
        choice.update(accumulate="1", clip="None", manual="no", averages="no")
    if choice["optimizer"] == "Adam that clips":
        choice["clip"] = "None"
    if choice["max_steps"] != "-1":
        choice["min_steps"] = "0"
    if choice["data"] in UNKNOWN_LENGTH and choice["validation"] == "every two batches":
        choice["validation"] = "every batch"
    return choice


# -- one run -----------------------------------------------------------------------------------------------------------
class Killed(BaseException):
    """Nobody's business: the next life finds the directory as it was when this was raised."""


class Interrupts(Callback):
    """Ends a life at the nth call of a hook."""

    def __init__(self, life: Life | None, root: Path) -> None:
        self.life, self.root, self.calls, self.process = life, root, 0, os.getpid()

    def reach(self, place: str) -> None:
        if self.life is None or place != self.life[0] or os.getpid() != self.process:
            return
        self.calls += 1
        if self.calls != self.life[1] * (5 if place == "a sample" else 1):
            return
        what = WAYS[self.life[2]]
        if isinstance(what, signal.Signals):
            os.kill(os.getpid(), what)
            return
        if what is not None:
            raise type(what)(*what.args)
        while (self.root / "run").exists():  # it does not before the first thing of a fit
            shutil.rmtree(self.root / "killed", ignore_errors=True)
            with contextlib.suppress(shutil.Error, FileNotFoundError):  # a file that is being replaced
                shutil.copytree(self.root / "run", self.root / "killed", symlinks=True)
                break
        raise Killed

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        self.reach("on_before_backward")

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.reach("on_before_zero_grad")

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        self.reach("on_save_checkpoint")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.reach("on_train_batch_start")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.reach("on_train_batch_end")

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.reach("on_before_optimizer_step")

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        self.reach("on_after_backward")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            self.reach("on_validation_start")

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self.reach("on_validation_batch_end")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            self.reach("on_validation_end")

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.reach("on_train_epoch_start")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.reach("on_train_epoch_end")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.reach("on_train_end")

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        self.reach("on_fit_end")


class Counts(Callback):
    """A callback of the user's own: it draws, counts, logs and has a state."""

    def __init__(self) -> None:
        self.batches, self.drawn = 0, 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.drawn += float(np.random.rand())

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.log_metrics({"counted": self.batches + self.drawn})

    def state_dict(self) -> dict[str, float]:
        return {"batches": self.batches, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.batches, self.drawn = int(state["batches"]), state["drawn"]


def after_a_kill(run: Path, way: str) -> None:
    """What else a machine that died may have left."""
    if way == "kill, torn logs":
        for path in [run / "metrics.csv", *run.glob("events.out.tfevents.*")]:
            if path.exists():
                path.write_bytes(path.read_bytes() + b"\x18\x00\x00torn")
    elif way == "kill, no links":
        for path in list(run.iterdir()) if run.exists() else []:
            if path.is_symlink():
                path.unlink()
    elif way == "kill, litter" and (run / "checkpoints").is_dir():
        half = run / "checkpoints/.tmp-step-000000003-0123abcd"
        half.mkdir()
        (half / "model.pdparams").write_bytes(b"half")


def callbacks_of(choice: dict[str, str]) -> list[Callback]:
    made: list[Callback] = [ModelCheckpoint(save_on_exception=True, **CHECKPOINTS[choice["checkpoints"]])]
    if choice["early stopping"] != "no":
        made.append(EarlyStopping("val", patience=1, restore_best_weights=choice["early stopping"] == "restores"))
    if choice["averages"] == "ema":
        made.append(ExponentialMovingAverage(0.9))
    if choice["averages"] == "swa":
        made.append(StochasticWeightAveraging(0.02, swa_epoch_start=1, annealing_epochs=1))
    if choice["monitor"] != "no":
        made.append(LRMonitor("step"))
    if choice["own callback"] == "yes":
        made.append(Counts())
    return made


def lived(root: Path, choice: dict[str, str], life: Life | None, number: int) -> dict[str, Any]:
    """The run's life of that number in root; what it is when it ends by itself."""
    changed = choice["changes"] == "yes" and number % 2 == 1
    interrupts = Interrupts(life, root)
    Points.at_sample = staticmethod(lambda: interrupts.reach("a sample"))
    Net.at_step = staticmethod(lambda: interrupts.reach("the step"))
    own = callbacks_of(choice)
    as_if_started_again()
    random.seed(0)
    np.random.seed(0)
    trainer = Trainer(
        max_epochs=int(choice["max_epochs"]),
        max_steps=int(choice["max_steps"]),
        min_steps=int(choice["min_steps"]),
        default_root_dir=root,
        run_name="run",
        seed=3,
        accumulate_grad_batches=eval(choice["accumulate"]),
        gradient_clip_val=eval(choice["clip"]),
        num_sanity_val_steps=int(choice["sanity"]) ^ changed,
        async_checkpoint=(choice["asynchronous"] == "True") ^ changed,
        logger=[CSVLogger(), TensorBoardLogger()],
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[interrupts, *own],
        reload_dataloaders_every_n_epochs=int(choice["data"] == "a datamodule with a state"),
        **VALIDATIONS[choice["validation"]],
    )
    with paddle.utils.unique_name.guard():  # as in a process of its own
        module = Net(choice)
        data = DATA[choice["data"]](int(changed))
        if isinstance(data, DataModule):
            trainer.fit(module, datamodule=data, ckpt_path="last")
        else:
            trainer.fit(module, data, DATA["in order"](0), ckpt_path="last")
    entries = trainer.checkpoints.entries()
    return {
        **{part: value for part, value in state_of(trainer).items() if part not in ("callbacks", "callback_metrics")},
        "callback_metrics": sorted(trainer.callback_metrics.items()),
        "place": (trainer.global_step, trainer.current_epoch),
        "history": digest(trainer.history),
        **logged(root / "run"),
        "own callback": [one.state_dict() for one in own if isinstance(one, Counts)],
        "draws": module.draws,
        # Who wants no `latest` has one all the same where an interruption had to be saved.
        "names": sorted(
            (pin, entry.step)
            for entry in entries
            for pin in entry.pins
            if pin != "latest" or CHECKPOINTS[choice["checkpoints"]].get("save_last", True)
        ),
        "scores": [(entry.step, dict(entry.metrics)) for entry in entries if "best" in entry.pins],
    }


def run(root: Path, choice: dict[str, str], lives: list[Life]) -> dict[str, Any]:
    """How the run ends that is interrupted at the end of each life."""
    for number, life in enumerate([*lives, None]):
        try:
            return lived(root, choice, life, number)
        except (SystemExit, KeyboardInterrupt):
            if life is None:
                raise
        except Killed:
            assert life is not None
            shutil.rmtree(root / "run", ignore_errors=True)
            if (root / "killed").exists():
                (root / "killed").rename(root / "run")
                after_a_kill(root / "run", life[2])
        except BaseException as error:
            if "planned" not in str(error):
                raise
    raise AssertionError("the last life has no end")


def differences(choice: dict[str, str], lives: list[Life]) -> list[str]:
    """The names of what is not as in the undisturbed run, and what was raised."""
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            whole = run(Path(directory, "whole"), choice, [])
        except Exception as error:
            return [f"undisturbed: {type(error).__name__}: {error}", traceback.format_exc(limit=-3)]
        try:
            cut = run(Path(directory, "cut"), choice, lives)
        except Exception as error:
            return [f"{type(error).__name__}: {error}", traceback.format_exc(limit=-3)]
    return [name for name in whole if whole[name] != cut[name]]


def reduced(choice: dict[str, str], lives: list[Life]) -> tuple[dict[str, str], list[Life]]:
    """The fewest choices, apart from the first of each, that still differ."""
    for index in reversed(range(len(lives))):
        fewer = lives[:index] + lives[index + 1 :]
        if fewer and differences(choice, fewer):
            lives = fewer
    for name, options in CHOICES.items():
        simpler = made_possible({**choice, name: options[0]})
        if simpler != choice and differences(simpler, lives):
            choice = simpler
    return choice, lives


def told(choice: dict[str, str], lives: list[Life]) -> str:
    unusual = {name: value for name, value in choice.items() if value != CHOICES[name][0]}
    return f"{unusual}, lives {lives}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--reduce", action="store_true")
    options = parser.parse_args()
    failed = 0
    for seed in range(options.first, options.first + options.count):
        if seed > options.first and (seed - options.first) % 50 == 0:
            print(f"{seed - options.first} tried, {failed} differ", file=sys.stderr, flush=True)
        choice, lives = drawn(seed)
        found = differences(choice, lives)
        if found:
            failed += 1
            print(f"seed {seed}: {found}\n    {told(choice, lives)}", flush=True)
            if options.reduce:
                print(f"    reduced: {told(*reduced(choice, lives))}", flush=True)
    print(f"{options.count} configurations on Paddle {paddle.__version__}, {failed} differ")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
