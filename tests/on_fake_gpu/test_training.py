"""Trainer.fit in every precision on the fake accelerator, against AMP loops written by hand."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import paddle
import pytest
from amp_loops import HALF, SCALER_OPTIONS, Run, bits, by_hand, start
from paddle.nn import functional as F

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
from paddlelite_trainer.errors import CheckpointMismatchError, DeviceOutOfMemoryError
from paddlelite_trainer.precision import PRECISIONS

# 2.6 cannot save the CPU generator, so there the trainer seeds each batch, which a hand-written loop does not.
DROPOUT = 0.2 if paddle.__version__.startswith("3") else 0.0
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate": 4},
    "clipping by the trainer": {"clip": 0.5, "clip_by": "norm"},
    "clipping by the optimizer": {"clip": 0.5},
    "inf": {"inf_at": 2},
    "all together": {"accumulate": 2, "clip": 0.5, "clip_by": "norm", "inf_at": 1},
}


class Learner(Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.network, self.optimizer = start(run)

    def training_step(self, batch: Any, batch_idx: int) -> paddle.Tensor:
        images, labels, factor = batch
        self.loss = F.cross_entropy(self.network(images), labels) * factor
        return self.loss

    def configure_optimizers(self) -> Any:
        return self.optimizer


class ByHandLearner(Learner):
    """The same training by manual optimization."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / self.run.accumulate)
        if (batch_idx + 1) % self.run.accumulate == 0:
            if self.run.clip_by == "norm":
                self.clip_gradients(optimizer, self.run.clip, "norm")
            optimizer.step()
            optimizer.clear_grad()


class Watch(Callback):
    """What hand-written loops record after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, bytes]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % module.run.accumulate == 0:
            trainer.precision.update()
            self.seen.append(bits(module.network, module.optimizer, trainer.precision.scaler, module.loss))


def batches(run: Run) -> list[Any]:
    return [
        (images, labels, factor * run.accumulate)
        for window in range(run.windows)
        for images, labels, factor in run.batches(window)
    ]


def trainer_for(run: Run, root: Path, **settings: Any) -> Trainer:
    clips = {"gradient_clip_val": run.clip if run.clip_by == "norm" else None}
    options = {"precision_options": {"scaler_options": SCALER_OPTIONS}} if HALF.get(run.precision) == "float16" else {}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 1, "enable_checkpointing": False, "accumulate_grad_batches": run.accumulate}
    return Trainer(
        precision=run.precision, default_root_dir=root, **{**quiet, **defaults, **clips, **options, **settings}
    )


@pytest.fixture
def allowed(request: pytest.FixtureRequest) -> None:
    """bfloat16, for tests that are parametrized with a precision that needs it."""
    if request.node.callspec.params["precision"].startswith("bf16"):
        request.getfixturevalue("bfloat16")


def same(expected: list[dict[str, bytes]], actual: list[dict[str, bytes]], but: tuple[str, ...] = ()) -> None:
    assert len(expected) == len(actual)
    for window, (one, other) in enumerate(zip(expected, actual)):
        assert one.keys() == other.keys()
        assert [name for name in one if one[name] != other[name] and name not in but] == [], f"window {window}"


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "AdamW"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_fit_has_the_bits_of_the_hand_written_loop(
    precision: str, variant: str, optimizer: str, allowed: None, tmp_path: Path
) -> None:
    run = Run(precision, optimizer, dropout=DROPOUT, **VARIANTS[variant])
    expected, watch = by_hand(run), Watch()
    learner = Learner(run)
    trainer_for(run, tmp_path, callbacks=[watch]).fit(learner, batches(run))
    same(expected, watch.seen, but=("loss",) if run.accumulate > 1 else ())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_manual_optimization_has_the_bits_of_the_hand_written_loop(
    precision: str, variant: str, allowed: None, tmp_path: Path
) -> None:
    run = Run(precision, dropout=DROPOUT, **VARIANTS[variant])
    expected, watch = by_hand(run), Watch()
    learner = ByHandLearner(run)
    trainer_for(run, tmp_path, callbacks=[watch], accumulate_grad_batches=1, gradient_clip_val=None).fit(
        learner, batches(run)
    )
    same(expected, watch.seen, but=("loss",) if run.accumulate > 1 else ())


class RunningLearner(Learner):
    """Records after each optimizer step; a checkpoint of each step must lead to the same records."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.optimizer._learning_rate = paddle.optimizer.lr.CosineAnnealingDecay(2e-2, T_max=run.windows)


def trained(run: Run, root: Path, ckpt_path: Path | None = None) -> tuple[list[dict[str, bytes]], Trainer]:
    """Two epochs: with a checkpoint of every step, or from one of them on."""
    watch, saves = Watch(), ckpt_path is None
    callbacks = [watch, ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)] if saves else [watch]
    settings = {"max_epochs": 2, "seed": 5, "enable_checkpointing": saves, "async_checkpoint": False}
    trainer = trainer_for(run, root, callbacks=callbacks, **settings)
    trainer.fit(RunningLearner(run), batches(run), ckpt_path=ckpt_path)
    return watch.seen, trainer


RESUMED = [
    Run("32-true", windows=4, clip=0.5, clip_by="norm"),
    Run("16-mixed", windows=6, inf_at=3),
    Run("16-mixed", "Momentum", windows=4, accumulate=4, inf_at=1, clip=0.5, clip_by="norm"),
    Run("bf16-mixed", windows=4),
    Run("16-true", windows=6, inf_at=3, clip=0.5, clip_by="norm"),
    Run("16-true", "Momentum", windows=4, accumulate=2, inf_at=2),
    Run("16-true", "SGD", windows=4, inf_at=1),
    Run("bf16-true", windows=4, accumulate=2),
    Run("64-true", windows=4),
]


@pytest.mark.parametrize(("precision", "run"), [(run.precision, run) for run in RESUMED], ids=str)
def test_a_resume_from_every_step_has_the_bits_of_the_uninterrupted_run(
    precision: str, run: Run, allowed: None, tmp_path: Path
) -> None:
    expected, trainer = trained(run, tmp_path)
    steps = 2 * run.windows
    assert len(expected) == steps
    resumed = {}
    for entry in sorted(trainer.run.path.glob("checkpoints/step-*")):
        seen, _ = trained(run, tmp_path, ckpt_path=entry)
        same(expected[steps - len(seen) :], seen)
        resumed[steps - len(seen)] = entry
    assert list(resumed) == list(range(1, steps + 1))
