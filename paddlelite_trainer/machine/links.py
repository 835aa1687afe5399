"""Links: two sockets between rank 0 and each other rank, one to meet on and one for news, with nothing of Paddle's."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
from pathlib import Path

from ..errors import ConfigurationError, RankFailedError
from .board import Board, made, opened
from .failure import Peer
from .paddle_internals import job_store

CONNECT_SECONDS = 60.0
_OFFER = "paddlelite_trainer/links"
_LONGEST_WAIT = 10**6  # seconds; a socket takes no infinity
_KINDS = ("meeting", "news")
_YES, _NO = b"1", b"0"
# A machine that vanishes says nothing: its silence is noticed by the kernel, which asks after 10 s, every 5 s, 4 times.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))


class Links:
    """`meeting` and `news`: {rank: socket}; rank 0 has one to every other rank, the others have one to rank 0.

    Every rank makes them; one may be later by `timeout_seconds`. `peers` are all processes, by rank; `board` is the
    memory that they share, None where they are on several machines.
    """

    def __init__(self, me: Peer, world_size: int, timeout_seconds: float) -> None:
        self.meeting: dict[int, socket.socket] = {}
        self.news: dict[int, socket.socket] = {}
        if me.rank == 0:
            token = secrets.token_hex(16)
            with _listening() as server:
                host, port = server.getsockname()[:2]
                job_store().set(_OFFER, json.dumps([host, port, token]).encode())
                others = self._accept(server, token, world_size, timeout_seconds)
            self.peers = [me, *(others[rank] for rank in sorted(others))]
            path = made(world_size) if len({peer.host for peer in self.peers}) == 1 else None
            line = json.dumps([str(path or ""), *(peer.as_dict() for peer in self.peers)]).encode() + b"\n"
            for link in self.news.values():
                link.sendall(line)
        else:
            host, port, token = json.loads(job_store().get(_OFFER))
            for kind in _KINDS:
                link = _connected(host if host != "0.0.0.0" else _host_of_rank_zero(), port, me.rank)
                link.sendall(json.dumps([token, kind, me.as_dict()]).encode() + b"\n")
                self._keep(0, kind, link)
            self.news[0].settimeout(min(timeout_seconds, _LONGEST_WAIT))
            told, *peers = json.loads(_line(self.news[0]) or b"[null]")
            self.peers, path = [Peer(**one) for one in peers], Path(told) if told else None
            if not self.peers:
                raise RankFailedError("rank 0 ended before all ranks had come together; its own log says why")
        self.board = self._agreed(opened(path, me.rank, world_size))
        if path is not None and me.rank == 0:
            path.unlink(missing_ok=True)  # it lives as long as a process has it

    def _agreed(self, board: Board | None) -> Board | None:
        """The board where every rank has it."""
        try:
            if 0 in self.meeting:
                self.meeting[0].sendall(_YES if board is not None else _NO)
                return board if self.meeting[0].recv(1) == _YES else None
            everyone = [link.recv(1) == _YES for link in self.meeting.values()] + [board is not None]
            for link in self.meeting.values():
                link.sendall(_YES if all(everyone) else _NO)
        except OSError:
            return None  # one has just ended, which the first meeting tells
        return board if all(everyone) else None

    def forget(self) -> None:
        """In a forked child: they are the parent's, whose end would not be seen while a child holds them open."""
        for link in (*self.meeting.values(), *self.news.values()):
            link.close()

    def _accept(self, server: socket.socket, token: str, world_size: int, timeout_seconds: float) -> dict[int, Peer]:
        peers: dict[int, Peer] = {}
        server.settimeout(min(timeout_seconds, _LONGEST_WAIT))
        while len(self.meeting) + len(self.news) < 2 * (world_size - 1):
            try:
                link, _ = server.accept()
            except TimeoutError as error:
                missing = sorted(set(range(1, world_size)) - set(peers))
                raise RankFailedError(
                    f"rank {', '.join(map(str, missing))} has not made its Trainer within {timeout_seconds:.0f} s "
                    "(Trainer(rank_timeout=...)); its own log says why"
                ) from error
            link.settimeout(CONNECT_SECONDS)
            try:
                given, kind, peer = json.loads(_line(link))
                known = hmac.compare_digest(str(given).encode(), token.encode())
            except (OSError, ValueError):
                known = False
            if not known:
                link.close()  # a stranger's
                continue
            peers[peer["rank"]] = Peer(**peer)
            self._keep(peer["rank"], kind, link)
        return peers

    def _keep(self, rank: int, kind: str, link: socket.socket) -> None:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE:
            if hasattr(socket, name):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        (self.meeting if kind == "meeting" else self.news)[rank] = link


def _host_of_rank_zero() -> str:
    first = os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")[0]
    return first.rpartition(":")[0] or "127.0.0.1"


def _listening() -> socket.socket:
    try:
        return socket.create_server((_host_of_rank_zero(), 0))
    except OSError:  # the address of a router or a container's host, which is not this machine's own
        return socket.create_server(("", 0))


def _connected(host: str, port: int, rank: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    except OSError as error:
        raise ConfigurationError(
            f"rank {rank} cannot reach rank 0 at {host}:{port}. The machines of a job must reach each other on every "
            "port, as Paddle's own connections need it too: open the firewall between them"
        ) from error


def _line(link: socket.socket) -> bytes:
    """Up to a line's end and not a byte more; nothing where the connection ends before."""
    found = bytearray()
    while not found.endswith(b"\n"):
        more = link.recv(1)
        if not more:
            return b""
        found += more
    return bytes(found)
