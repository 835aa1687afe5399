"""Meeting: where ranks wait for each other without a deadline of Paddle's, and hear at once that one has failed."""

from __future__ import annotations

import atexit
import json
import math
import os
import selectors
import sys
import threading
import time
from collections.abc import Collection
from types import TracebackType
from typing import Any

from ..errors import RankFailedError
from .board import ARRIVED
from .failure import Failure, Peer, failure_of, place_of, shown, stack_of_main_thread, this_process
from .links import Links
from .signals import EXIT_PREEMPTED

EXIT_OTHER_RANK = 76
"""Exit code of a rank that ended because another had failed, where it could not raise RankFailedError."""
LOOK_SECONDS = 0.5  # how often a rank that waits looks whether another has failed
TELL_SECONDS = 60.0  # how often it says for whom it waits
GRACE_SECONDS = 5.0  # for a rank to end by itself once another has failed
LONG_GRACE_SECONDS = 15.0  # the same for one whose own error is on its way through hooks and teardown
_LABEL = 64


class Meeting:
    """One for each process of a job, open until it ends.

    `meet` is a collective, and `arrive` where there is a board. News go beside it, at any time, over rank 0: "note", an
    exception has left a fit and may be caught; "clear", it was; "fail", the process ends for it; "bye", it ends, in
    peace, after so many exchanges; "where" and "here", where its main thread is and at which meeting. A connection that
    ends without a "bye" is a process that died. Only the thread that listens and this process's own calls write what is
    known, under the condition `_changed`.
    """

    def __init__(self, rank: int, world_size: int, timeout_seconds: float) -> None:
        self.rank = rank
        self._links = Links(this_process(rank), world_size, timeout_seconds)
        self.peers: list[Peer] = self._links.peers
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self.first: Failure | None = None
        self._notes: dict[int, tuple[Failure, float]] = {}
        self._left: dict[int, int] = {}  # and after which exchange
        self._left_by_exit = False
        self._gone: set[int] = set()
        self._places: dict[int, dict[str, Any]] = {}
        self._is_over = self._is_judging = False
        self._meets_at, self._meetings = "", 0
        """Where this rank waits for others, and how many meetings it has come to."""
        self.board = self._links.board
        self._step = self._arrivals = 0
        self._waits_since, self._patience = math.inf, timeout_seconds
        self._blamed: tuple[BaseException | None, int] = (None, 0)
        self._hook = sys.excepthook
        for link in self._links.meeting.values():
            link.settimeout(LOOK_SECONDS)
        for link in self._links.news.values():
            link.settimeout(None)
        vars(sys)["excepthook"] = self._on_uncaught
        atexit.register(self._leave)
        if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
            os.register_at_fork(after_in_child=self._links.forget)
        threading.Thread(target=self._listen, name="news-of-ranks", daemon=True).start()

    # -- meeting -------------------------------------------------------------------------------------------------------
    def meet(self, what: str, timeout_seconds: float) -> None:
        """Return when every rank has come here; `what` is where they meet, and must be the same on all.

        Raises:
            RankFailedError: one has failed, has left, is elsewhere, or has not come within the time; it says which.
        """
        self.rest()
        self._come_with_no_error(timeout_seconds)
        self._meetings += 1
        self._meets_at, began = what, time.monotonic()
        try:
            label = what.encode()[:_LABEL].ljust(_LABEL)
            if self.rank:
                self._send(0, label)
                self._refuse_another_place({0: self._receive(0, what, began), self.rank: label})
            else:
                heard = {rank: self._receive(rank, what, began) for rank in sorted(self._links.meeting)}
                for rank in heard:
                    self._send(rank, label)
                self._refuse_another_place({0: label, **heard})
        finally:
            self._meets_at = ""

    def _come_with_no_error(self, timeout_seconds: float) -> None:
        self._patience = timeout_seconds
        if self.rank in self._notes:
            self._forget(self.rank)
            self._tell({"kind": "clear", "rank": self.rank})

    def arrive(self, what: str, timeout_seconds: float, *, waits: bool) -> None:
        """`meet` on the board, which all ranks have: no message where the others have come already.

        Unless it `waits`, `await_arrivals` does.
        """
        assert self.board is not None
        self._come_with_no_error(timeout_seconds)
        self._arrivals += 1
        self.board.post(ARRIVED, self._arrivals)
        if waits:
            self.await_arrivals(what)

    def await_arrivals(self, what: str) -> None:
        """Return when all ranks have arrived where this one has."""
        self.await_all(ARRIVED, self._arrivals, what)

    def begin_arrivals(self) -> None:
        """Count them from nought again; between two meetings."""
        self._arrivals = 0
        if self.board is not None:
            self.board.begin()

    def await_all(self, counter: int, count: int, what: str) -> None:
        """Return when every rank has come so far on the board.

        Raises:
            RankFailedError: as `meet`.
        """
        board = self.board
        assert board is not None
        late = board.late(counter, count)
        if not late:
            return
        began = time.monotonic()
        looked, told = LOOK_SECONDS, TELL_SECONDS
        self._meets_at = what
        try:
            while late:
                waited = time.monotonic() - began
                if waited >= looked:
                    looked = waited + LOOK_SECONDS
                    self._refuse_to_wait(late[0], what, waited)
                    self._refuse_another_meeting(late[0], what)
                if waited >= told:
                    told += TELL_SECONDS
                    self._tell_of_waiting(late[0], what, waited)
                board.doze(counter, late[0], count, waited)
                late = board.late(counter, count)
        finally:
            self._meets_at = ""

    def _refuse_another_meeting(self, rank: int, what: str) -> None:
        """One that waits at a meeting to which this rank has not come will not come here."""
        found = self.where(rank)
        if found.get("meets") and found.get("meetings", 0) > self._meetings:
            words = _of_another_place({self.rank: what, rank: found["meets"]})
            self.end_with(Failure(self.rank, self.peers[self.rank].host, self.peers[self.rank].log, words))
            raise RankFailedError(words)

    def _refuse_another_place(self, labels: dict[int, bytes]) -> None:
        for rank, label in labels.items():
            if label != labels[0]:
                here, there = (one.decode(errors="replace").strip() for one in (labels[0], label))
                words = _of_another_place({0: here, rank: there})
                if self.rank == 0:  # and those that are in the right place are told
                    self.end_with(Failure(0, self.peers[0].host, self.peers[0].log, words))
                raise RankFailedError(words)

    def begin_exchange(self) -> None:
        """A step of this rank goes into the exchange of gradients, where it waits for the others without a meeting.

        The thread that listens sees when it has done so for too long.
        """
        self._step += 1
        self._waits_since = time.monotonic()

    def rest(self) -> None:
        """This rank is in no exchange."""
        self._waits_since = math.inf

    def _watch_exchange(self, waits: float) -> None:
        """End the job where who has left will never come to the exchange that this rank waits in, for so many seconds,
        or has waited in before it failed; and where another is too late."""
        early = [rank for rank, step in self._left.items() if step < self._step]
        if early and waits >= 0 and self.first is None:
            words = f"it has ended, and rank {self.rank} waits for it in the backward of a step"
            self._hear_of_the_end(early[0], words)
        if waits > self._patience + (GRACE_SECONDS if self.rank else 0.0) and not self._is_judging:
            self._is_judging = True
            threading.Thread(target=self._judge, args=(self._step,), name="who-is-late", daemon=True).start()

    def _judge(self, step: int) -> None:
        """End the job where another rank has not come to this one's exchange; all in the same may be busy."""
        found = {peer.rank: self.where(peer.rank) for peer in self.peers if peer.rank != self.rank}
        late = min(found, key=lambda rank: int(found[rank].get("step", 0)))
        if self._step == step and self._waits_since < math.inf and int(found[late].get("step", 0)) < step:
            self._end_of_the_late(late, f"the exchange of gradients of step {step}", self._patience, found[late])
            self._end_soon()
        self._is_judging = False

    def _end_of_the_late(self, rank: int, what: str, timeout_seconds: float, found: dict[str, Any]) -> Failure:
        peer = self.peers[rank]
        reason = (
            f"it has not come to {what} within {timeout_seconds:.0f} s (Trainer(rank_timeout=...), "
            "to be raised where that is not enough), and the others wait for it there"
        )
        late = Failure(rank, peer.host, peer.log, reason, found.get("place", ""), found.get("stack", ""))
        self.end_with(late)
        return late

    def _send(self, rank: int, label: bytes) -> None:
        try:
            self._links.meeting[rank].sendall(label)
        except OSError:
            raise self._lost(rank, label.decode().strip()) from None

    def _receive(self, rank: int, what: str, began: float) -> bytes:
        link, label, told = self._links.meeting[rank], b"", TELL_SECONDS
        while len(label) < _LABEL:
            try:
                more = link.recv(_LABEL - len(label))
            except TimeoutError:
                waited = time.monotonic() - began
                self._refuse_to_wait(rank, what, waited)
                if waited >= told:
                    told += TELL_SECONDS
                    self._tell_of_waiting(rank, what, waited)
                continue
            except OSError:
                more = b""
            if not more:
                raise self._lost(rank, what)
            label += more
        return label

    def _refuse_to_wait(self, rank: int, what: str, waited: float) -> None:
        if self.first is not None:
            raise RankFailedError(str(self.first))
        if rank in self._left:
            raise self._lost(rank, what)
        noted, since = self._notes.get(rank, (None, 0.0))
        if noted is not None and time.monotonic() - since > GRACE_SECONDS:
            self.end_with(noted)
            raise RankFailedError(str(noted))
        if waited > self._patience + (GRACE_SECONDS if self.rank else 0.0):  # rank 0 knows better who is missing
            found = self.where(rank)
            if not found.get("meets"):
                raise RankFailedError(str(self._end_of_the_late(rank, what, self._patience, found)))

    def _tell_of_waiting(self, rank: int, what: str, waited: float) -> None:
        found = self.where(rank)
        if not found.get("meets"):  # else it waits itself, and tells for whom
            place = found.get("place", "an unknown place")
            self._say(f"Rank {self.rank} has waited for rank {rank} for {waited:.0f} s at {what}; it is in {place}.")

    def _lost(self, rank: int, what: str) -> RankFailedError:
        """The error of a rank that waits for one that is no longer there."""
        with self._changed:
            self._changed.wait_for(lambda: self.first is not None or rank in self._left, GRACE_SECONDS)
        if self.first is None:
            peer, (noted, _) = self.peers[rank], self._notes.get(rank, (None, 0.0))
            reason = f"it has ended, and rank {self.rank} waits for it at {what}. Every rank must make the same calls"
            self.end_with(noted or Failure(rank, peer.host, peer.log, reason))
        return RankFailedError(str(self.first))

    # -- news ----------------------------------------------------------------------------------------------------------
    def blame(self, rank: int, error: BaseException) -> None:
        """This error, which is about to be raised here, is another rank's own."""
        self._blamed = (error, rank)

    def note(self, error: BaseException) -> None:
        """An exception leaves a fit or an evaluation; whoever waits for this rank may not wait for long."""
        if self.first is not None or isinstance(error, RankFailedError):
            return
        noted = self._failure_of(error)
        with self._changed:
            self._notes[self.rank] = (noted, time.monotonic())
            # An exit that says nothing of a failure may be that of all ranks, some of which take longer to it.
            self._left_by_exit = isinstance(error, SystemExit) and error.code not in (None, 0, EXIT_PREEMPTED)
        if noted.rank == self.rank:
            self._tell({"kind": "note", **noted.as_dict()})

    def _failure_of(self, error: BaseException) -> Failure:
        one: BaseException | None = error
        while one is not None:
            if one is self._blamed[0]:
                return Failure(**{**failure_of(self.peers[self._blamed[1]], one).as_dict(), "place": ""})
            one = one.__cause__ or one.__context__
        return failure_of(self.peers[self.rank], error)

    def end_with(self, failure: Failure) -> None:
        """All ranks end, and say this."""
        with self._changed:
            if self.first is None:
                self.first = failure
            self._changed.notify_all()
        self._tell({"kind": "fail", **failure.as_dict()})

    def where(self, rank: int) -> dict[str, Any]:
        """Where the main thread of a rank is: "place", "stack", "step", "meets"; empty where it does not answer."""
        self._places.pop(rank, None)
        self._tell({"kind": "where", "rank": rank})
        with self._changed:
            self._changed.wait_for(lambda: rank in self._places, 2.0)
        return self._places.get(rank, {})

    def _tell(self, news: dict[str, Any], but: int | None = None) -> None:
        line = json.dumps(news).encode() + b"\n"
        with self._sending:
            for rank, link in self._links.news.items():
                if rank != but and rank not in self._gone:
                    try:
                        link.sendall(line)
                    except OSError:
                        continue  # it has ended, which its own connection tells

    def _listen(self) -> None:
        with selectors.DefaultSelector() as waiting:
            pending: dict[int, bytes] = {}
            for rank, link in self._links.news.items():
                waiting.register(link, selectors.EVENT_READ, rank)
            while waiting.get_map():
                self._watch_exchange(time.monotonic() - self._waits_since)
                for key, _ in waiting.select(LOOK_SECONDS * 2):
                    rank = key.data
                    lines = self._read(key.fileobj, rank, pending)
                    if lines is None:
                        waiting.unregister(key.fileobj)
                        self._end_of_connection(rank)
                    for line in lines or ():
                        self._learn(json.loads(line))
                        if self.rank == 0:
                            self._tell(json.loads(line), but=rank)

    def _read(self, link: Any, rank: int, pending: dict[int, bytes]) -> list[bytes] | None:
        """Whole lines that have come; None at the end."""
        try:
            more: bytes = link.recv(65536)
        except OSError:
            more = b""
        if not more:
            return None
        *lines, pending[rank] = (pending.get(rank, b"") + more).split(b"\n")
        return lines

    def _learn(self, news: dict[str, Any]) -> None:
        kind, rank = news.pop("kind"), news["rank"]
        if kind == "where":
            if rank == self.rank:
                stack = stack_of_main_thread()
                here: dict[str, Any] = {"place": place_of(stack), "stack": shown(stack)}
                here |= {"step": self._step, "meets": self._meets_at, "meetings": self._meetings}
                self._tell({"kind": "here", "rank": rank, **here})
            return
        with self._changed:
            if kind == "note":
                self._notes[rank] = (Failure(**news), time.monotonic())
            elif kind == "clear":
                self._notes.pop(rank, None)
            elif kind == "bye":
                self._left[rank] = news["step"]
            elif kind == "here":
                self._places[rank] = news
            elif self.first is None:
                self.first = Failure(**news)
                threading.Thread(target=self._end_soon, name="end-of-job", daemon=True).start()
            self._changed.notify_all()

    def _forget(self, rank: int) -> None:
        with self._changed:
            self._notes.pop(rank, None)

    def _end_of_connection(self, rank: int) -> None:
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()
            died = rank not in self._left and self.first is None
        if died and not self._is_over:
            self._hear_of_the_end(
                rank,
                f"its process {self.peers[rank].pid} ended without a word: killed, perhaps by the system for want of "
                "memory (dmesg tells), crashed, or ended by os._exit",
            )

    def _hear_of_the_end(self, rank: int, reason: str) -> None:
        """A rank has ended, for this reason unless it told another, and this one hears of it where nobody waits."""
        peer, (noted, _) = self.peers[rank], self._notes.get(rank, (None, 0.0))
        failure = noted or Failure(rank, peer.host, peer.log, reason)
        self._learn({"kind": "fail", **failure.as_dict()})
        self._tell({"kind": "fail", **failure.as_dict()})

    # -- the end -------------------------------------------------------------------------------------------------------
    def _end_soon(self) -> None:
        """The main thread may be in a collective of Paddle's that cannot be left; it has time to end by itself."""
        began = time.monotonic()
        while time.monotonic() - began < self._grace():
            time.sleep(LOOK_SECONDS / 5)
        self.end_at_once()

    def _grace(self) -> float:
        if self.first is not None and self.first.rank == self.rank:
            return LOOK_SECONDS  # another rank has waited long enough for this one
        return LONG_GRACE_SECONDS if self.rank in self._notes else GRACE_SECONDS

    def end_at_once(self) -> None:
        """The last words, and the end of this process without any teardown."""
        self._say(str(self.first))
        os._exit(EXIT_OTHER_RANK)

    def await_news(self, seconds: float) -> bool:
        """Whether another rank's failure is known, or comes to be known in this time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.first is not None, seconds)

    def _say(self, words: str) -> None:
        """Past Python's own streams, whose lock the main thread may hold."""
        os.write(2, f"\n{words}\n".encode())

    def before_abort(self) -> None:
        """Gloo is about to abort this process: most often because another has died, of which the news is on its way."""
        if not self.await_news(GRACE_SECONDS):
            mine = self.peers[self.rank]
            others = [peer for peer in self.peers if peer.rank != self.rank]
            places = [f"{peer} is in {self.where(peer.rank).get('place', 'an unknown place')}" for peer in others]
            reason = f"its process aborts, as gloo does after 30 s without an answer in a backward; {', '.join(places)}"
            self.end_with(Failure(mine.rank, mine.host, mine.log, reason))
        self.end_at_once()

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.getpid() != self._pid:
            self._hook(kind, error, trace)
            return
        is_told = isinstance(error, (RankFailedError, KeyboardInterrupt))
        if not is_told:
            self._watch_exchange(0.0)
        failure = self._failure_of(error)
        if not is_told and (failure.rank != self.rank or _is_of_a_collective(error)):
            self.await_news(GRACE_SECONDS)  # where another has died, that is the reason, and not what Paddle says
        is_first = self.first is None and not is_told
        if is_first:
            self.end_with(failure)
        self._hook(kind, error, trace)
        if self.first is not None and not is_told:
            self._say(str(self.first))
        if is_first:
            self._await_end_of_others()

    def _await_end_of_others(self, besides: Collection[int] = ()) -> None:
        """Their collectives would be torn apart before they have heard."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._gone.union(self._left, besides) >= set(self._links.news), 2 * GRACE_SECONDS
            )

    def _leave(self) -> None:
        """The process ends; an exit is no uncaught exception to Python, so that one in a fit is told here."""
        if os.getpid() != self._pid:
            return
        noted, _ = self._notes.get(self.rank, (None, 0.0))
        if noted is not None and self._left_by_exit:
            is_first = self.first is None
            if is_first:
                self.end_with(noted)
            self._say(str(self.first))
            if is_first:
                self._await_end_of_others(self._notes)  # those that leave by an exception too hear nothing more
        self._is_over = True
        self._tell({"kind": "bye", "rank": self.rank, "step": self._step})


def _of_another_place(places: dict[int, str]) -> str:
    (one, here), (other, there) = sorted(places.items())
    return (
        f"the ranks are not in the same place: rank {one} is at {here}, rank {other} at {there}. Every rank must make "
        "the same calls, and gather data of one form: look for a call within `if trainer.is_global_zero`, and for an "
        "exception that one rank has caught"
    )


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether an error is what Paddle says where a peer of a collective is gone."""
    words = str(error)
    return any(word in words for word in ("gloo", "TIMEOUT", "Connection closed", "Connection reset", "NCCL", "xccl"))


_meeting: list[Meeting] = []


def meeting_of(rank: int, world_size: int, timeout_seconds: float) -> Meeting:
    """This process's own, opened by the first call, which all ranks make."""
    if not _meeting:
        _meeting.append(Meeting(rank, world_size, timeout_seconds))
    return _meeting[0]
