"""What each of two ranks runs: short fits that save, and what each rank then reads, or is told, of the checkpoints.

python -m paddle.distributed.launch --nproc_per_node 2 checkpoints_of_a_run.py OUT CASE...
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import EarlyStopping, ModelCheckpoint
from paddlelite_trainer.errors import CheckpointSaveError, TrainerError
from paddlelite_trainer.run.directory import locked

BATCHES = 4  # of an epoch, on each rank
GIVE_UP_AFTER_SECONDS = 75
SCORES = (3.0, 1.0, 2.0, 4.0)  # of the epochs: the second is the best
BEST_STEP = 2 * BATCHES


class Numbers(paddle.io.Dataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 2 * BATCHES

    def __getitem__(self, index: int) -> Any:
        return np.full(2, index, "float32")


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        paddle.seed(7)
        self.net = paddle.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", SCORES[self.current_epoch])

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.001, parameters=self.parameters())

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"".join(parameter.numpy().tobytes() for parameter in self.parameters())).hexdigest()


class Digests(Callback):
    """The weights at each epoch's end, by step."""

    def __init__(self) -> None:
        self.at: dict[int, str] = {}

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.at[trainer.global_step] = module.digest


class LooksInItsLastHook(Callback):
    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.seen = what_is_read(trainer)


class BackgroundSavesFail(Callback):
    """So many saves, from the given step on, fail while they are written beside the training."""

    def __init__(self, from_step: int, times: int = 10**6) -> None:
        self.from_step, self.times = from_step, times

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            store = trainer.checkpoints
            store._commit, self.commit = self.fail, store._commit

    def fail(self, entry: Any, *more: Any) -> None:
        if entry.step >= self.from_step and self.times:
            self.times -= 1
            raise CheckpointSaveError("no room left")
        self.commit(entry, *more)


class Act(Callback):
    """Calls `act` after the batch that ends a step, and remembers what it raises."""

    def __init__(self, at: Sequence[int], act: Callable[[Trainer], Any]) -> None:
        self.at, self.act = at, act
        self.told: list[str] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.at:
            self.told.append(told_by(lambda: self.act(trainer)))


def told_by(act: Callable[[], Any]) -> str:
    """The kind of error that `act` raises and its message, or "nothing"."""
    try:
        act()
    except TrainerError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def what_is_read(trainer: Trainer) -> dict[str, Any]:
    keep = trainer.checkpoint_callback
    return {
        "best": Path(keep.best_model_path).name,
        "score": keep.best_model_score,
        "best k": [Path(path).name for path in keep.best_k_models],
        "kth": Path(keep.kth_best_model_path).name,
        "last": Path(keep.last_model_path).name,
        "current score": keep.current_score,
        "entries": [entry.step for entry in trainer.checkpoints.entries()],
        "pins": {pin: list(names) for pin, names in trainer.checkpoints.pins().items()},
    }


