"""`pagepool node start --foreground`: one process that is there as long as the node is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.node.client import NodeClient
from pagepool.node.handover import SUPERVISOR, WORKER, Post
from pagepool.node.places import NodePlaces
from tests.node.guarded import wait_post
from tests.support.cli import environment
from tests.support.nodeserver import end_node, require_kernel_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 60.0


@pytest.fixture
def places() -> Iterator[NodePlaces]:
    """Of a node that is gone afterwards; with short names, as sockets need them."""
    require_kernel_mounts()
    with tempfile.TemporaryDirectory(prefix="pagepool-stay-") as directory:
        found = NodePlaces(Path(directory, "state"), Path(directory, "run"))
        try:
            yield found
        finally:
            end_node(NodeClient(found))


@contextmanager
def staying(places: NodePlaces) -> Iterator[subprocess.Popen[str]]:
    """The command, once systemd would have been told that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = places.run.with_name("notify")
        path.unlink(missing_ok=True)
        manager.bind(str(path))
        manager.settimeout(_TIMEOUT_S)
        words = ["node", "start", "--foreground", "--node-state", str(places.state), "--node-run", str(places.run)]
        process = subprocess.Popen(
            [sys.executable, "-m", "pagepool.cli", *words],
            env={**os.environ, **environment(), "NOTIFY_SOCKET": str(path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert manager.recv(100) == b"READY=1"
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def test_it_ends_the_node_when_it_is_told_to(places: NodePlaces) -> None:
    with staying(places) as process:
        client = NodeClient(places)
        worker, supervisor = client.status()["pid"], Post(places.run, SUPERVISOR).holder()
        process.send_signal(signal.SIGHUP)
        wait_post(places.run, WORKER, worker)
        assert Post(places.run, SUPERVISOR).holder() == supervisor
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == 0, said
    assert "pagepool.node: serving" in said
    assert not client.is_running()
    assert not os.path.ismount(places.lazy)


def test_it_fails_when_the_node_has_died(places: NodePlaces) -> None:
    """One of two processes that dies is none of its business; both are, and the next start takes over."""
    with staying(places) as process:
        client = NodeClient(places)
        worker = client.status()["pid"]
        os.kill(worker, signal.SIGKILL)
        wait_post(places.run, WORKER, worker)
        assert process.poll() is None
        for name in (SUPERVISOR, WORKER, SUPERVISOR, WORKER):  # one may be started while the other one dies
            Post(places.run, name).send(signal.SIGKILL)
        while process.poll() is None and client.is_running():
            for name in (SUPERVISOR, WORKER):
                Post(places.run, name).send(signal.SIGKILL)
        _, said = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == 6, said
    assert "have died" in said
    with staying(places) as process:
        again = subprocess.run(
            [*process.args, "--quiet"] if isinstance(process.args, list) else [],
            env={**os.environ, **environment()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (again.returncode, "is running already" in again.stderr) == (9, True), again.stderr
        assert process.poll() is None
