"""Tells the epoch to what has a `set_epoch`: loader, samplers, dataset and those within it, collate_fn."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from paddle.io import DataLoader, Subset


def made_by(loader: DataLoader) -> list[Any]:
    """What makes a DataLoader's batches: datasets, the outer ones first, and collate_fn."""
    return [*_datasets(loader.dataset), loader.collate_fn]


def parts_of(loader: Any) -> list[Any]:
    """Any iterable of batches with what it may be made of, as far as it looks like a DataLoader."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = [batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)]
    return [loader, *_datasets(getattr(loader, "dataset", None)), *samplers, getattr(loader, "collate_fn", None)]


def set_epoch_of(things: list[Any], epoch: int) -> None:
    """Call `set_epoch(epoch)` once of each thing that has it. One that needs more than an epoch is somebody else's."""
    told: list[Any] = []
    for thing in things:
        set_epoch = getattr(thing, "set_epoch", None)
        if not callable(set_epoch) or any(thing is other for other in told):
            continue
        told.append(thing)
        if _takes_one(set_epoch):
            set_epoch(epoch)


def _datasets(dataset: Any) -> Iterator[Any]:
    yield dataset
    if isinstance(dataset, Subset):
        yield from _datasets(dataset.dataset)
    datasets = getattr(dataset, "datasets", None)  # of ConcatDataset, ComposeDataset and ChainDataset
    if isinstance(datasets, (list, tuple)):
        for inner in datasets:
            yield from _datasets(inner)


def _takes_one(set_epoch: Any) -> bool:
    try:
        inspect.signature(set_epoch).bind(0)
    except TypeError:
        return False
    except ValueError:  # it has none that can be read
        pass
    return True
