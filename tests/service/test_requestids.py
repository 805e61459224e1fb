"""Each request has an id: in its answer, in what is logged of it, and in the answer's body where the log says more."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool_service.requestids import begin, current
from pagepool_service.routes.errors import error_response
from tests.support.server import running_service

if TYPE_CHECKING:
    from pathlib import Path

_MADE = re.compile(r"[0-9a-f]{16}")


def test_a_sane_id_is_taken_over(http: httpx.Client) -> None:
    """Whatever the answer is."""
    for path in ("/v2/", "/v2/none/tags/list", "/no/such", "/healthz"):
        assert (
            http.get(path, headers={"X-Request-Id": "proxy:7/a.b_c-d=="}).headers["x-request-id"] == "proxy:7/a.b_c-d=="
        )


@pytest.mark.parametrize("given", [None, "", "two words", 'quo"ted', "x" * 129, "caf\xe9"])
def test_another_one_is_made(http: httpx.Client, given: str | None) -> None:
    """What is no token would be written into logs; two requests never have the same."""
    headers = {} if given is None else {b"X-Request-Id": given.encode("latin-1")}
    first, second = (http.get("/v2/", headers=headers).headers["x-request-id"] for _ in range(2))
    assert _MADE.fullmatch(first)
    assert _MADE.fullmatch(second)
    assert first != second


@pytest.mark.parametrize("form", ["text", "json"])
def test_logged_with_the_request(tmp_path: Path, form: str) -> None:
    """In the access log; probes that find all well are not in it."""
    with running_service(tmp_path / "data", "--access-log", "--log-format", form) as service:
        httpx.get(f"{service.url}/v2/a/tags/list", headers={"X-Request-Id": "mine-1"})
        for path in ("/healthz", "/readyz"):
            assert httpx.get(f"{service.url}{path}").status_code == 200
    (line,) = [line for line in service.log().splitlines() if "pagepool.access" in line]
    if form == "json":
        assert json.loads(line)["request_id"] == "mine-1"
    else:
        assert re.search(r' 127\.0\.0\.1 - "GET /v2/a/tags/list HTTP/1\.1" 404 0 \d+ 0\.\d+ request_id=mine-1$', line)


def test_probes_are_logged_when_debugging(tmp_path: Path) -> None:
    """As everything is."""
    with running_service(tmp_path / "data", "--access-log", "--log-level", "debug") as service:
        httpx.get(f"{service.url}/healthz")
    assert "GET /healthz" in service.log()


def test_errors_of_the_service_name_it() -> None:
    """Those of clients do not need to: it is in the header."""
    token = current.set("")
    try:
        chosen = begin([(b"x-request-id", b"mine-2")])
        failed = json.loads(bytes(error_response(500, "UNKNOWN", "it failed", {"kind": "frame"}).body))
        refused = json.loads(bytes(error_response(404, "NAME_UNKNOWN", "there is none").body))
    finally:
        current.reset(token)
    assert failed["errors"][0]["detail"] == {"kind": "frame", "request_id": chosen}
    assert "detail" not in refused["errors"][0]


def test_not_ready(tmp_path: Path) -> None:
    """Uploads cannot be taken: that is said, with 503; the process answers all the same."""
    with running_service(tmp_path / "data") as service:
        assert httpx.get(f"{service.url}/readyz").json() == {"status": "ok", "read_only": False}
        (service.data / "uploads").rename(service.data / "away")
        answer = httpx.get(f"{service.url}/readyz")
        assert answer.status_code == 503
        reasons = ["the directory of uploads cannot be written to"]
        assert answer.json() == {"status": "unavailable", "read_only": False, "reasons": reasons}
        assert httpx.head(f"{service.url}/readyz").status_code == 503
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        (service.data / "away").rename(service.data / "uploads")
        assert httpx.get(f"{service.url}/readyz").status_code == 200
