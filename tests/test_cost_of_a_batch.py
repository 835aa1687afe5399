"""What a batch costs in library calls, counted, not timed, at three levels; and that nothing is copied to the host."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

import paddlelite_trainer
import paddlelite_trainer.callbacks
from paddlelite_trainer.callbacks import EarlyStopping, LRMonitor, ModelCheckpoint
from paddlelite_trainer.machine.rng import paddle_cpu_generator_can_be_saved

OURS = tuple(
    str(Path(module.__file__).resolve().parent) for module in (paddlelite_trainer, paddlelite_trainer.callbacks)
)


class LibraryCalls:
    """Counts calls of Python functions that stand in this package."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            self.count += 1

    def __enter__(self) -> LibraryCalls:
        sys.setprofile(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(None)


class Counted(Classifier):
    def __init__(self, logs: bool) -> None:
        super().__init__()
        self.logs = logs
        self.calls = LibraryCalls()
        self.at: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.at.append(self.calls.count)
        loss = self.loss(batch)
        if self.logs:
            self.log("train_loss", loss, prog_bar=True)
        return loss


def calls_a_batch(batches: Any, logs: bool, **settings: Any) -> float:
    module = Counted(logs)
    trainer = quiet_trainer(**settings)
    with module.calls:
        trainer.fit(module, batches, make_batches(1))
    return statistics.median(after - before for before, after in zip(module.at, module.at[1:]))


def everything(tmp_path: Path) -> dict[str, Any]:
    callbacks = [ModelCheckpoint(monitor="val_loss"), EarlyStopping(monitor="val_loss"), LRMonitor()]
    written = {"logger": None, "enable_checkpointing": True, "enable_progress_bar": True, "default_root_dir": tmp_path}
    return {"callbacks": callbacks, **written}


# As many as there are today: whoever adds a call to every batch says so here.
@pytest.mark.parametrize(("level", "count"), [("bare", 9), ("one self.log", 11), ("everything on", 16)])
def test_a_batch_makes_few_library_calls(tmp_path: Path, level: str, count: int) -> None:
    settings = everything(tmp_path) if level == "everything on" else {}
    seeding = 0 if paddle_cpu_generator_can_be_saved() else 2
    assert calls_a_batch(make_batches(20), level != "bare", **settings) == count + seeding


def test_a_long_run_costs_a_batch_no_more_than_a_short_one(tmp_path: Path) -> None:
    short = calls_a_batch(make_batches(20), True, **everything(tmp_path / "short"))
    assert calls_a_batch(make_batches(400), True, **everything(tmp_path / "long")) == short


def test_nothing_is_copied_to_the_host_between_logging_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[str] = []
    allowed = [False]

    def spy(name: str) -> Callable[..., Any]:
        original = getattr(paddle.Tensor, name)

        def copy(*arguments: Any) -> Any:
            # Paddle 2.6 copies in its own cross_entropy; what counts is who asks for it here.
            if not allowed[0] and sys._getframe(1).f_code.co_filename.startswith(OURS):
                copies.append(name)
            return original(*arguments)

        return copy

    for name in ("numpy", "item", "__float__", "tolist", "__bool__", "__int__"):
        monkeypatch.setattr(paddle.Tensor, name, spy(name))

    class Between(Counted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            # Looks from the second batch after one logging step to the last one before the next.
            if batch_idx == 11:
                copies.clear()
            if batch_idx == 19:
                allowed[0] = True
                self.seen = list(copies)
            return super().training_step(batch, batch_idx)

    settings = everything(tmp_path)
    settings["enable_progress_bar"] = False  # reads when it redraws, by the clock
    module = Between(True)
    quiet_trainer(log_every_n_steps=10, **settings).fit(module, make_batches(25), make_batches(1))
    assert module.seen == []
