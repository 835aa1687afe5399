"""Which samples make which batch of an epoch: drawn from the loader's own sampler under the epoch's seed."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from paddle.io import BatchSampler, DataLoader, DistributedBatchSampler, WeightedRandomSampler

from ..errors import ConfigurationError, DataError
from ..machine.paddle_internals import is_plain_sampler
from ..machine.rng import IsolatedSeed, derive_seed, isolated_random_states
from .fetch import END


@dataclass(frozen=True)
class Share:
    """Which of all batches this rank takes: r, r + W, ...; with `wraps`, going round again until shares are equal."""

    rank: int
    world_size: int
    wraps: bool

    def count(self, total: int) -> int:
        if self.wraps:
            return -(-total // self.world_size)
        return max(0, -(-(total - self.rank) // self.world_size))

    def of(self, batches: Sequence[Any]) -> Sequence[Any]:
        if self.world_size == 1:
            return batches
        total = len(batches)
        return [batches[self.position(number) % total] for number in range(self.count(total))]

    def position(self, number: int) -> int:
        """Where this rank's batch `number` stands among all ranks' batches."""
        return self.rank + number * self.world_size


class Order:
    """The index batches of a map-style DataLoader's epochs.

    A sampler with a length is drawn once for an epoch, as a whole, so a position is reached by slicing. One that keeps
    its order in itself is put back by its own `state_dict`, or else drawn as often as it had been.
    """

    def __init__(self, loader: DataLoader, *, share: Share, seed: int, name: str) -> None:
        self.loader = loader
        self.share = share
        self.seed = seed
        self.name = name
        self._sampler: Any = loader.batch_sampler if loader.auto_collate_batch else None
        self._divides = not self._takes_its_own_part()
        self._drawn: tuple[int, Sequence[Any]] | None = None
        self._drawn_digest: str | None = None
        self._sampler_state: Any = None
        self._resume: dict[str, Any] | None = None

    @property
    def length(self) -> int | None:
        """This rank's batches of an epoch; None if the sampler does not know."""
        total = self._total()
        if total is None or not self._divides:
            return total
        return self.share.count(total)

    @property
    def is_empty(self) -> bool:
        return self._total() == 0

    def of_epoch(self, epoch: int, start_batch: int) -> Sequence[Any]:
        """This rank's index batches; the same ones when an epoch is asked for again.

        Raises:
            DataError: the sampler yields nothing, or not the order that start_batch was a position in.
        """
        if self._resume is not None:
            resume, self._resume = self._resume, None
            self._go_back(resume, must_match=epoch == resume["epoch"] and start_batch > 0)
        if self._drawn is None or self._drawn[0] != epoch:
            self._draw(epoch)
        assert self._drawn is not None
        return self.share.of(self._drawn[1]) if self._divides else self._drawn[1]

    def pulled(self, epoch: int) -> Iterator[Any]:
        """This rank's index batches of a sampler without length, drawn as they are asked for."""
        isolated = IsolatedSeed()
        isolated.enter(derive_seed(self.seed, "order", epoch))
        try:
            batches = self._iterate(epoch)
        finally:
            isolated.leave()
        number = 0
        while True:
            isolated.enter(derive_seed(self.seed, "order", epoch, number))
            try:
                if self._divides:
                    turn = [next(batches, END) for _ in range(self.share.world_size)]
                    indices = turn[self.share.rank]
                else:
                    indices = next(batches, END)
            finally:
                isolated.leave()
            if indices is END:
                return
            number += 1
            yield indices

    def state_dict(self) -> dict[str, Any]:
        if self._drawn is None:
            return self._resume or {}
        epoch, batches = self._drawn
        if self._drawn_digest is None:
            self._drawn_digest = _digest(batches)
        return {"epoch": epoch, "digest": self._drawn_digest, "sampler": self._sampler_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn = None
        self._resume = state or None

    def _takes_its_own_part(self) -> bool:
        sampler = self._sampler
        if not isinstance(sampler, DistributedBatchSampler) or sampler.nranks == 1:
            return False
        if sampler.nranks != self.share.world_size or sampler.local_rank != self.share.rank:
            raise ConfigurationError(
                f"{self.name}'s DistributedBatchSampler is process {sampler.local_rank} of {sampler.nranks}, but this "
                f"is process {self.share.rank} of {self.share.world_size}; make it after the processes have started"
            )
        return True

    def _total(self) -> int | None:
        if self._sampler is None:
            return len(self.loader.dataset)
        try:
            return len(self._sampler)
        except (TypeError, AttributeError, NotImplementedError):
            return _length_by_weights(self._sampler)

    def _iterate(self, epoch: int) -> Iterator[Any]:
        if self._sampler is None:
            return iter(range(len(self.loader.dataset)))
        for sampler in self._samplers():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        return iter(self._sampler)

    def _draw(self, epoch: int) -> None:
        total = self._total()
        assert total is not None
        stateful = self._stateful_sampler()
        if stateful is not None:
            self._sampler_state = copy.deepcopy(stateful.state_dict())
        batches: Sequence[Any]
        with isolated_random_states():
            IsolatedSeed().enter(derive_seed(self.seed, "order", epoch))
            if self._sampler is None:
                batches = range(total)
            else:
                batches = self._all_of(epoch, total + 1)
        if len(batches) > total:  # perhaps endless
            batches = batches[:total]
            warnings.warn(
                f"{self.name}'s {type(self._sampler).__name__} yields more batches than its len(), {total}; "
                "the rest is not used. Correct its __len__, or remove it.",
                stacklevel=2,
            )
        if len(batches) == 0:
            raise DataError(self.why_empty())
        self._drawn, self._drawn_digest = (epoch, batches), None

    def _all_of(self, epoch: int, at_most: int) -> list[Any]:
        sampler = self._sampler
        batches = self._iterate(epoch)
        if type(sampler) is not BatchSampler or not is_plain_sampler(sampler):
            return list(islice(batches, at_most))
        # What BatchSampler.__iter__ does index by index, in slices: half the time for a large dataset.
        size = sampler.batch_size
        indices = list(islice(iter(sampler.sampler), at_most * size))
        whole = len(indices) - len(indices) % size if sampler.drop_last else len(indices)
        return [indices[start : start + size] for start in range(0, whole, size)]

    def _go_back(self, resume: dict[str, Any], must_match: bool) -> None:
        epoch = resume["epoch"]
        stateful = self._stateful_sampler()
        if stateful is not None and resume["sampler"] is not None:
            stateful.load_state_dict(resume["sampler"])
        self._draw(epoch)
        if stateful is None and self._may_keep_state():
            for _ in range(2 * epoch + 4):  # once for each epoch so far, and more if something else iterated it too
                if self._matches(resume):
                    break
                self._draw(epoch)
        if must_match and not self._matches(resume):
            raise DataError(
                f"{self.name} draws another order for epoch {epoch} than before the checkpoint, so the position in it "
                "means nothing. Resume with the same dataset, batch size, shuffling and seed, from an epoch's end, or "
                "with override=('data',), which begins this epoch again; "
                "a sampler that keeps its order in itself needs set_epoch, or state_dict and load_state_dict."
            )

    def _matches(self, resume: dict[str, Any]) -> bool:
        assert self._drawn is not None
        epoch, batches = self._drawn
        return bool(epoch == resume["epoch"] and _digest(batches) == resume["digest"])

    def _stateful_sampler(self) -> Any:
        return next((sampler for sampler in self._samplers() if has_state(sampler)), None)

    def _may_keep_state(self) -> bool:
        """Whether drawing changes the next draw: Paddle's own samplers only do so when given a generator."""
        return any(
            not type(sampler).__module__.startswith("paddle.") or getattr(sampler, "generator", None) is not None
            for sampler in self._samplers()
        )

    def _samplers(self) -> list[Any]:
        """The batch sampler and the sampler within it, as far as there are any."""
        inner = getattr(self._sampler, "sampler", None)
        return [sampler for sampler in (self._sampler, inner) if sampler is not None]

    def why_empty(self) -> str:
        dataset, sampler = self.loader.dataset, self._sampler
        samples = len(dataset)
        if samples == 0:
            return f"{self.name} is empty: its dataset ({type(dataset).__name__}) has no samples"
        if getattr(sampler, "drop_last", False):
            return (
                f"{self.name} is empty: {samples} samples make no whole batch of {sampler.batch_size}, and "
                "drop_last=True drops the rest. Lower batch_size or set drop_last=False."
            )
        return f"{self.name} is empty: its {type(sampler).__name__} yields no batch"


def has_state(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _length_by_weights(sampler: Any) -> int | None:
    """The length that a BatchSampler cannot tell over a WeightedRandomSampler whose weights are a list."""
    inner = getattr(sampler, "sampler", None)
    if not isinstance(inner, WeightedRandomSampler) or type(sampler) is not BatchSampler:
        return None
    weights = np.asarray(inner.weights)
    samples: int = int(inner.num_samples) * (weights.size // weights.shape[-1])
    batch_size = int(sampler.batch_size)
    return samples // batch_size if sampler.drop_last else -(-samples // batch_size)


def _digest(batches: Sequence[Any]) -> str:
    """Tells orders apart by their length and about 64 of their batches, spread over all."""
    step = max(1, len(batches) // 64)
    seen = [len(batches), [_plain(indices) for indices in batches[::step]]]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _plain(indices: Any) -> Any:
    # int(), because NumPy 1 and 2 write their ints differently.
    if isinstance(indices, (list, tuple)):
        return [_plain(index) for index in indices]
    return int(indices) if hasattr(indices, "__index__") else repr(indices)
