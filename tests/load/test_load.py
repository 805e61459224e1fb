"""`pagepool load` at a real service: all is well; wrong bytes; lost clients; a service that dies; Ctrl-C."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

import pagepool
from pagepool.load.measures import Mismatch
from pagepool.load.truth import PAGE, page_digest
from tests.load.conftest import damage, sample_files
from tests.service.pushes import push_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.load.conftest import Program
    from tests.support.server import Service

    Start = Callable[..., Program]

IMAGES = ("--image", "app:1", "--image", "app:2")
ALL = ("--mix", "start=2,read=50,write=20,push=1")


def _tags(url: str) -> list[str]:
    answer = httpx.get(f"{url}/v1/images", timeout=30)
    return [f"{one['name']}:{one['tag']}" for one in answer.json()["images"]]


class _Page(HTMLParser):
    """Elements that are open, and what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.references: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_small_test_is_all_right_and_leaves_nothing(service: Service, start: Start, tmp_path: Path) -> None:
    report, before = tmp_path / "report.html", _tags(service.url)
    arguments = (*IMAGES, *ALL, "--clients", "2", "--seconds", "1", "--report", str(report), "--json")
    ended = start(service.url, *arguments).end()
    assert (ended.code, ended.err) == (0, "")
    found = ended.json
    assert (found["schema"], found["verdict"], found["wrong"], found["missing"]) == (1, "ok", [], [])
    done = {name: one["count"] for name, one in found["operations"].items()}
    assert done["first"] == 2, "what each does first"
    assert done["file"] >= 2 * len(sample_files(1))
    assert found["totals"]["checked_pages"] >= done["file"]
    assert found["totals"]["mismatches"] == 0
    assert sum(one["operations"] for one in found["clients"]) == found["totals"]["operations"]
    for client in found["clients"]:
        memory = client["memory_after"]
        assert memory["pss"] <= memory["rss"]
        assert 0 < memory["private"] <= memory["rss"]
    for one in found["operations"].values():
        assert one["least_us"] <= one["p50_us"] <= one["p99_us"] <= one["most_us"]
        assert sum(step["count"] for step in one["series"]) == one["count"]
    assert _tags(service.url) == before, "versions were removed"
    page = _Page()
    page.feed(report.read_text())
    assert page.open == []
    assert page.references == [], "nothing from elsewhere"
    assert "url(" not in report.read_text()
    assert page.count["svg"] == 5
    assert page.count["title"] >= 6


def test_a_wrong_byte_fails_the_test(service: Service, start: Start, tmp_path: Path) -> None:
    """One bit of an object in the service's pool, which nothing looks at again once it is there."""
    content = random.Random(99).randbytes(60 * PAGE)
    with httpx.Client(base_url=service.url, timeout=60) as http:
        push_image(http, "victim", "1", {"usr/model.bin": content, "etc/right": b"right"})
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        client.image("victim:1").fill()
    place = 40 * PAGE + 5
    damage(service, content, place)
    trace = tmp_path / "trace"
    trace.write_text('{"path": "/usr/model.bin"}\n')
    arguments = ("--image", "victim:1", "--mix", "start=1,read=50", "--clients", "2", "--seconds", "0.5", "--json")
    ended = start(service.url, *arguments, "--trace", str(trace)).end()
    assert ended.code == 5
    found = ended.json
    assert found["verdict"] == "wrong bytes"
    assert found["totals"]["mismatches"] >= 2, "each start of each client"
    assert len(found["wrong"]) == 1, "each place once"
    damaged = bytearray(content)
    damaged[place] ^= 1
    expected, wrong = (page_digest(bytes(one[40 * PAGE : 41 * PAGE])).hex() for one in (content, damaged))
    for one in found["wrong"]:
        assert (one["image"], one["path"], one["offset"]) == ("victim:1", "usr/model.bin", 40 * PAGE)
        assert (one["expected"], one["found"]) == (expected, wrong)
    assert f"usr/model.bin at {40 * PAGE}: expected {expected}, found {wrong}" in "".join(
        str(Mismatch(**one)) for one in found["wrong"]
    )


