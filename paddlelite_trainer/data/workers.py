"""Workers: the worker pool of a loader, over its epochs: when it is made, kept and ended."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from paddle.io import DataLoader

from ..machine.paddle_internals import keeps_workers
from ..machine.rng import derive_seed
from .worker_pool import WorkerPool


class Workers:
    """The worker pool of a DataLoader: made when an epoch needs it, kept where `persistent_workers` says so."""

    def __init__(self, loader: DataLoader, *, seed: int, name: str, multiprocessing_context: str) -> None:
        self.loader = loader
        self.seed = seed
        self.name = name
        self.multiprocessing_context = multiprocessing_context
        self._pool: WorkerPool | None = None
        self._has_told = False

    @contextmanager
    def of_epoch(self, epoch: int) -> Iterator[WorkerPool]:
        if self._pool is None or self._pool.closed:
            if self._pool is not None and self._pool.is_spawned:
                self._tell_of_starting_again()
            self._pool = WorkerPool(
                self.loader,
                name=self.name,
                seed=derive_seed(self.seed, "workers", epoch),
                multiprocessing_context=self.multiprocessing_context,
            )
            self._hand_over(self._pool)
        pool = self._pool
        # Workers made for this epoch have what is here; those of an earlier one must be told.
        pool.begin_epoch(derive_seed(self.seed, "order", epoch), epoch if keeps_workers(self.loader) else None)
        generation = pool.generation
        try:
            yield pool
        except GeneratorExit:  # the consumer broke off
            self._release(pool, generation)
            raise
        except BaseException:
            pool.close()  # what is under way is unknown now
            raise
        self._release(pool, generation)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _hand_over(self, pool: WorkerPool) -> None:
        try:
            pool.hand_over()
        except BaseException:
            pool.close()
            raise

    def _tell_of_starting_again(self) -> None:
        if self._has_told or keeps_workers(self.loader):
            return
        self._has_told = True
        warnings.warn(
            f"{self.name}: its workers are spawned anew for every epoch, which takes seconds "
            "each time. DataLoader(persistent_workers=True) keeps them.",
            stacklevel=2,
        )

    def _release(self, pool: WorkerPool, generation: int) -> None:
        if pool.generation != generation:
            return  # a later epoch has it
        if keeps_workers(self.loader):
            pool.cancel()
        else:
            pool.close()
