"""Clients of the listeners for Prometheus that do nothing."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNT = 60


@contextmanager
def idle_connections(address: str) -> Iterator[list[socket.socket]]:
    """Many connections to ``HOST:PORT``: some send nothing, some half a request."""
    host, _, port = address.rpartition(":")
    held: list[socket.socket] = []
    try:
        for number in range(_COUNT):
            one = socket.create_connection((host, int(port)), timeout=30)
            held.append(one)
            if number % 2:
                one.sendall(b"GET /met")
        yield held
    finally:
        for one in held:
            one.close()


def trickle(one: socket.socket) -> None:
    """Send a byte now and then, until the other end closes."""
    one.settimeout(0.2)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        try:
            one.sendall(b"x")
            if not one.recv(1):
                return
        except TimeoutError:
            continue
        except ConnectionError:
            return


def is_ended(one: socket.socket) -> bool:
    """Wait for the other end to close a connection on which it has said nothing."""
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True
