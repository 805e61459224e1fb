"""A server that does what a test tells it to, over real sockets: answers late, wrongly, in part, or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pagepool.transport import RetryPolicy, Session


@dataclass(frozen=True, slots=True)
class Request:
    """What came in. `body` is what could be read of it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out.

    Args:
        status: HTTP status.
        body: the body.
        headers: as they are; Content-Length is added, the body's own unless given here.
        cut: close the connection after so many bytes of the body; None: send all.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


Script = Callable[[Request], Reply | None]
"""What to answer; None closes the connection without an answer."""


@dataclass(slots=True)
class Scripted:
    """A running server: what it is told to do, and what it was asked."""

    url: str
    script: Script
    requests: list[Request] = field(default_factory=list)
    take_body: int | None = None
    """Break the connection after so many bytes of a request's body; used once."""

    def seen(self, method: str) -> list[Request]:
        """The requests of one method, in order."""
        return [request for request in self.requests if request.method == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: Scripted

    def _serve(self) -> None:
        target = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        limit, self.scripted.take_body = (
            self.scripted.take_body if length else None,
            (None if length else self.scripted.take_body),
        )
        body = self.rfile.read(length if limit is None else min(length, limit))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, target.path, dict(parse_qsl(target.query)), headers, body)
        self.scripted.requests.append(request)
        reply = self.scripted.script(request)
        if limit is not None or reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut])
        if reply.cut is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def scripted_server(script: Script) -> Iterator[Scripted]:
    """Run a server on loopback until the end of the block."""

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        scripted = Scripted(f"http://127.0.0.1:{server.server_address[1]}", script)
        Handler.scripted = scripted
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield scripted
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def trickling_server(at_once: bytes, answer: bytes) -> Iterator[str]:
    """A server that answers the first request with `at_once`, and then byte by byte, 50 in a second. Its address."""
    gone = threading.Event()

    def serve() -> None:
        with listener.accept()[0] as connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(at_once)
            for number in range(len(answer)):
                connection.sendall(answer[number : number + 1])
                if gone.wait(0.02):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            gone.set()
            thread.join()


def session(url: str, waits: list[float] | None = None, **options: Any) -> Session:
    """A session that does not sleep between attempts; it writes down how long it would have."""
    noted = waits if waits is not None else []
    return Session(url, retry=RetryPolicy(attempts=4, sleep=noted.append, jitter=lambda: 0.5), **options)