def make_trainer(out: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    keep = [ModelCheckpoint(monitor="score", save_top_k=2)]
    defaults: dict[str, Any] = {"max_epochs": len(SCORES), "async_checkpoint": True, "num_sanity_val_steps": 0}
    return Trainer(
        **{**defaults, **settings},
        callbacks=[*keep, *callbacks],
        default_root_dir=out / "runs",
        log_every_n_steps=1,  # ranks talk after each step
        enable_progress_bar=False,
        enable_model_summary=False,
        seed=1,
    )


def fit(trainer: Trainer, module: Module, **options: Any) -> None:
    loaders = [paddle.io.DataLoader(Numbers(), batch_size=size) for size in (1, 4)]
    trainer.fit(module, *loaders, **options)


# -- the cases ---------------------------------------------------------------------------------------------------------
def reading(out: Path) -> dict[str, Any]:
    looks, module = LooksInItsLastHook(), Net()
    trainer = make_trainer(out, looks, run_name="reading")
    fit(trainer, module)
    return {"in the last hook": looks.seen, "afterwards": what_is_read(trainer)}


def restoring(out: Path) -> dict[str, Any]:
    stops, digests, module = EarlyStopping("score", patience=2, restore_best_weights=True), Digests(), Net()
    fit(make_trainer(out, stops, digests, run_name="restoring"), module)
    again = Net()
    stops = EarlyStopping("score", patience=2, restore_best_weights=True)
    fit(make_trainer(out, stops, run_name="restoring"), again, ckpt_path="last")  # already over
    return {"best": digests.at[BEST_STEP] == module.digest, "already over": digests.at[BEST_STEP] == again.digest}


def failing(
    out: Path, from_step: int, on_save_error: str, times: int = 10**6, every_step: bool = False, **settings: Any
) -> dict[str, Any]:
    name = f"failing {from_step} {on_save_error} {times}"
    callbacks: list[Callback] = [BackgroundSavesFail(from_step, times)]
    if every_step:
        callbacks.append(ModelCheckpoint(every_n_train_steps=1))
    trainer = make_trainer(out, *callbacks, run_name=name, on_save_error=on_save_error, **settings)
    told = told_by(lambda: fit(trainer, Net()))
    return {"told": told, "step": trainer.global_step, "entries": [e.step for e in trainer.checkpoints.entries()]}


def failing_early_stopping(out: Path) -> dict[str, Any]:
    stops = EarlyStopping("score", patience=99, restore_best_weights=True)
    trainer = make_trainer(
        out, BackgroundSavesFail(BEST_STEP), stops, run_name="failing stops", on_save_error="warn", max_epochs=3
    )
    return {"told": told_by(lambda: fit(trainer, Net())), "step": trainer.global_step}


def failing_hook(out: Path) -> dict[str, Any]:
    class Refuses(Callback):
        def on_save_point(self, trainer: Any, module: Any, save_point: Any) -> None:
            raise CheckpointSaveError("this callback will not have it")

    trainer = make_trainer(out, Refuses(), run_name="refuses")
    return {"told": told_by(lambda: fit(trainer, Net())), "step": trainer.global_step}


def tagging(out: Path) -> dict[str, Any]:
    tags = Act([2], lambda trainer: trainer.save_checkpoint("mine"))
    trainer = make_trainer(out, tags, run_name="tagging", max_epochs=1)
    fit(trainer, Net())
    found: dict[str, Any] = {"taken": told_by(lambda: trainer.save_checkpoint("mine"))}
    found["by one rank"] = trainer.ranks.gather_object(0)  # all are still in step
    assert trainer.run_dir is not None
    if trainer.is_global_zero:
        with locked(trainer.run_dir):
            found["locked"] = told_by(lambda: trainer.save_checkpoint("other"))
    else:
        found["locked"] = told_by(lambda: trainer.save_checkpoint("other"))
    moved = trainer.save_checkpoint("mine", replace=True)
    fresh = trainer.save_checkpoint("other", weights_only=True)
    found["paths"] = [path and path.name for path in (moved, fresh)]
    return found


def tagging_within(out: Path) -> dict[str, Any]:
    tags = Act([1, 3], lambda trainer: trainer.save_checkpoint("mine"))
    trainer = make_trainer(out, tags, run_name="tagging within", max_epochs=1, async_checkpoint=False)
    fit(trainer, Net())
    return {"told": tags.told, "step": trainer.global_step}


def tag_that_fails(out: Path, on_save_error: str) -> dict[str, Any]:
    fails = BackgroundSavesFail(10**6)
    trainer = make_trainer(out, fails, run_name=f"tag {on_save_error}", max_epochs=1, on_save_error=on_save_error)
    fit(trainer, Net())
    fails.from_step = 0
    paths: list[Path | None] = []
    told = told_by(lambda: paths.append(trainer.save_checkpoint("other")))
    return {"told": told, "paths": [path and path.name for path in paths]}


def evaluating(out: Path) -> dict[str, Any]:
    """Another module is given the best weights while a save is under way."""
    found: list[str] = []

    def evaluate(trainer: Trainer) -> None:
        guest = Net()
        guest_data = paddle.io.DataLoader(Numbers(), batch_size=4)
        trainer.validate(guest, guest_data, ckpt_path="last", verbose=False)
        found.append(guest.digest)

    steps = range(BATCHES + 1, 3 * BATCHES)
    trainer = make_trainer(out, Act(steps, evaluate), run_name="evaluating", max_epochs=3)
    fit(trainer, Net())
    return {"found": found}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "reading": reading,
    "restoring": restoring,
    "evaluating": evaluating,
    "the last save fails, warn": lambda out: failing(out, len(SCORES) * BATCHES, "warn"),
    "a save on the way fails, warn": lambda out: failing(out, BEST_STEP, "warn", max_epochs=3),
    "all saves fail, warn": lambda out: failing(out, 0, "warn", max_steps=BATCHES + 2),
    "a save within an epoch fails for good, warn": lambda out: failing(
        out, BATCHES + 2, "warn", every_step=True, max_steps=BATCHES + 2
    ),
    "a save within an epoch fails once, warn": lambda out: failing(
        out, BATCHES + 2, "warn", 1, every_step=True, max_steps=BATCHES + 2
    ),
    "the last save fails, raise": lambda out: failing(out, len(SCORES) * BATCHES, "raise"),
    "a save on the way fails, raise": lambda out: failing(out, BEST_STEP, "raise", max_epochs=3),
    "saves fail beside EarlyStopping, warn": failing_early_stopping,
    "on_save_point raises": failing_hook,
    "tags": tagging,
    "tags within a fit": tagging_within,
    "a tag fails, warn": lambda out: tag_that_fails(out, "warn"),
    "a tag fails, raise": lambda out: tag_that_fails(out, "raise"),
}


def main() -> None:
    signal.alarm(GIVE_UP_AFTER_SECONDS)  # ranks that wait for each other for ever
    out, rank = Path(sys.argv[1]), int(os.environ["PADDLE_TRAINER_ID"])
    with (out / f"rank{rank}.jsonl").open("a") as file:
        for name in sys.argv[2:] or CASES:
            print(json.dumps([name, CASES[name](out)]), file=file, flush=True)  # what comes before a hang is known


if __name__ == "__main__":
    main()
