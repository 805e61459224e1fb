"""A client that costs next to nothing: one keep-alive HTTP/1.1 connection over a raw socket.

Both registries of a measurement are driven by it, so that neither figure is the client's. Bodies go out with
sendfile and come in with recv_into one buffer that is never looked at. Loopback, no TLS, no redirects, no
retries; an answer must have a Content-Length. Blocks. Not thread-safe.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from pagepool.errors import ResponseError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

BUFFER_SIZE = 1 << 20
_LONGEST_HEAD = 64 << 10
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: status, headers by their names in lower case, and the body of a small one."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def expect(self, *statuses: int) -> Answer:
        """This answer, if it has one of these statuses.

        Raises:
            ResponseError: it has another.
        """
        if self.status not in statuses:
            raise ResponseError(self.status, "", self.body[:500].decode(errors="replace"))
        return self


class Wire:
    """A connection to a registry.

    Raises:
        UnreachableError: there is no server, or it broke off; from every method.
    """

    def __init__(self, host: str, port: int) -> None:
        self._where = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        except OSError as error:
            raise UnreachableError(self._where, error.strerror or str(error)) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._early = b""  # what came with the head of an answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        """Send a small request, and read its answer whole."""
        self._send_head(method, url, len(body), headers or {})
        self._socket.sendall(body)
        return self._finish(method)

    def send_file(self, method: str, url: str, path: Path) -> Answer:
        """Send a file as a request's body."""
        with path.open("rb") as file:
            size = path.stat().st_size
            self._send_head(method, url, size, {"Content-Type": "application/octet-stream"})
            try:
                self._socket.sendfile(file)
            except OSError as error:
                raise UnreachableError(self._where, f"broke off an upload: {error}") from error
        return self._finish(method)

    def fetch(self, url: str, consume: Callable[[memoryview], object] | None = None) -> int:
        """GET a body of any size.

        Args:
            consume: gets each piece, a view valid during the call; None drops them.

        Returns:
            Its size.
        """
        self._send_head("GET", url, 0, {})
        answer = self._read_head()
        size = self._length(answer)
        if answer.status != 200:
            return len(Answer(answer.status, answer.headers, self._read(size)).expect(200).body)
        left = size
        while left:
            view = self._piece(left)
            left -= len(view)
            if consume is not None:
                consume(view)
        return size

    def _send_head(self, method: str, url: str, size: int, headers: Mapping[str, str]) -> None:
        split = urlsplit(url)
        target = split.path + (f"?{split.query}" if split.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._where}", f"Content-Length: {size}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            self._socket.sendall("\r\n".join((*lines, "", "")).encode())
        except OSError as error:
            raise UnreachableError(self._where, str(error)) from error

    def _finish(self, method: str) -> Answer:
        answer = self._read_head()
        bodiless = method == "HEAD" or answer.status in (204, 304)
        return Answer(answer.status, answer.headers, b"" if bodiless else self._read(self._length(answer)))

    def _read_head(self) -> Answer:
        head = self._early
        while (end := head.find(b"\r\n\r\n")) < 0:
            if len(head) > _LONGEST_HEAD:
                raise UnreachableError(self._where, "the head of its answer does not end")
            head += self._receive(BUFFER_SIZE)
        self._early = head[end + 4 :]
        first, *lines = head[:end].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        answer = Answer(int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs})
        # To an upload that was refused early, among others.
        return self._read_head() if answer.status == 100 else answer

    def _length(self, answer: Answer) -> int:
        length = answer.headers.get("content-length", "")
        if not length.isdigit():
            raise UnreachableError(self._where, f"an answer with status {answer.status} has no Content-Length")
        return int(length)

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            parts += self._piece(size - len(parts))
        return bytes(parts)

    def _piece(self, limit: int) -> memoryview:
        """Some bytes of a body, one at least and `limit` at most; valid until the next call."""
        if self._early:
            view, self._early = memoryview(self._early)[:limit], self._early[limit:]
            return view
        return self._receive(limit)

    def _receive(self, limit: int) -> memoryview:
        try:
            count = self._socket.recv_into(self._buffer, min(limit, BUFFER_SIZE))
        except OSError as error:
            raise UnreachableError(self._where, str(error)) from error
        if not count:
            raise UnreachableError(self._where, "it closed the connection within an answer")
        return self._buffer[:count]
