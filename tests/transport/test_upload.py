"""Uploads over connections that break, and registries with habits of their own."""

from __future__ import annotations

import hashlib
import io

import pytest

from pagepool.errors import (
    DigestInvalidError,
    DigestMismatchError,
    ResponseError,
    StoreFullError,
    UnreachableError,
    UploadUnknownError,
)
from pagepool.oci import Descriptor
from pagepool.transport import Credentials, RegistryClient
from pagepool.transport.upload import MONOLITHIC_SIZE
from tests.transport.scripted import Reply, Request, Scripted, scripted_server, session

DATA = hashlib.shake_128(b"upload").digest(MONOLITHIC_SIZE + 3_000_000)
BLOB = Descriptor.of("application/octet-stream", DATA)
SMALL = Descriptor.of("application/octet-stream", b"small")


class Registry:
    """The upload part of a registry, as small as can be; tests bend it."""

    def __init__(self) -> None:
        self.parts = bytearray()
        self.blobs: dict[str, bytes] = {}
        self.sessions = 0
        self.location = "/v2/a/blobs/uploads/{}?state=a%2Fb%3D"

    def __call__(self, request: Request) -> Reply | None:
        if request.method == "HEAD":
            content = self.blobs.get(request.path.rpartition("/")[2])
            return Reply(404) if content is None else Reply(200, headers={"Content-Length": str(len(content))})
        return getattr(self, request.method.lower())(request)  # type: ignore[no-any-return]

    def post(self, _: Request) -> Reply | None:
        self.sessions += 1
        self.parts.clear()
        return self._accepted()

    def patch(self, request: Request) -> Reply | None:
        assert request.query["state"] == "a/b="
        self.parts += request.body
        return self._accepted()

    def get(self, _: Request) -> Reply | None:
        return self._accepted(204)

    def put(self, request: Request) -> Reply | None:
        self.parts += request.body
        digest = request.query["digest"]
        assert request.query["state"] == "a/b="
        if f"sha256:{hashlib.sha256(self.parts).hexdigest()}" != digest:
            return Reply(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}')
        self.blobs[digest] = bytes(self.parts)
        return Reply(201, headers={"Location": f"/v2/a/blobs/{digest}"})

    def delete(self, _: Request) -> Reply | None:
        return Reply(204)

    def _accepted(self, status: int = 202) -> Reply:
        headers = {"Location": self.location.format(self.sessions), "Range": f"0-{max(0, len(self.parts) - 1)}"}
        return Reply(status, headers=headers)


def _push(server: Scripted, blob: Descriptor = BLOB, data: bytes = DATA) -> list[int]:
    steps: list[int] = []
    with session(server.url) as connection:
        RegistryClient(connection).push_blob("a", blob, lambda: io.BytesIO(data), progress=steps.append)
    return steps


def test_small_blob_is_one_put() -> None:
    with scripted_server(Registry()) as server:
        _push(server, SMALL, b"small")
        assert [request.method for request in server.requests] == ["HEAD", "POST", "PUT"]


def test_large_blob_is_one_patch_without_a_range() -> None:
    registry = Registry()
    with scripted_server(registry) as server:
        _push(server)
        assert [request.method for request in server.requests] == ["HEAD", "POST", "PATCH", "PUT"]
        assert "content-range" not in server.seen("PATCH")[0].headers
    assert registry.blobs[str(BLOB.digest)] == DATA


def test_resumes_an_upload_that_broke_off() -> None:
    registry = Registry()
    with scripted_server(registry) as server:
        server.take_body = 2_500_000
        steps = _push(server)
        first, second = server.seen("PATCH")
        assert len(first.body) == 2_500_000
        assert second.headers["content-range"] == f"2500000-{len(DATA) - 1}"
    assert registry.blobs[str(BLOB.digest)] == DATA
    assert registry.sessions == 1
    assert sum(steps) == len(DATA)


