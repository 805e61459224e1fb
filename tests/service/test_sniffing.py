"""Nothing that the service answers may be taken for anything but what it says it is: a layer for a page, for one."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from tests.service.pushes import begin_upload, push_blob, push_image
from tests.service.test_images_api import settled

if TYPE_CHECKING:
    from tests.support.server import Service

_PAGE = b"<html><script>alert(1)</script></html>"
_FIELD = b"\r\nx-content-type-options: nosniff\r\n"


def raw(service: Service, data: bytes) -> bytes:
    """The head of the answer to some bytes."""
    host, _, port = service.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        found = b""
        while b"\r\n\r\n" not in found:
            piece = connection.recv(65536)
            assert piece, found
            found += piece
    return found.partition(b"\r\n\r\n")[0] + b"\r\n"


def request(path: str) -> bytes:
    """A request as nodes send them."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_answers_of_every_kind(http: httpx.Client) -> None:
    """Content, errors, answers without a body: each once, and no more than once."""
    blob = push_blob(http, "sniffed", _PAGE)
    push_image(http, "sniffed", "1", {"page": _PAGE})
    settled(http, "/v1/sniffed/images/1")
    answers = [
        http.get(f"/v2/sniffed/blobs/{blob}"),
        http.get(f"/v2/sniffed/blobs/{blob}", headers={"Range": "bytes=1-2"}),
        http.head(f"/v2/sniffed/blobs/{blob}"),
        http.get("/v2/sniffed/manifests/1"),
        http.get("/v2/sniffed/manifests/none"),
        http.get("/v2/%00/tags/list"),
        http.get("/nowhere"),
        http.put("/v2/"),
        http.get("/"),
        http.get("/page/main.js"),
        http.get("/v1/openapi.json"),
        http.get("/healthz"),
        http.delete(begin_upload(http, "sniffed")),
    ]
    assert {answer.status_code for answer in answers} >= {200, 204, 206, 400, 404, 405}
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"nonsense\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nX: " + b"y" * (1 << 20), b"431")],
    ids=["no request", "too large"],
)
def test_answers_before_there_is_a_request(service: Service, data: bytes, status: bytes) -> None:
    head = raw(service, data)
    assert head.startswith(b"HTTP/1.1 " + status)
    assert head.count(_FIELD) == 1


def test_page_reads(service: Service, http: httpx.Client) -> None:
    """Also those that are answered at once: they alone have no id."""
    push_image(http, "sniffed/pages", "1", {"page": _PAGE})
    settled(http, "/v1/sniffed/pages/images/1")
    tree = http.get("/v1/sniffed/pages/images/1/tree").json()["tree"]
    path = f"/v1/sniffed/pages/trees/{tree}/objects/{Digest('blake3', blake3_raw(_PAGE))}"
    assert http.get(path).content == _PAGE
    deadline = time.monotonic() + 30
    while True:
        head = raw(service, request(path))
        assert head.startswith(b"HTTP/1.1 200")
        assert head.count(_FIELD) == 1
        if b"x-request-id" not in head:
            break
        assert time.monotonic() < deadline
