"""A module whose logged metrics are given beforehand, so that a test knows what must happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle

from paddlelite_trainer import Callback, Module, Trainer

BATCHES = 4


class Scripted(Module):
    """Logs `val[name](global_step)` in validation, and one `train_loss` per step."""

    def __init__(
        self,
        val: Mapping[str, Callable[[int], float]] | None = None,
        learning_rate: Any = 0.1,
        optimizers: Callable[[Module], Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = paddle.nn.Linear(1, 1)
        self.val = dict(val or {})
        self._learning_rate = learning_rate
        self._optimizers = optimizers

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.net(batch).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for name, value in self.val.items():
            self.log(name, value(self.global_step))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", 1.0)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> Any:
        if self._optimizers is not None:
            return self._optimizers(self)
        return paddle.optimizer.SGD(self._learning_rate, parameters=self.parameters())


def by_epoch(values: Sequence[float]) -> Callable[[int], float]:
    """A metric that is values[e] after epoch e."""
    return lambda global_step: values[global_step // BATCHES - 1]


def batches(count: int = BATCHES) -> list[Any]:
    return [paddle.ones([2, 1]) for _ in range(count)]


def fit(
    root: Path,
    module: Module,
    callbacks: Sequence[Callback] | Callback = (),
    *,
    max_epochs: int = 3,
    ckpt_path: str | None = None,
    **settings: Any,
) -> Trainer:
    """A small quiet fit with validation, 4 batches an epoch."""
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "async_checkpoint": False,
        "num_sanity_val_steps": 0,
    }
    trainer = Trainer(
        max_epochs=max_epochs, callbacks=callbacks, default_root_dir=root, seed=1, **{**quiet, **settings}
    )
    trainer.fit(module, batches(), batches(1), ckpt_path=ckpt_path)
    return trainer


def pins(trainer: Trainer) -> dict[str, list[int]]:
    """{pin: steps of the checkpoints it holds}."""
    steps = {entry.name: entry.step for entry in trainer.checkpoints.entries()}
    return {pin: [steps[name] for name in names] for pin, names in trainer.checkpoints.pins().items()}
