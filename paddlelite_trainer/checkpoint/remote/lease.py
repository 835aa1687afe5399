"""Lease: who copies to a remote at this moment, told by an object there that its writer changes again and again."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from ...errors import CheckpointCorruptError
from ..manifest import seal, unseal
from ..owner import Owner, parse_owner
from .objects import Objects

LEASE_FILE = "writer.json"
LEASE_SECONDS = 30.0
"""After so long without a sign a writer counts as dead; it gives three signs in that time."""
_LONGEST_LEASE_SECONDS = 600.0  # whatever somebody else's lease says
_MAX_BYTES = 1 << 16

_LIVE: dict[str, Callable[[], bool]] = {}
"""{a lease of this process: whether its writer still works}."""

Claim = Literal["held", "watching", "busy"]
"""Ours; somebody's, who may be dead; somebody's who lives."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as it says itself."""

    writer: str
    count: int
    seconds: float
    process: int
    host: str
    machine: str
    started: str
    at: str
    owner: Owner | None

    def __str__(self) -> str:
        whose = f", of {self.owner}" if self.owner is not None else ""
        return f"process {self.process} on {self.host}{whose}, whose last sign is of {self.at} by its clock"

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be gone; of another machine's processes that cannot be known."""
        if self.writer in _LIVE:
            return not _LIVE[self.writer]()
        here, _, own_start = _this_process()
        if not here or self.machine != here:
            return False
        if self.process == os.getpid() and self.started == own_start:
            return True  # an earlier writer of this process
        started = _start_of(self.process)
        return started is None or started != self.started


class Lease:
    """One writer's claim to a remote. No clock is compared with another: a writer lives while its lease changes.

    Who finds somebody else's lease watches it. If it changes, its writer is alive, and whoever looks is the second; if
    it does not for as long as it says itself, or its process is known to be gone, it is taken over. Who finds that its
    own was taken over is the second from then on. So of two that begin in the same moment one is left.
    """

    def __init__(self, objects: Objects, owner: Owner | None, is_working: Callable[[], bool]) -> None:
        self.holder: Holder | None = None
        """Who has it, where we have not."""
        self._objects = objects
        self._owner = owner
        self._writer = secrets.token_hex(8)
        self._is_working = is_working
        self._lock = threading.Lock()  # the copier claims, a thread of its own renews
        self._count = 0
        self._is_held = self._is_busy = self._is_over = False
        self._renewed = 0.0
        self._seen: tuple[str, int] | None = None
        self._seen_since = 0.0
        self._no_more = threading.Event()

    @property
    def is_held(self) -> bool:
        return self._is_held

    @property
    def is_busy(self) -> bool:
        """Whether somebody who lives has it."""
        return self._is_busy

    @property
    def seconds_to_watch(self) -> float:
        """How long at most until it is known whether the holder lives; when to look next where it does."""
        if self.holder is None:
            return 0.0
        return max(0.0, self._seen_since + self.holder.seconds - time.monotonic())

    def claim(self) -> Claim:
        """Take or renew it if that is right, and say whose it is now."""
        with self._lock:
            found = self._read()
            is_another_s = found is not None and found.writer != self._writer
            if self._is_over or (is_another_s and not self._may_take(found)):
                self._is_busy = self._is_busy or self._is_held
                self._is_held, self.holder = False, found
                return "busy" if self._is_busy else "watching"
            self._hold()
            return "held"

    def keep_renewing(self, on_lost: Callable[[], None]) -> None:
        """Give signs from a thread of its own until `release`, as one upload may take longer than a lease."""

        def renew() -> None:
            while not self._no_more.wait(LEASE_SECONDS / 3):
                try:
                    if self._is_held and self.claim() != "held":
                        on_lost()
                except Exception:  # the copier has the same trouble, and tells of it
                    continue

        threading.Thread(target=renew, name="remote-copy-lease", daemon=True).start()

    def release(self) -> None:
        """Give it back, so that the next one need not watch."""
        self._no_more.set()
        with self._lock:
            self._is_over = True
            _LIVE.pop(self._writer, None)
            if not self._is_held:
                return
            self._is_held = False
            found = self._read()
            if found is not None and found.writer == self._writer:
                self._objects.delete(LEASE_FILE)

    def _may_take(self, found: Holder | None) -> bool:
        if found is None or (found.is_dead and not self._is_held):
            return True
        now, sign = time.monotonic(), (found.writer, found.count)
        if sign != self._seen:
            self._is_busy = self._is_busy or self._seen is not None
            self._seen, self._seen_since = sign, now
            return False
        return now - self._seen_since >= found.seconds

    def _hold(self) -> None:
        now = time.monotonic()
        if self._is_held and now - self._renewed < LEASE_SECONDS / 6:
            return
        self._count += 1
        machine, host, started = _this_process()
        record: dict[str, Any] = {
            "format": 1,
            "writer": self._writer,
            "count": self._count,
            "seconds": LEASE_SECONDS,
            "process": os.getpid(),
            "host": host,
            "machine": machine,
            "started": started,
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        if self._owner is not None:
            record["run"] = self._owner.to_json()
        self._objects.put(LEASE_FILE, seal(record))
        _LIVE[self._writer] = self._is_working
        self._is_held, self._is_busy, self._renewed = True, False, now
        self._seen = self.holder = None

    def _read(self) -> Holder | None:
        """None where nobody holds it, or what is there is no lease."""
        try:
            return _parse(unseal(self._objects.read(LEASE_FILE, 0, _MAX_BYTES), LEASE_FILE))
        except (FileNotFoundError, CheckpointCorruptError, KeyError, TypeError, ValueError):
            return None


def _parse(record: Mapping[str, Any]) -> Holder:
    return Holder(
        writer=str(record["writer"]),
        count=int(record["count"]),
        seconds=min(max(float(record["seconds"]), 0.0), _LONGEST_LEASE_SECONDS),
        process=int(record["process"]),
        host=_shown(record["host"]),
        machine=str(record["machine"]),
        started=str(record["started"]),
        at=_shown(record["at"]),
        owner=parse_owner(record.get("run")),
    )


def _shown(text: object) -> str:
    """What somebody else has written, fit for a terminal."""
    return "".join(letter for letter in str(text)[:80] if letter.isprintable())


def _this_process() -> tuple[str, str, str]:
    """(what tells this machine's processes from others' of the same number, or "" where nothing does; host; start)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            machine = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        machine = ""
    return machine, socket.gethostname(), _start_of(os.getpid()) or ""


def _start_of(process: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did; None where there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            state, *fields = file.read().rpartition(")")[2].split()
        return fields[18] if state not in ("Z", "X") else None
    except (OSError, IndexError):
        return None
