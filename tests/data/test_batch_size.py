"""The size of a batch weighs its values in an epoch's mean: what the loader drew, else what the batch's parts say."""

from __future__ import annotations

import warnings
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from models import Classifier, quiet_trainer

from paddlelite_trainer.data.batch_size import batch_size_of, weight_of

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Sample:
    image: Any
    name: str


def image(*shape: int) -> Any:
    return paddle.zeros(list(shape))


DETECTION = [{"image": image(3, 8, 8), "boxes": image(count, 4)} for count in (2, 5, 1, 0)]
CLEAR = {
    "a tensor": (image(4, 2), 4),
    "a pair": ([image(6, 3), image(6)], 6),
    "a nested dict": ({"name": ["a", "b"], "x": {"y": np.zeros([5, 1])}}, 5),
    "a namedtuple": (Point("a", image(6)), 6),
    "a dataclass": (Sample(np.zeros([7]), "n"), 7),
    "a scalar": (image(), 1),
    "a scalar first": ([image(), image(5, 2), image(5)], 5),
    "a number first": ({"scale": 0.5, "x": image(5, 2)}, 5),
    "metadata first": ({"meta": np.array([640, 480]), "x": image(5, 3, 8, 8), "y": image(5)}, 5),
    "images in a list beside labels": ([[image(3, 8, 8)] * 4, image(4)], 4),
    "images and targets in lists": (([image(3, 8, 8)] * 4, [{"boxes": image(n, 4)} for n in (2, 0, 1, 7)]), 4),
    "two inputs in a list": ([[image(9, 3), image(9, 2)], image(9)], 9),
    "dicts, one a sample": (DETECTION, 4),
    "dicts with numbers, one a sample": ([{"image": image(3, 8, 8), "label": label} for label in range(5)], 5),
    "two dicts of batches": ([{"ids": image(8, 3), "mask": image(8, 3)}, {"ids": image(8, 3), "mask": image(8, 3)}], 8),
    "time first beside labels": ([image(20, 4, 3), image(4)], 4),
    "an object that says": (SimpleNamespace(batch_size=6, x=image(40, 3), edges=image(2, 90)), 6),
    "an object": (SimpleNamespace(x=image(6, 3), y=image(6)), 6),
    "texts": (["a", "b", "c"], 3),
    "this and that": (["a", 3], 1),
    "nothing": (None, 1),
}


@pytest.mark.parametrize("name", CLEAR)
def test_the_size_is_what_the_parts_of_a_batch_agree_on(name: str) -> None:
    batch, size = CLEAR[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (batch_size_of(batch), weight_of(batch)) == (size, size)


def test_a_size_that_is_not_clear_is_told_with_the_remedy() -> None:
    with pytest.warns(UserWarning, match=r"take it as 5 samples; pass self\.log\(\.\.\., batch_size=\.\.\.\)"):
        assert weight_of([np.array([640, 480]), image(5, 3, 8, 8)]) == 5


def test_of_several_sizes_the_loader_s_own_is_taken() -> None:
    assert batch_size_of([np.array([640, 480]), image(5, 3)], likely=2) == 2


# -- in a run ----------------------------------------------------------------------------------------------------------
class Numbers(paddle.io.Dataset):
    """Each sample's value is its index."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return np.full([3], index, dtype="float32")


class Stream(paddle.io.IterableDataset):
    def __iter__(self) -> Any:
        for index in range(10):
            yield np.full([3], index, dtype="float32")


class Means(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("mean", mean(batch), on_step=False, on_epoch=True)
        return self(paddle.zeros([1, 4])).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mean", mean(batch))


def mean(batch: Any) -> float:
    if isinstance(batch, dict):
        return mean(batch["samples"])
    if isinstance(batch, list):
        return float(np.mean([mean(sample) for sample in batch]))
    return float(batch.mean())


COLLATED = {
    "stacked": np.stack,
    "time first": lambda samples: np.stack(samples, axis=1),
    "a list of samples": list,
    "metadata first": lambda samples: {"size": np.array([640, 480]), "samples": np.stack(samples)},
    "objects": lambda samples: {"it": object(), "samples": list(samples)},
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("collated", COLLATED)
def test_each_sample_of_a_loader_counts_once_whatever_its_batches_look_like(collated: str, num_workers: int) -> None:
    trainer = quiet_trainer(max_epochs=1)
    loader = paddle.io.DataLoader(
        Numbers(), batch_size=4, collate_fn=COLLATED[collated], num_workers=num_workers, shuffle=True
    )
    trainer.fit(Means(), loader, loader)
    assert trainer.callback_metrics["mean"] == pytest.approx(4.5)
    assert trainer.callback_metrics["val_mean"] == pytest.approx(4.5)


@pytest.mark.parametrize("collated", ["stacked", "a list of samples", "metadata first"])
def test_each_sample_of_an_iterable_dataset_counts_once(collated: str) -> None:
    trainer = quiet_trainer(max_epochs=1)
    loader = paddle.io.DataLoader(Stream(), batch_size=4, collate_fn=COLLATED[collated])
    trainer.fit(Means(), loader, loader)
    assert trainer.callback_metrics["mean"] == pytest.approx(4.5)
    assert trainer.callback_metrics["val_mean"] == pytest.approx(4.5)


def test_batches_made_by_the_dataset_itself_are_as_large_as_they_are() -> None:
    class Ready(paddle.io.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            first = 4 * index
            return np.arange(first, min(first + 4, 10), dtype="float32").repeat(3).reshape([-1, 3])

    for options in ({"batch_size": None}, {"batch_size": 1, "collate_fn": lambda samples: samples[0]}):
        trainer = quiet_trainer(max_epochs=1)
        trainer.fit(Means(), paddle.io.DataLoader(Ready(), **options))
        assert trainer.callback_metrics["mean"] == pytest.approx(4.5)
