"""A bound on how slowly an answer may come.

httpx bounds each read, so that who sends a byte now and then is waited for without end. Here waiting adds up from one
read to the next, and what comes makes up for it, as if it had come at `FLOOR` bytes a second. When more than a read's
time limit is owed, the answer is given up. So an answer takes at most that limit and its size by `FLOOR`; what its
reader does between reads is not counted, nor is a request that is being sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from pagepool.transport.openpools import pools_of

FLOOR: Final = 256.0
"""Bytes a second: slower than any line, also where the 64 connections of a session share it."""


def pace(client: httpx.Client) -> httpx.Client:
    """Have a client's answers come in time, over all connections that it makes from now on. Returns it."""
    # There is no public way to give httpx a backend of httpcore's.
    for pool in pools_of(client):
        pool._network_backend = _PacedBackend(pool._network_backend)
    return client


class Owed:
    """How much time the reads of one answer owe."""

    def __init__(self) -> None:
        self._owed_s = 0.0

    def left_s(self, limit_s: float) -> float:
        """How long the next read may take, where one may take `limit_s`.

        Raises:
            httpx.ReadTimeout: too much is owed.
        """
        left_s = limit_s - self._owed_s
        if left_s <= 0:
            raise httpx.ReadTimeout("timed out")
        return left_s

    def count(self, took_s: float, size: int) -> None:
        """Note a read that has brought so many bytes."""
        self._owed_s = max(0.0, self._owed_s + took_s - size / FLOOR)


class PacedStream:
    """A connection, used by one request after the other: a `NetworkStream` of httpcore's.

    Args:
        inner: that connection.
        clock: seconds, from anywhere on.
    """

    def __init__(self, inner: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner = inner
        self._clock = clock
        self._owed = Owed()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As of any stream; the limit is for this and earlier reads of the same answer."""
        if timeout is None:
            return bytes(self._inner.read(max_bytes))
        left_s = self._owed.left_s(timeout)
        begun = self._clock()
        data: bytes = self._inner.read(max_bytes, left_s)
        self._owed.count(self._clock() - begun, len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As of any stream: the next answer begins anew."""
        self._owed = Owed()
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        """As of any stream."""
        self._inner.close()

    def start_tls(self, *arguments: Any, **named: Any) -> PacedStream:
        """As of any stream."""
        return PacedStream(self._inner.start_tls(*arguments, **named), self._clock)

    def get_extra_info(self, info: str) -> Any:
        """As of any stream."""
        return self._inner.get_extra_info(info)


class _PacedBackend:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, *arguments: Any, **named: Any) -> PacedStream:
        return PacedStream(self._inner.connect_tcp(*arguments, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
