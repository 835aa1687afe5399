"""Random configurations interrupted at random moments: each must end as the undisturbed run does.

    python tests/resume/fuzz.py 0 100            # the configurations of seeds 0 to 99
    python tests/resume/fuzz.py 42 1 --reduce    # and with the fewest choices that still differ

A configuration is drawn from its seed alone. A run lives one to four times; a life ends by an exception, by SIGTERM or
by a kill at any hook. A kill is a copy of the run's directory as it is at that moment, which the next life finds.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import numpy as np  # noqa: E402
import paddle  # noqa: E402
from harness import digest, state_of  # noqa: E402
from models import as_if_started_again  # noqa: E402
from paddle.io import BatchSampler, DataLoader, Dataset, IterableDataset  # noqa: E402
from paddle.optimizer import lr  # noqa: E402

from paddlelite_trainer import Callback, CSVLogger, Module, Trainer  # noqa: E402
from paddlelite_trainer.callbacks import (  # noqa: E402
    EarlyStopping,
    ExponentialMovingAverage,
    LRMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

nn, F = paddle.nn, paddle.nn.functional
SAMPLES, BATCH = 22, 4  # six batches an epoch, the last one smaller


# -- data --------------------------------------------------------------------------------------------------------------
class Points(Dataset):  # type: ignore[misc]
    """Samples augmented by random numbers, and shifted by the epoch where it is told."""

    def __init__(self) -> None:
        numbers = np.random.RandomState(1)
        self.x = numbers.randn(SAMPLES, 4).astype("float32")
        self.y = numbers.randint(0, 3, SAMPLES)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        noise = np.random.rand() + random.random()
        return self.x[index] + np.float32(0.1 * noise + self.epoch), self.y[index]


class Flow(IterableDataset):  # type: ignore[misc]
    def __init__(self) -> None:
        self.points = Points()

    def __iter__(self) -> Iterator[Any]:
        for index in np.random.permutation(SAMPLES):
            yield self.points[int(index)]


class Counting(IterableDataset):  # type: ignore[misc]
    """A stream with a state of its own."""

    def __init__(self) -> None:
        self.points, self.position = Points(), 0
        self.left = SAMPLES

    def __iter__(self) -> Iterator[Any]:
        while self.left:
            self.position += 7
            self.left -= 1
            yield self.points[self.position % SAMPLES]
        self.left = SAMPLES

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "left": self.left}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.left = state["position"], state["left"]


class WithMemory(BatchSampler):  # type: ignore[misc]
    """Draws from what it drew the epoch before."""

    def __init__(self, has_length: bool = True) -> None:
        self.order, self.has_length = list(range(SAMPLES)), has_length

    def __iter__(self) -> Iterator[list[int]]:
        self.order = self.order[3:] + self.order[:3]
        np.random.shuffle(self.order)
        for start in range(0, SAMPLES, BATCH):
            yield list(self.order[start : start + BATCH])

    def __len__(self) -> int:
        if not self.has_length:
            raise TypeError("no length")
        return -(-SAMPLES // BATCH)


class Iterable:
    """Batches from an iterable of the user's own."""

    def __iter__(self) -> Iterator[Any]:
        points = Points()
        for start in range(0, SAMPLES, BATCH):
            rows = [points[index] for index in range(start, min(start + BATCH, SAMPLES))]
            yield [paddle.to_tensor(np.stack([x for x, _ in rows])), paddle.to_tensor(np.array([y for _, y in rows]))]


