"""The files of the page over HTTP: what may be asked, and what browsers are told of them."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of an empty service."""
    data = tmp_path_factory.mktemp("files") / "data"
    with running_service(data) as service, httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def names() -> list[str]:
    """Everything that the page is made of."""
    found = (item.name for item in resources.files("pagepool_service.page").iterdir())
    return sorted(name for name in found if name.endswith((".html", ".css", ".js", ".svg")))


def test_every_file(http: httpx.Client) -> None:
    """Has its type, its policy and its tag; all together are small."""
    size = sent = 0
    for name in names():
        answer = http.get(f"/page/{name}")
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"].split(";")[0] in (
            *("text/html", "text/css", "text/javascript", "image/svg+xml"),
        )
        assert answer.headers["content-encoding"] == "gzip"
        plain = http.get(f"/page/{name}", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        assert plain.headers["etag"] != answer.headers["etag"]
        size += len(plain.content)
        sent += int(answer.headers["content-length"])
    assert len(names()) > 8
    assert size < 48_000
    assert sent < 20_000


def test_the_document(http: httpx.Client) -> None:
    """Names no other place, and has no script or style of its own."""
    answer = http.get("/")
    assert answer.content == http.get("/page/index.html").content
    text = answer.text
    assert "://" not in text
    assert text.count("<script") == text.count('<script src="/page/') + text.count('<script type="module" src="/page/')
    assert " style=" not in text
    assert "<style" not in text
    assert " onclick=" not in text


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_what_is_known_is_not_sent_again(http: httpx.Client, encoding: str) -> None:
    """Also with a weak tag, and one among others."""
    accept = {"Accept-Encoding": encoding}
    tag = http.get("/page/main.js", headers=accept).headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        answer = http.get("/page/main.js", headers={**accept, "If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert http.get("/page/main.js", headers={**accept, "If-None-Match": '"other"'}).status_code == 200


def test_head(http: httpx.Client) -> None:
    """The same without a body."""
    for path in ("/", "/page/page.css"):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == http.get(path).headers["content-length"]


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none", "/page/__init__.py", "/page/..%2fapp.py", "/page", "/page/a/b"]
)
def test_nothing_else(http: httpx.Client, path: str) -> None:
    """Is there: it is one of the files, or 404."""
    assert http.get(path).status_code == 404


def test_other_methods(http: httpx.Client) -> None:
    """Are refused."""
    assert http.post("/").status_code == 405


def test_the_registry_is_as_it_was(http: httpx.Client) -> None:
    """Clients ask /v2/ first."""
    answer = http.get("/v2/")
    assert (answer.status_code, answer.json()) == (200, {})
    assert "content-security-policy" not in answer.headers
