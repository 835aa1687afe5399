"""TrainingData: the training and validation sources of one fit, and when they are made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError

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
                "limit_train_batches=0 leaves no training data"
                if loading.settings.limits["train"] == 0
                else "fit needs training data: "
                "pass train_dataloaders=, a datamodule, or write train_dataloader in the module"
            )
        self.train = sources[0]
        self.given_val = val
        self.val: list[BatchSource] = []

    def open_validation(self) -> None:
        self.val = self.loading.sources("validate", self.given_val)

    @property
    def length(self) -> int | None:
        """Batches of an epoch, or None where the loader cannot tell."""
        return self.train.length

    def epoch(self) -> Iterator[Any]:
        """This epoch's batches from where the run is, as the loader gives them."""
        return self.train.epoch(self._epoch_to_read, self.progress.batches_in_epoch)

    def one_more_pass(self) -> Iterator[Any]:
        """All batches of this epoch once more, on the device; the run's position stays where it is."""
        (source,) = self.loading.sources("train", self.train.loader)
        source.go_along_with(self.train)
        prepare = self.loading.preparation(source)
        try:
            for batch in source.epoch(self.progress.current_epoch):
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
