"""Where trees come from: what is kept when an image is mounted again, and what is noted."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pagepool.content import ObjectCache
from pagepool.errors import NotFoundError, PagepoolError, ResponseError, UnreachableError
from pagepool.node.lazy import LARGE
from pagepool.node.links import Links
from pagepool.node.places import NodePlaces
from pagepool.node.recording import Profiles
from pagepool.node.records import MountRecord, SourceRecord, uptime_s
from pagepool.node.sessions import Sessions
from pagepool.node.source import ATTEMPTS, Patience, open_session
from pagepool.node.sources import Sources
from pagepool.pool import Pool
from pagepool.transport.answers import Subject
from pagepool.transport.http import Call
from tests.support.descriptors import count_open

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def sources(places: NodePlaces) -> Iterator[Sources]:
    """Without a pool: nothing is kept."""
    sources = Sources(places, ObjectCache(None), 0.1, lambda _digest: False)
    yield sources
    sources.close()


def _digest(sources: Sources, record: SourceRecord) -> bytes:
    source = sources.get(record.tree)
    assert source is not None
    return source.tree.object_key(0)[0]


def test_a_start_that_cannot_be_recorded(sources: Sources, record: SourceRecord, tmp_path: Path) -> None:
    """It is a start all the same; whatever the kernel says, as when too much is marked already."""
    source, profiles = sources.add(record), Profiles(sources, LARGE, Links())
    profiles._ahead[record.tree] = time.monotonic()
    metadata = tmp_path / "metadata"
    metadata.write_bytes(b"image")
    profiles.begin("mount", -1, source, metadata)
    profiles.end("mount")


def test_mounted_again_with_the_same_credentials(sources: Sources, record: SourceRecord) -> None:
    """Its connections, and its lease, stay."""
    first = sources.add(record)
    sources.update(record.tree, lease="lease")
    again = sources.add(replace(record, image="image:2"))
    assert again is first
    assert (again.record.image, again.record.lease) == ("image:2", "lease")


def test_the_image_that_a_tree_is_stays_known(sources: Sources, record: SourceRecord) -> None:
    """Also when the same tree is mounted as the first layers of another image."""
    part, whole, other = record, replace(record, manifest="sha256:whole"), replace(record, manifest="sha256:other")
    for mounted, known in (
        (part, ""),
        (whole, "sha256:whole"),
        (part, "sha256:whole"),
        (replace(part, username="user"), "sha256:whole"),
        (replace(other, username="user"), "sha256:other"),
        (replace(part, repository="elsewhere"), ""),
    ):
        assert sources.add(mounted).record.manifest == known
    sources.add(whole)
    assert sources.add(part, asked=False).record.manifest == "sha256:whole"


def test_mounted_again_with_other_credentials(sources: Sources, record: SourceRecord) -> None:
    """What is being fetched with the old ones goes on."""
    first = sources.add(record)
    sources.update(record.tree, lease="lease")
    other = sources.add(replace(record, username="user", password="new"))
    assert other is not first
    assert other.record.lease == "lease"
    assert not first.session._client.is_closed
    sources.forget_released()
    assert not first.session._client.is_closed


def test_mounted_from_another_place(sources: Sources, record: SourceRecord, places: NodePlaces) -> None:
    """Both are asked, the last one first, also by another worker; one that nothing was mounted from any more is not."""
    other, digest = replace(record, repository="other"), _digest(sources, sources.add(record).record)
    for one in (other, replace(record, username="new"), other):
        sources.add(one)
    assert [source.record.access for source, _ in sources._find(digest)] == [
        other.access,
        replace(record, username="new").access,
    ]
    next_one = Sources(places, ObjectCache(None), 0.1, lambda _digest: False)
    next_one.load()
    assert [source.record.access for source, _ in next_one._find(digest)] == [
        source.record.access for source, _ in sources._find(digest)
    ]
    next_one.update(record.tree, released=uptime_s() - 90_000)
    next_one.add(replace(record, repository="third", released=uptime_s() - 90_000))
    assert "other" not in [source.record.repository for source, _ in next_one._find(digest)]
    next_one.forget_released()
    assert list(places.sources.glob("*.json")) == []
    next_one.close()


def test_of_many_places_the_last_are_asked(sources: Sources, record: SourceRecord, places: NodePlaces) -> None:
    """Also by another worker: each would be asked in turn for what none has."""
    for number in range(20):
        sources.add(replace(record, repository=f"app{number}"))
    digest = _digest(sources, record)
    expected = [f"app{number}" for number in range(19, 10, -1)]
    assert [source.record.repository for source, _ in sources._find(digest)] == expected
    next_one = Sources(places, ObjectCache(None), 0.1, lambda _digest: False)
    next_one.load()
    assert {source.record.repository for source, _ in next_one._find(digest)} == set(expected)
    next_one.close()


def test_what_went_wrong_is_noted_until_something_goes_right(sources: Sources, record: SourceRecord) -> None:
    source = sources.add(record)
    assert source.failure is None
    with pytest.raises(PagepoolError):
        sources.bring(_digest(sources, record))
    assert source.failure is not None
    assert "127.0.0.1:9" in source.failure[1]
    with source.noting():
        pass
    assert source.failure is None


@pytest.fixture
def hanging() -> Iterator[tuple[str, list[socket.socket]]]:
    """A service that takes connections, and never answers: its URL, and the connections that came."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        came: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):  # it was shut down
                while True:
                    came.append(listener.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", came
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in came:
            connection.close()


def test_connections_that_the_service_has_closed_are_let_go_of(
    sources: Sources, record: SourceRecord, hanging: tuple[str, list[socket.socket]]
) -> None:
    """A tree is remembered for a day, and many are: what it has fetched over is not held as long."""
    url, came = hanging
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    call = Call("GET", "/", Subject(NotFoundError, "x"))
    first = sources.add(replace(record, url=url))
    other = sources.add(replace(record, url=url, username="user", password="new"))
    opened = count_open()
    for number, source in enumerate((first, other)):
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(source.session.request, call)
            while len(came) <= number:
                time.sleep(0.001)
            came[number].sendall(answer)
            assert asked.result().status_code == 200
    sources.close_expired()
    assert count_open() == opened + 4, "one that has just been used is kept"
    for connection in came:
        connection.shutdown(socket.SHUT_RDWR)
    sources.close_expired()
    assert count_open() == opened + 2, "those of the service alone"


def test_a_miss_while_the_service_hangs_waits_once(
    places: NodePlaces, record: SourceRecord, hanging: tuple[str, list[socket.socket]]
) -> None:
    """What comes along with a small file has waited for all of the time already: the file is not asked for again."""
    url, came = hanging
    with Pool.open(places.pool, budget=1 << 20) as pool:
        sources = Sources(places, ObjectCache(pool, 1 << 20), 0.3, lambda _digest: True)
        source = sources.add(replace(record, url=url))
        source.start.begin()
        assert source.start.is_guessed()
        with pytest.raises(UnreachableError):
            sources.bring(_digest(sources, record))
        assert len(came) == ATTEMPTS
        # Whoever comes next gets one try.
        with pytest.raises(UnreachableError):
            sources.bring(_digest(sources, record))
        assert len(came) == ATTEMPTS + 1
        sources.close()


def test_a_service_that_is_back_is_tried_as_often_as_before(record: SourceRecord) -> None:
    seen: list[int] = []
    with open_session(record, 3.0) as session:

        def ask(*, is_there: bool) -> None:
            seen.append(session.retry.attempts)
            if not is_there:
                raise UnreachableError("there", "timed out")

        patience = Patience(0.0)
        for is_there in (False, False, True, True):
            with suppress(UnreachableError):
                patience.ask("url", partial(ask, is_there=is_there), session)
    assert seen == [ATTEMPTS, 1, 1, ATTEMPTS]


def test_a_service_that_asks_to_wait_for_long(record: SourceRecord) -> None:
    """A container waits for what is fetched, so long as the node was told to and no longer."""
    with open_session(record, 3.0) as session:
        assert session.retry.delay_s(1, "86400") == 3.0 / ATTEMPTS


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_answers_in_the_place_of_a_service(status: int) -> None:
    """Behind a proxy a service that is being restarted answers like this."""
    answers = [ResponseError(status, "", ""), UnreachableError("there", "refused")]

    def ask() -> str:
        if answers:
            raise answers.pop()
        return "answer"

    assert Patience(600.0).ask("url", ask) == "answer"


def test_what_a_service_refuses_is_not_asked_again() -> None:
    asked: list[None] = []

    def ask() -> None:
        asked.append(None)
        raise ResponseError(500, "", "")

    with pytest.raises(ResponseError):
        Patience(600.0).ask("url", ask)
    assert len(asked) == 1


def test_objects_in_use(sources: Sources, record: SourceRecord) -> None:
    """Those of trees that are mounted, or were a moment ago."""
    sources.add(record)
    digest = _digest(sources, record)
    assert sources.has(digest)
    sources.update(record.tree, released=uptime_s())
    assert sources.has(digest)
    sources.forget_released()
    assert not sources.has(digest)
    assert sources.get(record.tree) is not None
    sources.update(record.tree, released=0.0)
    assert sources.has(digest)


def test_a_tree_is_remembered_for_a_day_whatever_the_clock_says(
    sources: Sources, record: SourceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may live on where the node does not see it."""
    sources.add(record)
    sources.update(record.tree, released=uptime_s())
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert sources.forget_released() == []
    sources.update(record.tree, released=uptime_s() - 86_401)
    assert [source.record.tree for source in sources.forget_released()] == [record.tree]


def test_a_tree_that_is_mounted_again_while_it_is_forgotten(
    sources: Sources, record: SourceRecord, places: NodePlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes first, what is known then is served, and is written down for the next worker."""
    sources.add(record)
    sources.update(record.tree, released=uptime_s() - 86_401)
    adding = threading.Thread(target=sources.add, args=(record,))

    def add_meanwhile(tree: str) -> Path:
        if not adding.ident and threading.current_thread() is threading.main_thread():
            waits = sources._adding.locked()
            adding.start()
            if not waits:
                adding.join()
        return places.sources / f"{tree}.json"

    monkeypatch.setattr(sources, "_record", add_meanwhile)
    sources.forget_released()
    adding.join()
    assert sources.get(record.tree) is not None
    assert (places.sources / f"{record.tree}.json").exists()


def test_when_a_mount_was_made_is_shown_in_the_clock_of_people() -> None:
    mount = MountRecord("id", "/at", "image", "00", "", False, False, uptime_s() - 60, "0:1")
    assert time.time() - 70 < mount.shown()["since"] < time.time() - 50


def test_a_tree_whose_file_is_gone_is_left_out(sources: Sources, record: SourceRecord, places: NodePlaces) -> None:
    """And taken up again when it has come back."""
    sources.add(record)
    path = places.tree_files / record.tree
    data = path.read_bytes()
    path.unlink()
    later = Sources(places, ObjectCache(None), 0.1, lambda _digest: False)
    later.load()
    assert later.all() == []
    path.write_bytes(data)
    assert later.add(record).record == record
    later.close()


def test_sessions_are_shared_and_closed_when_idle(record: SourceRecord) -> None:
    sessions = Sessions(0.1)
    first = sessions.get(record)
    assert sessions.get(replace(record, image="other")) is first
    assert sessions.get(replace(record, password="other")) is not first
    assert sessions.close_idle() == 2
    assert sessions.close_idle(0.0) == 0
    assert first._client.is_closed
    sessions.get(record)
    assert sessions.close_idle(0.0) == 0
