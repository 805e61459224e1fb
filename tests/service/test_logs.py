"""What the service logs, and in which form."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool_service.commands.serve import announce
from pagepool_service.logs import JsonFormatter, TextFormatter
from pagepool_service.settings import Settings
from tests.service.pushes import push_blob, tar_layer
from tests.support.server import Service, ServiceError, running_service

if TYPE_CHECKING:
    from pathlib import Path


HOSTILE = 'a"b\\c\nlevel=error\r\x1b[31m\x00\u2028\udcff\U0001f600é'


def records_of(service: Service) -> list[dict[str, Any]]:
    """What a service logged as JSON: each line but the ready line is an object, strictly."""
    found = []
    for line in service.log_path.read_bytes().split(b"\n"):
        if line and not line.startswith(b"pagepool serving"):
            found.append(json.loads(line.decode("ascii"), parse_constant=pytest.fail))
            json.dumps(found[-1], ensure_ascii=False).encode()  # no lone surrogates
    return found


def test_json_lines_with_every_request(tmp_path: Path) -> None:
    """Requests with all that there is to say, whatever was in them; jobs with what they are about."""
    with running_service(tmp_path / "data", "--log-format", "json", "--access-log", "--log-level", "debug") as service:
        with httpx.Client(base_url=service.url) as http:
            answer = http.get("/v2/a/tags/list?n=3", headers={"X-Request-Id": "mine"})
            name = HOSTILE.encode(errors="surrogateescape").decode("latin-1").replace("\0", "")
            broken = push_blob(http, "a", tar_layer({f"../{name}": b"x"}))
            good = push_blob(http, "a", tar_layer({name: b"x"}))
            deadline = time.monotonic() + 30
            while http.get("/v1/activity").json()["jobs"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        host, port = service.host.split(":")
        for line in (b'GET /v2/"\\%0a%00?q=%ff HTTP/1.1', b"GET / HTTP/1.0\nnot a header", b"\x16\x03\x01\0\xff"):
            with socket.create_connection((host, int(port))) as connection, suppress(ConnectionError):
                connection.sendall(line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
                while connection.recv(65536):
                    pass
    records = records_of(service)
    assert all({"time", "level", "logger", "pid", "message"} <= set(record) for record in records)
    accesses = [record for record in records if record["logger"] == "pagepool.access"]
    first = next(record for record in accesses if record.get("request_id") == "mine")
    assert first["duration_s"] > 0
    assert {name: value for name, value in first.items() if name not in ("time", "pid", "message", "duration_s")} == {
        "level": "info",
        "logger": "pagepool.access",
        "request_id": "mine",
        "method": "GET",
        "path": "/v2/a/tags/list?n=3",
        "route": "/v2/{name}/tags/list",
        "status": 404,
        "received_bytes": 0,
        "sent_bytes": len(answer.content),
        "remote": "127.0.0.1",
        "user": None,
    }
    uploads = [record for record in accesses if record["method"] == "PUT" and record["status"] == 201]
    assert {record["received_bytes"] for record in uploads} == {10240}
    jobs = {(record["blob"], record["job_id"]) for record in records if record["logger"] == "pagepool.maintenance"}
    assert {blob for blob, _ in jobs} == {str(broken), str(good)}
    assert len({number for _, number in jobs}) >= 2
    assert any(record["path"] == '/v2/"\\%0a%00?q=%ff' for record in accesses)
    assert any(record["logger"].startswith("uvicorn") for record in records)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_names_end_no_line(formatter: logging.Formatter) -> None:
    """Nor do they hide anything: in messages, in fields, in what exceptions say."""
    try:
        raise ValueError(f"\n2026-01-01T00:00:00.000Z ERROR forged[1] {HOSTILE}")
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord("pagepool.x", logging.INFO, "", 1, "named %s", (HOSTILE,), error)
    record.fields = {"path": HOSTILE, "not": float("nan"), "none": None}
    text = formatter.format(record)
    text.encode()
    assert not any(character in text for character in "\r\x1b\x00\u2028\udcff")
    if isinstance(formatter, JsonFormatter):
        found = json.loads(text, parse_constant=pytest.fail)
        assert found["path"] == HOSTILE.encode(errors="backslashreplace").decode()
        assert (found["not"], found["none"]) == ("nan", None)
        assert "\n" not in text
    else:
        first, *rest = text.split("\n")
        assert "named a" in first
        assert all(line.startswith("    ") for line in rest)


def test_time_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Z behind it says, wherever the machine is."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    record = logging.LogRecord("pagepool.x", logging.INFO, "", 1, "it", (), None)
    record.created = 1_800_000_000.0
    line = TextFormatter().format(record)
    monkeypatch.undo()
    time.tzset()
    assert line.startswith("2027-01-15T08:00:00.")


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
        (("--upload-idle", "-1"), "--upload-idle"),
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
