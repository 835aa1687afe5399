"""What each of two ranks runs: many short fits, each asked to end in a way of its own on one rank, and where it ended.

python -m paddle.distributed.launch --nproc_per_node 2 ends_of_a_run.py OUT
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, Timer

BATCHES = 4  # of an epoch, on each rank
MAX_EPOCHS = 3
GIVE_UP_AFTER_SECONDS = 75
NO_TIME = {"seconds": 0}  # over before the first batch
MINIMA: dict[str, Mapping[str, int]] = {"none": {}, "min_epochs": {"min_epochs": 2}, "min_steps": {"min_steps": 6}}


@dataclass(frozen=True)
class Case:
    """A fit that one rank asks to end. `acts` are (step, what) on `rank`, where None is both."""

    rank: int | None
    acts: tuple[tuple[int, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    minima: str = "none"
    early_stopping: bool = False
    timer_on: int | None = None


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for rank in (0, 1):
        for minima in MINIMA:
            for act in ("stop", "should_stop", "SIGTERM"):
                found[f"{act} on rank {rank}, {minima}"] = Case(rank, ((3, act),), minima=minima)
        found[f"Timer on rank {rank}, min_steps"] = Case(None, minima="min_steps", timer_on=rank)
        for withdrawer in (rank, None):
            name = f"stop on rank {rank}, withdrawn on {'both' if withdrawer is None else 'the same'}, min_epochs"
            found[name] = Case(
                rank,
                ((2, "stop"), (6, "withdraw" if withdrawer is not None else "withdraw on both")),
                minima="min_epochs",
            )
        found[f"stop and then SIGTERM on rank {rank}, min_epochs"] = Case(
            rank, ((2, "stop"), (5, "SIGTERM")), minima="min_epochs"
        )
        found[f"stop on rank {rank} and max_steps, min_epochs"] = Case(
            rank, ((2, "stop"),), {"max_steps": 7}, minima="min_epochs"
        )
    for minima in ("min_epochs", "min_steps"):
        found[f"max_time, {minima}"] = Case(None, settings={"max_time": NO_TIME}, minima=minima)
        found[f"EarlyStopping, {minima}"] = Case(None, minima=minima, early_stopping=True)
    return found


class Net(Module):
    """Each rank's loss is another; the score is bad from step 2 on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", 100.0 if self.global_step >= 2 else 0.0)

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.01, parameters=self.parameters())


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 2 * BATCHES

    def __getitem__(self, index: int) -> Any:
        return np.full(2, index, "float32")


class Acts(Callback):
    def __init__(self, case: Case) -> None:
        self.case = case

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for step, act in self.case.acts:
            here = self.case.rank in (None, trainer.global_rank) or act.endswith("on both")
            if step == trainer.global_step and here:
                ACTS[act](trainer)


def set_should_stop(trainer: Trainer, value: bool) -> None:
    trainer.should_stop = value


ACTS: dict[str, Callable[[Trainer], Any]] = {
    "stop": lambda trainer: trainer.stop("good enough"),
    "should_stop": lambda trainer: set_should_stop(trainer, True),
    "withdraw": lambda trainer: set_should_stop(trainer, False),
    "withdraw on both": lambda trainer: set_should_stop(trainer, False),
    "SIGTERM": lambda trainer: os.kill(os.getpid(), signal.SIGTERM),
}


def run(case: Case, rank: int) -> dict[str, Any]:
    callbacks: list[Callback] = [Acts(case)]
    if case.early_stopping:
        callbacks.append(EarlyStopping("score", divergence_threshold=10.0, patience=99))
    if case.timer_on is not None:  # on the other rank it has a year
        callbacks.append(Timer(NO_TIME if case.timer_on == rank else {"days": 365}, verbose=False))
    trainer = Trainer(
        **{"max_epochs": MAX_EPOCHS, **MINIMA[case.minima], **case.settings},
        callbacks=callbacks,
        log_every_n_steps=1,  # ranks talk after each step
        val_check_interval=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        seed=1,
    )
    loaders = [paddle.io.DataLoader(Numbers(), batch_size=1), paddle.io.DataLoader(Numbers(), batch_size=4)]
    code = 0
    try:
        trainer.fit(Net(), loaders[0], loaders[1] if case.early_stopping else None)
    except SystemExit as left:
        code = int(left.code or 0)
    return {"epoch": trainer.current_epoch, "step": trainer.global_step, "exit code": code}


def main() -> None:
    signal.alarm(GIVE_UP_AFTER_SECONDS)  # ranks that wait for each other for ever
    rank = int(os.environ["PADDLE_TRAINER_ID"])
    with (Path(sys.argv[1]) / f"rank{rank}.jsonl").open("a") as file:
        for name, case in cases().items():
            print(json.dumps([name, run(case, rank)]), file=file, flush=True)  # what comes before a hang is known


if __name__ == "__main__":
    main()
