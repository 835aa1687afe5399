"""Copies what a run keeps to a remote, in a thread of its own: the run never waits for it and never fails for it."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from ...errors import CheckpointCorruptError
from ..entry import Entry
from ..links import HISTORY
from ..store import CheckpointStore
from . import NAMES_FILE, Names, OwnCopies, Remote, RemoteCheckpoint
from . import lease as leases
from .lease import Lease
from .logs import LogCopies

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
_RELEASE_SECONDS = 5.0
_LOOK_SECONDS = 0.05
# Where so many checkpoints are named, names.json follows a copy not before it has rested this many times as long as the
# last one took: what names cost is a share of the time then, however many there are.
_FEW_NAMED = 64
_RESTS = 20.0


class _NotOurTurn(Exception):
    """Somebody else copies there, or perhaps does: look again after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Refused(Exception):
    """What is there is not this run's, for the message's reason."""


class Copier:
    """From `start` to `finish`, keeps a remote as the pins of a store say.

    What is to be copied follows from the store's pins: the checkpoints that the wanted names hold, or with `everything`
    each one committed; so a checkpoint that no wanted name holds any more is dropped, unless its copy has begun. While
    it waits or is copied the store deletes it for no reason. The newest goes first. A failure is told once, tried again
    for as long as it lasts, and its end is told once.

    Nothing is copied to where another run's checkpoints are, to where this run has gone on elsewhere, or while somebody
    else copies there; each is told. A store without an owner says nothing of its run, and only the last is looked at.
    """

    def __init__(
        self,
        store: CheckpointStore,
        remote: Remote,
        *,
        is_wanted: Callable[[str], bool],
        everything: bool = False,
        keep_last_n: int | None = None,
        logs: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._store = store
        self._remote = remote
        self._is_wanted = is_wanted
        self._everything = everything
        self._keep_last_n = keep_last_n
        self._logs = LogCopies(remote.objects, store.run_dir, only=None if logs else HISTORY)
        self._tell_user = tell
        self._changed = threading.Condition()
        # Below it: what the store's thread and ours share.
        self._pins: dict[str, list[Entry]] = {}
        self._waiting: dict[str, Entry] = {}  # by sha256
        self._copying: Entry | None = None
        self._news = True
        self._is_working = self._abandoned = self._is_refused = False
        self._waits = 0
        self._copied: dict[str, RemoteCheckpoint] = {}  # by sha256
        self._unusable: set[str] = set()
        # Ours alone.
        self._names: Names | None = None
        self._branches: dict[str, RemoteCheckpoint] = {}
        self._is_known = self._is_met = self._told_of_watching = self._told_of_busy = False
        self._held_once: set[str] = set()
        self._next_names = -math.inf
        self._own = OwnCopies(store.directory)
        self.last_error: Exception | None = None
        """Why the last attempt failed; None when it did not."""
        self._thread = threading.Thread(target=self._run, name="remote-copy", daemon=True)
        self._lease = Lease(remote.objects, store.owner, lambda: self._thread.is_alive() and not self._abandoned)

    def start(self) -> None:
        self._store.watch(self._note)
        self._look()
        self._thread.start()
        self._lease.keep_renewing(self._note_lost)

    def hurry(self) -> None:
        """Somebody waits from here on: a failure that is waiting to be tried again is tried at once."""
        with self._changed:
            self._waits += 1
            self._changed.notify_all()

    def wait(
        self, seconds: float, *, is_urgent: Callable[[], bool] = lambda: False, urgent_seconds: float = 0.0
    ) -> bool:
        """Return when all is copied, or after so many seconds: whether all is copied.

        From the moment that `is_urgent` it waits at most `urgent_seconds` more. Where nothing may be copied there it
        does not wait.
        """
        deadline, is_hurried = time.monotonic() + seconds, False
        self.hurry()
        while True:
            with self._changed:
                if not (self._news or self._is_working or self._left()):
                    return True
            if not self._thread.is_alive() or self.is_stopped:
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
        self._store.unwatch(self._note)
        self._store.protect(self, ())
        if is_idle:
            self._thread.join(_RELEASE_SECONDS)
        return left

    @property
    def is_stopped(self) -> bool:
        """Whether nothing is copied, as the remote is another's, for now or for good."""
        return self._is_refused or self._lease.is_busy

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

    def _note(self, changed: Collection[str], new: Sequence[Entry]) -> None:
        """Take over what has changed in the store: the names of pins, and checkpoints that are new."""
        now = {name: self._store.by_pin(name) for name in changed if self._is_wanted(name)}
        with self._changed:
            come = {entry.sha256: entry for entry in new} if self._everything else {}
            gone: set[str] = set()
            for name, held in now.items():
                before = {entry.sha256 for entry in self._pins.pop(name, ())}
                come.update({entry.sha256: entry for entry in held if entry.sha256 not in before})
                gone |= before.difference([entry.sha256 for entry in held])
                if held:
                    self._pins[name] = held
            for sha256 in gone & self._waiting.keys():
                if not self._is_still_wanted(self._waiting[sha256]):
                    del self._waiting[sha256]
            busy = self._copying.sha256 if self._copying is not None else None
            for sha256, entry in come.items():
                if sha256 not in self._copied and sha256 not in self._unusable and sha256 != busy:
                    self._waiting[sha256] = entry
            self._news = True
            self._protect()
            self._changed.notify_all()

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
        # Where nothing is copied nothing is kept for it: the disk would fill up.
        left = [*self._waiting.values(), *([] if self._copying is None else [self._copying])]
        self._store.protect(self, () if self.is_stopped else [entry.name for entry in left])

    def _note_lost(self) -> None:
        with self._changed:
            self._is_met, self._news = False, True
            self._changed.notify_all()

    # ---- in our thread ----

    def _run(self) -> None:
        try:
            self._copy_on()
        finally:
            try:
                if self._lease.is_held:
                    self._logs.upload()  # with the last lines
                self._lease.release()
            except Exception:  # whoever comes next watches it, then
                pass

    def _copy_on(self) -> None:
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
                seconds = self._catch_up()
                if seconds:
                    self._wait_at_most(seconds, or_for_a_copy=True)
            except _NotOurTurn as other:
                self._wait_at_most(max(other.seconds, _LOOK_SECONDS))
                continue
            except _Refused as why:
                self._refuse(str(why))
                continue
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
        self._wait_at_most(longest * secrets.SystemRandom().uniform(0.5, 1.0))

    def _wait_at_most(self, seconds: float, *, or_for_a_copy: bool = False) -> None:
        """So long, or until somebody waits for what is to be copied, or there is something to be copied."""
        deadline = time.monotonic() + seconds
        with self._changed:
            waits = self._waits
            while not self._abandoned and self._waits == waits and not (or_for_a_copy and self._waiting):
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _catch_up(self) -> float:
        """Copy what waits, newest first, then bring names and retention up to date; or say in how many seconds to."""
        if not self._is_known:
            self._meet()  # before anything is written there
            self._is_known = True
        while (entry := self._take()) is not None:
            try:
                self._require_turn()
                self._copy(entry)
            finally:
                self._put_back()
            self._require_turn()
            if not self._seconds_of_rest():
                self._write_names()
        with self._changed:
            if self._abandoned:
                return 0.0
            seconds = self._seconds_of_rest()
            if seconds:
                return seconds
            self._news = False
        try:
            self._require_turn()
            self._write_names()
            self._retire()
        except BaseException:
            self._news = True
            raise
        return 0.0

    def _seconds_of_rest(self) -> float:
        return 0.0 if self._waits else max(0.0, self._next_names - time.monotonic())

    # ---- whose it is, and whose turn ----

    def _meet(self) -> None:
        """Raises _Refused where what is there is not this run's own past."""
        owner = self._store.owner
        if owner is not None:
            there, record = self._remote.checkpoints(), self._remote.record()
            why = self._remote.refusal(owner, self._own, there, record)
            newest = record.branches.get(owner.branch)
            if why is None and newest is not None and newest in there and newest not in self._own:
                why = f"the run has gone on elsewhere, to {newest.entry_name}, which is not this one's past"
            if why is not None:
                raise _Refused(why)
        self._is_met = True

    def _refuse(self, why: str) -> None:
        with self._changed:
            self._is_refused = self._abandoned = True
            self._protect()
        self._tell(
            f"WARNING: nothing is copied to {self._remote.url}: {why}. Training goes on, and its checkpoints are in "
            f"{self._store.run_dir}. To have them copied give the run a URL of its own; to go on with what is there "
            "begin with ckpt_path='last' in an empty directory."
        )

    def _require_turn(self) -> None:
        """Raises _NotOurTurn while somebody else copies there, or is not known to be gone."""
        claim, lease = self._lease.claim(), self._lease
        if claim == "held":
            if self._told_of_watching or self._told_of_busy:
                self._told_of_watching = self._told_of_busy = False
                self._tell(f"Nobody else copies to {self._remote.url}: this run does now.")
            if not self._is_met:
                self._meet()  # again: the other may have left something
            return
        self._is_met, self._names = False, None
        if claim == "watching" and not self._told_of_watching:
            self._told_of_watching = True
            self._tell(
                f"Perhaps somebody else copies to {self._remote.url}: {lease.holder}. Nothing is copied before it has "
                f"given no sign for {lease.seconds_to_watch:.0f} s."
            )
        if claim == "busy" and not self._told_of_busy:
            self._told_of_busy = True
            self._tell(
                f"WARNING: nothing is copied to {self._remote.url} now, since somebody else copies there: "
                f"{lease.holder}. Two at one URL would mix their checkpoints. Training goes on, and its checkpoints "
                f"are in {self._store.run_dir}. Stop one of the two, or give each a URL of its own."
            )
            with self._changed:
                self._protect()
        raise _NotOurTurn(min(lease.seconds_to_watch, leases.LEASE_SECONDS / (3 if claim == "busy" else 10)))

    # ---- one checkpoint ----

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
        self._logs.upload()  # before the checkpoint that says how far they had come
        try:
            copied = self._remote.upload(entry.path, lambda: self._lease.is_held and not self._abandoned)
        except (CheckpointCorruptError, FileNotFoundError) as error:
            is_missed = self._is_still_wanted(entry)
            self._unusable.add(entry.sha256)
            if is_missed:
                self._tell(f"WARNING: {entry.name} was not copied to {self._remote.url}: {error}")
            return
        if copied is not None:
            self._copied[entry.sha256] = copied
            if entry.owner is not None:
                before = self._branches.get(entry.owner.branch, copied)
                self._branches[entry.owner.branch] = max(before, copied, key=lambda one: one.order)

    def _write_names(self) -> None:
        """Let each wanted name lead to what it holds and is there; while nothing of it is there, to what it led to."""
        started = time.monotonic()
        if self._names is None:
            self._names = self._remote.record()
            if self._names.is_rebuilt:
                self._tell(f"{NAMES_FILE} of {self._remote.url} was lost or damaged: it is made anew of what is there.")
        with self._changed:
            pins = dict(self._pins)
        names = dict(self._names.held)
        named = {(one.entry_name, one.digest): one for held in names.values() for one in held}
        for name in self._held_once - set(pins):
            names.pop(name, None)  # taken away in this process; of others we know nothing
        for name, held in pins.items():
            # An earlier process's copy counts too: this machine's own may be damaged by now, or not be looked at yet.
            found = [self._copied.get(one.sha256) or named.get((one.name, one.sha256[:16])) for one in held]
            there = [one for one in found if one is not None]
            if there:
                names[name] = there
        branches = dict(self._names.branches)
        for branch, newest in self._branches.items():
            branches[branch] = max(branches.get(branch, newest), newest, key=lambda one: one.order)
        after = Names(names, self._store.owner or self._names.owner, branches)
        if after != self._names and not self._abandoned:
            self._remote.write_names(after)
            self._names = after
        self._held_once.update(pins)
        if sum(map(len, pins.values())) > _FEW_NAMED:
            self._next_names = time.monotonic() + _RESTS * (time.monotonic() - started)

    def _retire(self) -> None:
        """Delete what is neither named nor among the last N, of what this run copied, half or whole, or went on from.

        Anything else may be all that is left of another run, or of a past whose names were lost.
        """
        if self._keep_last_n is None or self._names is None:
            return
        kept = {one for held in self._names.held.values() for one in held}
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
