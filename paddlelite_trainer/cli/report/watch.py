"""Serves the report on this machine alone, and tells the page what is new as often as it asks."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...errors import ConfigurationError, TrainerError
from ...reporting.terminal import count, say
from ..output import OK
from .everything import Collection
from .page import as_json, page_of

LOOPBACK = "127.0.0.1"


class News:
    """The collection as it is now; where reading it takes long that is done seldom, for at most a tenth of a core."""

    def __init__(self, collection: Collection, seconds: float) -> None:
        self._collection, self._seconds = collection, seconds
        self._lock = threading.Lock()
        self._next = 0.0
        self.data: dict[str, Any] = {}
        self.etag = ""
        self.seconds = seconds

    def look(self) -> None:
        """Read again, unless that was done a moment ago."""
        with self._lock:
            began = time.monotonic()
            if began < self._next:
                return
            data = self._collection.read()
            etag = hashlib.sha256(as_json({**data, "made": None}).encode()).hexdigest()[:24]
            if etag != self.etag:
                self.data, self.etag = data, etag
            took = time.monotonic() - began
            self.seconds = max(self._seconds, round(10 * took, 1))
            self._next = time.monotonic() + self.seconds / 2


def serve(collection: Collection, *, port: int = 8765, every: float = 5.0) -> int:
    """Serve until Ctrl-C.

    Raises:
        ConfigurationError: the port is taken, or no port.
    """
    server = server_for(collection, port=port, seconds=every)
    found = len(collection.read()["runs"])
    say(f"http://{LOOPBACK}:{server.server_address[1]}/  {count(found, 'run')}; Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()
    return OK


def server_for(collection: Collection, *, port: int, seconds: float) -> ThreadingHTTPServer:
    """The server, bound to the loopback interface and not yet serving."""
    news = News(collection, seconds)
    try:
        return ThreadingHTTPServer((LOOPBACK, port), _handler(news))
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"cannot serve on port {port} ({error}); choose another --port, or 0 for any that is free"
        ) from error


def _handler(news: News) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Two things can be got, and only by this machine's own names: another site's page cannot ask in its own."""

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (LOOPBACK, "localhost"):
                return self._answer(403, b"ask for 127.0.0.1 or localhost", "text/plain")
            path = self.path.partition("?")[0]
            if path not in ("/", "/data"):
                return self._answer(404, b"there is / and /data", "text/plain")
            try:
                news.look()
            except (TrainerError, OSError) as error:
                return self._answer(500, str(error).encode(errors="replace"), "text/plain")
            if path == "/":
                return self._answer(200, page_of(news.data, live_seconds=news.seconds), "text/html; charset=utf-8")
            etag = f'"{news.etag}"'
            if self.headers.get("If-None-Match") == etag:
                return self._answer(304, b"", "application/json", ETag=etag)
            return self._answer(200, as_json(news.data).encode(), "application/json", ETag=etag)

        def _answer(self, code: int, content: bytes, kind: str, **headers: str) -> None:
            self.send_response(code)
            fields = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
            for name, value in {**fields, "X-Content-Type-Options": "nosniff", **headers}.items():
                self.send_header(name, value)
            self.send_header("X-Seconds", str(news.seconds))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Requests are no news."""

    return Handler
