"""What the service logs, and in which form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool_service.commands.serve import announce
from pagepool_service.settings import Settings
from tests.support.server import Service, ServiceError, running_service

if TYPE_CHECKING:
    from pathlib import Path


def test_json_lines_with_every_request(tmp_path: Path) -> None:
    """Each line but the ready line is an object."""
    with running_service(tmp_path / "data", "--log-format", "json", "--access-log") as service:
        httpx.get(f"{service.url}/v2/a/tags/list")
    lines = [line for line in service.log().splitlines() if not line.startswith("pagepool serving")]
    records = [json.loads(line) for line in lines]
    (request,) = [record for record in records if record["logger"] == "uvicorn.access"]
    assert "GET /v2/a/tags/list" in request["message"]
    assert {"time", "level", "logger", "pid", "message"} <= set(request)


def test_requests_are_not_logged_unless_asked(tmp_path: Path) -> None:
    """Nor is a client that tries TLS first."""
    with running_service(tmp_path / "data") as service:
        httpx.get(f"{service.url}/v2/a/tags/list")
        with pytest.raises(httpx.ConnectError):
            httpx.get(service.url.replace("http:", "https:"))
    assert service.log().strip().splitlines()[1:] == []


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)]
)
def test_address_of_everyone_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], host: str, warned: bool
) -> None:
    """There is no authentication yet."""
    announce(Settings(tmp_path, host=host), "http://somewhere")
    assert ("without authentication" in caplog.text) is warned
    assert capsys.readouterr().out == f"pagepool serving on http://somewhere data {tmp_path} workers 1\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "0"), "--workers"),
        (("--quota", "much"), "is not a size"),
        (("--log-format", "xml"), "--log-format"),
        (("--upload-idle", "-1"), "upload_idle_s"),
    ],
)
def test_bad_options(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """Are said in a line, without a traceback."""
    with pytest.raises(ServiceError, match=words) as caught:
        Service(tmp_path / "data", arguments).start()
    assert "Traceback" not in str(caught.value)


def test_bad_variable(tmp_path: Path) -> None:
    """Too."""
    with pytest.raises(ServiceError, match="PAGEPOOL_WORKERS=many") as caught:
        Service(tmp_path / "data", environment={"PAGEPOOL_WORKERS": "many"}).start()
    assert "Traceback" not in str(caught.value)
