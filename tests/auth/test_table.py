"""The table of who may make which request: it has every route of the application and no other, and holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pagepool_service.app import create_app
from pagepool_service.routes.access import TABLE, Need, need_of
from pagepool_service.settings import Settings
from pagepool_service.store.store import Store
from tests.auth.conftest import basic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

HEX = "0" * 64
VALUES = {
    "name": "secret/app",
    "reference": "1",
    "digest": f"sha256:{HEX}",
    "session": "00000000-0000-4000-8000-000000000000",
    "tree": f"blake3:{HEX}",
    "object": HEX,
    "lease": "0" * 32,
}
NEEDING = sorted(pair for pair, need in TABLE.items() if need is not Need.NOTHING)


@pytest.fixture
def routes(tmp_path: Path) -> set[tuple[str, str]]:
    """Method and path of each route of an application; of one without methods, as a mount is, every method."""
    settings = Settings.load({}, data=tmp_path / "data", cache_bytes=0)
    found: Any
    with Store.open(settings.data) as store:
        found = create_app(settings, store)
        while not hasattr(found, "routes"):  # what stands before the application
            found = found.app
        return {(method, route.path_format) for route in _flat(found.routes) for method in (route.methods or {"*"})}


def _flat(routes: list[Any]) -> Iterator[Any]:
    """Routes, those of included routers too: newer FastAPIs keep these apart."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from _flat(inner.routes)


def test_every_route_has_an_entry(routes: set[tuple[str, str]]) -> None:
    assert ("GET", "/v2/{name}/blobs/{digest}") in routes
    missing = sorted(pair for pair in routes if need_of(*pair) is None)
    assert missing == [], "say in routes/access.py who may use these"


def test_every_entry_has_a_route(routes: set[tuple[str, str]]) -> None:
    assert sorted(set(TABLE) - routes) == []


@pytest.mark.parametrize(("method", "path"), NEEDING)
def test_nobody_may(http: httpx.Client, method: str, path: str) -> None:
    """Without credentials, with those of somebody who has no such right, and with wrong ones."""
    url = path.format(**VALUES)
    methods = [method, "HEAD"] if method == "GET" else [method]
    for one in methods:
        anonymous = http.request(one, url)
        assert anonymous.status_code in (401, 405), url
        if anonymous.status_code == 401:
            assert anonymous.headers["WWW-Authenticate"].startswith("Bearer realm=")
        wrong = http.request(one, url, auth=("carol", "wrong"))
        assert wrong.status_code in (401, 405), url
        denied = http.request(one, url, auth=basic("carol"))
        if TABLE[method, path] not in (Need.LOGIN, Need.SOMETHING):
            assert denied.status_code in (403, 405), url
            assert one == "HEAD" or denied.json()["errors"][0]["code"] == "DENIED"
        else:
            assert denied.status_code in (200, 405)
        assert (
            method == "HEAD"
            or 405 not in (anonymous.status_code, wrong.status_code, denied.status_code)
            or one == "HEAD"
        )


@pytest.mark.parametrize(("method", "path"), NEEDING)
def test_who_may_is_let_through(http: httpx.Client, method: str, path: str) -> None:
    """What is not there is answered as such to whoever may know."""
    answer = http.request(method, path.format(**VALUES), auth=basic("root"))
    assert answer.status_code not in (401, 403), answer.text


def test_what_needs_nothing(http: httpx.Client) -> None:
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").json() == {"status": "ok", "read_only": False}
    assert http.get("/v1/openapi.json").status_code == 200
    assert http.get("/auth/token").status_code == 200
