"""The head of a request is bounded, however it arrives; what surrounds it is not counted."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.objects import object_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE = 4096
_PIECES = 10_000  # more than the kernel keeps for a connection
KNOWN = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[socket.socket]:
    with object_service(tmp_path / "data") as service:
        parts = urlsplit(service.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as opened:
            yield opened


def answer(connection: socket.socket) -> bytes:
    """What comes until the server has said all of one answer, or closes."""
    data = b""
    while b"}" not in data and (piece := connection.recv(65536)):
        data += piece
    return data


def test_a_head_without_end_is_refused(connection: socket.socket) -> None:
    sent = 0
    with suppress(ConnectionError):  # it closes in the middle of it
        connection.sendall(KNOWN)
        for number in range(_PIECES):
            connection.sendall(b"X-%d: " % number + b"a" * PIECE + b"\r\n")
            sent += PIECE
    with suppress(ConnectionError):
        assert answer(connection).startswith(b"HTTP/1.1 431 ")
    assert sent < _PIECES * PIECE, "it did not wait for all of it"


def test_a_head_in_pieces_is_taken(connection: socket.socket) -> None:
    """Also the second one on a connection, and one that comes byte by byte."""
    for _ in range(2):
        for byte in KNOWN + b"X: " + b"a" * 100 + b"\r\n\r\n":
            connection.sendall(bytes((byte,)))
        assert answer(connection).startswith(b"HTTP/1.1 200 ")


def test_bodies_are_not_counted(connection: socket.socket) -> None:
    """A large upload, and requests that follow one another without a pause."""
    body = b"b" * 3_000_000
    connection.sendall(
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    first = connection.recv(65536)
    assert first.startswith(b"HTTP/1.1 202 "), first
    connection.sendall((KNOWN + b"\r\n") * 2000)
    seen = b""
    while seen.count(b'{"status":"ok"}') < 2000:
        piece = connection.recv(65536)
        assert piece, seen[-200:]
        seen += piece


def test_who_sends_no_more_gets_the_answer(connection: socket.socket) -> None:
    """Of each request that has come to its end, though another has begun behind it."""
    upload = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    connection.sendall(upload + KNOWN + b"\r\n" + KNOWN)
    connection.shutdown(socket.SHUT_WR)
    seen = b""
    while piece := connection.recv(65536):
        seen += piece
    assert [seen.count(b"HTTP/1.1 202 "), seen.count(b"HTTP/1.1 200 ")] == [1, 1], seen
