"""Downloads over connections that break, and servers that lie."""

from __future__ import annotations

import hashlib

import pytest

from pagepool.errors import BlobUnknownError, DigestMismatchError, ResponseError, UnreachableError
from pagepool.oci import Descriptor
from pagepool.transport import RegistryClient
from tests.transport.scripted import Reply, Request, Script, scripted_server, session

DATA = hashlib.shake_128(b"download").digest(3_000_000)
BLOB = Descriptor.of("application/octet-stream", DATA)
PATH = f"/v2/a/blobs/{BLOB.digest}"


def _download(script: Script, waits: list[float] | None = None) -> tuple[bytes, list[Request]]:
    with scripted_server(script) as server, session(server.url, waits) as connection:
        with RegistryClient(connection).open_blob("a", BLOB) as reader:
            content = reader.read()
        return content, server.requests


def _ranged(request: Request, step: int) -> Reply:
    """Serve ranges, and break off after `step` bytes each time."""
    start = int(request.headers.get("range", "bytes=0-")[6:-1])
    rest = DATA[start:]
    headers = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
    return Reply(206 if start else 200, rest, headers, None if len(rest) <= step else step)


def test_resumes_where_it_broke_off() -> None:
    content, requests = _download(lambda request: _ranged(request, 500_000))
    assert content == DATA
    ranges = [request.headers.get("range") for request in requests]
    assert ranges[0] is None
    assert ranges[1:] == [f"bytes={at}-" for at in range(500_000, len(DATA), 500_000)]


def test_resumes_without_ranges_by_skipping() -> None:
    cuts = iter([1_000_000, 2_000_000, None])
    content, requests = _download(lambda _: Reply(200, DATA, cut=next(cuts)))
    assert content == DATA
    assert len(requests) == 3


def test_gives_up_without_progress() -> None:
    waits: list[float] = []

    def script(request: Request) -> Reply:
        return Reply(200, DATA, cut=1000) if "range" not in request.headers else Reply(206, DATA[1000:], cut=0)

    with pytest.raises(UnreachableError):
        _download(script, waits)
    assert waits == sorted(waits)
    assert len(waits) < 10


@pytest.mark.parametrize(
    "where",
    [
        "bytes 5-2999999/3000000",
        "bytes */3000000",
        "bytes \xb2-3",
        "bytes -5",
        "bytes",
        "lines 1000-2999999/3000000",
        "",
    ],
)
def test_another_range_than_asked_for_is_not_believed(where: str) -> None:
    def script(request: Request) -> Reply:
        if "range" not in request.headers:
            return Reply(200, DATA, cut=1000)
        return Reply(206, DATA[5:], {"Content-Range": where})

    with pytest.raises(UnreachableError, match="another range"):
        _download(script)


def test_only_the_end_of_the_connection_was_lost() -> None:
    content, requests = _download(lambda _: Reply(200, DATA, {"Content-Length": str(len(DATA) + 1)}, len(DATA)))
    assert content == DATA
    assert len(requests) == 1


@pytest.mark.parametrize("body", [DATA[:-1], DATA + b"x", b"", b"!" + DATA[1:]])
def test_wrong_content_is_an_error_at_its_end(body: bytes) -> None:
    with pytest.raises(DigestMismatchError) as caught:
        _download(lambda _: Reply(200, body))
    assert caught.value.expected == BLOB.digest


def test_endless_content_is_stopped() -> None:
    endless = DATA * 4
    with pytest.raises(DigestMismatchError) as caught:
        _download(lambda _: Reply(200, endless))
    assert caught.value.size < 2 * len(DATA)


def test_busy_server_is_asked_again() -> None:
    answers = iter([Reply(503), Reply(429, headers={"Retry-After": "3"}), Reply(500), Reply(200, DATA)])
    waits: list[float] = []
    content, _ = _download(lambda _: next(answers), waits)
    assert content == DATA
    assert waits == [0.25, 3.0, 1.0]


def test_persistent_failure_is_told() -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\\ndown"}]}'
    with pytest.raises(ResponseError, match="429 TOOMANYREQUESTS: slow down"):
        _download(lambda _: Reply(429, body))


@pytest.mark.parametrize("body", [b"", b"<html>gone</html>", b'{"errors":[]}', b'{"errors":{}}', b"\xff", b"[" * 9999])
def test_missing_blob_whatever_the_body(body: bytes) -> None:
    with pytest.raises(BlobUnknownError, match=str(BLOB.digest)):
        _download(lambda _: Reply(404, body))
