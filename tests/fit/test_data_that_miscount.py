"""Training data whose length is not what they yield, or that can be read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import pytest
from models import Classifier, as_if_started_again, make_batches, quiet_trainer

from paddlelite_trainer.errors import ConfigurationTypeError, DataError


class Says:
    """An iterable that says `length` and yields `count` batches."""

    def __init__(self, length: int, count: int) -> None:
        self.length, self.count = length, count

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        return iter(make_batches(self.count))


def data_loader() -> Any:
    columns = [paddle.concat(column) for column in zip(*make_batches(6))]
    return paddle.io.DataLoader(paddle.io.TensorDataset(columns), batch_size=8)


def test_data_that_yield_more_than_they_say_are_an_error() -> None:
    trainer = quiet_trainer(max_epochs=2)
    told = r"train_dataloader said that an epoch has 4 batches, and batch 5 came.*__len__.*limit_train_batches=4"
    with pytest.raises(DataError, match=told):
        trainer.fit(Classifier(), Says(4, 6))
    assert trainer.global_step == 4


def test_a_resumed_run_finds_the_same_error(tmp_path: Path) -> None:
    def fit(ckpt_path: str | None, **settings: Any) -> None:
        as_if_started_again()
        trainer = quiet_trainer(enable_checkpointing=True, default_root_dir=tmp_path, **settings)
        trainer.fit(Classifier(), Says(4, 6), ckpt_path=ckpt_path)

    for steps in (2, 4):
        fit("last", max_steps=steps)
        with pytest.raises(DataError, match="said that an epoch has 4 batches, and batch 5 came"):
            fit("last", max_epochs=2)


def test_what_a_limit_leaves_out_is_not_miscounted() -> None:
    trainer = quiet_trainer(max_epochs=2, limit_train_batches=3)
    trainer.fit(Classifier(), Says(4, 6))
    trainer.validate(Classifier(), Says(4, 6))
    assert trainer.global_step == 6


def test_an_iterator_over_a_data_loader_is_refused_at_the_start() -> None:
    iterator = iter(data_loader())
    with pytest.raises(
        ConfigurationTypeError, match=r"train_dataloader is an iterator over a DataLoader.*pass the DataLoader itself"
    ):
        quiet_trainer(max_epochs=2).fit(Classifier(), iterator)
    with pytest.raises(ConfigurationTypeError, match="val_dataloader is an iterator over a DataLoader"):
        quiet_trainer().validate(Classifier(), iterator)


def test_a_generator_is_enough_for_one_epoch_and_no_more() -> None:
    quiet_trainer(max_epochs=1).fit(Classifier(), iter(make_batches(3)))
    with pytest.raises(DataError, match="train_dataloader is exhausted: it yielded nothing in epoch 1"):
        quiet_trainer(max_epochs=2).fit(Classifier(), iter(make_batches(3)))
