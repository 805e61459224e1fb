"""A service that is abused: heads and bodies without end, clients that do nothing, take nothing, or are too many.

Each limit is tried against a real service: what is over it is told so, and others are answered meanwhile.
"""

from __future__ import annotations

import json
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from tests.service.pushes import push_blob, push_image
from tests.store.helpers import noise
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACES = 24
_OTHERS_S = 20.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with few places, and little patience."""
    with running_service(
        tmp_path_factory.mktemp("abuse") / "data",
        PAGEPOOL_MAX_CONNECTIONS=str(_PLACES),
        PAGEPOOL_HEAD_TIMEOUT="1",
        PAGEPOOL_BODY_TIMEOUT="2",
        PAGEPOOL_LEAST_RATE="1000",
        PAGEPOOL_BODY_MEMORY="1MiB",
    ) as service:
        yield service


def connect(service: Service, data: bytes = b"", receive: int = 0) -> socket.socket:
    """A connection that sends something; with a small window if so many bytes shall wait for it."""
    host, port = service.host.split(":")
    one = socket.socket()
    if receive:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    one.settimeout(30)
    one.connect((host, int(port)))
    one.sendall(data)
    return one


@contextmanager
def connections(service: Service, count: int, data: bytes = b"", receive: int = 0) -> Iterator[list[socket.socket]]:
    """So many of them."""
    with ExitStack() as stack:
        yield [stack.enter_context(connect(service, data, receive)) for _ in range(count)]


def read_all(one: socket.socket) -> bytes:
    """What comes until the other end closes, or breaks off."""
    found = b""
    try:
        while piece := one.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


def is_answered(service: Service) -> None:
    """Others are."""
    answer = httpx.get(f"{service.url}/v2/", timeout=_OTHERS_S)
    assert answer.status_code == 200


def wait_answered(service: Service) -> None:
    """They are, once those that are idle have been seen to be."""
    deadline = time.monotonic() + _OTHERS_S
    while True:
        try:
            is_answered(service)
            return
        except (httpx.HTTPError, AssertionError):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def error_of(answer: bytes) -> tuple[int, str]:
    """Status and message of an answer that is an error."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["errors"][0]["message"]


def put_head(path: str, size: int) -> bytes:
    """The head of a PUT."""
    return f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


# -- connections -----------------------------------------------------------------------------------------------


