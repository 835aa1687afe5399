"""paddle.enable_static() is in force: one sentence says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlelite_trainer import Module, Trainer, load_weights
from paddlelite_trainer.errors import ConfigurationError


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = paddle.nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("value", self(batch).mean())

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())


@pytest.fixture
def module() -> Iterator[Net]:
    """One made in dynamic mode, before static mode came."""
    made = Net()
    paddle.enable_static()
    try:
        yield made
    finally:
        paddle.disable_static()


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_each_stage_refuses_static_mode_and_runs_after_it(module: Net, tmp_path: Path, stage: str) -> None:
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    with pytest.raises(ConfigurationError, match=rf"trainer\.{stage} needs dynamic mode.*paddle\.disable_static\(\)"):
        getattr(trainer, stage)(module, [np.ones((2, 4), "float32")])
    paddle.disable_static()
    getattr(trainer, stage)(module, [paddle.ones([2, 4])])


def test_a_module_is_not_made_in_static_mode(module: Net) -> None:
    with pytest.raises(ConfigurationError, match=r"Net\(\) needs dynamic mode.*paddle\.disable_static\(\)"):
        Net()


def test_weights_are_not_loaded_in_static_mode(module: Net, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"load_weights needs dynamic mode.*paddle\.disable_static\(\)"):
        load_weights(module, tmp_path / "x")
