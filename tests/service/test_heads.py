"""The head of a request is bounded, however it arrives; what surrounds it is not counted."""

from __future__ import annotations

import hashlib
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


CHUNKED = b"GET /v2/a/blobs/%b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"


def test_trailers_are_no_headers(connection: socket.socket) -> None:
    """In one piece with their request, or behind it: who filters headers before the service has not seen them."""
    blob = b"of ten by."
    digest = hashlib.sha256(blob).hexdigest().encode()
    upload = b"POST /v2/a/blobs/uploads/?digest=sha256:%b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n%b"
    connection.sendall(upload % (digest, blob))
    assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")
    connection.sendall(CHUNKED % (b"sha256:" + digest) + b"Range: bytes=0-3\r\nX-Request-Id: mine\r\n\r\n")
    seen = connection.recv(65536)
    assert seen.startswith(b"HTTP/1.1 200 ")
    assert seen.endswith(blob)
    assert b"mine" not in seen


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (CHUNKED % b"uploads", b"a:b\r\n" * 10_000),
        (CHUNKED % b"uploads" + b"X: ", b"a" * 50_000),
        (b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"a" * 50_000),
    ],
    ids=["many trailers", "one trailer", "an extension"],
)
def test_what_is_with_a_body_and_none_of_it_ends(connection: socket.socket, begin: bytes, piece: bytes) -> None:
    """Whether the request was answered before or not; the parser would keep a trailer until it is whole."""
    pieces = iter([begin, *[piece] * 1000])
    with suppress(ConnectionError):
        for one in pieces:
            connection.sendall(one)
    assert next(pieces, None), "it took all of it"


def test_chunks_of_a_byte_are_a_body(connection: socket.socket) -> None:
    """What is around them is much more than they are."""
    connection.sendall(b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.sendall(b"1;what=this\r\na\r\n" * 20_000 + b"0\r\nX: y\r\n\r\n" + KNOWN + b"\r\n")
    seen = answer(connection)
    assert b"HTTP/1.1 202 " in seen
    assert seen.endswith(b'{"status":"ok"}')
