"""Web pages of other origins: allowed ones may use the registry from a browser, and no others."""

from __future__ import annotations

import threading
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from blake3 import blake3

from pagepool_service.settings import SettingInvalidError, Settings
from tests.auth.conftest import basic, password, write_users
from tests.service.pushes import push_image
from tests.service.test_leases import make
from tests.store.helpers import text
from tests.support.browser import running_browser
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

FILES = {"lib/one": text(120_000)}
UI = "https://ui.example"
LOOK = """async ([base, method, path, headers]) => {
    const answer = await fetch(base + path, {method, headers});
    const seen = Object.fromEntries(answer.headers.entries());
    return {status: answer.status, text: await answer.text(), seen};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of the module."""
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The origin of an empty web site."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "index.html").write_text("<!doctype html><title>a page</title>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with an origin that is allowed, and another name."""
    environment = {"PAGEPOOL_ALLOWED_ORIGINS": UI, "PAGEPOOL_EXTERNAL_URL": "https://registry.example"}
    with running_service(tmp_path_factory.mktemp("guarded") / "data", **environment) as running:
        yield running.url


def test_a_page_of_an_allowed_origin_uses_the_registry(browser: Browser, site: str, tmp_path: Path) -> None:
    """With credentials, which take a question before (OPTIONS), and with what it may read of an answer."""
    users = write_users(tmp_path / "users")
    service = running_service(tmp_path / "data", "--htpasswd", str(users), PAGEPOOL_ALLOWED_ORIGINS=f"{UI},{site}")
    with service as running, httpx.Client(base_url=running.url, auth=basic("alice")) as http:
        push_image(http, "team/app", "1", FILES)
        digest = http.head("/v2/team/app/manifests/1").headers["docker-content-digest"]
        page = browser.new_page()
        page.goto(site)

        def ask(method: str, path: str, **headers: str) -> dict[str, Any]:
            answer: dict[str, Any] = page.evaluate(LOOK, [running.url, method, path, headers])
            return answer

        assert ask("GET", "/v2/")["status"] == 401
        authorization = "Basic " + b64encode(f"alice:{password('alice')}".encode()).decode()
        assert ask("GET", "/v2/_catalog", Authorization=authorization)["text"] == '{"repositories":["team/app"]}'
        head = ask("HEAD", "/v2/team/app/manifests/1", Authorization=authorization, Accept="*/*")
        assert (head["status"], head["seen"]["docker-content-digest"]) == (200, digest)
        gone = ask("DELETE", f"/v2/team/app/manifests/{digest}", Authorization=authorization)
        assert gone["status"] == 202
        assert ask("GET", "/v2/team/app/manifests/1", Authorization=authorization)["status"] == 404
        page.close()


def test_other_origins_see_and_change_nothing(browser: Browser, site: str, tmp_path: Path) -> None:
    """Nor does any page, if nothing was said of origins."""
    for environment in ({"PAGEPOOL_ALLOWED_ORIGINS": UI}, {}):
        with (
            running_service(tmp_path / f"data{len(environment)}", **environment) as running,
            httpx.Client(base_url=running.url) as http,
        ):
            push_image(http, "team/app", "1", FILES)
            page = browser.new_page()
            page.goto(site)
            for method in ("GET", "PUT", "DELETE"):
                with pytest.raises(Exception, match="Failed to fetch"):
                    page.evaluate(LOOK, [running.url, method, "/v2/team/app/manifests/1", {}])
            before = len(list((running.data / "uploads").iterdir()))
            with pytest.raises(Exception, match="Failed to fetch"):
                page.evaluate(LOOK, [running.url, "POST", "/v2/team/app/blobs/uploads/", {}])
            assert len(list((running.data / "uploads").iterdir())) == before
            page.goto(running.url)
            assert page.evaluate(LOOK, ["", "POST", "/v2/team/app/blobs/uploads/", {}])["status"] == 202
            page.close()
            assert http.get("/v2/team/app/manifests/1").status_code == 200
            assert len(list((running.data / "uploads").iterdir())) > before


def test_what_is_answered(tmp_path: Path) -> None:
    """All origins, without credentials that the browser remembers; also where answers come from the cache at once."""
    with (
        running_service(tmp_path / "data", PAGEPOOL_ALLOWED_ORIGINS="*") as running,
        httpx.Client(base_url=running.url) as http,
    ):
        tree, _ = make(http, "team/app", FILES)
        ask = {"Origin": UI, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-some"}
        before = http.options("/v2/team/app/manifests/1", headers=ask)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] in ("*", UI)
        assert "PUT" in before.headers["access-control-allow-methods"]
        assert before.headers["access-control-allow-headers"] == "x-some"
        assert http.options("/v2/", headers={"Origin": UI}).status_code == 405  # no question of a browser's
        listed = http.get("/v2/_catalog", headers={"Origin": UI})
        assert listed.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in listed.headers
        assert "access-control-allow-origin" not in http.get("/v2/_catalog").headers
        page = f"{tree}/objects/{blake3(FILES['lib/one']).hexdigest()}"
        for _ in range(3):  # from the second one on it is answered before anything else is asked
            read = http.get(page, headers={"Range": "bytes=0-4095"})
            assert (read.status_code, "access-control-allow-origin" in read.headers) == (206, False)
        read = http.get(page, headers={"Range": "bytes=0-4095", "Origin": UI})
        assert (read.content, read.headers["access-control-allow-origin"]) == (FILES["lib/one"][:4096], "*")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": UI}, 202),
        ({"Origin": "https://registry.example"}, 202),
        ({"Origin": "http://LocalHost:5000", "Host": "localhost:5000"}, 202),
        ({"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost:8080", "Host": "localhost:5000"}, 403),
        ({"Origin": "http://[evil", "Host": "localhost:5000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "null", "Host": ""}, 403),
    ],
)
def test_who_may_post(guarded: str, headers: dict[str, str], status: int) -> None:
    """Browsers say for which page they send something; other clients do not."""
    assert httpx.post(f"{guarded}/v2/team/app/blobs/uploads/", headers=headers).status_code == status


@pytest.mark.parametrize(
    "origins", ["ui.example", "https://ui.example/", "https://ui.example,", "ftp://ui.example", " "]
)
def test_what_is_no_origin(origins: str) -> None:
    """Said at the start, with the variable's name."""
    with pytest.raises(SettingInvalidError, match="PAGEPOOL_ALLOWED_ORIGINS"):
        Settings.load({"PAGEPOOL_ALLOWED_ORIGINS": origins})
    assert Settings.load({"PAGEPOOL_ALLOWED_ORIGINS": "HTTPS://ui.example, http://[::1]:8080"}).allowed_origins == (
        UI,
        "http://[::1]:8080",
    )
