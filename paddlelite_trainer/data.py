"""Batches: what a user's loader yields, with a position to resume from, seeding, sharding and the move to a device."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import paddle
from paddle.base.framework import _current_expected_place, _set_expected_place
from paddle.io import DataLoader, Dataset, DistributedBatchSampler, IterableDataset

from .errors import ConfigurationError, ConfigurationTypeError, DataError
from .fetch import CPU, END, IterableFetcher, MapFetcher, add_note, to_tensors
from .rng import IsolatedSeed, derive_seed, drop_cached_gaussian, isolated_random_states
from .worker_pool import SKIPPED, WorkerPool

Replay = Callable[[int, int], None]
Stage = Literal["train", "validate", "test", "predict"]


class DataModule:
    """All data of a project in one place: download, split, loaders. Names, order and meaning are Lightning's.

    >>> class Digits(DataModule):
    ...     def setup(self, stage):
    ...         self.train, self.val = split(load())
    ...     def train_dataloader(self):
    ...         return paddle.io.DataLoader(self.train, batch_size=64, shuffle=True)
    """

    def __init__(self) -> None:
        self.trainer: Any = None

    def prepare_data(self) -> None:
        """Download or write to disk; called on one process only, so assign nothing to self here."""

    def setup(self, stage: str) -> None:
        """Build datasets; called on every process, with stage "fit", "validate", "test" or "predict"."""

    def train_dataloader(self) -> Any:
        """The loader for fit, or None."""

    def val_dataloader(self) -> Any:
        """The loader (or list of loaders) for validation, or None."""

    def test_dataloader(self) -> Any:
        """The loader (or list of loaders) for test, or None."""

    def predict_dataloader(self) -> Any:
        """The loader (or list of loaders) for predict, or None."""

    def teardown(self, stage: str) -> None:
        """Clean up; called on every process at the end of the stage."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this object."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch while it is on the host."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Move a batch to the device; override for types that `move_to_device` does not know."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch when it is on the device."""
        return batch


class BatchSource:
    """The batches of one loader, each a function of (seed, epoch, position), so that any position can be gone back to.

    loader: a paddle.io.DataLoader, a list or tuple of batches, or any iterable of batches.
    limit: at most so many batches of an epoch (int), or that fraction of them (float; 1.0 is all).

    With `world_size` W, rank r takes batches r, r+W, ... of a list or of a map-style DataLoader. For "train" the
    shares are made equal by going round again; for the other stages nothing is repeated, so that each sample counts
    once, and ranks may differ by one batch. A DistributedBatchSampler is used as it is. What an IterableDataset or
    another iterable yields is not divided: it must yield this rank's share by itself.

    Only the iterator of `epoch` writes `batches_done` and `is_last`; both are valid while a batch is being handled.
    """

    def __init__(
        self,
        loader: Any,
        *,
        stage: Stage,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        limit: int | float | None = None,
        name: str = "train_dataloader",
    ) -> None:
        _check_limit(limit, name)
        share = _Share(rank, world_size, wraps=stage == "train")
        if stage != "train":
            seed = derive_seed(seed, name)  # or validation would draw the numbers of the first training epoch
        self._stream = _stream_for(loader, share=share, seed=seed, limit=limit, name=name)
        self.loader = loader
        self.name = name

    @property
    def length(self) -> int | None:
        """Batches of an epoch for this rank, or None where the loader cannot tell."""
        return self._stream.length

    @property
    def is_last(self) -> bool:
        """Whether the batch being handled is the epoch's last."""
        return self._stream.is_last

    @property
    def batches_done(self) -> int:
        """Batches of this epoch handed out so far, the one being handled included."""
        return self._stream.batches_done

    def epoch(self, epoch: int, start_batch: int = 0, on_replay: Replay | None = None) -> Iterator[Any]:
        """Yield this rank's batches of an epoch from `start_batch` on, as Paddle's DataLoader gives them, on the host.

        Skipped map-style batches are not loaded. Other iterables without a state of their own are read again up to
        `start_batch`; `on_replay(done, total)` is called meanwhile (default: a progress line after two seconds).

        Raises:
            DataError: the loader is empty, exhausted, shorter than start_batch, not the one that was resumed from,
                or one of its workers died. What the dataset, sampler or collate_fn raises comes through as it is.
        """
        return self._stream.epoch(epoch, start_batch, on_replay or _ReplayLine(self.name))

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch being handled, and the loader's own state where it has one."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `epoch` go on from a saved position; it must be asked for with that position."""
        self._stream.load_state_dict(state)

    def close(self) -> None:
        """End worker processes; safe at any time and more than once."""
        self._stream.close()


