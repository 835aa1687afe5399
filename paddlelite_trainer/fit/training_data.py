"""TrainingData: the training and validation sources of one fit, and when they are made anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, DataError
from ..machine.ranks import sendable

if TYPE_CHECKING:
    from ..data.source import BatchSource
    from ..progress import Progress
    from .loading import Loading


class TrainingData:
    """What a fit reads. `train` is replaced where a loader is to be reloaded; only this object does so."""

    def __init__(self, loading: Loading, progress: Progress, train: Any, val: Any) -> None:
        self.loading, self.progress = loading, progress
        every = loading.settings.reload_dataloaders_every_n_epochs
        self.every = every if train is None else 0
        self.val_every = every if val is None else 0
        sources = loading.sources("train", train)
        if not sources:
            raise ConfigurationError(
                "limit_train_batches=0 leaves no training data: None takes all of it, and trainer.validate(module, "
                "loader) runs a validation without a fit"
                if loading.settings.limits["train"] == 0
                else "fit needs training data: "
                "pass train_dataloaders=, a datamodule, or write train_dataloader in the module"
            )
        self.train = sources[0]
        self.given_val = val
        self.val: list[BatchSource] = []
        self._has_told = False

    def open_validation(self) -> None:
        self.val = self.loading.sources("validate", self.given_val)

    @property
    def length(self) -> int | None:
        """Batches of an epoch, or None where the loader cannot tell."""
        return self.train.length

    def epoch(self) -> Iterator[Any]:
        """This epoch's batches from where the run is, as the loader gives them; on several ranks as many on each."""
        batches = self.train.epoch(self._epoch_to_read, self.progress.batches_in_epoch)
        if self.loading.ranks.world_size == 1:
            return batches
        lengths = self.loading.ranks.gather_object(self.train.length)
        if None in lengths:
            return self._together(batches)
        if len(set(lengths)) > 1:
            raise DataError(
                f"the ranks have {', '.join(map(str, lengths))} batches of training data an epoch, and a step is one "
                "of all ranks: give every rank as many"
            )
        return batches

    def _together(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Batches until the first rank has no more; the exchange is one for each batch, so only where it must be."""
        ranks, nothing = self.loading.ranks, object()
        while True:
            error: Exception | None = None
            try:
                batch = next(batches, nothing)
            except Exception as raised:  # the other ranks wait, and are told
                batch, error = nothing, raised
            is_over = batch is nothing
            sent = None if error is None else sendable(error, ranks.rank)
            everyones = ranks.gather_object((is_over, is_over or self.train.is_last, sent))
            if error is not None:
                raise error
            for rank, (*_, theirs) in enumerate(everyones):
                if theirs is not None:
                    ranks.raise_of(rank, theirs)
            ended = [rank for rank, (_, is_last, _) in enumerate(everyones) if is_last]
            if 0 < len(ended) < len(everyones):
                self._tell_of_shares(ended)
            if any(over for over, *_ in everyones):
                return
            if ended:
                self.train.end_with_this_batch()
            yield batch
            if ended:
                return

    def _tell_of_shares(self, ended: list[int]) -> None:
        if not self._has_told and self.loading.ranks.is_zero:
            warnings.warn(
                f"the training data of rank {', '.join(map(str, ended))} ended before that of the other ranks, so each "
                "epoch ends there on all ranks and what the others have left is not used: give every rank as many "
                "batches",
                stacklevel=2,
            )
        self._has_told = True

    def one_more_pass(self) -> Iterator[Any]:
        """All batches of this epoch, between two of the last one, once more; the run's position stays where it is."""
        (source,) = self.loading.sources("train", self.train.loader)
        source.go_along_with(self.train)
        prepare = self.loading.preparation(source)
        epoch = self._epoch_to_read
        if epoch and not self.progress.epoch_is_open:
            epoch -= 1
        source.tell_epoch(epoch)
        try:
            for batch in source.epoch(epoch):
                yield batch if prepare is None else prepare(batch)
        finally:
            source.close()

    @property
    def _epoch_to_read(self) -> int:
        return 0 if self.loading.settings.overfit_batches else self.progress.current_epoch

    def begin_epoch(self) -> None:
        """To be called before the hooks that may set more on the data; what has a set_epoch is told the epoch."""
        epoch = self.progress.current_epoch
        if self.every and epoch and epoch % self.every == 0:
            self._reload()
        if self.val_every and epoch and epoch % self.val_every == 0:
            self._reload_validation()
        self.train.begin_whole()
        self.train.tell_epoch(self._epoch_to_read)

    def go_on_in_epoch(self) -> None:
        """The same for an epoch that a resumed run goes on in; `reload_as_before` has reloaded."""
        self.train.tell_epoch(self._epoch_to_read)

    def reload_as_before(self, saved: Progress) -> None:
        """A resumed run's data, where they came from a call of train_dataloader or val_dataloader in its course."""
        for every, reload in ((self.every, self._reload), (self.val_every, self._reload_validation)):
            last = saved.current_epoch - saved.current_epoch % every if every else 0
            if not saved.epoch_is_open and last == saved.current_epoch:
                last -= every  # that call is still to come
            if every and last > 0:
                with self.progress.seen_at(last):
                    reload()

    def _reload(self) -> None:
        old, self.train = self.train, self.loading.sources("train", None)[0]
        old.close()

    def _reload_validation(self) -> None:
        old = self.val
        self.open_validation()
        for source in old:
            source.close()

    def close(self) -> None:
        for source in (self.train, *self.val):
            source.close()

    def time_with(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.train.time_with(timed, "waiting for data")
        for source in self.val:
            source.time_with(timed, "waiting for validation data")
        self.loading.time_with(timed)
