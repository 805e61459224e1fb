"""The control socket: what a node does when it is short of everything, and how errors travel."""

from __future__ import annotations

import errno
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.errors import BusyError, UnreachableError, UnsupportedError
from pagepool.node.answering import ControlServer
from pagepool.node.client import KernelMountOptions, NodeClient
from pagepool.node.control import Channel, NodeGoneError, ask, converse, decode_error, encode_error
from pagepool.oci import Reference
from pagepool.oci.mediatypes import MAX_CONFIG_SIZE
from tests.support.descriptors import count_open

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool.node.places import NodePlaces

_PATIENCE_S = 60.0


class _Listener(socket.socket):
    """That cannot accept at first."""

    failures = 2

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where a server answers."""
    path = tmp_path / "socket"
    with _Listener(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse(*_: object) -> None:
            raise BusyError("it is in use")

        say = {"say": lambda _, request: request["word"]}
        ControlServer(listener, {**say, "refuse": refuse, "count": lambda found, _: len(found.descriptors)}).start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)


def test_short_of_descriptors(path: Path) -> None:
    """Commands wait, and are answered."""
    assert converse(path, {"op": "say", "word": "hello"}) == "hello"
    assert converse(path, {"op": "say", "word": "again"}) == "again"


def test_a_large_configuration_of_an_image(path: Path) -> None:
    """It comes in one message, where it is three times as large."""
    config = "\u00e9" * (3 << 20)
    assert len(config.encode()) < MAX_CONFIG_SIZE
    assert converse(path, {"op": "say", "word": config}) == config


def test_errors(path: Path, tmp_path: Path) -> None:
    """What the node says keeps its class; that there is none is told from that a service is not there."""
    with pytest.raises(BusyError, match="it is in use"):
        converse(path, {"op": "refuse"})
    with pytest.raises(NodeGoneError):
        converse(tmp_path / "nobody", {"op": "say"})
    said = decode_error(encode_error(UnreachableError("http://service", "gone")))
    assert isinstance(said, UnreachableError)
    assert not isinstance(said, NodeGoneError)


def test_descriptors_that_nobody_asked_for(path: Path) -> None:
    """The node keeps none: with them it would soon be out of its own, and containers' files could not be opened."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        channel = Channel(connection)
        channel.send({"op": "count"}, (connection.fileno(),) * 8)
        assert channel.receive() == {"ok": 0}


def test_what_is_answered_before_anything_was_asked_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that cannot take a command says so, and closes: the command may find nobody to send itself to."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        send = Channel.send

        def send_late(channel: Channel, message: dict[str, str]) -> None:
            refused = Channel(listener.accept()[0])
            if answer is not None:
                send(refused, {"error": encode_error(answer)})
            refused.close()
            send(channel, message)

        monkeypatch.setattr(Channel, "send", send_late)
        answer: Exception | None = BusyError("no threads")
        with pytest.raises(BusyError, match="no threads"):
            converse(path, {"op": "status"})
        answer = None
        with pytest.raises(NodeGoneError):
            converse(path, {"op": "status"})


@pytest.mark.parametrize("ends_well", [True, False], ids=["well", "badly"])
def test_worker_that_is_being_replaced(tmp_path: Path, *, ends_well: bool) -> None:
    """What is under way is answered if it ends well, and had once more by the next worker if not, whatever the error
    was: what it needed was being closed. What comes later is left to the next worker as well."""
    path = tmp_path / "socket"
    begun, go_on = threading.Event(), threading.Event()

    def say(*_: object) -> str:
        begun.set()
        assert go_on.wait(_PATIENCE_S)
        if not ends_well:
            raise ValueError("the pool is closed")
        return "the first"

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ThreadPoolExecutor() as threads:
        listener.bind(str(path))
        listener.listen()
        first = ControlServer(listener, {"say": say})
        first.start()
        under_way = threads.submit(ask, path, "say")
        assert begun.wait(_PATIENCE_S)
        first.retire()
        first.retire()
        later = threads.submit(ask, path, "say")
        second = ControlServer(listener, {"say": lambda *_: "the second"})
        second.start()
        assert later.result(_PATIENCE_S) == "the second"
        go_on.set()
        assert under_way.result(_PATIENCE_S) == ("the first" if ends_well else "the second")
        second.retire()


def test_workers_that_die_one_after_the_other(tmp_path: Path) -> None:
    """What can be asked again is, a few times; a node whose workers all die is gone."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ThreadPoolExecutor() as threads:
        listener.bind(str(path))
        listener.listen()

        def die(times: int) -> None:
            for _ in range(times):
                connection = listener.accept()[0]
                connection.recv(1)
                connection.close()

        asked = threads.submit(ask, path, "say")
        die(3)
        server = ControlServer(listener, {"say": lambda *_: "the fourth"})
        server.start()
        assert asked.result(_PATIENCE_S) == "the fourth"
        server.retire()
        asked = threads.submit(ask, path, "say")
        die(5)
        with pytest.raises(NodeGoneError):
            asked.result(_PATIENCE_S)


def test_a_scrub_whose_worker_dies(places: NodePlaces) -> None:
    """It is begun again; it failed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, ThreadPoolExecutor() as threads:
        listener.bind(str(places.control))
        listener.listen()
        asked = threads.submit(NodeClient(places).scrub)
        listener.accept()[0].close()
        server = ControlServer(listener, {"scrub": lambda *_: {"objects": 3}})
        server.start()
        assert asked.result(_PATIENCE_S) == {"objects": 3}
        server.retire()


def test_a_node_that_mounts_all_layers_is_refused(places: NodePlaces, tmp_path: Path) -> None:
    """An earlier version passes over how many it was asked for. Nothing is put into its place, and it is told so."""
    answers: list[dict[str, Any] | None] = []

    def mount(channel: Channel, request: dict[str, Any]) -> dict[str, Any]:
        assert request["layers"] == 2
        with (tmp_path / "tree").open("w") as file:
            channel.send({"mount": "id"}, (file.fileno(),))
        answers.append(channel.receive())
        return {"id": "id"}

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(places.control))
        listener.listen()
        server = ControlServer(listener, {"mount": mount})
        server.start()
        at, options = tmp_path / "at", KernelMountOptions(layers=2)
        at.mkdir()
        before = count_open()
        with pytest.raises(UnsupportedError, match=r"all layers of app:1, where the first 2 .* earlier version"):
            NodeClient(places).mount("http://127.0.0.1:9", Reference.parse("app:1"), at, options)
        deadline = time.monotonic() + _PATIENCE_S
        while not answers or count_open() > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        listener.shutdown(socket.SHUT_RDWR)
    assert answers == [None]