def test_clients_that_others_start(service: Service, start: Start, tmp_path: Path) -> None:
    """Of three one is too many, and refused; one is killed, and missing; one is done."""
    arguments = (*IMAGES, *ALL, "--clients", "2", "--seconds", "6", "--json", "--listen", "127.0.0.1:0")
    coordinator = start(service.url, *arguments, "--lost-after", "3")
    url = coordinator.wait_line("pagepool: waiting for 2 clients at ").split()[-1]
    clients = []
    for number in ("1", "2", "3"):
        (tmp_path / number).mkdir()
        clients.append(start("client", "--coordinator", url, "--work", str(tmp_path / number)))
    _wait_working(url)
    refused = _first_ended([one.process for one in clients])
    ended = clients.pop(refused).end()
    assert ended.code == 1
    assert re.search("2 clients already|too late", ended.err)
    killed, done = clients
    killed.process.kill()
    assert done.end().code == 0
    result = coordinator.end()
    assert result.code == 1
    assert result.json["verdict"] == "errors"
    ((_, reason),) = result.json["missing"]
    assert "nothing was heard of it" in reason
    assert sorted(one["phase"] for one in result.json["clients"]) == ["done", "lost"]
    left = [tag for tag in _tags(service.url) if tag.startswith("pagepool-load/")]
    assert left == [], "also what the lost one had pushed"


def _first_ended(processes: list[subprocess.Popen[str]]) -> int:
    """Which one ends first; it is waited for."""
    deadline = time.monotonic() + 60
    while True:
        for number, process in enumerate(processes):
            if process.poll() is not None:
                return number
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _wait_working(url: str) -> None:
    deadline = time.monotonic() + 60
    while {one["phase"] for one in httpx.get(f"{url}/v1/state").json()["clients"]} != {"working"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_service_that_dies_is_errors_and_no_hang(service: Service, start: Start) -> None:
    mix = ("--mix", "start=1,read=50,write=20")
    arguments = (*IMAGES, *mix, "--clients", "1", "--seconds", "5", "--json", "--listen", "127.0.0.1:0")
    coordinator = start(service.url, *arguments)
    url = coordinator.wait_line("pagepool: waiting").split()[-1]
    client = start("client", "--coordinator", url)
    _wait_working(url)
    service.kill()
    try:
        result = coordinator.end()
        assert client.end().code == 0
    finally:
        service.start()
    assert result.code == 1
    assert result.json["verdict"] == "errors"
    assert result.json["errors"]["by_class"]["UnreachableError"] >= 1
    assert result.json["totals"]["mismatches"] == 0


def test_ctrl_c_ends_with_a_report_and_nothing_is_left(start: Start, place: Path) -> None:
    """Of a service of its own, too."""
    shared = set(Path("/dev/shm").glob("pagepool-load-*"))
    program = start("--clients", "1", "--seconds", "60", "--size", "4MB", "--mix", "read=10,write=1")
    deadline = time.monotonic() + 60
    while not list(place.glob("pagepool-load-*/client-1/*")):
        assert program.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ended = program.end(signal.SIGINT)
    assert ended.code == 130
    assert re.search(r"^verdict: +interrupted$", ended.out, re.MULTILINE)
    assert set(Path("/dev/shm").glob("pagepool-load-*")) == shared
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if _has(path, os.fsencode(f"TMPDIR={place}"))]
    assert left == []


def _has(path: Path, words: bytes) -> bool:
    try:
        return words in path.read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--mix", "sleep=1"], 4, "there is no 'sleep'"),
        (["--mode", "http", "--mix", "write=1"], 4, "over http nothing is written"),
        (["127.0.0.1:9", "--clients", "1"], 6, "127.0.0.1:9"),
        (["--report", "/nowhere/x.html"], 4, "no directory /nowhere"),
        (["--report", "x.pdf"], 2, "neither .html nor .json"),
        (["--listen", "nowhere"], 2, "no HOST:PORT"),
        (["--listen", "127.0.0.1:0"], 4, "name a SERVICE"),
        (["--clients", "0"], 2, "--clients"),
        (["client", "--coordinator", "http://127.0.0.1:9", "--wait", "0"], 6, "the coordinator at 127.0.0.1:9"),
        (["client", "--coordinator", "nowhere"], 4, "no address of a coordinator"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str) -> None:
    from pagepool.cli.app import run

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert run(["load", *arguments]) == code
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_another_registry_is_no_service(capsys: pytest.CaptureFixture[str]) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from pagepool.cli.app import run

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Nothing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert run(["load", f"127.0.0.1:{server.server_port}"]) == 1
        server.shutdown()
    assert "is not a pagepool service" in capsys.readouterr().err
