"""BatchSource: one loader's batches, with a position to resume from, seeding and sharding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from paddle.io import DataLoader, Dataset, IterableDataset

from ..errors import ConfigurationError, ConfigurationTypeError
from ..machine.rng import derive_seed
from .arrays import why_no_batches
from .combined import CombinedLoader, CombinedStream, are_several_loaders
from .iterables import IterableLoaderStream, IterableStream, ReplayReport
from .share import Share
from .streams import ListStream, MapStream, Replay, Stream

if TYPE_CHECKING:
    from .prefetch import Prefetch

Stage = Literal["train", "validate", "test", "predict"]


class BatchSource:
    """The batches of one loader, each a function of (seed, epoch, position), so that any position can be gone back to.

    loader: a paddle.io.DataLoader, a list or tuple of batches, any iterable of batches; for "train" several in a dict,
    list or tuple, or a CombinedLoader.
    limit: at most so many batches of an epoch (int), or that fraction of them (float; 1.0 is all).

    With `world_size` W, rank r takes batches r, r+W, ... of a list or of a map-style DataLoader. For "train" the
    shares are made equal by going round again; for the other stages nothing is repeated, so that each sample counts
    once, and ranks may differ by one batch. A DistributedBatchSampler is used as it is for "train"; for the other
    stages, the batches that it would make on one process are divided, as it repeats samples to make shares equal. What
    an IterableDataset or another iterable yields is not divided: it must yield this rank's share by itself.

    With `look_ahead` off an iterable is asked for a batch only when the one before it has been handled.

    With a `prefetch` that is on, and a loader whose next batch can be had without running anybody's code earlier than
    without it, batches come on the device; everything else stays the same.

    Only the iterator of `epoch` writes `batches_done`, `is_last` and `samples`, which are valid while a batch is being
    handled.
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
        prefetch: Prefetch | None = None,
        look_ahead: bool = True,
        keep_float64: bool = False,
        multiprocessing_context: str = "auto",
    ) -> None:
        _check_limit(limit, name)
        share = Share(rank, world_size, wraps=stage == "train")
        if stage != "train":
            seed = derive_seed(seed, name)  # or validation would draw the numbers of the first training epoch
        self.stream = _stream_for(
            loader,
            share=share,
            seed=seed,
            limit=limit,
            name=name,
            keep_float64=keep_float64,
            multiprocessing_context=multiprocessing_context,
        )
        if not look_ahead:
            self.stream.look_ahead_never()
        self.stream.read_ahead_with(prefetch)
        self.loader = loader
        self.name = name

    @property
    def prefetch(self) -> Prefetch | None:
        """What copies batches ahead, where this loader's can be."""
        return self.stream.prefetch

    @property
    def length(self) -> int | None:
        """Batches of an epoch for this rank, or None where the loader cannot tell."""
        return self.stream.length

    @property
    def is_last(self) -> bool:
        """Whether the batch being handled is the epoch's last."""
        return self.stream.is_last

    def end_with_this_batch(self) -> None:
        """The batch being handled is the epoch's last, as it is on another rank."""
        self.stream.end_with_this_batch()

    @property
    def batches_done(self) -> int:
        """Batches of this epoch handed out so far, the one being handled included."""
        return self.stream.batches_done

    @property
    def samples(self) -> int | None:
        """Samples that were drawn for the batch being handled; None where it is not known."""
        return self.stream.samples

    @property
    def batch_size(self) -> int | None:
        """Samples of a full batch, where the loader makes batches of samples and says so."""
        return self.stream.batch_size

    @property
    def waited_seconds(self) -> float:
        """How long the run has waited for batches of this loader."""
        return self.stream.waited_seconds

    def epoch(self, epoch: int, start_batch: int = 0, on_replay: Replay | None = None) -> Iterator[Any]:
        """Yield this rank's batches of an epoch from `start_batch` on, as Paddle's DataLoader gives them, on the host.

        Skipped map-style batches are not loaded. Other iterables without a state of their own are read again up to
        `start_batch`; `on_replay(done, total)` is called meanwhile (default: rank 0 prints a line every few seconds).

        Raises:
            DataError: the loader is empty, exhausted, shorter than start_batch, not the one that was resumed from,
                or one of its workers died. What the dataset, sampler or collate_fn raises comes through as it is.
        """
        return self.stream.epoch(epoch, start_batch, on_replay or self._report_replay())

    def tell_epoch(self, epoch: int) -> None:
        """Call `set_epoch(epoch)` of the loader, its dataset (and those in it), samplers and collate_fn that have it.

        Samplers of a map-style DataLoader hear of it when their order is drawn, persistent workers when they begin.
        """
        self.stream.tell_epoch(epoch)

    def go_along_with(self, other: BatchSource) -> None:
        """Read the same epoch as another source of the same loader, without asking its sampler again."""
        self.stream.go_along_with(other.stream)

    def begin_whole(self) -> None:
        """The epoch that is read next is dealt out from its start."""
        self.stream.deal(self.stream.share.whole)

    @property
    def whole_length(self) -> int | None:
        """Batches of a whole epoch for this rank; `length` is another in one that another number of ranks had begun."""
        return self.stream.whole_length

    def length_before(self, state: Mapping[str, Any], ranks: int) -> int | None:
        """Batches that each of so many ranks had in a whole epoch, by the saved state of one; None: not known."""
        return self.stream.length_before(state, ranks)

    def why_not_dealt_again(self, state: Mapping[str, Any], ranks: int) -> str | None:
        """Why what so many ranks had left of an epoch cannot be dealt out to the present ones; None: it can."""
        return self.stream.why_not_dealt_again(state, ranks)

    def dealt_again(self, state: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        """The state that rank 0 of so many ranks had saved, as it is for the present ranks.

        With it, `epoch` yields what of the epoch they had left, from the `batches_done` in it on.
        """
        return self.stream.dealt_again(state, ranks)

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch being handled, and the loader's own state where it has one."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `epoch` go on from a saved position; it must be asked for with that position."""
        self.stream.load_state_dict(state)

    def close(self) -> None:
        """End worker processes and threads; safe at any time and more than once."""
        self.stream.close()

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]], part: str) -> None:
        """Let the wait for each batch be timed, under the name `part`."""
        epoch, fetch = self.epoch, timed(part, next)

        def watched(*position: Any, **options: Any) -> Iterator[Any]:
            batches = epoch(*position, **options)
            while True:
                try:
                    batch = fetch(batches)
                except StopIteration:
                    return
                yield batch

        self.epoch = watched  # type: ignore[method-assign]

    def _report_replay(self) -> Replay:
        return ReplayReport(self.name) if self.stream.share.rank == 0 else lambda done, total: None


