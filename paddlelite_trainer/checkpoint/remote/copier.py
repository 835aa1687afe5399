"""Copies what a run keeps to a remote, in a thread of its own: the run never waits for it and never fails for it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable

from ...errors import CheckpointCorruptError
from ..entry import Entry
from ..store import CheckpointStore
from . import OwnCopies, Remote, RemoteCheckpoint

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
_LOOK_SECONDS = 0.05


class Copier:
    """From `start` to `finish`, keeps a remote as the pins of a store say.

    What is to be copied follows from the store's pins: the checkpoints that the wanted names hold, or with `everything`
    each one committed; so a checkpoint that no wanted name holds any more is dropped, unless its copy has begun. While
    it waits or is copied the store deletes it for no reason. The newest goes first. A failure is told once, tried again
    for as long as it lasts, and its end is told once. Of a run that begins afresh nothing is copied to where another's
    checkpoints are.
    """

    def __init__(
        self,
        store: CheckpointStore,
        remote: Remote,
        *,
        is_wanted: Callable[[str], bool],
        everything: bool = False,
        keep_last_n: int | None = None,
        begins_afresh: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._store = store
        self._remote = remote
        self._is_wanted = is_wanted
        self._everything = everything
        self._keep_last_n = keep_last_n
        self._begins_afresh = begins_afresh
        self._tell_user = tell
        self._changed = threading.Condition()
        # Below it: what the store's thread and ours share.
        self._pins: dict[str, list[Entry]] = {}
        self._waiting: dict[str, Entry] = {}  # by sha256
        self._copying: Entry | None = None
        self._news = True
        self._is_working = self._abandoned = False
        self._waits = 0
        self._copied: dict[str, RemoteCheckpoint] = {}  # by sha256
        self._unusable: set[str] = set()
        # Ours alone.
        self._names: dict[str, list[RemoteCheckpoint]] | None = None
        self._held_once: set[str] = set()
        self._own = OwnCopies(store.directory)
        self.last_error: Exception | None = None
        """Why the last attempt failed; None when it did not."""
        self._thread = threading.Thread(target=self._run, name="remote-copy", daemon=True)

    def start(self) -> None:
        self._store.watch(self._look)
        self._look()
        self._thread.start()

    def wait(
        self, seconds: float, *, is_urgent: Callable[[], bool] = lambda: False, urgent_seconds: float = 0.0
    ) -> bool:
        """Return when all is copied, or after so many seconds: whether all is copied.

        From the moment that `is_urgent` it waits at most `urgent_seconds` more. A failure that is waiting to be tried
        again is tried at once.
        """
        deadline, is_hurried = time.monotonic() + seconds, False
        with self._changed:
            self._waits += 1
            self._changed.notify_all()
        while True:
            with self._changed:
                if not (self._news or self._is_working or self._left()):
                    return True
            if not self._thread.is_alive():
                return False
            if not is_hurried and is_urgent():
                is_hurried, deadline = True, min(deadline, time.monotonic() + urgent_seconds)
            if time.monotonic() >= deadline:
                return False
            with self._changed:
                self._changed.wait(_LOOK_SECONDS)

    def finish(self) -> list[Entry]:
        """Begin nothing any more, and return what was not copied, oldest first; a call that hangs is left behind."""
        with self._changed:
            is_idle = not (self._is_working or self._news)
            self._abandoned = True
            self._changed.notify_all()
            left = self._left()
        self._store.unwatch(self._look)
        self._store.protect(self, ())
        if is_idle:
            self._thread.join()
        return left

    @property
    def behind(self) -> list[Entry]:
        """What is still to be copied, oldest first."""
        with self._changed:
            return self._left()

    def _left(self) -> list[Entry]:
        left = dict(self._waiting)
        if self._copying is not None:
            left[self._copying.sha256] = self._copying
        return sorted(left.values(), key=lambda entry: entry.order)

    # ---- in the thread that saves ----

    def _look(self) -> None:
        """Take over what the store's pins say now."""
        entries = {entry.name: entry for entry in self._store.entries()}
        pins = {
            name: [entries[one] for one in held if one in entries]
            for name, held in self._store.pins().items()
            if self._is_wanted(name)
        }
        wanted: Iterable[Entry] = (
            entries.values() if self._everything else [one for held in pins.values() for one in held]
        )
        with self._changed:
            waiting = dict(self._waiting) if self._everything else {}
            waiting.update({entry.sha256: entry for entry in wanted})
            for done in (*self._copied, *self._unusable):
                waiting.pop(done, None)
            if self._copying is not None:
                waiting.pop(self._copying.sha256, None)
            self._pins, self._waiting, self._news = pins, waiting, True
            self._protect()
            self._changed.notify_all()

    def _protect(self) -> None:
        self._store.protect(self, [entry.name for entry in self._left()])

    # ---- in our thread ----

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._is_working = False
                self._changed.notify_all()
                while not (self._news or self._abandoned):
                    self._changed.wait()
                if self._abandoned:
                    return
                self._is_working = True
            try:
                self._catch_up()
            except Exception as error:  # whatever a client library raises must not end the thread
                self.last_error = error
                if failures == 0:
                    self._tell(f"WARNING: copying to {self._remote.url} failed, and is tried again: {error}")
                failures += 1
                self._wait_before_retry(failures)
                continue
            if failures:
                failures, self.last_error = 0, None
                self._tell(f"Copying to {self._remote.url} works again.")

    def _wait_before_retry(self, failures: int) -> None:
        # Not from `random`: its state belongs to the run.
        longest = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 20))
        deadline = time.monotonic() + longest * secrets.SystemRandom().uniform(0.5, 1.0)
        with self._changed:
            waits = self._waits
            while not self._abandoned and self._waits == waits:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _catch_up(self) -> None:
        """Copy what waits, newest first, then bring names and retention up to date."""
        if self._begins_afresh:
            if self._remote.holds_any(self._remote.checkpoints()):
                self._tell(f"WARNING: nothing is copied to {self._remote.url}: it holds another run's checkpoints")
                self._abandoned = True
                return
            self._begins_afresh = False
        while (entry := self._take()) is not None:
            try:
                self._copy(entry)
            finally:
                self._put_back()
            self._write_names()
        with self._changed:
            if self._abandoned:
                return
            self._news = False
        try:
            self._write_names()
            self._retire()
        except BaseException:
            self._news = True
            raise

    def _take(self) -> Entry | None:
        with self._changed:
            if self._abandoned or not self._waiting:
                return None
            self._copying = max(self._waiting.values(), key=lambda entry: entry.order)
            del self._waiting[self._copying.sha256]
            return self._copying

    def _put_back(self) -> None:
        """What was not copied waits again, unless it is not wanted any more."""
        with self._changed:
            entry, self._copying = self._copying, None
            assert entry is not None
            if self._is_still_wanted(entry) and entry.sha256 not in self._copied:
                self._waiting[entry.sha256] = entry
            self._protect()

    def _is_still_wanted(self, entry: Entry) -> bool:
        if entry.sha256 in self._unusable:
            return False
        return self._everything or any(one.sha256 == entry.sha256 for held in self._pins.values() for one in held)

    def _copy(self, entry: Entry) -> None:
        self._own.add(entry.name, entry.sha256[:16])
        try:
            copied = self._remote.upload(entry.path, lambda: not self._abandoned)
        except (CheckpointCorruptError, FileNotFoundError) as error:
            is_missed = self._is_still_wanted(entry)
            self._unusable.add(entry.sha256)
            if is_missed:
                self._tell(f"WARNING: {entry.name} was not copied to {self._remote.url}: {error}")
            return
        if copied is not None:
            self._copied[entry.sha256] = copied

    def _write_names(self) -> None:
        """Let each wanted name lead to what it holds and is there; while nothing of it is there, to what it led to."""
        if self._names is None:
            self._names = self._remote.names()
        with self._changed:
            pins = dict(self._pins)
        names = dict(self._names)
        named = {(one.entry_name, one.digest): one for held in names.values() for one in held}
        for name in self._held_once - set(pins):
            names.pop(name, None)  # taken away in this process; of others we know nothing
        for name, held in pins.items():
            # An earlier process's copy counts too: this machine's own may be damaged by now, or not be looked at yet.
            found = [self._copied.get(one.sha256) or named.get((one.name, one.sha256[:16])) for one in held]
            there = [one for one in found if one is not None]
            if there:
                names[name] = there
        if names != self._names and not self._abandoned:
            self._remote.write_names(names)
            self._names = names
        self._held_once.update(pins)

    def _retire(self) -> None:
        """Delete what is neither named nor among the last N, of what this run copied, half or whole, or went on from.

        Anything else may be all that is left of another run, or of a past whose names were lost.
        """
        if self._keep_last_n is None or self._names is None:
            return
        kept = {one for held in self._names.values() for one in held}
        newest = 0
        for checkpoint in self._remote.checkpoints():
            if self._abandoned:
                return
            if newest < self._keep_last_n and self._remote.is_complete(checkpoint):
                newest += 1
            elif checkpoint in self._own and checkpoint not in kept:
                self._remote.delete(checkpoint)

    def _tell(self, message: str) -> None:
        try:
            self._tell_user(message)
        except Exception:  # a closed terminal is no reason to stop copying
            pass
