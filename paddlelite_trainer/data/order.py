"""Which samples make which batch of an epoch: drawn from the loader's own sampler under the epoch's seed."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
from paddle.io import BatchSampler, DataLoader, DistributedBatchSampler, WeightedRandomSampler

from ..errors import ConfigurationError, DataError
from ..machine.paddle_internals import is_plain_sampler
from ..machine.rng import IsolatedSeed, derive_seed, isolated_random_states
from .fetch import END
from .index_batches import drawn_at_once
from .share import Share

_BATCHES_IN_A_DIGEST = 64


class Order:
    """The index batches of a map-style DataLoader's epochs.

    A sampler with a length is drawn once for an epoch, as a whole, so a position is reached by slicing. One that keeps
    something over epochs is put back by its own `state_dict`, or else a new one is played through all epochs that the
    old one had been drawn for.
    """

    def __init__(self, loader: DataLoader, *, share: Share, seed: int, name: str) -> None:
        self.loader = loader
        self.share = share
        self.seed = seed
        self.name = name
        self._sampler: Any = loader.batch_sampler if loader.auto_collate_batch else None
        self._divides = not self._takes_its_own_part()
        if not self._divides and not share.wraps and type(self._sampler) is DistributedBatchSampler:
            self._sampler, self._divides = _NotRepeating(self._sampler), True
        self.drawn: tuple[int, Sequence[Any]] | None = None
        self._drawn_digest: str | None = None
        self._sampler_state: Any = None
        self.first: int | None = None  # the epoch for which the sampler was drawn first
        self._pulls: list[
            list[Any]
        ] = []  # of a sampler without length: [epoch, batches of all ranks drawn; None is all]
        self._pulled: list[Any] = []  # the present epoch's first, as many as a digest looks at
        self.resume: dict[str, Any] | None = None
        self._joined: int | None = None  # so many processes' own parts make the order of the epoch at hand

    @property
    def length(self) -> int | None:
        """This rank's batches of the epoch at hand; None if the sampler does not know."""
        total = self._total()
        return self.whole_length if total is None or self.share.end is None else self.share.count(total)

    @property
    def whole_length(self) -> int | None:
        """This rank's batches of an epoch from its start on."""
        total = self._total()
        return total if total is None or not self._divides else self.share.whole.count(total)

    def deal(self, share: Share) -> None:
        """Let this be the rank's share of the epoch that is read next; None of what was drawn for another holds."""
        if self._joined is not None and share.first == 0:
            self.drawn, self._joined = None, None
        self.share = share

    @property
    def is_empty(self) -> bool:
        return self._total() == 0

    def of_epoch(self, epoch: int, start_batch: int) -> Sequence[Any]:
        """This rank's index batches; the same ones when an epoch is asked for again.

        Raises:
            DataError: the sampler yields nothing, or not the order that start_batch was a position in.
        """
        if self.resume is not None:
            resume, self.resume = self.resume, None
            self._go_back(resume, is_inside=epoch == resume["epoch"] and start_batch > 0)
        if self.drawn is None or self.drawn[0] != epoch:
            self._draw(epoch)
        assert self.drawn is not None
        return self.share.of(self.drawn[1]) if self._divides or self._joined is not None else self.drawn[1]

    def pulled(self, epoch: int, start_batch: int) -> Iterator[Any]:
        """This rank's index batches from start_batch on, of a sampler without length, drawn as they are asked for.

        Raises:
            DataError: the sampler ends before start_batch, or does not draw what it had drawn before the checkpoint.
        """
        resume, self.resume = self.resume, None
        is_inside = resume is not None and resume["epoch"] == epoch and not resume.get("is_once_more")
        if resume is not None and "pulls" in resume:
            self._play_pulls(resume, but_the_last=is_inside)
            if not is_inside:
                self._check_pulled(resume, is_inside=False)
        indices = self._pull(epoch)
        to_pass = start_batch - self.share.number
        passed = sum(1 for _ in islice(indices, to_pass))
        if passed < to_pass:
            raise DataError(
                f"{self.name} has {passed} batches, but {start_batch} of this epoch were done before: it shrank since "
                "the checkpoint was made. Resume with the same dataset, batch size and limits, or from an epoch's end."
            )
        first = next(indices, END)  # which passes over what other ranks had done
        if resume is not None and is_inside and start_batch:
            self._check_pulled(resume, is_inside=True)
        if first is not END:
            yield first
            yield from indices

    def go_along_with(self, other: Order) -> None:
        """Take over the epoch that another order of the same loader has drawn, so that the sampler is not asked."""
        self.drawn, self.first = other.drawn, other.first
        # A resumed run may have drawn none yet. A sampler without length is asked again after what it gave the run.
        self.resume = {**other.resume, "is_once_more": True} if other.resume and other.drawn is None else None

    def state_dict(self, batches_done: int) -> dict[str, Any]:
        if self._pulls:
            return self._pull_state(batches_done)
        if self.drawn is None:
            return self.resume or {}
        epoch, batches = self.drawn
        if self._drawn_digest is None:
            self._drawn_digest = _digest(batches)
        return {
            "epoch": epoch,
            "digest": self._drawn_digest,
            "sampler": self._sampler_state,
            "count": len(batches),
            "first": self.first,
            "parts": self._sampler.nranks if self._takes_its_own_part() else 1,
            "joined": self._joined,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn, self._pulls = None, []
        self.resume = state or None
        self._joined = state.get("joined")

    # -- an epoch that another number of ranks had begun ---------------------------------------------------------------
    def total_before(self, state: Mapping[str, Any], ranks: int) -> int | None:
        """How many batches so many ranks had together, without going round; None if the sampler does not know."""
        parts = self._parts_before(state, ranks)
        if parts is None:
            return self._total()
        return parts * len(self._part(0, parts)) if self._is_paddles_own else None

    def why_not_dealt_again(self, state: Mapping[str, Any], ranks: int) -> str | None:
        """Why what so many ranks had left of an epoch cannot be dealt out to the present ones; None: it can."""
        if self._parts_before(state, ranks) is None or self._is_paddles_own:
            return None
        return (
            f"{self.name}'s {type(self._sampler).__name__} divides the samples among processes by itself, in a "
            "way that is not known here"
        )

    def dealt_again(self, state: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        """A state of rank 0's, as it is for the present ranks."""
        parts = self._parts_before(state, ranks)
        if not state or parts is None:
            return dict(state)
        is_of_a_part = state.get("joined") is None or state.get("is_of_a_part", False)
        return {**state, "joined": parts, "is_of_a_part": is_of_a_part}

    def _parts_before(self, state: Mapping[str, Any], ranks: int) -> int | None:
        """How many processes' own parts made the order; None where it was one order, dealt out here."""
        joined: int | None = state.get("joined")
        if joined is not None:
            return joined
        if not isinstance(self._sampler, DistributedBatchSampler):
            return None
        parts = int(state.get("parts", ranks))  # earlier versions did not save it
        return parts if parts > 1 or not self._divides else None

    @property
    def _is_paddles_own(self) -> bool:
        return type(self._sampler) is DistributedBatchSampler

    def _part(self, rank: int, parts: int) -> DistributedBatchSampler:
        """What a DistributedBatchSampler is on one of so many processes."""
        one = copy.copy(self._sampler)
        samples = -(-len(one.dataset) // parts)
        vars(one).update(nranks=parts, local_rank=rank, num_samples=samples, total_size=samples * parts)
        return cast(DistributedBatchSampler, one)

    def _all_parts(self, epoch: int, parts: int) -> list[Any]:
        """The batches of all of so many processes, in the order in which they take them."""
        samplers = [self._part(rank, parts) for rank in range(parts)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        return [batch for turn in zip(*samplers) for batch in turn]

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
        self._note_before_drawing(epoch)
        batches: Sequence[Any]
        with isolated_random_states():
            IsolatedSeed().enter(derive_seed(self.seed, "order", epoch))
            if self._sampler is None:
                batches = range(total)
            elif self._joined is not None:
                batches = self._all_parts(epoch, self._joined)
                total = len(batches)
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
        self.drawn, self._drawn_digest = (epoch, batches), None

    def _all_of(self, epoch: int, at_most: int) -> Sequence[Any]:
        sampler = self._sampler
        at_once = drawn_at_once(sampler)
        if at_once is not None:
            return at_once
        batches = self._iterate(epoch)
        if type(sampler) is not BatchSampler or not is_plain_sampler(sampler):
            return list(islice(batches, at_most))
        # What BatchSampler.__iter__ does index by index, in slices: half the time for a large dataset.
        size = sampler.batch_size
        indices = list(islice(iter(sampler.sampler), at_most * size))
        whole = len(indices) - len(indices) % size if sampler.drop_last else len(indices)
        return [indices[start : start + size] for start in range(0, whole, size)]

    def _note_before_drawing(self, epoch: int) -> None:
        if self.first is None:
            self.first = epoch
        stateful = self._stateful_sampler()
        if stateful is not None:
            self._sampler_state = copy.deepcopy(stateful.state_dict())

    def _pull(self, epoch: int) -> Iterator[Any]:
        """This rank's index batches: of each turn, in which all ranks get one, its own."""
        if not self._divides:
            yield from self._pull_all(epoch)
            return
        share, drawn = self.share, self._pull_all(epoch)
        for _ in islice(drawn, share.first):
            pass
        position = share.first
        while share.end is None or position < share.end:
            size = share.world_size if share.end is None else min(share.world_size, share.end - position)
            turn = list(islice(drawn, size))
            if not turn:
                return
            position += len(turn)
            if share.wraps:
                begin = self._pulled
                turn += [begin[number % len(begin)] for number in range(share.world_size - len(turn))]
            if share.rank < len(turn):
                yield turn[share.rank]

    def _pull_all(self, epoch: int) -> Iterator[Any]:
        """Index batches as the sampler yields them, each under a seed of its own."""
        self._note_before_drawing(epoch)
        pull: list[Any] = [epoch, 0]
        self._pulls.append(pull)
        self._pulled = seen = []
        to_keep = max(_BATCHES_IN_A_DIGEST, self.share.world_size)
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
                indices = next(batches, END)
            finally:
                isolated.leave()
            if indices is END:
                pull[1] = None
                return
            number += 1
            pull[1] = number
            if number <= to_keep:
                seen.append(indices)
            yield indices

    def _pull_state(self, batches_done: int) -> dict[str, Any]:
        done = self.share.done(batches_done) if self._divides else batches_done
        count = min(done, len(self._pulled), _BATCHES_IN_A_DIGEST)
        return {
            "epoch": self._pulls[-1][0],
            "digest": _digest(self._pulled[:count]),
            "sampler": self._sampler_state,
            "count": count,
            "pulls": [list(pull) for pull in self._pulls],
        }

    def _play_pulls(self, resume: dict[str, Any], but_the_last: bool) -> None:
        stateful = self._stateful_sampler()
        pulls = [list(pull) for pull in resume["pulls"]]
        earlier, last = pulls[:-1], pulls[-1:]
        if stateful is not None and resume["sampler"] is not None:
            stateful.load_state_dict(resume["sampler"])
        elif self._may_keep_state():
            for epoch, count in earlier:
                deque(islice(self._pull_all(epoch), count), maxlen=0)
        self._pulls = earlier
        if not but_the_last:
            for epoch, count in last:
                deque(islice(self._pull_all(epoch), count), maxlen=0)
            self._pulls = pulls

    def _check_pulled(self, resume: dict[str, Any], is_inside: bool) -> None:
        if "pulls" in resume and (is_inside or self._may_keep_state()):
            same = len(self._pulled) >= resume["count"] and _digest(self._pulled[: resume["count"]]) == resume["digest"]
            if not same:
                raise DataError(self._why_another_order(resume["epoch"], is_inside))

    def _go_back(self, resume: dict[str, Any], is_inside: bool) -> None:
        epoch = resume["epoch"]
        self.first = resume.get("first", 0)  # earlier versions did not save it
        stateful, keeps = self._stateful_sampler(), self._may_keep_state()
        if stateful is not None and resume["sampler"] is not None:
            stateful.load_state_dict(resume["sampler"])
            self._draw(epoch)
        else:
            for earlier in range(self.first if keeps else epoch, epoch + 1):
                self._draw(earlier)
        if is_inside:
            for _ in range(epoch + 4 if keeps and stateful is None else 0):  # perhaps something else iterated it too
                if self._matches(resume):
                    break
                self._draw(epoch)
        elif not keeps or resume.get("count") != self._drawn_count():
            return  # what is drawn for the next epoch does not rest on this one, or is another and that has been told
        if not self._matches(resume):
            raise DataError(self._why_another_order(epoch, is_inside))

    def _drawn_count(self) -> int:
        assert self.drawn is not None
        return len(self.drawn[1])

    def _why_another_order(self, epoch: int, is_inside: bool) -> str:
        if is_inside:
            return (
                f"{self.name} draws another order for epoch {epoch} than before the checkpoint, so the position in it "
                "means nothing. Resume with the same dataset, batch size, shuffling and seed, from an epoch's end, or "
                "with override=('data',), which begins this epoch again; "
                "a sampler that keeps its order in itself needs set_epoch, or state_dict and load_state_dict."
            )
        return (
            f"{self.name}'s {type(self._sampler).__name__} draws another order for epoch {epoch} than before the "
            "checkpoint, so the epochs after it would have other batches too. Resume with a sampler that is newly "
            "made, with the same arguments. One that keeps in itself what cannot be drawn again needs state_dict and "
            "load_state_dict, or a set_epoch(epoch) by which alone its order goes. "
            "override=('data',) goes on with what it draws now."
        )

    def _matches(self, resume: dict[str, Any]) -> bool:
        assert self.drawn is not None
        epoch, batches = self.drawn
        if resume.get("is_of_a_part"):
            batches = batches[:: resume["joined"]]
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
        dataset = self.loader.dataset
        sampler: Any = self.loader.batch_sampler if self.loader.auto_collate_batch else None
        samples = len(dataset)
        if samples == 0:
            return f"{self.name} is empty: its dataset ({type(dataset).__name__}) has no samples"
        if getattr(sampler, "drop_last", False):
            return (
                f"{self.name} is empty: {samples} samples make no whole batch of {sampler.batch_size}, and "
                "drop_last=True drops the rest. Lower batch_size or set drop_last=False."
            )
        return f"{self.name} is empty: its {type(sampler).__name__} yields no batch"


class _NotRepeating:
    """The batches that a DistributedBatchSampler makes on one process: without the samples that it would repeat, so
    that all ranks have as many. In an evaluation each is to count once."""

    def __init__(self, sampler: DistributedBatchSampler) -> None:
        self._of = sampler
        self._epoch = 0

    def __len__(self) -> int:
        samples, size = len(self._of.dataset), int(self._of.batch_size)
        return samples // size if self._of.drop_last else -(-samples // size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(range(len(self._of.dataset)))
        if self._of.shuffle:
            np.random.RandomState(self._epoch).shuffle(indices)
        size = self._of.batch_size
        return iter([indices[number * size : (number + 1) * size] for number in range(len(self))])

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch


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
    """Tells orders apart by their length and about _BATCHES_IN_A_DIGEST of their batches, spread over all."""
    step = max(1, len(batches) // _BATCHES_IN_A_DIGEST)
    seen = [len(batches), [_plain(indices) for indices in batches[::step]]]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _plain(indices: Any) -> Any:
    # int(), because NumPy 1 and 2 write their ints differently.
    if isinstance(indices, (list, tuple)):
        return [_plain(index) for index in indices]
    return int(indices) if hasattr(indices, "__index__") else repr(indices)