DATA: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(Points(), batch_size=BATCH, shuffle=True),
    "in order": lambda: DataLoader(Points(), batch_size=BATCH),
    "drop last": lambda: DataLoader(Points(), batch_size=BATCH, shuffle=True, drop_last=True),
    "a list": lambda: list(Iterable()),
    "an iterable": Iterable,
    "an iterable dataset": lambda: DataLoader(Flow(), batch_size=BATCH),
    "a stream with a state": lambda: DataLoader(Counting(), batch_size=BATCH),
    "a sampler with a memory": lambda: DataLoader(Points(), batch_sampler=WithMemory()),
    "a sampler without a length": lambda: DataLoader(Points(), batch_sampler=WithMemory(has_length=False)),
    "workers": lambda: DataLoader(Points(), batch_size=BATCH, shuffle=True, num_workers=1),
}
UNKNOWN_LENGTH = ("an iterable", "an iterable dataset", "a stream with a state", "a sampler without a length")

# -- what learns -------------------------------------------------------------------------------------------------------
_OPTIMIZERS = "SGD Momentum Adam AdamW Adamax Adagrad Adadelta RMSProp Lamb NAdam RAdam ASGD Rprop"
OPTIMIZERS = [name for name in _OPTIMIZERS.split() if hasattr(paddle.optimizer, name)]  # some came with Paddle 3
SCHEDULES: dict[str, Callable[[], Any]] = {
    "none": lambda: 0.05,
    "step": lambda: lr.StepDecay(0.05, 1),
    "multistep": lambda: lr.MultiStepDecay(0.05, [1, 3, 8]),
    "piecewise under a warm-up": lambda: lr.LinearWarmup(lr.PiecewiseDecay([2, 7], [0.05, 0.02, 0.01]), 3, 0.0, 0.05),
    "exponential": lambda: lr.ExponentialDecay(0.05, 0.9),
    "natural": lambda: lr.NaturalExpDecay(0.05, 0.1),
    "inverse": lambda: lr.InverseTimeDecay(0.05, 0.1),
    "noam": lambda: lr.NoamDecay(16, 4, 0.5),
    "polynomial": lambda: lr.PolynomialDecay(0.05, 9),
    "lambda": lambda: lr.LambdaDecay(0.05, lambda epoch: 0.9**epoch),
    "multiplicative": lambda: lr.MultiplicativeDecay(0.05, lambda epoch: 0.95),
    "cosine": lambda: lr.CosineAnnealingDecay(0.05, T_max=7),
    "one cycle": lambda: lr.OneCycleLR(0.05, 20),
    "cyclic": lambda: lr.CyclicLR(0.01, 0.05, 4),
    "plateau of training": lambda: lr.ReduceOnPlateau(0.05, patience=0),
    "plateau of validation": lambda: lr.ReduceOnPlateau(0.05, patience=0),
}


class Net(Module):
    """Batch norm, dropout, a tensor that is no buffer, random numbers in a hook."""

    def __init__(self, choice: dict[str, Any]) -> None:
        super().__init__()
        self.choice = choice
        self.automatic_optimization = choice["manual"] == "no"
        numbers = np.random.RandomState(7)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1D(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))
        for parameter in self.net.parameters():
            if not parameter.stop_gradient and parameter.ndim > 1:
                parameter.set_value((numbers.randn(*parameter.shape) * 0.3).astype("float32"))
        self.average = paddle.zeros([1])
        self.draws: list[float] = []

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.average = 0.9 * self.average + 0.1 * loss.detach()
        self.log("loss", loss + 0 * self.average.sum(), on_step=True, on_epoch=True)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            if (batch_idx + 1) % (1 if self.choice["manual"] == "every batch" else 3) == 0:
                optimizer.step()
                optimizer.clear_grad()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noise = float(np.random.rand()) * 0.01
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]) + noise)

    def on_train_epoch_start(self) -> None:
        self.draws.append(float(np.random.rand()) + float(paddle.rand([1]).numpy()[0]))

    def on_train_epoch_resume(self) -> None:
        pass

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["draws"] = self.draws

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.draws = list(checkpoint["draws"])

    def configure_optimizers(self) -> Any:
        rate = SCHEDULES[self.choice["schedule"]]()
        optimizer = getattr(paddle.optimizer, self.choice["optimizer"])(rate, parameters=self.parameters())
        if self.choice["schedule"] == "none":
            return optimizer
        config: dict[str, Any] = {"scheduler": rate, "interval": self.choice["interval"]}
        if self.choice["schedule"].startswith("plateau"):
            config["monitor"] = "val" if self.choice["schedule"].endswith("validation") else "loss"
        return {"optimizer": optimizer, "lr_scheduler": config}


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
    "optimizer": OPTIMIZERS,
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
)
Life = tuple[str, int, str]


