"""Data that depend on the model: with look_ahead off each batch is made when the step before it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Trainer
from paddlelite_trainer.errors import ConfigurationError, DataError

SGD = paddle.optimizer.SGD


class OfTheModel:
    """Batches made of the model's weights as they are when a batch is asked for."""

    def __init__(self, model: Any, count: int = 5) -> None:
        self.model, self.count = model, count
        self.steps_seen: list[int] = []

    def __iter__(self) -> Any:
        for _ in range(self.count):
            self.steps_seen.append(self.model.trainer.global_step)
            x = self.model.net[0].weight.mean() + paddle.ones([8, 4])
            yield [x.detach(), paddle.zeros([8], dtype="int64")]


class WithLength(OfTheModel):
    def __len__(self) -> int:
        return 5


class Buffer(paddle.io.IterableDataset):
    def __init__(self, source: OfTheModel) -> None:
        self.source = source

    def __iter__(self) -> Any:
        for x, _ in self.source:
            yield x[0].numpy(), np.int64(0)


def trainer(**settings: Any) -> Trainer:
    return quiet_trainer(max_epochs=2, look_ahead=False, **settings)


def test_a_batch_sees_what_all_steps_before_it_did() -> None:
    ahead, late = Classifier(), Classifier()
    seen = WithLength(ahead), WithLength(late)
    trainer().fit(ahead, seen[0])
    quiet_trainer(max_epochs=2).fit(late, seen[1])
    assert seen[0].steps_seen == list(range(10))
    assert seen[1].steps_seen == [0, 0, 1, 2, 3, 5, 5, 6, 7, 8]


def test_the_loop_by_hand_has_the_same_bits() -> None:
    model, by_hand = Classifier(), Classifier()
    trainer().fit(model, WithLength(model))
    optimizer = by_hand.configure_optimizers()
    for _ in range(10):
        batch = [by_hand.net[0].weight.mean().detach() + paddle.ones([8, 4]), paddle.zeros([8], dtype="int64")]
        by_hand.loss(batch).backward()
        optimizer.step()
        optimizer.clear_grad()
    for one, other in zip(model.parameters(), by_hand.parameters()):
        assert np.array_equal(one.numpy(), other.numpy())


def test_a_limit_says_the_last_batch_of_an_iterable_dataset() -> None:
    model = Classifier()
    source = OfTheModel(model, count=100)
    trainer(limit_train_batches=3).fit(model, paddle.io.DataLoader(Buffer(source), batch_size=1))
    assert source.steps_seen == list(range(6))


def test_a_run_resumed_within_an_epoch_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    def fit(**settings: Any) -> Classifier:
        model = Classifier()
        settings.setdefault("default_root_dir", tmp_path / "run")
        run = trainer(enable_checkpointing=True, run_name="run", **settings)
        run.fit(model, Replayed(model), ckpt_path="last")
        return model

    class Replayed(WithLength):
        """What is passed over again is not made of the weights that there were then, but the rest is."""

        def __iter__(self) -> Any:
            for index in range(5):
                x = (index + 1) * self.model.net[0].weight.mean() + paddle.ones([8, 4])
                yield [x.detach(), paddle.zeros([8], dtype="int64")]

    whole = fit(default_root_dir=tmp_path / "whole")
    fit(max_steps=7)
    resumed = fit()
    for one, other in zip(whole.parameters(), resumed.parameters()):
        assert np.array_equal(one.numpy(), other.numpy())


def test_an_unknown_number_of_batches_is_refused_with_the_remedy() -> None:
    model = Classifier()
    with pytest.raises(ConfigurationError, match=r"without a length.*limit_train_batches=100"):
        trainer().fit(model, OfTheModel(model))


def test_workers_are_refused_since_they_read_ahead() -> None:
    class Data(paddle.io.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return np.zeros([4], dtype="float32"), np.int64(0)

    for data in (Data(), Buffer(OfTheModel(Classifier()))):
        with pytest.raises(ConfigurationError, match=r"num_workers=1, and workers read ahead"):
            trainer(limit_train_batches=2).fit(Classifier(), paddle.io.DataLoader(data, num_workers=1))


def test_an_end_before_the_known_number_is_an_error() -> None:
    model = Classifier()
    with pytest.raises(DataError, match=r"train_dataloader ended after 4 batches of 9: .*look_ahead"):
        trainer(limit_train_batches=9).fit(model, OfTheModel(model, count=4))


def test_lists_are_as_they_always_are() -> None:
    one, other = Classifier(), Classifier()
    trainer().fit(one, make_batches(3), make_batches(2))
    quiet_trainer(max_epochs=2).fit(other, make_batches(3), make_batches(2))
    assert np.array_equal(one.net[0].weight.numpy(), other.net[0].weight.numpy())
