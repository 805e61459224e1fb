"""The session: retries, redirects, limits, addresses, and what errors become."""

from __future__ import annotations

import json
import os

import httpx
import pytest

from pagepool import errors
from pagepool.errors import InvalidError, LimitError, PagepoolError, ResponseError, UnreachableError
from pagepool.transport import RegistryClient, is_loopback
from pagepool.transport.answers import Subject
from pagepool.transport.auth import add_params
from pagepool.transport.http import Call, Session, parse_base
from pagepool.transport.pace import PacedStream
from pagepool.transport.retry import RetryPolicy, parse_retry_after
from pagepool.transport.trust import _system
from tests.transport.scripted import Reply, Request, scripted_server, session, trickling_server

ABOUT = Subject(errors.BlobUnknownError, "thing", "repo")


def _call(**options: object) -> Call:
    return Call("GET", "/x", ABOUT, **options)  # type: ignore[arg-type]


def test_nothing_listens() -> None:
    with scripted_server(lambda _: Reply()) as server:
        url = server.url
    waits: list[float] = []
    with session(url, waits) as link, pytest.raises(UnreachableError, match="refused"):
        link.request(_call())
    assert not waits  # a server that was never there is not waited for


def test_connection_that_breaks_is_tried_again_a_few_times() -> None:
    waits: list[float] = []
    with scripted_server(lambda _: None) as server, session(server.url, waits) as link:
        with pytest.raises(UnreachableError):
            link.request(_call())
        assert len(server.requests) == 4
    assert waits == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("at_once", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n"], ids=["head", "body"])
def test_an_answer_that_trickles_is_given_up(at_once: bytes) -> None:
    """However small the pieces are, and whatever they are pieces of."""
    answer = (b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + bytes(40)).removeprefix(at_once)
    with (
        trickling_server(at_once, answer) as url,
        Session(url, timeout=httpx.Timeout(0.2), retry=RetryPolicy(attempts=1)) as opened,
        pytest.raises(UnreachableError, match="timed out"),
    ):
        opened.request(Call("GET", "/", Subject(errors.NotFoundError, "x")))


def test_what_comes_makes_up_for_waiting() -> None:
    """An answer that is slow, and not too slow, takes longer than a read may; each begins anew."""
    now = 0.0

    class Slow:
        def read(self, size: int, timeout: float) -> bytes:
            nonlocal now
            now += min(8.0, timeout)
            return bytes(size)

        def write(self, _data: bytes, _timeout: float | None) -> None:
            pass

    stream = PacedStream(Slow(), lambda: now)
    for _ in range(4):
        assert stream.read(8 * 256, 10.0)
    stream.read(0, 10.0)
    stream.write(b"the next request")
    stream.read(0, 10.0)
    stream.read(0, 10.0)
    assert now == 5 * 8 + 10
    with pytest.raises(httpx.ReadTimeout):
        stream.read(0, 10.0)


def test_what_is_not_repeatable_is_sent_once() -> None:
    with scripted_server(lambda _: Reply(503)) as server, session(server.url) as link:
        with pytest.raises(ResponseError, match="503"):
            link.request(_call(repeatable=False))
        assert len(server.requests) == 1


def test_redirects_are_followed_and_bounded() -> None:
    def script(request: Request) -> Reply:
        step = int(request.query.get("n", "0"))
        return Reply(302, headers={"Location": f"/x?n={step + 1}"}) if step < 4 else Reply(200, b"end")

    with scripted_server(script) as server, session(server.url) as link:
        assert link.request(_call()).content == b"end"
    circle = Reply(302, headers={"Location": "/x"})
    with scripted_server(lambda _: circle) as server, session(server.url) as link:
        with pytest.raises(UnreachableError, match="redirects"):
            link.request(_call())
        assert len(server.requests) == 6


def test_answers_have_a_limit() -> None:
    with scripted_server(lambda _: Reply(200, b"x" * 1000)) as server, session(server.url) as link:
        assert len(link.request(_call(limit=1000)).content) == 1000
        with pytest.raises(LimitError):
            link.request(_call(limit=999))


def test_manifest_has_a_limit() -> None:
    with (
        scripted_server(lambda _: Reply(200, b" " * (17 << 20))) as server,
        session(server.url) as link,
        pytest.raises(LimitError),
    ):
        RegistryClient(link).get_manifest("a", "1")


def test_warnings_are_told_once() -> None:
    told: list[str] = []
    headers = {"Warning": '299 - "the \\"end\\" is near"'}
    with (
        scripted_server(lambda _: Reply(200, headers=headers)) as server,
        session(server.url, on_warning=told.append) as link,
    ):
        link.request(_call())
        link.request(_call())
    assert told == ['the "end" is near']


def _body(code: str) -> bytes:
    return b'{"errors":[{"code":"%s","message":"words"}]}' % code.encode()


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (404, "BLOB_UNKNOWN", errors.BlobUnknownError, "blob thing"),
        (404, "MANIFEST_UNKNOWN", errors.ManifestUnknownError, "manifest thing"),
        (404, "NAME_UNKNOWN", errors.NameUnknownError, "repository repo"),
        (404, "", errors.BlobUnknownError, "blob thing"),
        (404, "SOMETHING_ELSE", errors.BlobUnknownError, "blob thing"),
        (400, "NAME_INVALID", errors.NameInvalidError, "repo"),
        (400, "MANIFEST_INVALID", errors.ManifestInvalidError, "words"),
        (400, "manifest_invalid", errors.ManifestInvalidError, "words"),
        (400, "SIZE_INVALID", errors.SizeInvalidError, "words"),
        (401, "", errors.UnauthorizedError, "401"),
        (403, "", errors.DeniedError, "403"),
        (405, "UNSUPPORTED", errors.UnsupportedError, "words"),
        (405, "READ_ONLY", errors.ReadOnlyError, "words"),
        (416, "", errors.RangeInvalidError, "416"),
        (422, "UNSUPPORTED", errors.ImageInvalidError, "words"),
        (422, "LAYER_INVALID", errors.LayerInvalidError, "words"),
        (409, "BUSY", errors.BusyError, "words"),
        (507, "", errors.StoreFullError, "507"),
        (500, "CORRUPT", errors.CorruptError, "words"),
        (418, "", ResponseError, "418"),
        (302, "", ResponseError, "302"),
    ],
)
def test_errors(status: int, code: str, error: type[PagepoolError], words: str) -> None:
    body = _body(code) if code else b"<html>"
    with scripted_server(lambda _: Reply(status, body)) as server, session(server.url) as link:
        with pytest.raises(error, match=words) as caught:
            link.request(_call())
        assert type(caught.value) is error


