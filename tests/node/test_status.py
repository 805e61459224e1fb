"""What commands make of a node of another version: one that says less, or more, than this one would."""

from __future__ import annotations

import json
import socket
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.cli.app import run as run_program
from pagepool.cli.kernelmounts import Choice, choose
from pagepool.node.answering import ControlServer
from pagepool.node.client import NodeClient
from pagepool.node.places import NodePlaces
from pagepool.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

_OLDEST = {"version": "0.0.1", "pid": 7, "since": 1.0, "state": "/state", "run": "/run", "mounts": 2, "trees": 1}
SUPPORT = "Linux 9.9, EROFS and overlayfs"


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """What the node says of itself; a test may change it."""
    with Pool.open(tmp_path / "pool", budget=1 << 20) as pool:
        return {**_OLDEST, "pool": asdict(pool.stats())}


@pytest.fixture
def node(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeClient]:
    """A node that only says how it is."""
    with (
        tempfile.TemporaryDirectory(prefix="pagepool-node-") as directory,  # a socket's path is short
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        places = NodePlaces(Path(directory) / "state", Path(directory))
        listener.bind(str(places.control))
        listener.listen()
        ControlServer(listener, {"status": lambda *_: told}).start()
        monkeypatch.setenv("PAGEPOOL_NODE_RUN", directory)
        monkeypatch.setenv("PAGEPOOL_NODE_STATE", str(places.state))
        yield NodeClient(places)
        listener.shutdown(socket.SHUT_RDWR)


def test_its_word_is_taken_for_what_the_kernel_can(node: NodeClient, told: dict[str, Any]) -> None:
    """Once it has tried it; an older one has no word of it, and then it is tried here."""
    assert node.support() is None
    for support in ("", None):
        told["support"] = support
        assert node.support() is None
    told["support"] = SUPPORT
    assert node.support() == SUPPORT
    assert choose("auto", node, None) == Choice("kernel", SUPPORT)
    told |= {"mounts": 0, "trees": 0}
    assert node.support() == SUPPORT


def test_status_of_another_version(node: NodeClient, told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Of an older one what it says, and of a newer one what is known here; as JSON, all."""
    for more in ({}, {"version": "9.0", "support": SUPPORT, "metrics": "127.0.0.1:5002", "weather": {"rain": True}}):
        told |= more
        assert run_program(["node", "status"]) == 0
        shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
        assert (shown["version"], shown["process"]) == (told["version"], "7")
        assert (shown["mounts"], shown["images"]) == ("2", "1, mounted now or within the last day")
        assert ("metrics" in shown, "weather" in shown) == (bool(more), False)
        assert run_program(["node", "status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == told
    assert node.status() == told
    told["pool"].pop("pinned_bytes")
    assert run_program(["node", "status"]) == 0
