"""Upload sessions over HTTP: chunks, streams, broken connections, limits."""

from __future__ import annotations

import itertools
import os
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_MANIFEST
from tests.service.pushes import begin_upload, finishing, image_parts, push_blob, push_image
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def chunk_headers(start: int, size: int) -> dict[str, str]:
    """Headers of a chunk."""
    return {"Content-Range": f"{start}-{start + size - 1}", "Content-Type": "application/octet-stream"}


def size_of(http: httpx.Client, location: str) -> int:
    """How far an upload is, in bytes; for one that has any."""
    answer = http.get(location)
    assert answer.status_code == 204
    return int(answer.headers["range"].partition("-")[2]) + 1


def wait_for(http: httpx.Client, location: str, size: int) -> None:
    """Wait until an upload has so many bytes."""
    deadline = time.monotonic() + 60
    while size_of(http, location) != size:
        assert time.monotonic() < deadline, f"the upload has {size_of(http, location)} bytes, not {size}"
        time.sleep(0.01)


def send_and_leave(service: Service, location: str, headers: dict[str, str], body: bytes) -> None:
    """Begin a PATCH, send some of its body, and break the connection."""
    host, port = service.host.split(":")
    lines = [f"PATCH {location} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def test_session_begins_empty(http: httpx.Client) -> None:
    """With an id, a relative location, and a range that means nothing yet."""
    answer = http.post("/v2/begin/blobs/uploads/")
    session = answer.headers["docker-upload-uuid"]
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v2/begin/blobs/uploads/{session}"
    assert answer.headers["range"] == "0-0"
    assert answer.headers["content-length"] == "0"
    assert http.post("/v2/begin/blobs/uploads").status_code == 202


def test_chunk_out_of_order(http: httpx.Client) -> None:
    """416 with how far the upload is, which is as far as before."""
    location = begin_upload(http, "order")
    http.patch(location, content=b"0123456789", headers=chunk_headers(0, 10))
    for start in (0, 5, 11, 1 << 60):
        answer = http.patch(location, content=b"x" * 10, headers=chunk_headers(start, 10))
        assert (answer.status_code, answer.headers["range"]) == (416, "0-9")
        assert answer.json()["errors"][0]["code"] == "RANGE_INVALID"
        assert answer.headers["location"] == location
    answer = http.put(finishing(location, Digest.of(b"0123456789")), content=b"x" * 10, headers=chunk_headers(3, 10))
    assert (answer.status_code, answer.headers["range"]) == (416, "0-9")
    assert http.put(finishing(location, Digest.of(b"0123456789"))).status_code == 201


@pytest.mark.parametrize("bad", ["", "abc", "5", "5-", "-5", "9-0", "bytes */10", "0-9/", "0-9,0-9", "0-" + "9" * 30])
def test_bad_content_range(http: httpx.Client, bad: str) -> None:
    """400, and nothing is taken in."""
    location = begin_upload(http, "badrange")
    answer = http.patch(location, content=b"0123456789", headers={"Content-Range": bad})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "BLOB_UPLOAD_INVALID")
    assert http.get(location).headers["range"] == "0-0"


def test_content_range_in_the_form_of_http(http: httpx.Client) -> None:
    """As regshape says it (`0-9/*`), and whoever takes the header for HTTP's: docker-registry heeds neither."""
    location = begin_upload(http, "httprange")
    for start, said in enumerate(["0-9/*", "bytes 10-19/30", "bytes 20-29/*"]):
        answer = http.patch(location, content=b"%d" % start * 10, headers={"Content-Range": said})
        assert answer.status_code == 202, answer.text
    answer = http.patch(location, content=b"0123456789", headers={"Content-Range": "bytes 0-9/30"})
    assert (answer.status_code, answer.headers["range"]) == (416, "0-29")
    whole = b"0" * 10 + b"1" * 10 + b"2" * 10
    assert http.put(finishing(location, Digest.of(whole))).status_code == 201


def test_content_range_that_contradicts_the_length(http: httpx.Client) -> None:
    """400, and nothing is taken in: announced by Content-Length or seen at the end of a stream."""
    location = begin_upload(http, "badlength")
    answer = http.patch(location, content=b"0123456789", headers=chunk_headers(0, 5))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "SIZE_INVALID")
    streamed = http.patch(location, content=iter([b"01234", b"56789"]), headers=chunk_headers(0, 11))
    assert (streamed.status_code, streamed.json()["errors"][0]["code"]) == (400, "SIZE_INVALID")
    assert http.get(location).headers["range"] == "0-0"
    assert http.put(finishing(location, Digest.of(b""))).status_code == 201