def move_to_device(batch: Any, place: Any) -> Any:
    """The batch with its Tensors on place; itself, unchanged, if they are there. Arrays and other things stay."""
    if _is_there(batch, place):
        return batch
    return _moved(batch, place)


def batch_size_of(batch: Any) -> int:
    """The first dimension of the batch's first Tensor or array; 1 if it has none."""
    leaf = _first_leaf(batch)
    if leaf is None or len(leaf.shape) == 0:
        return 1
    return int(leaf.shape[0])


@dataclasses.dataclass(frozen=True)
class _Share:
    """Which of all batches this rank takes."""

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


class _Stream:
    """What every kind of loader shares: the position, and the checks of it."""

    def __init__(self, *, share: _Share, seed: int, limit: int | float | None, name: str) -> None:
        self.share = share
        self.seed = seed
        self.limit = limit
        self.name = name
        self.is_last = False
        self.batches_done = 0
        self.current_epoch = 0

    @property
    def length(self) -> int | None:
        raise NotImplementedError

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.current_epoch, "batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.current_epoch = state["epoch"]
        self.batches_done = state["batches_done"]

    def close(self) -> None:
        pass

    def _begin(self, epoch: int, start_batch: int) -> None:
        self.current_epoch = epoch
        self.batches_done = start_batch
        self.is_last = False

    def _limited(self, count: int) -> int:
        if self.limit is None:
            return count
        if isinstance(self.limit, int):
            return min(count, self.limit)
        limited = int(count * self.limit)
        if limited == 0 and count > 0 and self.limit > 0:
            raise ConfigurationError(
                f"a limit of {self.limit} of {self.name}'s {count} batches leaves none; "
                f"use an int, or a fraction of at least {1 / count:.3g}"
            )
        return limited

    def _check_start(self, start_batch: int, count: int) -> None:
        if start_batch > count:
            raise DataError(
                f"{self.name} has {count} batches, but {start_batch} of this epoch were done before: it shrank since "
                "the checkpoint was made. Resume with the same dataset, batch size and limits, or from an epoch's end."
            )

    def _batch_seed(self, epoch: int, number: int) -> int:
        return derive_seed(self.seed, "batch", epoch, self.share.position(number))

    def _add_position(self, error: Exception, epoch: int, number: int, indices: Any = None) -> None:
        samples = "" if indices is None else f", samples {_shortened(indices)}"
        add_note(error, f"while fetching batch {number} of epoch {epoch} of {self.name}{samples}")


