"""How loaders are iterated that can only be read in order: any iterable, and DataLoaders over an IterableDataset."""

from __future__ import annotations

import copy
import sys
import time
from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from paddle.io import DataLoader

from ..errors import ConfigurationError, DataError
from ..machine.rng import IsolatedSeed, derive_seed, drop_cached_gaussian
from .arrays import holds_arrays, with_tensors
from .fetch import END, IterableFetcher, to_tensors
from .knows_epoch import made_by, parts_of, set_epoch_of
from .order import has_state
from .streams import Replay, Stream, batch_size_of_loader
from .workers import Workers

if TYPE_CHECKING:
    from .prefetch import NextBatch

_LATER: Any = object()  # a batch that is asked for when the one before it has been handled
_READ_AGAIN = "Pass a list of batches, a paddle.io.DataLoader or an IterableDataset: they can be read again."


class IterableStream(Stream):
    """Any iterable of batches: read in order, so a position is reached by its own state or by reading up to it."""

    def __init__(self, loader: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.loader = loader
        self._has_yielded = False
        self._gives_arrays: bool | None = None
        self._just_read: int | None = None  # samples of the batch that was read last
        self._own_state: Any = None
        self._resume: dict[str, Any] | None = None
        self._looks_ahead = True
        count = _length_of(loader)
        if count == 0 and self.limit != 0:
            raise DataError(f"{self.name} is empty: len() of the {type(loader).__name__} is 0")
        self._need_count(count)

    @property
    def length(self) -> int | None:
        count = _length_of(self.loader)
        return None if count is None else self._limited(count)

    @property
    def can_look_ahead(self) -> bool:
        return True  # it is done in any case, to know the last batch

    def look_ahead_never(self) -> None:
        if self.length is None and not isinstance(self.limit, int):
            raise ConfigurationError(
                f"Trainer(look_ahead=False) needs the number of batches of {self.name}, a {type(self.loader).__name__} "
                "without a length, to know which one is the last: give a limit, limit_train_batches=100 for example"
            )
        self._looks_ahead = False

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        limit = self.limit if self._looks_ahead and not isinstance(self.limit, float) else self._count()
        goes_on = self._restore(epoch, start_batch)
        is_over = goes_on and self.is_last
        self._begin(epoch, start_batch)
        self.is_last = is_over
        if is_over or (limit is not None and start_batch >= limit):
            return
        reader = self._read(epoch, start_batch, 0 if goes_on else start_batch, on_replay)
        number, began = start_batch, perf_counter()
        batch, samples = next(reader, END), self._just_read
        if batch is END and start_batch == 0:
            raise DataError(self._why_nothing(epoch))
        present: NextBatch | None = None
        with self._prefetching() as prefetch:
            while batch is not END:
                if present is not None:
                    present.wait()  # before anything is read, so that no thread runs beside the loader's code
                self._has_yielded = True
                number += 1
                # Captured before looking ahead; a loader at its end may already have gone back to its start. What
                # looking ahead raises must find the state that belongs to the position.
                own = self._captured()
                if limit is not None and number >= limit:
                    upcoming = END
                else:
                    upcoming = next(reader, END) if self._looks_ahead else _LATER
                copy: NextBatch | None = None
                if prefetch is not None and prefetch.is_on and upcoming is not END:
                    copy = prefetch.start(upcoming)
                self._own_state = self._captured() if upcoming is END else own
                self.batches_done, self.drawn = number, samples
                self.is_last = upcoming is END
                drop_cached_gaussian()  # here too, as looking ahead drops it before one batch or the next
                self.waited_seconds += perf_counter() - began
                yield batch if present is None else present.take()
                began = perf_counter()
                if upcoming is _LATER:
                    upcoming = next(reader, END)
                    self._refuse_early_end(upcoming, number, limit)
                batch, present, samples = upcoming, copy, self._just_read

    def tell_epoch(self, epoch: int) -> None:
        set_epoch_of(parts_of(self.loader), epoch)

    def _read(self, epoch: int, start_batch: int, skip: int, on_replay: Replay) -> Iterator[Any]:
        """Batches from start_batch on, each under its own seed, after passing over `skip` batches before it."""
        scope = IsolatedSeed()
        scope.enter(derive_seed(self.seed, "order", epoch))
        try:
            iterator = iter(self.loader)
        finally:
            scope.leave()
        number = start_batch - skip
        while True:
            scope.enter(self._batch_seed(epoch, number))
            try:
                batch = next(iterator, END)
            except Exception as error:
                self._add_position(error, epoch, number)
                raise
            finally:
                scope.leave()
            if batch is END:
                break
            if self._gives_arrays is None:  # the first batch tells for all
                self._gives_arrays = holds_arrays(batch)
            if self._gives_arrays:
                batch = with_tensors(batch, keep_float64=self.keep_float64)
            number += 1
            if number > start_batch:
                yield batch
            else:
                on_replay(number, start_batch)
        self._check_replayed(number, start_batch, epoch)

    def _check_replayed(self, number: int, start_batch: int, epoch: int) -> None:
        if number < start_batch:
            raise DataError(
                f"{self.name} ended after {number} batches of epoch {epoch}, of which {start_batch} were done before: "
                f"it shrank since the checkpoint was made, or cannot be read again. {_READ_AGAIN}"
            )

    def _count(self) -> int | None:
        length = self.length
        return self.limit if length is None and isinstance(self.limit, int) else length

    def _refuse_early_end(self, upcoming: Any, number: int, count: int | None) -> None:
        if upcoming is END:
            raise DataError(
                f"{self.name} ended after {number} batches of {count}: with Trainer(look_ahead=False) the last batch "
                "must be known by the number. Correct the limit or the length, or leave look_ahead on."
            )

    def _why_nothing(self, epoch: int) -> str:
        if self._has_yielded or epoch > 0:
            return f"{self.name} is exhausted: it yielded nothing in epoch {epoch}. {_READ_AGAIN}"
        return f"{self.name} is empty: the {type(self.loader).__name__} yields no batch"

    def _stateful(self) -> Any:
        return self.loader if has_state(self.loader) else None

    def _captured(self) -> Any:
        stateful = self._stateful()
        return None if stateful is None else copy.deepcopy(stateful.state_dict())

    def _restore(self, epoch: int, start_batch: int) -> bool:
        """Put the loader's own state back, if there is one; whether it stands at start_batch now."""
        resume, self._resume = self._resume, None
        stateful = self._stateful()
        if resume is None or resume.get("own") is None or stateful is None:
            return False
        if resume["epoch"] == epoch and resume["batches_done"] != start_batch:
            return False
        stateful.load_state_dict(resume["own"])
        return bool(resume["epoch"] == epoch)

    def go_back(self) -> None:
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "is_last": self.is_last, "own": self._own_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.is_last = state.get("is_last", False)
        self._resume = state
        self._own_state = state.get("own")


class IterableLoaderStream(IterableStream):
    """A DataLoader over an IterableDataset, read here or by workers; each worker reads its own copy of the dataset."""

    def __init__(self, loader: DataLoader, **settings: Any) -> None:
        super().__init__(loader, **settings)
        self._workers = Workers(
            loader, seed=self.seed, name=self.name, multiprocessing_context=self.multiprocessing_context
        )
        self.batch_size = batch_size_of_loader(loader)

    def look_ahead_never(self) -> None:
        self._refuse_workers(self.loader)
        super().look_ahead_never()

    def tell_epoch(self, epoch: int) -> None:
        set_epoch_of(made_by(self.loader), epoch)

    def _stateful(self) -> Any:
        dataset = self.loader.dataset
        # With workers the state is in their copies.
        return dataset if self.loader.num_workers == 0 and has_state(dataset) else None

    def _read(self, epoch: int, start_batch: int, skip: int, on_replay: Replay) -> Iterator[Any]:
        if self.loader.num_workers > 0:
            return self._read_by_workers(epoch, start_batch, on_replay)
        return self._read_here(epoch, start_batch, skip, on_replay)

    def _read_here(self, epoch: int, start_batch: int, skip: int, on_replay: Replay) -> Iterator[Any]:
        scope = IsolatedSeed(on_host=True)
        scope.enter(derive_seed(self.seed, "order", epoch))
        try:
            fetch = IterableFetcher(self.loader)
        finally:
            scope.leave()
        number = start_batch - skip
        while True:
            scope.enter(self._batch_seed(epoch, number))
            try:
                batch = fetch.read() if number < start_batch else fetch()
                if batch is END:
                    break
                batch = to_tensors(batch)
            except Exception as error:
                self._add_position(error, epoch, number)
                raise
            finally:
                scope.leave()
            number += 1
            self._just_read = fetch.drawn if self.batch_size else None
            if number > start_batch:
                yield batch
            else:
                on_replay(number, start_batch)
        self._check_replayed(number, start_batch, epoch)

    def _read_by_workers(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        """Batches from the workers in turn, until the data of all of them has ended."""
        with self._workers.of_epoch(epoch) as pool:
            generation = pool.generation
            turns: deque[int] = deque()
            submitted = [0] * pool.num_workers
            to_skip, number = start_batch, 0

            def submit(worker: int) -> None:
                nonlocal to_skip
                position = submitted[worker] * pool.num_workers + worker
                pool.submit(worker, seed=self._batch_seed(epoch, position), skip=to_skip > 0)
                to_skip -= 1
                submitted[worker] += 1
                turns.append(worker)

            ended: set[int] = set()
            for _ in range(pool.depth):
                for worker in range(pool.num_workers):
                    submit(worker)
            while turns:
                worker = turns.popleft()
                try:
                    batch = pool.receive(worker)
                except Exception as error:
                    self._add_position(error, epoch, number)
                    raise
                if batch is END:
                    ended.add(worker)
                    continue
                submit(worker)
                drop_cached_gaussian()
                number += 1
                if number > start_batch:
                    yield batch
                    pool.check(generation)
                else:
                    on_replay(number, start_batch)
        self._check_replayed(number, start_batch, epoch)

    def close(self) -> None:
        super().close()
        self._workers.close()


class ReplayReport:
    """Says on stderr how far reading up to the position has come, once that takes longer than two seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._next_time = time.monotonic() + 2.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next_time:
            self._next_time = time.monotonic() + 5.0
            print(
                f"{self.name}: reading up to the position of the checkpoint, batch {done} of {total}", file=sys.stderr
            )


def _length_of(thing: Any) -> int | None:
    try:
        return len(thing)
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError):
        return None
