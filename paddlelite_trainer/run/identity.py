"""Run: the directory, checkpoints and resumed checkpoint of one fit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .directory import RunDirectory, absolute, holds_checkpoints
from .shared import refuse_unshared
from .whose import refuse_others

if TYPE_CHECKING:
    from ..checkpoint import CheckpointReader, CheckpointStore, Entry
    from ..machine.ranks import Ranks
    from ..reporting.book import Book
    from ..settings import Settings

NO_RUN = (
    "this trainer has no run directory: it has not fitted yet, or without loggers and checkpoints, or with fast_dev_run"
)


_MAKERS: dict[Path, weakref.ref[Settings]] = {}
"""{directory of a run that this process has begun: the Trainer that did}."""


class Run:
    """Where one fit writes. Rank 0 alone has `directory` and `store`; every rank knows the `path` and may read it."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.directory: RunDirectory | None = None
        self.path: Path | None = None
        self.store: CheckpointStore | None = None
        self._reader: CheckpointReader | None = None
        self._logs: RunDirectory | None = None  # of evaluations before any fit, on rank 0
        self.ckpt_path: Path | None = None
        """The checkpoint that the fit went on from; None where it is fresh. Only preparation writes it."""
        self.imported_best: Entry | None = None
        """The best checkpoint of another tool's run that `InitFrom(best=...)` has brought along, with its scores."""

    def open(self, resolution: Any, *, has_loggers: bool) -> None:
        """Make or take the directory with its lock and store; every rank calls it."""
        settings = self.settings
        if settings.fast_dev_run or not (settings.enable_checkpointing or has_loggers):
            return

        from ..checkpoint import CheckpointReader, CheckpointStore

        def open_on_disk() -> Path:
            goes_on = resolution is not None and resolution.run_dir is not None
            if goes_on:
                self.directory = RunDirectory.resume(resolution.run_dir, resolution.owner)
            else:
                self.directory = RunDirectory.create(settings.default_root_dir, run_name=settings.run_name)
            self.store = CheckpointStore(self.directory.path, owner=self.directory.owner)
            refuse_others(self.directory.path, self.store.entries(), self.directory.owner)
            if goes_on:
                self.store.count_on_from(resolution.commits_elsewhere)
            return self.directory.path

        self.path = self.ranks.on_rank_zero(open_on_disk)
        refuse_unshared(self.ranks, self.path, "works in")
        self._reader = self.store if self.store is not None else CheckpointReader(self.path)
        if resolution is None or resolution.run_dir is None:
            _MAKERS[self.path] = weakref.ref(settings)

    def open_logs(self, book: Book, hparams: Mapping[str, Any]) -> bool:
        """Let evaluations before any fit log, all into one directory of their own; every rank calls it.

        Returns False where `run_name` is a run that was trained, whose logs are the training's.
        """
        settings = self.settings

        def open_on_disk() -> bool:
            if self._logs is not None:
                self._logs = RunDirectory.resume(self._logs.path)
                return True
            idle = [logger for logger in book.loggers if logger.log_dir is None]  # another Trainer may have opened it
            if not idle:
                return True
            root, name = absolute(settings.default_root_dir), settings.run_name
            if name is not None and holds_checkpoints(root / name):
                return False
            self._logs = directory = RunDirectory.create(root, run_name=name)
            book.open_logs(idle, directory, [None] * len(idle))
            book.log_hyperparams(hparams)
            return True

        return self.ranks.on_rank_zero(open_on_disk)

    def close_logs(self) -> None:
        """Let other processes have the directory that `open_logs` made."""
        if self._logs is not None:
            self._logs.close("finished")

    def is_another_trainer_s(self, path: Path) -> bool:
        """Whether another Trainer of this process has begun the run in `path`."""
        maker = _MAKERS.get(path)
        return maker is not None and maker() is not self.settings

    def goes_on_from(self, checkpoint: Path) -> None:
        self.ckpt_path = checkpoint

    def adopt(self, entry: Entry | None) -> None:
        """Another tool's best checkpoint is this run's to rank against."""
        self.imported_best = entry

    @property
    def checkpoints(self) -> CheckpointReader:
        """The run's checkpoints, to be read on every rank; on rank 0 it is the store.

        Raises:
            CheckpointError: there are none, for nothing is written.
        """
        if self._reader is None:
            raise CheckpointError(NO_RUN)
        return self._reader

    @property
    def holds_checkpoints(self) -> bool:
        """Whether this run has saved anything; waits for a save under way. Every rank gives rank 0's answer."""
        if self.store is not None:
            self.store.settle()
        return self.ranks.broadcast_object(self.store is not None and bool(self.store.entries()))

    @property
    def name(self) -> str | None:
        """The run that "best" and "last" mean: this one, once it has a directory."""
        if self.path is not None:
            return os.path.relpath(self.path, self.settings.default_root_dir)
        return self.settings.run_name

    def set_aside_after(self, entry: Entry, damaged: Sequence[str], leaves_a_branch: bool = False) -> list[str]:
        """Move what an earlier process saved after `entry` away: once `entry` fits, the run goes on without it.

        What is saved from here on is on a branch of its own, where anything newer is here, or `leaves_a_branch` says
        so of what is elsewhere. Returns sentences about what was moved.
        """
        if self.store is None:
            return []
        moved = self.store.quarantine(damaged)
        notes = [f"moved to checkpoints/.quarantine/: {', '.join(moved)}"] if moved else []
        newer = self.store.set_aside_after(entry.step, entry.revision)
        branch = ""
        if newer or leaves_a_branch:
            assert self.directory is not None
            self.store.belong_to(self.directory.branch_off(entry.step))
            branch = self.directory.owner.branch
        if newer:
            names = sorted({pin for other in newer for pin in other.pins} - set(self.store.pins()))
            free = f"; their names are free again: {', '.join(names)}" if names else ""
            notes.append(
                f"{len(newer)} checkpoint{'s' if len(newer) > 1 else ''} after step {entry.step} moved to "
                f"checkpoints/.superseded/, since the run goes on from here, on its branch {branch}{free}"
            )
        elif leaves_a_branch:
            notes.append(f"newer checkpoints of the run are elsewhere: from here on it is on its branch {branch}")
        return notes

    @property
    def findings(self) -> list[str]:
        """Sentences about what was found of the directory as this fit began, on rank 0."""
        directory = self.directory
        if directory is None or directory.copied_from is None:
            return []
        return [
            f"{directory.path} is a copy of {directory.copied_from}, which is still there: from here on it is a run of "
            f"its own, {directory.owner.id}"
        ]

    def where_it_stands(self) -> str | None:
        """The newest checkpoint's name."""
        entries = self.store.entries() if self.store is not None else []
        return entries[-1].name if entries else None
