"""BasePredictionWriter: predictions are written batch by batch, or all at a prediction's end."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer
from paddle.io import DataLoader, TensorDataset

from paddlelite_trainer.callbacks import BasePredictionWriter
from paddlelite_trainer.errors import ConfigurationError


class Predicts(Classifier):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return 10 * dataloader_idx + batch_idx


class Keeps(BasePredictionWriter):
    def __init__(self, interval: Any) -> None:
        super().__init__(interval)
        self.batches: list[Any] = []
        self.epochs: list[Any] = []

    def write_on_batch_end(
        self,
        trainer: Any,
        module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.batches.append((prediction, batch_indices, len(batch), batch_idx, dataloader_idx))

    def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, batch_indices: Any) -> None:
        self.epochs.append((predictions, batch_indices))


def loader() -> Any:
    return DataLoader(TensorDataset([paddle.ones([4, 4]), paddle.ones([4], "int64")]), batch_size=2)


def test_each_batch_is_written_and_nothing_need_be_kept() -> None:
    writer = Keeps("batch")
    trainer = quiet_trainer(callbacks=[writer])
    assert trainer.predict(Predicts(), make_batches(2), return_predictions=False) == []
    assert writer.batches == [(0, None, 2, 0, 0), (1, None, 2, 1, 0)]
    assert writer.epochs == []


@pytest.mark.parametrize("several", [False, True])
def test_all_are_written_at_the_end_and_each_prediction_anew(several: bool) -> None:
    writer = Keeps("epoch")
    trainer = quiet_trainer(callbacks=[writer])
    data = [loader(), loader()] if several else loader()
    for _ in range(2):
        trainer.predict(Predicts(), data, return_predictions=False)
    assert writer.epochs == [([[0, 1], [10, 11]] if several else [0, 1], None)] * 2
    assert writer.batches == []


def test_both_at_once() -> None:
    writer = Keeps("batch_and_epoch")
    quiet_trainer(callbacks=[writer]).predict(Predicts(), make_batches(2))
    assert ([batch[0] for batch in writer.batches], writer.epochs) == ([0, 1], [([0, 1], None)])


def test_a_writer_that_cannot_write_is_told_before_it_predicts() -> None:
    with pytest.raises(ConfigurationError, match="must be 'batch', 'epoch' or 'batch_and_epoch', got 'step'"):
        BasePredictionWriter("step")  # type: ignore[arg-type]

    class Forgets(BasePredictionWriter):
        def write_on_batch_end(self, *arguments: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Forgets\(write_interval='epoch'\) needs write_on_epoch_end"):
        quiet_trainer(callbacks=[Forgets("epoch")]).predict(Predicts(), make_batches(1))
    quiet_trainer(callbacks=[Forgets("epoch")]).fit(Classifier(), make_batches(1))