class _ListStream(_Stream):
    """A list or tuple of batches."""

    def __init__(self, batches: Sequence[Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.batches = batches
        if len(batches) == 0 and self.limit != 0:
            raise DataError(f"{self.name} is empty: the {type(batches).__name__} holds no batches")

    @property
    def length(self) -> int:
        return self._limited(self.share.count(len(self.batches)))

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        count = self.length
        self._check_start(start_batch, count)
        self._begin(epoch, start_batch)
        batches = self.share.of(self.batches)
        for number in range(start_batch, count):
            self.batches_done = number + 1
            self.is_last = number + 1 == count
            yield batches[number]


class _MapStream(_Stream):
    """A DataLoader over map-style data: the epoch's order is drawn first, then batches are fetched by it."""

    def __init__(self, loader: DataLoader, **settings: Any) -> None:
        super().__init__(**settings)
        self.loader = loader
        self.order = _Order(loader, self.share, self.seed, self.name)
        self._pool: WorkerPool | None = None
        if self.order.total == 0 and self.limit != 0:
            raise DataError(_why_empty(loader, self.name))
        if self.order.total is None and isinstance(self.limit, float) and self.limit != 1.0:
            raise ConfigurationError(_no_fraction(self.limit, self.name))

    @property
    def length(self) -> int | None:
        total = self.order.total
        return None if total is None else self._limited(self.order.share.count(total))

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        if self.order.total is None:
            items = self._pulled(epoch, start_batch)
        else:
            order = self.order.of_epoch(epoch, start_batch)
            count = self._limited(len(order))
            self._check_start(start_batch, count)
            items = iter(order[start_batch:count])
        self._begin(epoch, start_batch)
        if self.loader.num_workers == 0:
            return self._fetched_here(epoch, start_batch, items)
        return self._fetched_by_workers(epoch, start_batch, items)

    def _fetched_here(self, epoch: int, number: int, items: Iterator[Any]) -> Iterator[Any]:
        isolated = IsolatedSeed()
        fetch = MapFetcher(self.loader)
        place = _current_expected_place()
        elsewhere = not place.is_cpu_place() if hasattr(place, "is_cpu_place") else place != CPU
        upcoming = next(items, END)
        while upcoming is not END:
            indices, upcoming = upcoming, next(items, END)
            isolated.enter(derive_seed(self.seed, "batch", epoch, self.order.share.position(number)))
            if elsewhere:
                _set_expected_place(CPU)
            try:
                batch = to_tensors(fetch(indices))
            except Exception as error:
                self._add_position(error, epoch, number)
                raise
            finally:
                isolated.leave()
                if elsewhere:
                    _set_expected_place(place)
            number += 1
            self.batches_done = number
            self.is_last = upcoming is END
            yield batch

    def _fetched_by_workers(self, epoch: int, number: int, items: Iterator[Any]) -> Iterator[Any]:
        pool = self._begin_pool(epoch)
        generation = pool.generation
        workers = pool.num_workers
        under_way: deque[Any] = deque()
        submitted = number
        try:
            while True:
                while len(under_way) < workers * pool.depth:
                    indices = next(items, END)
                    if indices is END:
                        break
                    seed = derive_seed(self.seed, "batch", epoch, self.order.share.position(submitted))
                    pool.submit(submitted % workers, seed=seed, indices=indices)
                    under_way.append(indices)
                    submitted += 1
                if not under_way:
                    return
                indices = under_way.popleft()
                try:
                    batch = pool.receive(number % workers)
                except Exception as error:
                    self._add_position(error, epoch, number, indices)
                    raise
                drop_cached_gaussian()
                number += 1
                self.batches_done = number
                self.is_last = not under_way
                yield batch
                if pool.generation != generation:
                    raise DataError(f"epoch {epoch} of {self.name} ended when another one was begun")
        finally:
            self._end_pool(pool, generation)

    def _begin_pool(self, epoch: int) -> WorkerPool:
        if self._pool is None or self._pool.closed:
            self._pool = WorkerPool(self.loader, name=self.name, seed=derive_seed(self.seed, "workers", epoch))
        self._pool.begin_epoch(derive_seed(self.seed, "order", epoch))
        return self._pool

    def _end_pool(self, pool: WorkerPool, generation: int) -> None:
        if pool.generation != generation:
            return  # a later epoch has it
        if getattr(self.loader, "_persistent_workers", False):
            pool.cancel()
        else:
            pool.close()

    def _pulled(self, epoch: int, start_batch: int) -> Iterator[Any]:
        """Index batches of a sampler without length, drawn one by one; those before start_batch are passed over."""
        isolated = IsolatedSeed()
        limit = self.limit if isinstance(self.limit, int) else None
        with isolated_random_states():
            isolated.enter(derive_seed(self.seed, "order", epoch))
            sampler = self.order.iterate(epoch)
        number = 0
        while limit is None or number < limit:
            isolated.enter(derive_seed(self.seed, "order", epoch, number))
            try:
                mine = END
                for rank in range(self.order.share.world_size):
                    indices = next(sampler, END)
                    mine = indices if rank == self.order.share.rank else mine
            finally:
                isolated.leave()
            if mine is END:
                break
            number += 1
            if number > start_batch:
                yield mine
        if number == 0 and self.limit != 0:
            raise DataError(f"{self.name} is empty: its sampler yields nothing")
        self._check_start(start_batch, number)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "order": self.order.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.order.load_state_dict(state.get("order", {}), state["epoch"])

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


class _Order:
    """The index batches of an epoch, drawn from the loader's own sampler under the epoch's seed."""

    def __init__(self, loader: DataLoader, share: _Share, seed: int, name: str) -> None:
        self.loader = loader
        self.sampler: Any = loader.batch_sampler if loader.auto_collate_batch else None
        self.seed = seed
        self.name = name
        self.share = share
        self.divides = True
        if isinstance(self.sampler, DistributedBatchSampler) and self.sampler.nranks > 1:
            if self.sampler.nranks != share.world_size:
                raise ConfigurationError(
                    f"{name}'s DistributedBatchSampler is made for {self.sampler.nranks} processes, but there are "
                    f"{share.world_size}; make it after the processes have started, or pass num_replicas"
                )
            self.divides = False  # it takes this rank's part by itself
        self._drawn: tuple[int, Sequence[Any]] | None = None
        self._sampler_state: Any = None
        self._expected: dict[str, Any] | None = None
        self._expected_epoch = 0

    @property
    def total(self) -> int | None:
        """Batches before division among ranks; None if the sampler does not know."""
        try:
            count = len(self.loader.dataset if self.sampler is None else self.sampler)
        except (TypeError, AttributeError, NotImplementedError):
            return None
        return count if self.divides else count * self.share.world_size

    def of_epoch(self, epoch: int, start_batch: int) -> Sequence[Any]:
        """This rank's index batches; the same list when an epoch is asked for again."""
        if self._expected is not None:
            self._go_back(
                self._expected, self._expected_epoch, must_match=epoch == self._expected_epoch and start_batch > 0
            )
            self._expected = None
        if self._drawn is None or self._drawn[0] != epoch:
            self._draw(epoch)
        assert self._drawn is not None
        order = self._drawn[1]
        return self.share.of(order) if self.divides else order

    def iterate(self, epoch: int) -> Iterator[Any]:
        if self.sampler is None:
            return iter(range(len(self.loader.dataset)))
        for sampler in self._samplers():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        return iter(self.sampler)

    def state_dict(self) -> dict[str, Any]:
        if self._drawn is None:
            return {}
        return {"digest": _digest(self._drawn[1]), "sampler": self._sampler_state}

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        self._drawn = None
        self._expected = state if state else None
        self._expected_epoch = epoch

    def _draw(self, epoch: int) -> None:
        stateful = self._stateful_sampler()
        if stateful is not None:
            self._sampler_state = copy.deepcopy(stateful.state_dict())
        with isolated_random_states():
            IsolatedSeed().enter(derive_seed(self.seed, "order", epoch))
            order: Sequence[Any] = range(0)
            if self.sampler is None:
                order = range(len(self.loader.dataset))
            else:
                # As many as it says and no more: an endless sampler may have a length.
                order = [indices for indices, _ in zip(self.iterate(epoch), range(len(self.sampler)))]
        if len(order) == 0:
            raise DataError(_why_empty(self.loader, self.name))
        self._drawn = (epoch, order)

    def _go_back(self, expected: dict[str, Any], epoch: int, must_match: bool) -> None:
        """Draw the saved epoch's order again; a sampler that keeps its state in itself is drawn as often as before."""
        stateful = self._stateful_sampler()
        if stateful is not None and expected.get("sampler") is not None:
            stateful.load_state_dict(expected["sampler"])
        self._draw(epoch)
        draws = range(1, epoch + 1) if self._keeps_own_state() and stateful is None else ()
        for earlier in draws:
            if self._matches(expected):
                return
            self._draw(earlier)
        if must_match and not self._matches(expected):
            raise DataError(
                f"{self.name} draws another order for epoch {epoch} than before the checkpoint, so its position means "
                "nothing. Resume with the same dataset, batch size, shuffling and seed, or from an epoch's end; a "
                "sampler that keeps its state in itself needs state_dict and load_state_dict, or set_epoch."
            )

    def _matches(self, expected: dict[str, Any]) -> bool:
        assert self._drawn is not None
        return bool(_digest(self._drawn[1]) == expected["digest"])

    def _stateful_sampler(self) -> Any:
        return next((sampler for sampler in self._samplers() if _has_state(sampler)), None)

    def _keeps_own_state(self) -> bool:
        """Whether the sampler may: Paddle's own draw from the global generators only, unless given a generator."""
        return any(
            not type(sampler).__module__.startswith("paddle.") or getattr(sampler, "generator", None) is not None
            for sampler in self._samplers()
        )

    def _samplers(self) -> list[Any]:
        """The batch sampler and the sampler within it, as far as there are any."""
        inner = getattr(self.sampler, "sampler", None)
        return [sampler for sampler in (self.sampler, inner) if sampler is not None]


class _IterableStream(_Stream):
    """Any iterable of batches: read in order, so a position is reached by its own state or by reading up to it."""

    def __init__(self, loader: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.loader = loader
        self._has_yielded = False
        self._own_state: Any = None
        self._is_finished = False
        self._resume: dict[str, Any] | None = None
        total = _length_of(loader)
        if total == 0 and self.limit != 0:
            raise DataError(f"{self.name} is empty: len() of the {type(loader).__name__} is 0")
        if total is None and isinstance(self.limit, float) and self.limit != 1.0:
            raise ConfigurationError(_no_fraction(self.limit, self.name))

    @property
    def length(self) -> int | None:
        total = _length_of(self.loader)
        return None if total is None else self._limited(total)

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        limit = self.length if isinstance(self.limit, float) else self.limit
        resumed = self._take_resume(epoch, start_batch)
        self._begin(epoch, start_batch)
        if limit is not None and start_batch >= limit:
            return
        if resumed is not None and resumed["is_finished"] and resumed["epoch"] == epoch:
            return
        number = start_batch if resumed is not None and resumed["epoch"] == epoch else 0
        reader = self._read(epoch, number, start_batch - number, on_replay)
        batch = next(reader, END)
        if batch is END:
            raise DataError(self._why_nothing(epoch, start_batch))
        self._has_yielded = True
        number = start_batch
        while batch is not END:
            number += 1
            self._own_state = copy.deepcopy(self._stateful.state_dict()) if self._stateful is not None else None
            upcoming = END if limit is not None and number >= limit else next(reader, END)
            if upcoming is END and self._stateful is not None:
                self._own_state = copy.deepcopy(self._stateful.state_dict())
            self.batches_done = number
            self.is_last = upcoming is END
            self._is_finished = self.is_last
            yield batch
            batch = upcoming

    @property
    def _stateful(self) -> Any:
        return self.loader if _has_state(self.loader) else None

    def _read(self, epoch: int, number: int, skip: int, on_replay: Replay) -> Iterator[Any]:
        """Batches under their own seeds, after passing over `skip` of them."""
        isolated = IsolatedSeed()
        isolated.enter(derive_seed(self.seed, "order", epoch))
        try:
            iterator = iter(self.loader)
        finally:
            isolated.leave()
        done = 0
        while True:
            isolated.enter(self._batch_seed(epoch, number))
            try:
                batch = next(iterator, END)
            except Exception as error:
                self._add_position(error, epoch, number)
                raise
            finally:
                isolated.leave()
            if batch is END:
                return
            number += 1
            if done < skip:
                done += 1
                on_replay(done, skip)
            else:
                yield batch

    def _why_nothing(self, epoch: int, start_batch: int) -> str:
        remedy = "Pass a list of batches, a paddle.io.DataLoader or an IterableDataset: they can be read again."
        if start_batch > 0:
            return (
                f"{self.name} ended before batch {start_batch} of epoch {epoch}, up to which it was read before: it "
                "shrank since the checkpoint was made, or cannot be read again. " + remedy
            )
        if self._has_yielded or epoch > 0:
            return f"{self.name} is exhausted: it yielded nothing in epoch {epoch}. " + remedy
        return f"{self.name} is empty: the {type(self.loader).__name__} yields no batch"

    def _take_resume(self, epoch: int, start_batch: int) -> dict[str, Any] | None:
        resume, self._resume = self._resume, None
        if resume is None or resume["state"] is None or self._stateful is None:
            return None
        if resume["epoch"] == epoch and resume["batches_done"] != start_batch:
            return None
        self._stateful.load_state_dict(resume["state"])
        return resume

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "is_finished": self._is_finished, "state": self._own_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._resume = state
        self._own_state = state["state"]
        self._is_finished = state["is_finished"]


class _IterableLoaderStream(_IterableStream):
    """A DataLoader over an IterableDataset."""

    def __init__(self, loader: DataLoader, **settings: Any) -> None:
        super().__init__(loader, **settings)
        self._pool: WorkerPool | None = None

    @property
    def _stateful(self) -> Any:
        if self.loader.num_workers > 0:
            return None  # the state is in the workers' copies
        return self.loader.dataset if _has_state(self.loader.dataset) else None

    def _read(self, epoch: int, number: int, skip: int, on_replay: Replay) -> Iterator[Any]:
        if self.loader.num_workers > 0:
            return self._read_by_workers(epoch, skip, on_replay)
        return self._read_here(epoch, number, skip, on_replay)

    def _read_here(self, epoch: int, number: int, skip: int, on_replay: Replay) -> Iterator[Any]:
        isolated = IsolatedSeed()
        isolated.enter(derive_seed(self.seed, "order", epoch))
        try:
            fetch = IterableFetcher(self.loader)
        finally:
            isolated.leave()
        place = _current_expected_place()
        done = 0
        while True:
            isolated.enter(self._batch_seed(epoch, number))
            _set_expected_place(CPU)
            try:
                batch = fetch.read() if done < skip else to_tensors(fetch())
            except Exception as error:
                self._add_position(error, epoch, number)
                raise
            finally:
                isolated.leave()
                _set_expected_place(place)
            if batch is END:
                return
            number += 1
            if done < skip:
                done += 1
                on_replay(done, skip)
            else:
                yield batch

    def _read_by_workers(self, epoch: int, skip: int, on_replay: Replay) -> Iterator[Any]:
        """Each worker reads its own copy of the dataset; batches come from them in turn until all have ended."""
        if self._pool is None or self._pool.closed:
            self._pool = WorkerPool(self.loader, name=self.name, seed=derive_seed(self.seed, "workers", epoch))
        pool = self._pool
        pool.begin_epoch(derive_seed(self.seed, "order", epoch))
        generation = pool.generation
        submitted = [0] * pool.num_workers
        ended: set[int] = set()
        under_way: deque[tuple[int, bool]] = deque()
        to_skip, skipped, done = skip, 0, 0

        def submit(worker: int) -> None:
            nonlocal to_skip
            number = submitted[worker] * pool.num_workers + worker
            pool.submit(worker, seed=self._batch_seed(epoch, number), skip=to_skip > 0)
            to_skip -= 1
            submitted[worker] += 1
            under_way.append((worker, False))

        try:
            for _ in range(pool.depth):
                for worker in range(pool.num_workers):
                    submit(worker)
            while under_way:
                worker, _ = under_way.popleft()
                try:
                    batch = pool.receive(worker)
                except Exception as error:
                    self._add_position(error, epoch, skipped + done)
                    raise
                if batch is END:
                    ended.add(worker)
                    continue
                if worker not in ended:
                    submit(worker)
                if batch is SKIPPED:
                    skipped += 1
                    on_replay(skipped, skip)
                    continue
                done += 1
                yield batch
                if pool.generation != generation:
                    raise DataError(f"epoch {epoch} of {self.name} ended when another one was begun")
        finally:
            if pool.generation == generation:
                if getattr(self.loader, "_persistent_workers", False):
                    pool.cancel()
                else:
                    pool.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


class _ReplayLine:
    """A progress line on the terminal, once reading up to the position takes longer than two seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._began = time.monotonic()
        self._progress: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._began < 2.0 or done == total:
                return
            from rich.progress import Progress

            self._progress = Progress()
            self._task = self._progress.add_task(f"reading {self.name} up to batch {total} again", total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done)
        if done == total:
            self._progress.stop()


def _stream_for(loader: Any, **settings: Any) -> _Stream:
    name = settings["name"]
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        if isinstance(loader.dataset, IterableDataset):
            return _IterableLoaderStream(loader, **settings)
        return _MapStream(loader, **settings)
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise ConfigurationTypeError(
            f"{name} is a Dataset ({type(loader).__name__}), which yields samples, not batches; "
            "pass paddle.io.DataLoader(dataset, batch_size=...)"
        )
    if isinstance(loader, Sequence) and not isinstance(loader, (str, bytes)):
        if any(isinstance(item, DataLoader) for item in loader):
            raise ConfigurationTypeError(f"{name} is a {type(loader).__name__} of DataLoaders; pass one loader")
        return _ListStream(loader, **settings)
    if isinstance(loader, (str, bytes, Mapping, paddle.Tensor, np.ndarray)) or not isinstance(loader, Iterable):
        hint = "; call it" if callable(loader) else ""
        raise ConfigurationTypeError(
            f"{name} must be a paddle.io.DataLoader, a list of batches or another iterable of batches, "
            f"got {type(loader).__name__}{hint}"
        )
    return _IterableStream(loader, **settings)


def _check_limit(limit: int | float | None, name: str) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise ConfigurationTypeError(f"the limit of {name} must be an int or a float, got {type(limit).__name__}")
    if limit < 0 or (isinstance(limit, float) and not limit <= 1.0):
        raise ConfigurationError(
            f"the limit of {name} must be an int >= 0 (batches) or a float from 0.0 to 1.0 (a fraction), got {limit}"
        )


def _no_fraction(limit: float, name: str) -> str:
    return (
        f"a limit of {limit} needs the number of batches, which {name} does not know; "
        "give an int, or a loader with a length"
    )


def _why_empty(loader: DataLoader, name: str) -> str:
    samples = _length_of(loader.dataset)
    sampler = loader.batch_sampler
    if samples and getattr(sampler, "drop_last", False):
        return (
            f"{name} is empty: {samples} samples make no whole batch of {sampler.batch_size}, and drop_last=True drops "
            "the rest. Lower batch_size or set drop_last=False."
        )
    if samples == 0:
        return f"{name} is empty: its dataset ({type(loader.dataset).__name__}) has no samples"
    return f"{name} is empty: its sampler ({type(sampler).__name__}) yields no batch"


def _length_of(thing: Any) -> int | None:
    try:
        return len(thing)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None


def _has_state(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _digest(order: Sequence[Any]) -> str:
    """Tells orders apart by their length and 64 of their batches spread over all."""
    step = max(1, len(order) // 64)
    seen = [len(order), [_plain(indices) for indices in order[::step]]]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _plain(indices: Any) -> Any:
    # int() because NumPy 1 and 2 write their ints differently.
    if isinstance(indices, (list, tuple)):
        return [_plain(index) for index in indices]
    return int(indices) if hasattr(indices, "__index__") else repr(indices)


def _shortened(indices: Any) -> str:
    text = repr(indices)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_there(batch: Any, place: Any) -> bool:
    if isinstance(batch, paddle.Tensor):
        return bool(batch.place._equals(place))
    if isinstance(batch, (list, tuple)):
        for item in batch:  # noqa: SIM110  a generator would cost more than the check
            if not _is_there(item, place):
                return False
        return True
    if isinstance(batch, Mapping):
        for item in batch.values():  # noqa: SIM110
            if not _is_there(item, place):
                return False
        return True
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return all(_is_there(getattr(batch, field.name), place) for field in dataclasses.fields(batch))
    return True


def _moved(batch: Any, place: Any) -> Any:
    if isinstance(batch, paddle.Tensor):
        return batch if batch.place._equals(place) else batch._copy_to(place, True)
    if isinstance(batch, tuple):
        items = [_moved(item, place) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, list):
        copied = copy.copy(batch)
        copied[:] = [_moved(item, place) for item in batch]
        return copied
    if isinstance(batch, Mapping):
        items_by_key = {key: _moved(item, place) for key, item in batch.items()}
        if not isinstance(batch, dict):
            return type(batch)(items_by_key)  # type: ignore[call-arg]
        copied_dict = copy.copy(batch)  # a defaultdict keeps its factory
        copied_dict.update(items_by_key)
        return copied_dict
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        clone = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(clone, field.name, _moved(getattr(batch, field.name), place))  # frozen ones too
        return clone
    return batch


def _first_leaf(batch: Any) -> Any:
    if isinstance(batch, (paddle.Tensor, np.ndarray)):
        return batch
    items: Iterable[Any]
    if isinstance(batch, (list, tuple)):
        items = batch
    elif isinstance(batch, Mapping):
        items = batch.values()
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        items = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    else:
        return None
    for item in items:
        leaf = _first_leaf(item)
        if leaf is not None:
            return leaf
    return None