def drawn(seed: int) -> tuple[dict[str, str], list[Life]]:
    """The configuration and the lives of a seed."""
    numbers = random.Random(seed)
    choice = {name: numbers.choice(options) for name, options in CHOICES.items()}
    lives = [
        (numbers.choice(HOOKS), numbers.randrange(1, 9), numbers.choice(("exception", "signal", "kill")))
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
    if choice["optimizer"] == "Rprop":  # takes no schedule
        choice["schedule"] = "none"
    if choice["max_steps"] != "-1":
        choice["min_steps"] = "0"
    if choice["averages"] == "swa" and choice["data"] == "a sampler without a length":
        choice["data"] = "a sampler with a memory"  # its last pass cannot have the order of an epoch drawn before
    if choice["data"] in UNKNOWN_LENGTH and choice["validation"] == "every two batches":
        choice["validation"] = "every batch"
    return choice


# -- one run -----------------------------------------------------------------------------------------------------------
class Killed(BaseException):
    """Nobody's business: the next life finds the directory as it was when this was raised."""


class Interrupts(Callback):
    """Ends a life at the nth call of a hook."""

    def __init__(self, life: Life | None, root: Path) -> None:
        self.life, self.root, self.calls = life, root, 0

    def reach(self, hook: str) -> None:
        if self.life is None or hook != self.life[0]:
            return
        self.calls += 1
        if self.calls != self.life[1]:
            return
        if self.life[2] == "exception":
            raise RuntimeError("planned")
        if self.life[2] == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
            return
        while True:
            shutil.rmtree(self.root / "killed", ignore_errors=True)
            with contextlib.suppress(shutil.Error, FileNotFoundError):  # a file that is being replaced
                shutil.copytree(self.root / "run", self.root / "killed", symlinks=True)
                break
        raise Killed

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
    return made


def lived(root: Path, choice: dict[str, str], life: Life | None) -> dict[str, Any]:
    """One life of the run in root; what it is when it ends by itself."""
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
        num_sanity_val_steps=int(choice["sanity"]),
        async_checkpoint=choice["asynchronous"] == "True",
        logger=CSVLogger(),
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Interrupts(life, root), *callbacks_of(choice)],
        **VALIDATIONS[choice["validation"]],
    )
    with paddle.utils.unique_name.guard():  # as in a process of its own
        module = Net(choice)
        trainer.fit(module, DATA[choice["data"]](), DATA["in order"](), ckpt_path="last")
    entries = trainer.checkpoints.entries()
    return {
        **{part: value for part, value in state_of(trainer).items() if part not in ("callbacks", "callback_metrics")},
        "callback_metrics": sorted(trainer.callback_metrics.items()),
        "place": (trainer.global_step, trainer.current_epoch),
        "history": digest(trainer.history),
        "metrics.csv": (root / "run" / "metrics.csv").read_text(),
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
    for life in [*lives, None]:
        try:
            return lived(root, choice, life)
        except RuntimeError as error:
            if "planned" not in str(error):
                raise
        except SystemExit:
            pass
        except Killed:
            shutil.rmtree(root / "run")
            (root / "killed").rename(root / "run")
    raise AssertionError("the last life has no end")


def differences(choice: dict[str, str], lives: list[Life]) -> list[str]:
    """The names of what is not as in the undisturbed run, and what was raised."""
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = run(Path(directory, "whole"), choice, [])
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
