"""An S3 server on loopback (moto's), and a door to it behind which answers fail, tear, drip or kill."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = {"key": "testing", "secret": "testing"}
BUCKET = "bucket"

ERRORS = {
    "throttled": (503, "SlowDown", "Please reduce your request rate."),
    "broken": (500, "InternalError", "We encountered an internal error. Please try again."),
    "skewed": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    ),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
}


class Server:
    """moto's S3 with one bucket; `between()` is a door to it that misbehaves as it is told."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.address = self._server.get_host_and_port()
        self._request("PUT", f"/{BUCKET}")

    def url(self) -> str:
        return f"s3://{BUCKET}/run-{uuid.uuid4().hex}"

    @property
    def options(self) -> dict[str, Any]:
        """What fsspec is given to reach it directly."""
        return options(*self.address)

    def keys(self, url: str) -> list[str]:
        """Every object below the URL."""
        import fsspec

        file_system, root = fsspec.core.url_to_fs(url, **self.options)
        file_system.invalidate_cache()
        return [path[len(root) + 1 :] for path in file_system.find(root)]

    def _request(self, method: str, path: str) -> None:
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        connection.request(method, path)
        connection.getresponse().read()
        connection.close()

    def stop(self) -> None:
        self._server.stop()


def options(host: str, port: int) -> dict[str, Any]:
    # One try, so that what is tried again is tried by us.
    config = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 10}
    return {**KEY, "endpoint_url": f"http://{host}:{port}", "config_kwargs": config, "skip_instance_cache": True}


class Between:
    """A door to the server. `behave(number, method, path)` says what becomes of each request, numbered from 1:

    "pass"; one of ERRORS; "torn" (half of the answer, then the connection ends), "drip" (the answer comes in pieces),
    "lost" (it is carried out, and no answer comes), "dropped" (it is not carried out, and no answer comes), or the
    number of a process, which is killed before ("-123") or after ("123") the request is carried out.
    """

    def __init__(self, server: Server, behave: Callable[[int, str, str], str]) -> None:
        self.requests: list[tuple[str, str]] = []
        lock = threading.Lock()
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = _body_of(self)
                with lock:
                    door.requests.append((self.command, self.path))
                    number = len(door.requests)
                what = behave(number, self.command, self.path)
                if what in ERRORS:
                    self.refuse(*ERRORS[what])
                    return
                if what.startswith("-"):
                    os.kill(int(what[1:]), signal.SIGKILL)
                if what == "dropped" or what.startswith("-"):
                    self.close_connection = True
                    return
                connection = http.client.HTTPConnection(*server.address, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if what.isdecimal():
                    os.kill(int(what), signal.SIGKILL)
                if what == "lost" or what.isdecimal():
                    self.close_connection = True
                    return
                self.send_response_only(answer.status)
                told = answer.getheader("Content-Length") if self.command == "HEAD" else None
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", told or str(len(data)))
                self.end_headers()
                if what == "torn":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                elif what == "drip":
                    piece = max(1, len(data) // 5)
                    for start in range(0, len(data), piece):
                        self.wfile.write(data[start : start + piece])
                        self.wfile.flush()
                        time.sleep(0.01)
                else:
                    self.wfile.write(data)

            def refuse(self, status: int, code: str, message: str) -> None:
                data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
                self.send_response_only(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that was killed

        self._door = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._door.serve_forever, daemon=True)
        self._thread.start()
        self.options = options("127.0.0.1", self._door.server_address[1])

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *exception: object) -> None:
        self._door.shutdown()
        self._door.server_close()


def _body_of(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    while handler.rfile.readline().strip():
        pass
    return body
