"""The client of pagepool's own routes, against scripted answers; tests/cli has it against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pagepool.errors import (
    ManifestUnknownError,
    PagepoolError,
    PathUnknownError,
    PendingError,
    ResponseError,
    UnreachableError,
)
from pagepool.transport import ServiceClient
from pagepool.transport.paging import next_link, pages
from tests.transport.scripted import Reply, Request, Script, scripted_server, session
from tests.transport.test_http import _call

LAYER = {"digest": "sha256:aa", "media_type": "m", "size": 1, "state": "pending", "reason": ""}
IMAGE: dict[str, Any] = {
    "name": "a",
    "reference": "1",
    "digest": "sha256:bb",
    "media_type": "m",
    "size": 3,
    "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
    "state": "pending",
    "reason": "",
    "layers": [LAYER],
    "later": True,
}


def _json(value: object, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {name.replace("_", "-"): text for name, text in headers.items()})


def _states(*states: str) -> Iterator[Reply]:
    for state in states:
        yield _json(IMAGE | {"state": state}, 202 if state == "pending" else 200)


def test_image() -> None:
    with scripted_server(lambda _: _json(IMAGE, 202)) as server, session(server.url) as link:
        image = ServiceClient(link).image("a", "1")
    assert image.platform == "linux/arm/v7"
    assert image.waiting == ("sha256:aa",)
    assert image.layers[0].plain_size is None
    assert image.raw["later"] is True


def test_wait_until_ready() -> None:
    answers = _states("pending", "pending", "ready")
    seen: list[str] = []
    waits: list[float] = []
    with scripted_server(lambda _: next(answers)) as server, session(server.url, waits) as link:
        image = ServiceClient(link).wait("a", "1", on_state=lambda image: seen.append(image.state))
    assert image.state == "ready"
    assert seen == ["pending", "pending", "ready"]
    assert waits == [0.05, 0.05 * 1.5]


def test_wait_ends_with_an_unmountable_image() -> None:
    answers = _states("pending", "unmountable")
    with scripted_server(lambda _: next(answers)) as server, session(server.url) as link:
        assert ServiceClient(link).wait("a", "1").state == "unmountable"


def test_wait_has_an_end() -> None:
    times = iter(range(100))
    with scripted_server(lambda _: _json(IMAGE, 202)) as server, session(server.url) as link:
        client = ServiceClient(link, clock=lambda: float(next(times)))
        with pytest.raises(PendingError) as caught:
            client.wait("a", "1", timeout_s=3)
    assert caught.value.waiting == ("sha256:aa",)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>a web page</html>"),
        Reply(200, b"[]"),
        Reply(200, b'{"images":5}'),
        Reply(200, b"{}"),
        Reply(404),
        Reply(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}'),
        Reply(418),
    ],
)
def test_other_servers_are_not_taken_for_the_service(reply: Reply) -> None:
    with scripted_server(lambda _: reply) as server, session(server.url) as link:
        assert not ServiceClient(link).available()


def test_service_is_recognised() -> None:
    with scripted_server(lambda _: _json({"images": []})) as server, session(server.url) as link:
        assert ServiceClient(link).available()


def test_images_in_pages_by_link_and_by_next() -> None:
    def script(request: Request) -> Reply:
        last = request.query.get("last", "")
        if not last:
            return _json({"images": [{"name": "a"}], "next": "x"}, Link='</v1/images?last=a>; rel="next"')
        return _json({"images": [{"name": last}], "next": "c"} if last == "a" else {"images": [{"name": last}]})

    with scripted_server(script) as server, session(server.url) as link:
        assert [row["name"] for row in ServiceClient(link).images()] == ["a", "a", "c"]


def test_files() -> None:
    def script(request: Request) -> Reply:
        assert request.path == "/v1/a/images/sha256:bb/files"
        assert request.query["path"] == "/x y"
        if "after" in request.query:
            return _json({"entries": [{"path": "/x y/2", "type": "symlink", "linkname": "t", "mtime_ns": -5}]})
        first = {"path": "/x y/1", "type": "regular", "size": 4, "mtime_ns": -(1 << 63) * 10**9}
        return _json({"entries": [first], "next": "/x%20y/1"})

    with scripted_server(script) as server, session(server.url) as link:
        first, second = ServiceClient(link).files("a", "sha256:bb", "/x y")
    assert (first.path, first.size, first.nlink) == ("/x y/1", 4, 1)
    assert first.mtime_ns == -(1 << 63) * 10**9, "the earliest time that a tar can say"
    assert (second.linkname, second.mtime_ns) == ("t", -5)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(404, b'{"errors":[{"code":"PATH_UNKNOWN"}]}'), PathUnknownError),
        (Reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'), ManifestUnknownError),
        (Reply(202, b'{"waiting":["sha256:aa"]}'), PendingError),
        (Reply(200, b"nonsense"), ResponseError),
        (Reply(200, b'{"entries":[{"path":5}]}'), ResponseError),
        (Reply(200, b'{"entries":[],"next":"same"}'), ResponseError),
    ],
)
def test_files_that_cannot_be_listed(reply: Reply, error: type[Exception]) -> None:
    with scripted_server(lambda _: reply) as server, session(server.url) as link, pytest.raises(error):
        list(ServiceClient(link).files("a", "1", "/"))


def test_a_listing_names_the_image_that_is_not_ready() -> None:
    reply = Reply(202, b'{"waiting":["sha256:aa"]}')
    with scripted_server(lambda _: reply) as server, session(server.url) as link, pytest.raises(PendingError) as caught:
        list(ServiceClient(link).files("a", "1", "/etc"))
    assert str(caught.value) == "a:1 is not ready: 1 layer is still being read"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'), "manifest a:1 is unknown"),
        (Reply(404, b'{"errors":[{"code":"PATH_UNKNOWN"}]}'), "path /x is unknown"),
        (
            Reply(422, b'{"errors":[{"code":"LAYER_INVALID","message":"invalid layer \'l\': is a link to nothing"}]}'),
            "invalid layer 'a:1': 'l': is a link to nothing",
        ),
    ],
)
def test_errors_name_what_they_are_about(reply: Reply, words: str) -> None:
    """The image, where it is the image that is missing or cannot be used, and not the path in it."""
    with scripted_server(lambda _: reply) as server, session(server.url) as link, pytest.raises(PagepoolError) as info:
        list(ServiceClient(link).files("a", "1", "/x"))
    assert str(info.value) == words


def _links(script: Script) -> int:
    with scripted_server(script) as server, session(server.url) as link:
        return len(list(pages(link, _call())))


def test_links_are_followed() -> None:
    def script(request: Request) -> Reply:
        step = int(request.query.get("n", "0"))
        return Reply(200, b"", {"Link": f'<?n={step + 1}>; rel="next"'} if step < 3 else {})

    assert _links(script) == 4


@pytest.mark.parametrize("link", ["</x?n=1>; rel=next", '<http://192.0.2.1/x>; rel="next"', '<ftp://x>; rel="next"'])
def test_links_that_lead_astray(link: str) -> None:
    with pytest.raises(UnreachableError):
        _links(lambda _: Reply(200, b"", {"Link": link}))


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("", None),
        ('</a>; rel="prev"', None),
        ('</a>; rel="prev", </b>; rel="next"', "/b"),
        ("</a>; title=x; REL=Next", "/a"),
        ('</a>; rel="last next"', "/a"),
        ('</a>; rel="nextish"', None),
        ("nonsense", None),
    ],
)
def test_next_link(link: str, expected: str | None) -> None:
    with (
        scripted_server(lambda _: Reply(200, b"", {"Link": link} if link else {})) as server,
        session(server.url) as connection,
    ):
        assert next_link(connection.request(_call())) == expected