def test_words_of_a_server_are_one_short_line() -> None:
    body = b'{"errors":[{"code":"X","message":"a\\u001b[2J\\nb' + b"x" * 5000 + b'"}]}'
    with scripted_server(lambda _: Reply(400, body)) as server, session(server.url) as link:
        with pytest.raises(ResponseError) as caught:
            link.request(_call())
        text = str(caught.value)
        assert text.isprintable()
        assert len(text) < 600


@pytest.mark.parametrize(
    "url",
    ["", "host", "ftp://host", "http://", "http://user:secret@host", "http://host?x=1", "http://[::1", "http://h:x"],
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Session(url)
    assert "secret" not in str(caught.value)


def test_prefix_in_the_address() -> None:
    with scripted_server(lambda _: Reply()) as server, session(f"{server.url}/below/") as link:
        link.request(_call())
        assert server.requests[0].path == "/below/x"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_added_parameters_leave_the_query_alone() -> None:
    url = parse_base("http://h/").copy_with(path="/u", query=b"_state=a%2Fb%3D%3D&x=%20y")
    added = add_params(url, (("digest", "sha256:ab"),))
    assert added.query == b"_state=a%2Fb%3D%3D&x=%20y&digest=sha256%3Aab"


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, 0), ("", 0), ("7", 7), ("x", 0), ("-1", 0), ("9" * 50, 999_999_999), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_retry_after(header: str | None, expected: float) -> None:
    assert parse_retry_after(header) == expected


def test_waits_grow_and_are_bounded() -> None:
    policy = RetryPolicy(base_s=1, limit_s=10, jitter=lambda: 0.5)
    assert [policy.delay_s(failures) for failures in (1, 2, 3, 4, 5, 500)] == [1, 2, 4, 8, 10, 10]
    assert policy.delay_s(1, "5") == 5
    assert policy.delay_s(1, "500") == 10


def test_authorities_are_read_once() -> None:
    """A node opens a session for each mount; reading them takes 40 ms of processor time."""
    _system.cache_clear()
    for host in ("one", "two", "three"):
        Session(f"https://{host}.example").close()
    assert _system.cache_info().misses <= 2  # of two, if an hour ends just now
    assert _system(1) is _system(1)
    assert _system(1) is not _system(2)


def test_a_forked_child_has_connections_of_its_own() -> None:
    """Else it could read what its parent asked for."""
    asked: list[Request] = []

    def script(request: Request) -> Reply:
        asked.append(request)
        return Reply(200, request.query["n"].encode())

    with scripted_server(script) as server, session(server.url) as link:
        assert link.request(_call(params=(("n", "first"),))).content == b"first"
        opened = link._client
        child = os.fork()
        if not child:
            try:
                other = link._client is not opened and not opened.is_closed
                right = link.request(_call(params=(("n", "child"),))).content == b"child"
                os._exit(0 if other and right else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert link._client is opened
        assert link.request(_call(params=(("n", "last"),))).content == b"last"
    child = os.fork()
    if not child:
        try:
            os._exit(0 if link._client is opened else 1)  # closed before, and stays it
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("manifest unknown: 1", "manifest app:1 is unknown"),
        ("", "manifest app:1 is unknown"),
        (
            "manifest unknown: for linux/s390x (the index offers linux/amd64)",
            "manifest app:1 for linux/s390x (the index offers linux/amd64) is unknown",
        ),
    ],
)
def test_a_platform_that_an_image_is_not_for_is_named(message: str, expected: str) -> None:
    body = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": message}]}).encode()
    about = Subject(errors.ManifestUnknownError, "app:1", "app")
    with (
        scripted_server(lambda _: Reply(404, body)) as server,
        session(server.url) as link,
        pytest.raises(errors.ManifestUnknownError) as caught,
    ):
        link.request(Call("GET", "/x", about))
    assert str(caught.value) == expected