def test_idle_connections_make_room(small: Service) -> None:
    """Silent ones, those that wait for a next request, and those in the middle of a head."""
    with ExitStack() as stack:
        for data in (b"", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nX: y"):
            stack.enter_context(connections(small, _PLACES, data))
        wait_answered(small)


def test_too_many_requests_under_way(small: Service) -> None:
    """One more is told to come again; and once there is a place, is answered."""
    body, answer = put_head("/v2/a/manifests/1", 1000), b""
    deadline = time.monotonic() + 60
    while not answer:  # or it had a place: bodies had been given up before it came, on a busy machine
        assert time.monotonic() < deadline
        with connections(small, _PLACES, body):
            time.sleep(0.5)  # their heads have come: until then they might be closed as idle
            with connect(small) as more:
                answer = read_all(more)
    message = f"all {_PLACES} connections have a request under way: try again in a moment"
    assert error_of(answer) == (503, message)
    wait_answered(small)


def test_heads_that_do_not_end(small: Service) -> None:
    """They are told; a client that sends nothing at all is let go of."""
    with connect(small, b"GET /v2/ HTTP/1.1\r\nX-") as slow, connect(small) as silent:
        assert error_of(read_all(slow)) == (408, "the head of a request has to come within 1 s")
        assert read_all(silent) == b""
        is_answered(small)


def test_heads_that_trickle(small: Service) -> None:
    """A byte now and then changes nothing."""
    with connect(small, b"GET /v2/ HTTP/1.1\r\n") as slow:
        deadline = time.monotonic() + 30
        answer = b""
        slow.settimeout(0.3)
        while not answer:
            assert time.monotonic() < deadline
            try:
                slow.sendall(b"X: y\r\n")
                answer = slow.recv(65536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


def test_heads_that_are_too_large(small: Service) -> None:
    """One long header, many short ones, a long address: 64 KiB and a little. Who sends all of it is told all the same.

    The service has answered before most of that has come, and takes the rest, so that the answer is not lost.
    """
    for head in (b"GET /v2/ HTTP/1.1\r\nX: " + b"y" * (4 << 20), b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 700_000):
        with connect(small, head) as one:
            assert error_of(read_all(one)) == (431, "the head of a request may have 65536 bytes")
    for size in (10_000, 60_000):
        answer = httpx.get(f"{small.url}/v2/{'a' * size}/tags/list")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "NAME_INVALID")
    is_answered(small)


def test_heads_that_go_on_after_their_answer(small: Service) -> None:
    """What is taken after an answer has a bound, in bytes and in time."""
    head = b"GET /v2/ HTTP/1.1\r\nX: " + b"y" * (1 << 20)
    with connect(small, head) as fast, pytest.raises(ConnectionError):
        fast.sendall(bytes(1 << 29))
    with connect(small, head) as slow:
        assert error_of(read_all(slow))[0] == 431
        deadline = time.monotonic() + 60
        slow.settimeout(0.5)
        while not slow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # not reset yet
            assert time.monotonic() < deadline
            try:
                slow.sendall(b"y")
            except ConnectionError:
                break
            time.sleep(0.1)
    is_answered(small)


def test_what_is_no_request(small: Service) -> None:
    """A great deal of anything: 400, and read by who sent it."""
    with connect(small, b"\x16\x03\x01" + bytes(4 << 20)) as one:
        assert error_of(read_all(one)) == (400, "that is no request of HTTP/1.1")
    is_answered(small)


def test_bodies_that_trickle(small: Service) -> None:
    """Fewer bytes than a second should bring: the connection ends, and what came of an upload is kept."""
    with httpx.Client(base_url=small.url) as http:
        where = http.post("/v2/a/blobs/uploads/").headers["location"]
        head = f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()
        with connect(small, head) as slow:
            slow.settimeout(0.2)
            deadline = time.monotonic() + 40
            while True:
                assert time.monotonic() < deadline
                try:
                    slow.sendall(b"x")
                    if not slow.recv(1):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        assert http.get(where).status_code == 204
        is_answered(small)


def test_readers_that_take_nothing(small: Service) -> None:
    """They hold no thread, no transaction and little memory, and are let go of; one that is slow is not."""
    blob = noise(24 << 20, "slow")
    with httpx.Client(base_url=small.url, timeout=_OTHERS_S) as http:
        digest = push_blob(http, "slow", blob)
        request = f"GET /v2/slow/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with connections(small, _PLACES - 4, request, 4096) as stuck:
            push_blob(http, "slow", b"others")
            assert http.get(f"/v2/slow/blobs/{digest}", headers={"Range": "bytes=5-9"}).content == blob[5:10]
            for one in stuck:
                assert len(read_all_later(one)) < len(blob)
        assert http.get(f"/v2/slow/blobs/{digest}").content == blob


def test_requests_without_end_behind_an_answer_that_is_not_taken(tmp_path: Path) -> None:
    """Small to send and large to keep: when there are too many, who sends more of them loses the connection."""
    blob = noise(4 << 20)
    with running_service(tmp_path / "data") as service, httpx.Client(base_url=service.url) as http:
        digest = push_blob(http, "behind", blob)
        head = f"GET /v2/behind/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with connections(service, 8, head, receive=4096) as several:
            poller = select.poll()
            for one in several:
                assert one.recv(16, socket.MSG_PEEK | socket.MSG_WAITALL) == b"HTTP/1.1 200 OK\r"
                poller.register(one, select.POLLERR)
                one.sendall(b"GET / HTTP/1.1\r\n\r\n" * 3500)
            assert poller.poll(30_000)
            is_answered(service)


def test_readers_that_take_nothing_and_are_refused(small: Service) -> None:
    """Whose next bytes are no request: what was on its way to them is given up."""
    before = sockets(small)
    with httpx.Client(base_url=small.url, timeout=_OTHERS_S) as http:
        digest = push_blob(http, "slow", noise(24 << 20, "slow"))
    request = f"GET /v2/slow/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with connections(small, 4, request, 4096) as stuck:
        time.sleep(0.5)  # or the kernel may have taken all that there was
        for one in stuck:
            one.sendall(b"\0 garbage\r\n\r\n")
        deadline = time.monotonic() + 40
        while sockets(small) > before:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def sockets(service: Service) -> int:
    """How many sockets the service's processes have open."""
    found = 0
    for pid in service.children():
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found += str(file.readlink()).startswith("socket:")
    return found


def read_all_later(one: socket.socket) -> bytes:
    """What comes of an answer, begun with only once the other end has given up."""
    poll = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    deadline = time.monotonic() + 40
    while not poll and one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1:  # established
        assert time.monotonic() < deadline
        time.sleep(0.1)
        poll = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return read_all(one)


def test_one_address_has_a_share(tmp_path: Path) -> None:
    """Another machine can be told from loopback by its address alone: here, one of this machine's own."""
    address = own_address()
    if not address:
        pytest.skip("this machine has no address but loopback")
    with (
        running_service(
            tmp_path / "data", "--listen", "0.0.0.0:0", PAGEPOOL_MAX_CONNECTIONS_PER_ADDRESS="3"
        ) as service,
        ExitStack() as stack,
    ):
        port = int(service.host.rpartition(":")[2])
        for _ in range(3):
            stack.enter_context(socket.create_connection((address, port), 20))
        answer = read_all(stack.enter_context(socket.create_connection((address, port), 20)))
        assert error_of(answer) == (503, f"there are 3 connections from {address} already: close some, or wait")
        assert httpx.get(f"http://127.0.0.1:{port}/v2/").status_code == 200


def own_address() -> str:
    """An address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        found = str(probe.getsockname()[0])
    return "" if found.startswith("127.") else found


def test_open_files_run_out_for_connections_first(tmp_path: Path) -> None:
    """With few descriptors there are fewer places; the store and the pool go on."""
    blob = noise(3 << 20, "files")
    service = Service(tmp_path / "data", prefix=("prlimit", "--nofile=128:128"))
    service.start()
    try:
        assert "128 open files are allowed: there may be 64 connections, not 2048" in service.log()
        with connections(service, 300), httpx.Client(base_url=service.url, timeout=_OTHERS_S) as http:
            wait_answered(service)
            digest = push_blob(http, "files", blob)
            assert http.get(f"/v2/files/blobs/{digest}").content == blob
        assert not service.faults()
    finally:
        service.stop()


# -- bodies and answers ----------------------------------------------------------------------------------------


def test_documents_share_memory(tmp_path: Path) -> None:
    """1 MiB of documents may be on their way: one that does not come is given up for another, and its client told.
    Small ones go by meanwhile."""

    def push(size: int) -> int:
        content = b"{" + b" " * (size - 2) + b"}"
        return httpx.put(f"{service.url}/v2/a/manifests/2", content=content, timeout=60).status_code

    arguments = ("--workers", "1")
    with running_service(tmp_path / "data", *arguments, PAGEPOOL_BODY_MEMORY="1MiB") as service:
        head = put_head("/v2/a/manifests/1", 900_000)
        with connect(service, head + b"{") as slow, ThreadPoolExecutor(1) as threads:
            waiting = None
            while not select.select([slow], [], [], 0.2)[0]:
                if waiting is None or waiting.done():  # the service had not seen yet that something is held
                    waiting = threads.submit(push, 900_000)
                assert push(100) == 400
            slow.shutdown(socket.SHUT_WR)
            assert error_of(read_all(slow)) == (
                503, "1 bytes came of a document, too slowly while others wait: try again",
            )  # fmt: skip
            assert waiting is not None
            assert waiting.result() == 400
    assert not service.faults()


def test_others_push_while_large_documents_do_not_come(tmp_path: Path) -> None:
    """As many as there is memory for, and more."""
    with (
        running_service(tmp_path / "data", "--workers", "1") as service,
        connections(service, 40, put_head("/v2/a/manifests/1", 4 << 20)),
        httpx.Client(base_url=service.url, timeout=_OTHERS_S) as http,
    ):
        for _ in range(3):
            push_image(http, "others", "1")
            time.sleep(0.5)


def test_documents_that_are_too_large_or_too_deep(small: Service) -> None:
    put = f"{small.url}/v2/a/manifests/1"
    answer = httpx.put(put, content=b"x" * (4 << 20) + b"y")
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (413, "SIZE_INVALID")
    assert "4194304" in error["message"]
    for body in (b"[" * 1_000_000, b'{"a":' * 300_000, b"[" + b"[]," * 300_000 + b"[]]", b"9" * 1_000_000):
        answer = httpx.put(put, content=body, timeout=60)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_INVALID")
        answer = httpx.post(f"{small.url}/v1/a/trees/{Digest('blake3', bytes(32))}/fill", content=body[:100_000])
        assert answer.status_code in (400, 404)
    is_answered(small)


def test_many_ranges(small: Service) -> None:
    """A header of a thousand brings no more than one of none: with their heads they are more than the blob."""
    with httpx.Client(base_url=small.url) as http:
        digest = push_blob(http, "ranges", bytes(1000))
        header = "bytes=" + ",".join(f"{at}-{at}" for at in range(1000))
        answer = http.get(f"/v2/ranges/blobs/{digest}", headers={"Range": header})
        assert (answer.status_code, len(answer.content)) == (200, 1000)

        def read(at: int) -> int:
            return http.get(f"/v2/ranges/blobs/{digest}", headers={"Range": f"bytes={at}-{at}"}).status_code

        with ThreadPoolExecutor(16) as threads:
            found = set(threads.map(read, range(200)))
        assert found == {206}


def test_the_service_has_not_failed(small: Service) -> None:
    """Nor has it lost a process over all that."""
    assert not small.faults(), small.faults()
    assert " ended (" not in small.log()
    is_answered(small)
