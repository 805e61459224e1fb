"""The link between two network namespaces: what it carries and counts, and that nothing is left of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pagepool.errors import UnsupportedError
from pagepool_service.bench import link as link_module
from pagepool_service.bench.link import SERVER_ADDRESS, Link, Shape, open_link
from pagepool_service.bench.relay import Lane
from tests.support.tools import require

_SIZE = 300_000
_SERVE = f"""
import os
import socket
with socket.create_server(("{SERVER_ADDRESS}", 5000)) as server:
    print("up", flush=True)
    with server.accept()[0] as connection:
        connection.sendall(bytes({_SIZE}))
"""
_FETCH = f"""
import os
import socket
with socket.create_connection(("{SERVER_ADDRESS}", 5000)) as connection:
    print(sum(map(len, iter(lambda: connection.recv(65536), b""))))
"""


@pytest.mark.parametrize("shape", [None, Shape(400, 0.004)])
def test_bytes_go_through_it_and_are_counted(shape: Shape | None) -> None:
    require("ip", "nsenter")
    try:
        with open_link(shape) as link:
            before = link.received()
            assert _transfer(link) == _SIZE
            assert _SIZE <= link.received() - before < _SIZE * 1.2
            assert link.how == "nothing" if shape is None else link.how != "nothing"
    except UnsupportedError as error:
        pytest.skip(str(error))
    assert _namespaces() == []


def test_nothing_is_left_of_one_that_failed() -> None:
    require("ip", "nsenter")
    inside = 0
    try:
        with open_link(None):
            inside = len(_namespaces())
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert inside == 2
    assert _namespaces() == []


def test_what_a_killed_one_left_is_removed() -> None:
    require("ip", "nsenter")
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f"{link_module._PREFIX}{ended.pid}-server"
    subprocess.run(["ip", "netns", "add", name], check=True)
    with open_link(None):
        assert not (link_module._PLACE / name).exists()


def test_a_lane_keeps_rate_delay_and_order() -> None:
    lane = Lane(rate=1000.0, delay_s=0.5)
    assert lane.next_s(10.0) is None
    lane.queue_s = 10
    assert lane.put(10.0, b"a" * 1000)
    assert lane.put(10.0, b"b" * 500)
    assert lane.due(11.49) is None
    assert lane.next_s(11.25) == 0.25
    assert lane.due(11.5) == b"a" * 1000
    assert lane.due(11.99) is None
    assert lane.due(12.0) == b"b" * 500
    assert lane.put(20.0, b"c")
    assert lane.due(20.501) == b"c"


def test_a_lane_drops_what_does_not_fit() -> None:
    lane = Lane(rate=1000.0, delay_s=0.0, queue_s=0.5)
    assert [lane.put(1.0, b"x" * 300) for _ in range(4)] == [True, True, False, False]
    assert lane.put(2.0, b"x")


def _transfer(link: Link) -> int:
    server = subprocess.Popen([*link.server, sys.executable, "-c", _SERVE], stdout=subprocess.PIPE)
    with server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"up\n"
            said = subprocess.run([*link.client, sys.executable, "-c", _FETCH], capture_output=True, check=True)
        finally:
            server.terminate()
    return int(said.stdout)


def _namespaces() -> list[Path]:
    """Those of this process; others may have links, too."""
    return sorted(link_module._PLACE.glob(f"{link_module._PREFIX}{os.getpid()}-*"))


def test_addresses_are_for_benchmarks() -> None:
    """Nobody else's: RFC 2544."""
    for address in (SERVER_ADDRESS, link_module.CLIENT_ADDRESS):
        assert socket.inet_aton(address)[:2] in (b"\xc6\x12", b"\xc6\x13")
