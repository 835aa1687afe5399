"""Datasets, samplers and loaders that the data tests share."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.io import DataLoader, Dataset, IterableDataset

from paddlelite_trainer.data.source import BatchSource

SEED = 5
_SPAWNED: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "spawn"}
_FORKED = [
    pytest.param({"num_workers": 2}, id="workers-2"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="persistent"),
]
# Each spawned worker imports Paddle, which takes seconds: a chosen few run always.
_AND_SPAWNED_IN_SOAK = [
    pytest.param(_SPAWNED, id="spawned", marks=pytest.mark.soak),
    pytest.param({**_SPAWNED, "persistent_workers": True}, id="spawned-persistent", marks=pytest.mark.soak),
]
HERE = pytest.param({"num_workers": 0}, id="workers-0")
SPAWNED = pytest.param({**_SPAWNED, "persistent_workers": True}, id="spawned-persistent")
PROCESSES = [*_FORKED, *_AND_SPAWNED_IN_SOAK]
WORKERS = [HERE, *PROCESSES]
# For tests that start workers some twenty times.
WORKERS_FORKED = [HERE, *_FORKED]
WORKERS_FORKED_OR_KEPT = [*WORKERS_FORKED, _AND_SPAWNED_IN_SOAK[1]]
PROCESSES_SPAWNED_TOO = [*_FORKED, SPAWNED]
WORKERS_SPAWNED_TOO = [HERE, *PROCESSES_SPAWNED_TOO]


class Loader(DataLoader):
    """A DataLoader that says how its workers are to start; `source` listens."""

    def __init__(self, dataset: Any, *, multiprocessing_context: str = "auto", **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self.multiprocessing_context = multiprocessing_context


class Augmented(Dataset):
    """Sample i is (i, three random numbers, one per library)."""

    def __init__(self, samples: int = 20) -> None:
        self.samples = samples
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        self.loaded.append(index)
        return index, np.array([random.random(), np.random.randn(), paddle.rand([1]).item()])


class Stuck(Dataset):
    """Answers for its first two samples and then never again."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        if index > 1:
            time.sleep(600)
        return index


class AugmentedStream(IterableDataset):
    """The same, in order, by iteration."""

    def __init__(self, samples: int = 20) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.samples):
            yield index, np.array([random.random(), np.random.randn(), paddle.rand([1]).item()])


class StatefulStream(IterableDataset):
    """Remembers its position in itself, goes back to the start at its end, and counts what it reads."""

    def __init__(self, samples: int = 20) -> None:
        self.samples = samples
        self.position = 0
        self.read: list[int] = []

    def __iter__(self) -> Iterator[int]:
        while self.position < self.samples:
            self.position += 1
            self.read.append(self.position - 1)
            yield self.position - 1
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def noisy_collate(samples: list[Any]) -> list[Any]:
    """Ids, the samples' numbers, and numbers drawn while collating."""
    indices, numbers = zip(*samples)
    drawn = np.array([random.random(), np.random.rand(), paddle.rand([1]).item()])
    return [np.array(indices), np.stack(numbers), drawn]


def source(loader: Any, **settings: Any) -> BatchSource:
    context = getattr(loader, "multiprocessing_context", "auto")
    return BatchSource(loader, **{"stage": "train", "seed": SEED, "multiprocessing_context": context, **settings})


def augmented(**settings: Any) -> DataLoader:
    dataset = settings.pop("dataset", None) or Augmented()
    defaults = {} if "batch_sampler" in settings else {"batch_size": 3, "shuffle": True}
    return Loader(dataset, collate_fn=noisy_collate, **{**defaults, **settings})


def plain(batch: Any) -> Any:
    """The batch's numbers as nested lists, to compare."""
    if isinstance(batch, (paddle.Tensor, np.ndarray)):
        return batch.tolist()
    if isinstance(batch, (list, tuple)):
        return [plain(item) for item in batch]
    if isinstance(batch, dict):
        return {key: plain(item) for key, item in batch.items()}
    return batch


def read(batches: BatchSource, epoch: int, start_batch: int = 0) -> list[Any]:
    return [plain(batch) for batch in batches.epoch(epoch, start_batch)]


def ids(batches: BatchSource, epoch: int, start_batch: int = 0) -> list[int]:
    return [index for batch in read(batches, epoch, start_batch) for index in batch[0]]
