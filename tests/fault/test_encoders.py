"""Layers that are kept once, while what makes them again is killed: pulls go on, or end in an error soon."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool_service.encoders import frozen
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import ContentKind
from pagepool_service.store.store import Store
from tests.encoders.samples import encoded, mixed
from tests.faults import filled, small_file_system
from tests.service.pushes import begin_upload, finishing, push_blob
from tests.store.helpers import REPOSITORY, ingest_all, make_tar, noise, push
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 60.0


@pytest.fixture(scope="module")
def layer() -> bytes:
    """A layer as podman compresses it, of some extents."""
    return encoded(make_tar({f"f{number}": mixed(1 << 20, number) for number in range(8)}), "klauspost-1.18", "pgzip")


@pytest.fixture(scope="module")
def template(layer: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that keeps the layer once."""
    data = tmp_path_factory.mktemp("template") / "data"
    before, frozen._compiled = frozen._compiled, data / "encoders"
    try:
        with Store.open(data) as store:
            blob = push(store, layer)
            ingest_all(store, rebuild_compressed=True)
            assert store.blobs.stat(blob).content is ContentKind.RECIPE
    finally:
        frozen._compiled = before
    return data


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    """One's own."""
    return shutil.copytree(template, tmp_path / "data")


@contextmanager
def serving(data: Path, *arguments: str, **environment: str) -> Iterator[Service]:
    with running_service(data, *arguments, **environment) as service:
        try:
            yield service
        except BaseException:
            print(service.log())
            raise


def url_of(service: Service, layer: bytes) -> str:
    return f"{service.url}/v2/{REPOSITORY}/blobs/{Digest.of(layer)}"


