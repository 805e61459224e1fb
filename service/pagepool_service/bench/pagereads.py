"""Page reads over HTTP, beside an application that does nothing: how much of what uvicorn can do is left.

A few keep-alive connections in this process, each with one request under way; the server is another process, and what
counts is its processor time for each request, so that the figure is one of a core whatever else runs. Loopback.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from pagepool.errors import ResponseError, UnreachableError
from pagepool.linux.processes import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

PAGE = 4096
CONNECTIONS = 16
_RECEIVED_AT_ONCE = 64 << 10
_START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Rate:
    """What a server did.

    Args:
        requests: answered.
        seconds: it took.
        cpu_s: processor time of the server meanwhile.
    """

    requests: int
    seconds: float
    cpu_s: float

    @property
    def per_core(self) -> float:
        """Requests for each second of processor time."""
        return self.requests / self.cpu_s if self.cpu_s else 0.0

    @property
    def per_second(self) -> float:
        """Requests for each second that passed."""
        return self.requests / self.seconds


def measure_reads(host: str, port: int, pid: int, requests: list[bytes], seconds: float) -> Rate:
    """Send requests again and again, each connection one at a time.

    Args:
        pid: of the server's only worker.
        requests: whole, one after the other over the connections; all answers are as long as the first one.
        seconds: about how long.

    Raises:
        UnreachableError: it is not there, or broke off.
        ResponseError: an answer is neither 200 nor 206.
    """
    with _connections(host, port) as opened:
        # The first may take the long way through a service, which gives it an id: that answer is longer.
        size = min(_first_answer(opened[0], requests[0]) for _ in range(2))
        _drive(opened, requests, size, min(0.3, seconds))
        begun, cpu = time.monotonic(), cpu_seconds(pid)
        count = _drive(opened, requests, size, seconds)
        return Rate(count, time.monotonic() - begun, cpu_seconds(pid) - cpu)


def warm(host: str, port: int, requests: list[bytes]) -> None:
    """Send each request once: what is not in the server's pool is by then, and answered like everything else.

    Raises:
        UnreachableError, ResponseError: as `measure_reads`.
    """
    with _connections(host, port) as opened:
        for request in requests:
            _first_answer(opened[0], request)


def page_request(path: str, offset: int | None = None) -> bytes:
    """A request for a page of what a path names; for all of it without an offset."""
    wanted = "" if offset is None else f"Range: bytes={offset}-{offset + PAGE - 1}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{wanted}\r\n".encode()


@contextmanager
def bare_server() -> Iterator[tuple[str, int, int]]:
    """An application that answers every request with a page, as uvicorn serves it: host, port, process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve_bare, args=(sender,), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(_START_TIMEOUT_S):
            raise UnreachableError("uvicorn", "it did not start")
        port = receiver.recv()
        yield "127.0.0.1", port, process.pid or 0
    finally:
        receiver.close()
        process.terminate()
        process.join()


class _Started(uvicorn.Server):
    """Says its port when it serves."""

    def __init__(self, config: uvicorn.Config, sender: Connection) -> None:
        super().__init__(config)
        self._sender = sender

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sender.send(sockets[0].getsockname()[1] if sockets else 0)


def _serve_bare(sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    page = os.urandom(PAGE)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % PAGE)]

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": page})

    config = uvicorn.Config(app, http="httptools", loop="uvloop", lifespan="off", log_config=None, access_log=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _Started(config, sender).run(sockets=[listener])


@contextmanager
def _connections(host: str, port: int) -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    try:
        for _ in range(CONNECTIONS):
            one = socket.create_connection((host, port), timeout=_START_TIMEOUT_S)
            opened.append(one)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield opened
    except OSError as error:
        raise UnreachableError(f"{host}:{port}", str(error)) from error
    finally:
        for one in opened:
            one.close()


def _first_answer(one: socket.socket, request: bytes) -> int:
    """Bytes of an answer, head and all."""
    one.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(one)
    head, _, body = data.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status not in (200, 206):
        raise ResponseError(status, "", data[:500].decode(errors="replace"))
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    size = len(head) + 4 + int(fields[b"content-length"])
    left = size - len(head) - 4 - len(body)
    while left:
        left -= len(_receive(one))
    return size


def _receive(one: socket.socket) -> bytes:
    data = one.recv(_RECEIVED_AT_ONCE)
    if not data:
        raise ConnectionResetError("it closed the connection")
    return data


def _drive(opened: list[socket.socket], requests: list[bytes], size: int, seconds: float) -> int:
    """Keep every connection busy for a while; returns how many answers came, all of which were taken whole."""
    left = dict.fromkeys(opened, size)
    place = count = 0
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for one in opened:
            selector.register(one, selectors.EVENT_READ)
            one.sendall(requests[place % len(requests)])
            place += 1
        while left:
            goes_on = time.monotonic() < deadline
            for key, _ in selector.select(_START_TIMEOUT_S):
                one = cast("socket.socket", key.fileobj)
                left[one] -= len(_receive(one))
                if left[one] > 0:
                    continue
                count += 1
                if goes_on:
                    left[one] = size
                    one.sendall(requests[place % len(requests)])
                    place += 1
                else:
                    selector.unregister(one)
                    del left[one]
    return count
