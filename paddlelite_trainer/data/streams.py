"""How loaders are iterated that can be asked for any batch: lists, map-style DataLoaders; and what all kinds share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from paddle.io import DataLoader

from ..errors import ConfigurationError, DataError, add_note
from ..machine.rng import IsolatedSeed, derive_seed, drop_cached_gaussian
from .arrays import TensorBatches, holds_arrays
from .fetch import END, MapFetcher, to_tensors
from .knows_epoch import made_by, set_epoch_of
from .order import Order
from .share import Share
from .workers import Workers

if TYPE_CHECKING:
    from .prefetch import NextBatch, Prefetch

Replay = Callable[[int, int], None]


class Stream:
    """What every kind of loader shares: the position and its checks. Only the iterator of `epoch` writes the position.

    With a `prefetch` the iterator looks one batch ahead before it writes the position of the batch that it yields. It
    keeps no reference to a batch that is on the device.
    """

    prefetch: Prefetch | None = None
    batch_size: int | None = None

    def __init__(
        self,
        *,
        share: Share,
        seed: int,
        limit: int | float | None,
        name: str,
        keep_float64: bool = False,
        multiprocessing_context: str = "auto",
    ) -> None:
        self.keep_float64 = keep_float64
        """Whether arrays of float64, where no DataLoader has made Tensors of them, stay in float64."""
        self.multiprocessing_context = multiprocessing_context
        """How a loader's worker processes are started: "fork", "spawn" or "auto"."""
        self.share = share
        self.seed = seed
        self.limit = limit
        self.name = name
        self.is_last = False
        self.batches_done = 0
        self.drawn: Any = None
        """For the batch being handled: the indices of its samples, or how many there are, where it is known."""
        self.current_epoch = 0
        self.waited_seconds = 0.0
        """How long the run has waited for this stream's batches; a list's are there."""

    @property
    def length(self) -> int | None:
        raise NotImplementedError

    @property
    def samples(self) -> int | None:
        """Samples drawn for the batch being handled; None where it is not known."""
        return self.drawn if isinstance(self.drawn, int) else None

    @property
    def can_look_ahead(self) -> bool:
        """Whether the next batch can be had before this one is handled, with no code of the user's run earlier."""
        raise NotImplementedError

    def look_ahead_never(self) -> None:
        """Ask for a batch only when the one before it has been handled.

        Raises:
            ConfigurationError: this kind of loader cannot do so.
        """

    def read_ahead_with(self, prefetch: Prefetch | None) -> None:
        """Copy batches ahead with it, where this stream can look ahead."""
        self.prefetch = prefetch if self.can_look_ahead else None

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        raise NotImplementedError

    def end_with_this_batch(self) -> None:
        self.is_last = True

    def tell_epoch(self, epoch: int) -> None:
        """Call `set_epoch` of what makes this loader's batches; what draws its order is told when it draws."""

    def go_along_with(self, other: Stream) -> None:
        """Read the epoch that another stream of the same loader reads, whatever its sampler has in itself."""

    def go_back(self) -> None:
        """Be where `state_dict` says, whatever was read ahead: an epoch has ended although there was more."""

    # -- an epoch that another number of ranks had begun ---------------------------------------------------------------
    @property
    def whole_length(self) -> int | None:
        """Batches of a whole epoch for this rank, whatever is left of the one at hand; None where it is not known."""
        return self.length

    def length_before(self, state: Mapping[str, Any], ranks: int) -> int | None:
        """Batches that each of so many ranks had in a whole epoch; None where that is not known."""
        return self.whole_length

    def why_not_dealt_again(self, state: Mapping[str, Any], ranks: int) -> str | None:
        """Why what so many ranks had left of an epoch cannot be dealt out to the present ones; None: it can."""
        return (
            f"{self.name} is read in order, by each rank for itself, so what {ranks} had left cannot be dealt out "
            f"among {self.share.world_size}"
        )

    def dealt_again(self, state: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        """A state of rank 0 of so many ranks, as it is for the present ones."""
        return dict(state)

    def deal(self, share: Share) -> None:
        """Let this be the rank's share of the epoch that is read next."""
        self.share = share

    def _dealt(self, state: Mapping[str, Any], ranks: int, total: int | None) -> dict[str, Any]:
        before = Share(0, ranks, self.share.wraps).resumed(state.get("share"))
        length = self.length_before(state, ranks)
        if total is not None and length is not None:
            total = min(total, length * ranks)
        elif isinstance(self.limit, int):
            total = self.limit * ranks
        share = self.share.whole.after(before, state["batches_done"], total)
        return {**state, "batches_done": share.number, "share": share.as_state()}

    # -- state ---------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.current_epoch, "batches_done": self.batches_done, "is_last": self.is_last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.deal(self.share.resumed(state.get("share")))
        self.current_epoch = state["epoch"]
        self.batches_done = state["batches_done"]
        self.is_last = state["is_last"]

    def close(self) -> None:
        self._end_prefetch()

    def _refuse_workers(self, loader: DataLoader) -> None:
        if loader.num_workers:
            raise ConfigurationError(
                f"Trainer(look_ahead=False): {self.name} has num_workers={loader.num_workers}, and workers read ahead "
                "in processes of their own, which do not see what a step changes. Use num_workers=0."
            )

    def _end_prefetch(self) -> None:
        if self.prefetch is not None:
            self.prefetch.close()

    @contextmanager
    def _prefetching(self) -> Iterator[Prefetch | None]:
        """Its thread lives no longer than an iteration."""
        try:
            yield self.prefetch
        finally:
            self._end_prefetch()

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

    def _need_count(self, count: int | None) -> None:
        if count is None and isinstance(self.limit, float) and self.limit != 1.0:
            raise ConfigurationError(
                f"a limit of {self.limit} needs the number of batches, which {self.name} does not know; "
                "give an int, or a loader with a length"
            )

    def _check_start(self, start_batch: int, count: int) -> None:
        if start_batch > count:
            raise DataError(
                f"{self.name} has {count} batches, but {start_batch} of this epoch were done before: it shrank since "
                "the checkpoint was made. Resume with the same dataset, batch size and limits, or from an epoch's end."
            )

    def _batch_seed(self, epoch: int, number: int) -> int:
        share = self.share  # Share.position, written out: it would be two calls for every batch
        position = share.first + (number - share.number) * share.world_size + share.rank
        return derive_seed(self.seed, "batch", epoch, position)

    def _add_position(self, error: Exception, epoch: int, number: int) -> None:
        add_note(error, f"while fetching batch {number} of epoch {epoch} of {self.name}")


class ListStream(Stream):
    """A list or tuple of batches, indexed."""

    def __init__(self, batches: Sequence[Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.batches = batches
        if len(batches) == 0 and self.limit != 0:
            raise DataError(f"{self.name} is empty: the {type(batches).__name__} holds no batches")

    @property
    def length(self) -> int:
        return self.whole_length if self.share.end is None else self.share.count(len(self.batches))

    @property
    def whole_length(self) -> int:
        return self._limited(self.share.whole.count(len(self.batches)))

    def length_before(self, state: Mapping[str, Any], ranks: int) -> int:
        return self._limited(Share(0, ranks, self.share.wraps).count(len(self.batches)))

    def why_not_dealt_again(self, state: Mapping[str, Any], ranks: int) -> None:
        return None

    def dealt_again(self, state: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        return self._dealt(state, ranks, len(self.batches))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "share": self.share.as_state()}

    @property
    def can_look_ahead(self) -> bool:
        return type(self.batches) in (list, tuple)  # another sequence may make its batches when it is asked

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        count = self.length
        self._check_start(start_batch, count)
        self._begin(epoch, start_batch)
        batches = self.share.of(self.batches)
        if start_batch < count and (not self.can_look_ahead or holds_arrays(batches[start_batch])):
            batches = TensorBatches(batches, keep_float64=self.keep_float64)
        upcoming: NextBatch | None = None
        ahead: Any = None
        with self._prefetching() as prefetch:
            for number in range(start_batch, count):
                present, upcoming = upcoming, None
                if present is not None:
                    present.wait()
                if ahead is not batches[number]:
                    present = None  # the step has put another one there
                if prefetch is not None and prefetch.is_on and number + 1 < count:
                    ahead = batches[number + 1]
                    upcoming = prefetch.start(ahead)
                self.batches_done = number + 1
                self.is_last = number + 1 == count
                yield batches[number] if present is None else present.take()


class MapStream(Stream):
    """A DataLoader over map-style data: index batches are known first, and fetched here or by workers."""

    def __init__(self, loader: DataLoader, **settings: Any) -> None:
        super().__init__(**settings)
        self.loader = loader
        self.order = Order(loader, share=self.share, seed=self.seed, name=self.name)
        self._workers = Workers(
            loader, seed=self.seed, name=self.name, multiprocessing_context=self.multiprocessing_context
        )
        self.batch_size = batch_size_of_loader(loader)
        if self.order.is_empty and self.limit != 0:
            raise DataError(self.order.why_empty())
        self._need_count(self.order.length)

    @property
    def length(self) -> int | None:
        return self.whole_length if self.share.end is None else self.order.length

    @property
    def whole_length(self) -> int | None:
        count = self.order.whole_length
        return None if count is None else self._limited(count)

    def length_before(self, state: Mapping[str, Any], ranks: int) -> int | None:
        total = self.order.total_before(state.get("order", {}), ranks)
        return None if total is None else self._limited(Share(0, ranks, self.share.wraps).count(total))

    def why_not_dealt_again(self, state: Mapping[str, Any], ranks: int) -> str | None:
        return self.order.why_not_dealt_again(state.get("order", {}), ranks)

    def dealt_again(self, state: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        order = state.get("order", {})
        dealt = self._dealt(state, ranks, self.order.total_before(order, ranks))
        return {**dealt, "order": self.order.dealt_again(order, ranks)}

    def deal(self, share: Share) -> None:
        super().deal(share)
        self.order.deal(share)

    @property
    def samples(self) -> int | None:
        if self.drawn is None or not self.loader.auto_collate_batch:
            return None
        count = len(self.drawn)
        return count if count > 1 or self.batch_size else None  # behind one index there may be a ready-made batch

    @property
    def can_look_ahead(self) -> bool:
        return bool(self.loader.num_workers)  # a dataset in this process may look at what the step changes

    def look_ahead_never(self) -> None:
        self._refuse_workers(self.loader)

    def epoch(self, epoch: int, start_batch: int, on_replay: Replay) -> Iterator[Any]:
        items = self._items(epoch, start_batch)
        self._begin(epoch, start_batch)
        if self.loader.num_workers == 0:
            return self._fetched_here(epoch, start_batch, items)
        return self._fetched_by_workers(epoch, start_batch, items)

    def _items(self, epoch: int, start_batch: int) -> Iterator[Any]:
        if self.limit == 0:
            return iter(())
        if self.order.length is None:
            return self._items_without_length(epoch, start_batch)
        batches = self.order.of_epoch(epoch, start_batch)
        count = self._limited(len(batches)) if self.share.end is None else len(batches)
        self._check_start(start_batch, count)
        return iter(batches[start_batch:count])

    def _items_without_length(self, epoch: int, start_batch: int) -> Iterator[Any]:
        number = start_batch
        pulled = self.order.pulled(epoch, start_batch)
        limit = self.limit if isinstance(self.limit, int) and self.share.end is None else None
        while limit is None or number < limit:
            indices = next(pulled, END)
            if indices is END:
                break
            number += 1
            yield indices
        if number == 0:
            raise DataError(f"{self.name} is empty or exhausted: its sampler yields nothing in epoch {epoch}")

    def _fetched_here(self, epoch: int, number: int, items: Iterator[Any]) -> Iterator[Any]:
        scope = IsolatedSeed(on_host=True)
        fetch = MapFetcher(self.loader)
        upcoming = next(items, END)
        while upcoming is not END:
            began = perf_counter()
            indices, upcoming = upcoming, next(items, END)
            scope.enter(self._batch_seed(epoch, number))
            try:
                batch = to_tensors(fetch(indices))
            except Exception as error:
                self._add_position(error, epoch, number)
                raise
            finally:
                scope.leave()
            number += 1
            self.batches_done, self.drawn = number, indices
            self.is_last = upcoming is END
            self.waited_seconds += perf_counter() - began
            yield batch

    def _fetched_by_workers(self, epoch: int, number: int, items: Iterator[Any]) -> Iterator[Any]:
        with self._workers.of_epoch(epoch) as pool, self._prefetching() as prefetch:
            generation = pool.generation
            capacity = pool.num_workers * pool.depth
            submitted = number
            has_more = True
            drawn: deque[Any] = deque()
            upcoming: NextBatch | None = None
            while True:
                while has_more and submitted - number < capacity:
                    indices = next(items, END)
                    if indices is END:
                        has_more = False
                        break
                    pool.submit(submitted % pool.num_workers, seed=self._batch_seed(epoch, submitted), indices=indices)
                    submitted += 1
                    drawn.append(indices)
                if submitted == number:
                    return
                present, upcoming = upcoming, None
                began = perf_counter()
                try:
                    if present is None:
                        batch = pool.receive(number % pool.num_workers)
                    else:
                        batch = None
                        present.wait()
                except Exception as error:
                    self._add_position(error, epoch, number)
                    raise
                if prefetch is not None and prefetch.is_on and number + 1 < submitted:
                    # Never waited for: while workers are behind, the run waits for them in any case.
                    worker = (number + 1) % pool.num_workers
                    if pool.has_answered(worker):
                        upcoming = prefetch.fetch_and_start(pool.receive, worker)
                drop_cached_gaussian()
                number += 1
                self.batches_done, self.drawn = number, drawn.popleft()
                self.is_last = submitted == number
                self.waited_seconds += perf_counter() - began
                yield batch if present is None else present.take()
                pool.check(generation)

    def tell_epoch(self, epoch: int) -> None:
        set_epoch_of(made_by(self.loader), epoch)

    def go_along_with(self, other: Stream) -> None:
        if isinstance(other, MapStream):
            self.order.go_along_with(other.order)

    def state_dict(self) -> dict[str, Any]:
        share = {"share": self.share.as_state()}
        return {**super().state_dict(), **share, "order": self.order.state_dict(self.batches_done)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.order.load_state_dict(state.get("order", {}))

    def close(self) -> None:
        super().close()
        self._workers.close()


def batch_size_of_loader(loader: DataLoader) -> int | None:
    """Samples of a full batch as the loader or its batch sampler says; None where it makes no batches or says none."""
    if not loader.auto_collate_batch:
        return None
    said = getattr(loader.batch_sampler, "batch_size", None) or getattr(loader, "batch_size", None)
    return said if isinstance(said, int) and said > 1 else None