def test_content_range_of_no_bytes(http: httpx.Client) -> None:
    """As CUE's client says it of an empty blob, and of an upload that it ends when there is nothing left to send."""
    location = begin_upload(http, "nothing")
    answer = http.put(finishing(location, Digest.of(b"")), content=b"", headers={"Content-Range": "0-0"})
    assert answer.status_code == 201, answer.text
    location = begin_upload(http, "nothing")
    http.patch(location, content=b"01234", headers=chunk_headers(0, 5))
    end = finishing(location, Digest.of(b"01234"))
    assert http.put(end, content=b"", headers={"Content-Range": "4-3"}).status_code == 416
    assert http.put(end, content=b"", headers={"Content-Range": "5-4"}).status_code == 201


def test_stream_then_chunk_then_rest(http: httpx.Client) -> None:
    """All ways of sending in one upload, over different connections and so different workers."""
    data = os.urandom((3 << 20) + 17)
    location = begin_upload(http, "mixed")
    cuts = (0, 1 << 20, (2 << 20) + 5, len(data))
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        with httpx.Client(base_url=http.base_url) as other:
            part = data[start:end]
            headers = chunk_headers(start, len(part)) if number % 2 else {}
            content = part if number % 2 else iter([part[:1000], part[1000:]])
            assert other.patch(location, content=content, headers=headers).status_code == 202
    answer = http.put(finishing(location, Digest.of(data)))
    assert answer.status_code == 201
    assert http.get(answer.headers["location"]).content == data


def test_algorithm_that_was_not_announced(http: httpx.Client) -> None:
    """The blob is hashed again, and stored under the digest it was pushed by."""
    data = os.urandom(300_000)
    for announced in ("", "?digest-algorithm=sha512", "?digest-algorithm=sha256"):
        location = http.post(f"/v2/algorithm/blobs/uploads/{announced}").headers["location"]
        http.patch(location, content=data)
        digest = Digest.of(data, "sha512")
        assert http.put(finishing(location, digest)).status_code == 201
        assert http.get(f"/v2/algorithm/blobs/{digest}").content == data
    answer = http.post("/v2/algorithm/blobs/uploads/?digest-algorithm=md5")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")


def test_mismatch_ends_the_session(http: httpx.Client) -> None:
    """It could never be finished."""
    location = begin_upload(http, "mismatch")
    http.patch(location, content=b"something")
    answer = http.put(finishing(location, Digest.of(b"other")))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    assert http.get(location).status_code == 404


def test_finished_session_is_unknown(http: httpx.Client) -> None:
    """Whatever is done to it."""
    location = begin_upload(http, "finished")
    assert http.put(finishing(location, Digest.of(b"x")), content=b"x").status_code == 201
    for answer in (
        http.get(location),
        http.patch(location, content=b"x"),
        http.put(finishing(location, Digest.of(b"x"))),
        http.delete(location),
    ):
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("session", ["x", "..", "%2e%2e%2fformat", "lock", "A" * 36, "0" * 32, "%00", "{}" * 300])
def test_sessions_that_never_were(http: httpx.Client, session: str) -> None:
    """Are unknown, and name no other file."""
    answer = http.patch(f"/v2/never/blobs/uploads/{session}", content=b"x")
    assert answer.status_code in (400, 404)


def test_session_belongs_to_its_repository(http: httpx.Client) -> None:
    """Another one does not know it."""
    location = begin_upload(http, "owner")
    assert http.patch(location.replace("owner", "other"), content=b"x").status_code == 404


def test_broken_stream_keeps_what_arrived(service: Service, http: httpx.Client) -> None:
    """The client asks how far it came, and goes on."""
    data = os.urandom(2_500_000)
    location = begin_upload(http, "broken/stream")
    body = b"%x\r\n%s\r\n" % (2_000_000, data[:2_000_000])
    send_and_leave(service, location, {"Transfer-Encoding": "chunked"}, body)
    wait_for(http, location, 2_000_000)
    rest = data[2_000_000:]
    answer = http.patch(location, content=rest, headers=chunk_headers(2_000_000, len(rest)))
    assert answer.status_code == 202
    answer = http.put(finishing(location, Digest.of(data)))
    assert answer.status_code == 201
    assert http.get(answer.headers["location"]).content == data


