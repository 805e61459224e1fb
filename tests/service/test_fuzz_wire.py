"""Requests that no client library would send: any bytes in paths, queries, headers. None is a fault of the service."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.service.pushes import begin_upload, push_blob, push_image

if TYPE_CHECKING:
    from tests.support.server import Service

METHODS = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get", "X" * 100]
_JUNK = st.binary(max_size=30) | st.sampled_from(
    [
        b"\0",
        b"..",
        b"%",
        b"%%30",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"a" * 9000,
        b"\r\n",
        b"//",
        b"?",
        b"#",
        b"\xd9\xa3\xc3\xa4",
    ]
)
_KNOWN = [b"fuzz", b"latest", b"uploads", b"blobs", b"manifests", b"tags", b"list", b"referrers", b"v2", b"images", b""]
_QUERIES = ["n", "last", "digest", "mount", "from", "artifactType", "tag", "path", "limit", "after", "digest-algorithm"]
_HEADERS = [
    "Range",
    "Range",
    "Content-Range",
    "Content-Type",
    "If-None-Match",
    "Accept",
    "Expect",
    "Transfer-Encoding",
    "Content-Length",
    "Host",
]
_VALUES = st.binary(max_size=20) | st.sampled_from(
    [
        b"bytes=0-1",
        b"bytes=-0",
        b"bytes=99999999999999999999-",
        b"0-1",
        b"5-1",
        b"-1",
        b"18446744073709551616",
        b"1, 2",
        b"chunked",
        b"100-continue",
        b'"sha256:x", *',
        b"application/vnd.oci.image.index.v1+json",
        b"\xd9\xa1-\xd9\xa2",  # digits, and no ASCII
    ]
)


def quoted(part: bytes) -> str:
    """A part of a path or query, percent-encoded, but for what makes it a request at all."""
    return quote_from_bytes(part, safe="/%:@")


def real_paths(there: list[bytes]) -> list[list[bytes]]:
    """The paths of what is there, and of lists."""
    name, image, blob, session = there
    return [
        [b"v2", name, b"blobs", blob],
        [b"v2", name, b"blobs", b"uploads", b""],
        [b"v2", name, b"blobs", b"uploads", session],
        [b"v2", name, b"manifests", image],
        [b"v2", name, b"manifests", b"latest"],
        [b"v2", name, b"referrers", image],
        [b"v2", name, b"tags", b"list"],
        [b"v2", b"_catalog"],
        [b"v1", name, b"images", b"latest"],
        [b"v1", name, b"images", image, b"files"],
        [b"v1", b"images"],
    ]


@st.composite
def requests(draw: st.DrawFn, there: list[bytes]) -> bytes:
    """A request: its line can be taken apart, all else may be anything."""
    some = st.sampled_from([*_KNOWN, *there]) | _JUNK
    paths = st.lists(some, max_size=6).map(lambda parts: [b"v2", *parts]) | st.sampled_from(real_paths(there))
    path = "/".join(["", *map(quoted, draw(paths))])
    pairs = draw(st.lists(st.tuples(st.sampled_from(_QUERIES), some), max_size=3))
    query = "&".join(f"{name}={quoted(value)}" for name, value in pairs)
    method = draw(st.sampled_from(METHODS))
    if method == "DELETE":
        path += "0"  # what is there shall stay
    lines = [f"{method} {path}{'?' if query else ''}{query} HTTP/1.1".encode()]
    headers = draw(st.lists(st.tuples(st.sampled_from(_HEADERS), _VALUES), max_size=3))
    lines += [name.encode() + b": " + value.replace(b"\r", b"").replace(b"\n", b"") for name, value in headers]
    body = draw(st.binary(max_size=50))
    if not any(name in ("Content-Length", "Transfer-Encoding") for name, _ in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


@pytest.fixture(scope="module")
def there(service: Service) -> list[bytes]:
    """Names, digests and an upload of what is there."""
    with httpx.Client(base_url=service.url) as http:
        image = push_image(http, "fuzz", "latest")
        blob = push_blob(http, "fuzz", b"some bytes")
        session = begin_upload(http, "fuzz").rpartition("/")[2]
    return [b"fuzz", str(image).encode(), str(blob).encode(), session.encode()]


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_request_is_answered_or_refused(service: Service, there: list[bytes], data: st.DataObject) -> None:
    """With a status that is not 500, or by closing the connection on what is not HTTP."""
    send(service, data.draw(requests(there)))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
@example(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n")
@example(b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
@example(b"GET /v2/" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n")
@example(b"GET /v2/ HTTP/1.1\r\n" + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n")
@example(b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 200_000 + b"\r\n")
@example(b"GET /v2/\xff HTTP/1.1\r\n\r\n")
@example(b"GET http://[::1/v2/ HTTP/1.1\r\n\r\n")
@example(b"CONNECT x:1 HTTP/1.1\r\n\r\n")
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
@example(b"GET /v2/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
def test_any_bytes_are_answered_or_refused(service: Service, data: bytes) -> None:
    """The same for what need not be HTTP at all."""
    send(service, data)


def test_the_service_has_not_failed(service: Service) -> None:
    """Nor has it lost a process over all that."""
    assert not service.faults()
    assert " ended (" not in service.log(), service.log()
    assert httpx.get(f"{service.url}/readyz").status_code == 200


def send(service: Service, request: bytes) -> None:
    """Send bytes; check the status of the answer, if there is one."""
    host, port = service.host.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while b"\r\n" not in answer and (more := connection.recv(65536)):
                answer += more
        except OSError:  # closed before it had read everything
            return
    if answer:
        status = int(answer.split(b" ", 2)[1])
        assert 100 <= status < 600
        assert status != 500, answer
