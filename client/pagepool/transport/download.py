"""Downloads that survive a broken connection.

A `ResumingReader` asks for the rest of a blob by ``Range`` when the connection breaks in mid-body, as often
as the session's retry policy allows without a single byte of progress. It does not verify: wrap it in a
VerifyingReader.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx

from pagepool.errors import UnreachableError
from pagepool.transport.http import Call, Session


class ResumingReader:
    """The body of a GET, from its beginning to its end. Not thread-safe.

    The first request is sent by the constructor, so that "not found" is said before anything is read.

    Args:
        session: the server.
        call: the GET.
        size: how many bytes the body should have; there is nothing to resume after them. What comes is passed
            on all the same, more or fewer: judging it is for the verifying reader.
    """

    def __init__(self, session: Session, call: Call, size: int) -> None:
        self._session = session
        self._call = call
        self._size = size
        self._position = 0
        self._failures = 0
        self._left = b""
        self._response = session.open(call)
        self._chunks: Iterator[bytes] = self._response.iter_raw()

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, as many as came at once; none only at the end.

        Raises:
            UnreachableError: the connection broke, again and again.
        """
        while not self._left:
            try:
                chunk = next(self._chunks, b"")
            except httpx.TransportError as error:
                self._resume(self._session.translate(error))
                continue
            except httpx.StreamError:  # closed by another thread
                raise UnreachableError(self._session.where, "the download was given up") from None
            if not chunk:
                return b""
            self._left = chunk
            self._failures = 0
        given, self._left = (self._left, b"") if size < 0 else (self._left[:size], self._left[size:])
        self._position += len(given)
        return given

    def close(self) -> None:
        """Drop the connection, or give it back if the body was read to its end."""
        self._chunks = iter(())
        self._response.close()

    def _resume(self, error: UnreachableError) -> None:
        self._failures += 1
        if self._failures >= self._session.retry.attempts:
            raise error
        self.close()
        if self._position >= self._size:
            return  # all is here; only the end of the connection was lost
        self._session.retry.sleep(self._session.retry.delay_s(self._failures))
        headers = {**self._call.headers, "Range": f"bytes={self._position}-"}
        self._response = self._session.open(replace(self._call, headers=headers, expect=(200, 206)))
        self._chunks = self._response.iter_raw()
        if self._response.status_code == 200 or _start(self._response) != self._position:
            self._chunks = _skip(self._chunks, self._position if self._response.status_code == 200 else None)


def _start(response: httpx.Response) -> int | None:
    """Where a partial answer begins; None if it does not say so."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isascii() and start.isdigit() else None


def _skip(chunks: Iterator[bytes], count: int | None) -> Iterator[bytes]:
    """Leave out what is here already; the server does not know ranges."""
    if count is None:
        raise httpx.RemoteProtocolError("the server answered with another range than was asked for")
    for chunk in chunks:
        rest = chunk[count:]
        count -= len(chunk) - len(rest)
        if rest:
            yield rest