def test_sends_nothing_again_if_all_of_it_has_come() -> None:
    """A chunk of no bytes has no range that could be named: registries refuse it."""
    registry = Registry()
    patch, answers = registry.patch, iter([True])

    def lose(request: Request) -> Reply | None:
        answer = patch(request)
        return None if next(answers, False) else answer

    registry.patch = lose  # type: ignore[method-assign]
    with scripted_server(registry) as server:
        steps = _push(server)
        assert [request.method for request in server.requests] == ["HEAD", "POST", "PATCH", "GET", "PUT"]
    assert registry.blobs[str(BLOB.digest)] == DATA
    assert sum(steps) == len(DATA)


def test_begins_anew_if_the_registry_cannot_say_how_far_it_is() -> None:
    registry = Registry()
    registry.get = lambda _: Reply(405)  # type: ignore[method-assign]
    with scripted_server(registry) as server:
        server.take_body = 2_500_000
        steps = _push(server)
    assert registry.sessions == 2
    assert registry.blobs[str(BLOB.digest)] == DATA
    assert sum(steps) == len(DATA)


def test_answer_of_the_commit_got_lost() -> None:
    registry = Registry()
    commit, answers = registry.put, iter([True])

    def lose(request: Request) -> Reply | None:
        if next(answers, False):
            commit(request)
            return None
        return Reply(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')

    registry.put = lose  # type: ignore[method-assign]
    with scripted_server(registry) as server:
        _push(server)
    assert registry.sessions == 1


def test_registry_that_always_forgets_is_given_up() -> None:
    registry = Registry()
    registry.patch = lambda request: Reply(404)  # type: ignore[method-assign] # noqa: ARG005
    with scripted_server(registry) as server, pytest.raises(UploadUnknownError):
        _push(server)
    assert registry.sessions == 3


def test_unreachable_in_the_middle() -> None:
    registry = Registry()
    registry.patch = lambda request: None  # type: ignore[method-assign] # noqa: ARG005
    with scripted_server(registry) as server, pytest.raises(UnreachableError):
        _push(server)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(507, "STORE_FULL", StoreFullError), (413, "", ResponseError), (400, "DIGEST_INVALID", DigestInvalidError)],
)
def test_refusal_cancels_the_upload(status: int, code: str, error: type[Exception]) -> None:
    registry = Registry()
    body = b'{"errors":[{"code":"%s","message":"why"}]}' % code.encode()
    registry.patch = lambda request: Reply(status, body)  # type: ignore[method-assign] # noqa: ARG005
    with scripted_server(registry) as server:
        with pytest.raises(error, match="why"):
            _push(server)
        assert len(server.seen("DELETE")) == 1


def test_content_that_is_not_its_digest_is_cancelled() -> None:
    registry = Registry()
    with scripted_server(registry) as server:
        with pytest.raises(DigestMismatchError):
            _push(server, data=DATA[:-1] + b"!")
        assert not server.seen("PUT")
    assert not registry.blobs


def test_location_on_another_host_gets_no_credentials() -> None:
    home, other = Registry(), Registry()
    with scripted_server(other) as elsewhere, scripted_server(home) as server:
        home.location = elsewhere.url + other.location

        def guard(request: Request) -> Reply | None:
            if "authorization" not in request.headers:
                return Reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            return home(request)

        server.script = guard
        with session(server.url, credentials=Credentials("u", "p")) as connection:
            RegistryClient(connection).push_blob("a", BLOB, lambda: io.BytesIO(DATA))
        assert elsewhere.requests
        assert all("authorization" not in request.headers for request in elsewhere.requests)
    assert other.blobs[str(BLOB.digest)] == DATA


@pytest.mark.parametrize("location", [None, "ftp://x/y", "http://[::bad"])
def test_location_that_cannot_be_used(location: str | None) -> None:
    registry = Registry()
    headers = {"Location": location} if location is not None else {}
    registry.post = lambda _: Reply(202, headers=headers)  # type: ignore[method-assign]
    with scripted_server(registry) as server, pytest.raises(UnreachableError):
        _push(server)