def lengths(sources: Sequence[BatchSource], limit: int | float | None) -> list[int | float]:
    """Batches of each; of one that cannot tell as many as a limit in batches lets through, or infinitely many."""
    unknown = limit if isinstance(limit, int) else math.inf
    return [unknown if source.length is None else source.length for source in sources]


def _stream_for(loader: Any, **settings: Any) -> Stream:
    name = settings["name"]
    if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
        if isinstance(loader.dataset, IterableDataset):
            return IterableLoaderStream(loader, **settings)
        return MapStream(loader, **settings)
    if isinstance(loader, Iterator) and type(loader).__module__.startswith("paddle."):
        raise ConfigurationTypeError(
            f"{name} is an iterator over a DataLoader, which can be read once: pass the DataLoader itself"
        )
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise ConfigurationTypeError(
            f"{name} is a Dataset ({type(loader).__name__}), which yields samples, not batches; "
            "pass paddle.io.DataLoader(dataset, batch_size=...)"
        )
    refusal = why_no_batches(loader)
    if refusal is not None:
        raise ConfigurationTypeError(f"{name} {refusal}")
    if isinstance(loader, CombinedLoader):
        return CombinedStream(loader, _stream_for, **settings)
    if settings["share"].wraps and (isinstance(loader, Mapping) or are_several_loaders(loader)):  # of the training
        return CombinedStream(CombinedLoader(loader), _stream_for, **settings)
    if isinstance(loader, Sequence) and not isinstance(loader, (str, bytes)):
        if any(isinstance(item, DataLoader) for item in loader):
            raise ConfigurationTypeError(
                f"{name} is a {type(loader).__name__} of DataLoaders and others; "
                "several training loaders are CombinedLoader([...]), or a dict of them"
            )
        return ListStream(loader, **settings)
    if isinstance(loader, (str, bytes, Mapping)) or not isinstance(loader, Iterable):
        hint = "; call it" if callable(loader) else ""
        raise ConfigurationTypeError(
            f"{name} must be a paddle.io.DataLoader, a list of batches or another iterable of batches "
            "(for evaluation also a list of DataLoaders; no dict), "
            f"got {type(loader).__name__}{hint}"
        )
    return IterableStream(loader, **settings)


def _check_limit(limit: int | float | None, name: str) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise ConfigurationTypeError(f"the limit of {name} must be an int or a float, got {type(limit).__name__}")
    if limit < 0 or (isinstance(limit, float) and not limit <= 1.0):
        raise ConfigurationError(
            f"the limit of {name} must be an int >= 0 (batches) or a float from 0.0 to 1.0 (a fraction), got {limit}"
        )
