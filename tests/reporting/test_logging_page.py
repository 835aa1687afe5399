"""The examples of docs/logging.md run as they stand, on digits of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import paddlelite_trainer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Digits(paddle.io.Dataset):
    def __getitem__(self, index: int) -> Any:
        return np.full([64], index / 16, "float32"), np.int64(index % 10)

    def __len__(self) -> int:
        return 16


class Classifier(paddlelite_trainer.Module):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = paddle.nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = paddle.nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", paddle.nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return paddle.optimizer.SGD(self.hparams.lr, parameters=self.parameters())


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_page_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loader = paddle.io.DataLoader(Digits(), batch_size=8, shuffle=True)
    known = {name: getattr(paddlelite_trainer, name) for name in paddlelite_trainer.__all__}
    exec(example, {**known, "Classifier": Classifier, "train_loader": loader, "val_loader": loader})
    if "class Draws" in example:
        from stores import media_in_tensorboard

        assert media_in_tensorboard(tmp_path) == {"val/first", "val/logits", "sample"}