def encoders(data: Path) -> set[int]:
    """The processes that make layers of a data directory again, and have not ended."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"pagepool_service.encoders.process" in words and os.fsencode(data / "encoders") in words:
                found.add(int(process.name))
    return found


@contextmanager
def killing(data: Path, most: int) -> Iterator[set[int]]:
    """Kill the first encoders that are run meanwhile, each as soon as it is seen."""
    killed: set[int] = set()
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.005):
            for pid in sorted(encoders(data) - killed)[: most - len(killed)]:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill)
        try:
            yield killed
        finally:
            ended.set()
    killer.result()


@pytest.mark.parametrize("cache", ["1G", "0"])
def test_an_encoder_that_is_killed_breaks_no_pull(data: Path, layer: bytes, cache: str) -> None:
    with serving(data, "--rebuilt-cache", cache) as service, killing(data, 1) as killed:
        with ThreadPoolExecutor(3) as pool:
            for answer in pool.map(lambda _: httpx.get(url_of(service, layer), timeout=WAIT_S), range(3)):
                assert answer.content == layer
        assert len(killed) == 1
        assert "is made again from its beginning: the encoder klauspost-1.18 ended with -9" in service.log()


def test_a_layer_whose_encoder_dies_each_time_ends_in_an_error(data: Path, layer: bytes) -> None:
    with serving(data) as service:
        with killing(data, 100) as killed:
            answer = httpx.get(url_of(service, layer), timeout=WAIT_S)
        assert answer.status_code == 503
        assert "the encoder klauspost-1.18 ended with -9" in answer.json()["errors"][0]["message"]
        assert len(killed) == 3
        assert httpx.get(url_of(service, layer), timeout=WAIT_S).content == layer


def test_a_client_that_sends_no_more_and_is_sent_nothing_is_let_go_of(data: Path, layer: bytes) -> None:
    """It may have left: a connection that is closed looks like that, as long as nothing is sent over it."""
    stopped: set[int] = set()
    with serving(data) as service:
        try:
            host, _, port = service.host.partition(":")
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
                path = f"/v2/{REPOSITORY}/blobs/{Digest.of(layer)}"
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                while not stopped:
                    stopped = encoders(data)
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                answer = client.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200 ")
                client.shutdown(socket.SHUT_WR)
                while piece := client.recv(65536):
                    answer += piece
                assert not answer.endswith(layer[-100:])
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert httpx.get(url_of(service, layer), timeout=WAIT_S).content == layer
        assert not service.faults()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_full_disk_breaks_no_pull(template: Path, layer: bytes, tmp_path: Path, compiled: bool) -> None:
    """Each reader has the layer made for himself, and nothing half written is served or stays."""
    with small_file_system(tmp_path, 96 << 20) as mounted:
        data = shutil.copytree(template, mounted / "data")
        elsewhere = tmp_path / "temporary"
        elsewhere.mkdir()
        if not compiled:
            shutil.rmtree(data / "encoders")
        assert len(layer) > 2 << 20
        with serving(data, TMPDIR=str(elsewhere)) as service:
            with filled(mounted, leave=1 << 20), ThreadPoolExecutor(4) as pool:
                for answer in pool.map(lambda _: httpx.get(url_of(service, layer), timeout=WAIT_S), range(4)):
                    assert answer.content == layer
            assert list((data / "rebuilt").iterdir()) == []
            assert len(list(elsewhere.glob("pagepool-encoders-*/*.cwasm"))) == (0 if compiled else 1)
            assert httpx.get(url_of(service, layer), timeout=WAIT_S).content == layer
            wait_for(lambda: [path.stat().st_size for path in (data / "rebuilt").iterdir()] == [len(layer)])
            assert not service.faults()


@pytest.mark.parametrize(
    ("doing", "number"), [("run", signal.SIGKILL), ("wait", signal.SIGTERM), ("compile", signal.SIGKILL)]
)
def test_a_service_that_ends_leaves_no_encoder(data: Path, layer: bytes, doing: str, number: int) -> None:
    """Nor files, once it is started again; whatever the encoders were about to do."""
    if doing == "compile":
        shutil.rmtree(data / "encoders")
    elsewhere = data.with_name("temporary")
    elsewhere.mkdir()
    environment = {"PAGEPOOL_GRACEFUL_TIMEOUT": "1", "TMPDIR": str(elsewhere)}
    service = Service(data, environment=environment, arguments=("--workers", "2"))
    service.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx.get, url_of(service, layer), timeout=WAIT_S)
            wait_for(lambda: encoders(data) or answer.done())
            if doing == "wait":
                for pid in encoders(data):
                    os.kill(pid, signal.SIGSTOP)
            if number == signal.SIGTERM:
                assert service.stop() == 0
            else:
                service.kill()
            for pid in encoders(data) if doing == "wait" else ():
                os.kill(pid, signal.SIGCONT)
            wait_for(lambda: not encoders(data))
            with suppress(httpx.HTTPError):
                answer.result()
        service.start()
        assert [path.name for path in (data / "rebuilt").glob("*.part")] == []
        assert httpx.get(url_of(service, layer), timeout=WAIT_S).content == layer
    finally:
        service.kill()
    assert list(elsewhere.iterdir()) == []
    assert [path.suffix for path in (data / "encoders").iterdir()] == [".cwasm"]
    assert check_store(data).problems == []


def test_what_is_made_again_is_beside_the_quota(data: Path, layer: bytes) -> None:
    """A full store hands out what it keeps once, takes it again, and is no fuller for it."""
    with serving(data) as service:
        used = stored_bytes(service)
    with serving(data, "--quota", str(used + (1 << 20))) as service, httpx.Client(base_url=service.url) as http:
        http.timeout = httpx.Timeout(WAIT_S)
        assert http.get(url_of(service, layer)).content == layer
        wait_for(lambda: [path.stat().st_size for path in (data / "rebuilt").iterdir()] == [len(layer)])
        push_blob(http, "other", noise(200_000))
        push_blob(http, REPOSITORY, layer)
        answer = http.put(finishing(begin_upload(http, "other"), Digest.of(noise(2 << 20))), content=noise(2 << 20))
        assert answer.status_code == 507
        assert http.get(url_of(service, layer)).content == layer


def test_what_is_kept_once_counts_as_it_was_pushed(data: Path, layer: bytes) -> None:
    """For its repository, whose quota says what may be pushed and not what is stored."""
    with (
        serving(data, PAGEPOOL_REPOSITORY_QUOTA=str(len(layer) + 100_000)) as service,
        httpx.Client(base_url=service.url, timeout=WAIT_S) as http,
    ):
        assert http.get(url_of(service, layer)).content == layer
        push_blob(http, REPOSITORY, layer)
        push_blob(http, REPOSITORY, noise(50_000))
        size, digest = 200_000, Digest.of(noise(200_000))
        answer = http.post(f"/v2/{REPOSITORY}/blobs/uploads/?digest={digest}", content=noise(size))
        assert answer.status_code == 403, answer.text
        assert http.get(url_of(service, layer)).content == layer


def stored_bytes(service: Service) -> int:
    """What counts against the quota."""
    stored = httpx.get(f"{service.url}/v1/stats", timeout=WAIT_S).json()["total"]["stored_bytes"]
    return int(stored)


def wait_for(condition: Callable[[], object]) -> None:
    """Look again and again, until it is so."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