@pytest.mark.parametrize("announced", [{"Content-Length": "2500000"}, {**chunk_headers(3, 2_500_000)}])
def test_broken_chunk_is_not_kept(service: Service, http: httpx.Client, announced: dict[str, str]) -> None:
    """What was announced counts whole or not at all."""
    location = begin_upload(http, "broken/chunk")
    http.patch(location, content=b"abc")
    headers = {"Content-Length": "2500000", **announced}
    send_and_leave(service, location, headers, os.urandom(2_000_000))
    # The request that follows waits for the one that is on its way out.
    deadline = time.monotonic() + 60
    while (answer := http.patch(location, content=b"def", headers=chunk_headers(3, 3))).status_code != 202:
        assert time.monotonic() < deadline, answer.text
    answer = http.put(finishing(location, Digest.of(b"abcdef")))
    assert answer.status_code == 201


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "after the head"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_offer_of_another_protocol_is_not_taken_up(
    service: Service, http: httpx.Client, framing: str, *, apart: bool
) -> None:
    """As Java's HTTP client makes it with its first request. The body counts, and so do the requests behind it."""
    data = os.urandom(50_000)
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    url = finishing(begin_upload(http, "offer"), Digest.of(data))
    how, body = f"Content-Length: {len(data)}", data
    if framing == "chunked":
        how, body = "Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    head = f"PUT {url} HTTP/1.1\r\nHost: x\r\n{offer}{how}\r\n\r\n".encode()
    after = f"HEAD {url} HTTP/1.1\r\nHost: x\r\n{offer}\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    host, port = service.host.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if apart:
            connection.sendall(head)
            connection.sendall(body + after)
        else:
            connection.sendall(head + body + after)
        answers = b""
        while not answers.endswith(b"\r\n\r\n{}") and (more := connection.recv(65536)):
            answers += more
    statuses = [line.split()[1] for line in answers.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses == [b"201", b"405", b"200"], answers
    assert http.get(f"/v2/offer/blobs/{Digest.of(data)}").content == data


def test_two_writers(service: Service, http: httpx.Client) -> None:
    """The second is told to wait; the first goes on."""
    location = begin_upload(http, "two")
    host, port = service.host.split(":")
    with socket.create_connection((host, int(port))) as first:
        first.sendall(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode() + b"01234")
        deadline = time.monotonic() + 60
        while (second := http.patch(location, content=b"")).status_code == 202:
            assert time.monotonic() < deadline
        assert (second.status_code, second.json()["errors"][0]["code"]) == (409, "BUSY")
        assert second.headers["retry-after"]
        first.sendall(b"56789")
        assert first.recv(100).startswith(b"HTTP/1.1 202")
    assert http.put(finishing(location, Digest.of(b"0123456789"))).status_code == 201


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a small quota and small blobs."""
    data = tmp_path_factory.mktemp("small") / "data"
    with running_service(data, "--quota", "8MiB", "--max-blob-size", "4MiB") as service:
        yield service


def test_blob_over_the_limit(small: Service) -> None:
    """413 before anything is taken in if its length is known, else as soon as it is too long."""
    with httpx.Client(base_url=small.url) as http:
        location = begin_upload(http, "limit")
        large = os.urandom((4 << 20) + 1)
        answer = http.patch(location, content=large)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (413, "SIZE_INVALID")
        answer = http.patch(location, content=iter([large[:2_000_000], large[2_000_000:]]))
        assert answer.status_code == 413
        assert http.get(location).headers["range"] == "0-0"
        http.patch(location, content=large[:4])
        assert http.patch(location, content=large[4 : 4 << 20]).status_code == 202
        assert http.patch(location, content=b"x").status_code == 413
        assert http.delete(location).status_code == 204


def test_quota_counts_uploads(small: Service) -> None:
    """507 while sessions fill it; room again when they are cancelled."""
    with httpx.Client(base_url=small.url) as http:
        locations = [begin_upload(http, "quota") for _ in range(3)]
        piece = os.urandom(3 << 20)
        answers = [http.patch(location, content=piece) for location in locations]
        assert [answer.status_code for answer in answers] == [202, 202, 507]
        assert answers[2].json()["errors"][0]["code"] == "STORE_FULL"
        streamed = http.patch(locations[2], content=iter([piece]))
        assert streamed.status_code == 507
        assert http.get(locations[2]).headers["range"] == "0-0"
        for location in locations[:2]:
            http.delete(location)
        assert http.patch(locations[2], content=piece).status_code == 202
        http.delete(locations[2])


def test_what_is_there_already_is_pushed_again_at_the_quota(tmp_path: Path) -> None:
    """Its bytes are compared, and take no room; what others have is refused as what nobody has."""
    data = tmp_path / "data"
    known, others, small = os.urandom(2_000_000), os.urandom(2_000_000), b"small"
    manifest = image_parts()[0]
    with running_service(data) as service, httpx.Client(base_url=service.url) as http:
        push_image(http, "mine", "1")
        push_image(http, "mine", "2", {"other": b"file"})
        for blob in (known, small):
            push_blob(http, "mine", blob)
        push_blob(http, "others", others)
    with running_service(data, "--quota", "1MB") as service, httpx.Client(base_url=service.url) as http:

        def post(claimed: bytes, body: object) -> httpx.Response:
            params = {"digest": str(Digest.of(claimed))}
            return http.post("/v2/mine/blobs/uploads/", params=params, content=body)  # type: ignore[arg-type]

        for blob in (known, small):
            assert push_blob(http, "mine", blob) == Digest.of(blob)  # POST and PUT
            assert post(blob, blob).status_code == 201
            assert post(blob, iter([blob[:3], blob[3:]])).status_code == 201
        for wrong in (others, known[:-1], b""):
            answer = post(known, wrong)
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
        for blob in (others, os.urandom(2_000_000), b"new"):
            for body in (blob, iter([blob])):
                answer = post(blob, body)
                assert (answer.status_code, answer.json()["errors"][0]["code"]) == (507, "STORE_FULL")
        for tag, status in (("1", 201), ("2", 201), (str(Digest.of(manifest)), 201), ("3", 507)):
            answer = http.put(f"/v2/mine/manifests/{tag}", content=manifest, headers={"Content-Type": OCI_MANIFEST})
            assert answer.status_code == status, answer.text
        location = begin_upload(http, "mine")
        assert http.patch(location, content=known).status_code == 507  # nobody knows what that is to be
        assert http.delete(location).status_code == 204
        assert list((data / "uploads").iterdir()) == []
        assert http.get(f"/v2/mine/blobs/{Digest.of(known)}").content == known


def test_sessions_survive_a_kill(tmp_path: Path) -> None:
    """Of the whole service, with SIGKILL; and so does every blob that was acknowledged."""
    data = os.urandom(1_500_000)
    service = Service(tmp_path / "data", ("--workers", "2"))
    service.start()
    with httpx.Client(base_url=service.url) as http:
        blobs = [push_blob(http, "kill", os.urandom(size)) for size in (10, 200_000, 3_000_000)]
        location = begin_upload(http, "kill")
        http.patch(location, content=data[:1_000_000])
    service.kill()
    service.start()
    try:
        with httpx.Client(base_url=service.url) as http:
            assert size_of(http, location) == 1_000_000
            answer = http.put(
                finishing(location, Digest.of(data)),
                content=data[1_000_000:],
                headers=chunk_headers(1_000_000, 500_000),
            )
            assert answer.status_code == 201
            for digest in blobs:
                assert Digest.of(http.get(f"/v2/kill/blobs/{digest}").content) == digest
    finally:
        service.stop()
    assert not list((tmp_path / "data" / "uploads").iterdir())


def test_idle_sessions_are_swept_at_the_start(tmp_path: Path) -> None:
    """With what a crash left of others; a fresh one stays."""
    service = Service(tmp_path / "data", ("--upload-idle", "1000"))
    service.start()
    with httpx.Client(base_url=service.url) as http:
        old, fresh = begin_upload(http, "sweep"), begin_upload(http, "sweep")
    service.stop()
    uploads = tmp_path / "data" / "uploads"
    leftover = uploads / "00000000-0000-0000-0000-000000000000.json"
    leftover.write_text("{}")
    past = time.time() - 2000
    for path in (uploads / old.rpartition("/")[2], leftover):
        os.utime(path, (past, past))
    service.start()
    try:
        with httpx.Client(base_url=service.url) as http:
            assert http.get(old).status_code == 404
            assert http.get(fresh).status_code == 204
        assert not leftover.exists()
    finally:
        service.stop()
