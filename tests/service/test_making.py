"""Trees and images that take long to make: who wants to is told, everybody else waits, and each is made once."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import PendingError
from pagepool.transport import Session, making
from pagepool.transport.making import Patience
from pagepool.transport.trees import TreeClient
from pagepool_service.making import Makings
from pagepool_service.prebuild import Prebuilder, WantedImages
from pagepool_service.store.store import Store
from tests.service.pushes import push_image
from tests.service.test_extents import break_frame
from tests.service.test_images_api import settled
from tests.service.test_prebuild import add_image
from tests.store.helpers import ingest_all
from tests.support.making import Held, being_made, tree_name
from tests.support.objects import object_service

if TYPE_CHECKING:
    from tests.support.server import Service

_TOLD = {"Prefer": "respond-async, wait=0"}
_TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask more often than once a second."""
    monkeypatch.setattr(making, "_WAIT_S", 0.0)


def files_of(name: str) -> dict[str, bytes]:
    """Files that no other image has."""
    return {"etc/name": name.encode(), "bin/large": name.encode() * 50_000}


def push_ready(http: httpx.Client, name: str) -> None:
    """Push an image, and wait until its layers were read."""
    push_image(http, name, "latest", files_of(name))
    settled(http, f"/v1/{name}/images/latest")


def eventually(http: httpx.Client, path: str) -> httpx.Response:
    """Ask as those do who are told, until there is another answer."""
    deadline = time.monotonic() + _TIMEOUT_S
    while (answer := http.get(path, headers=_TOLD)).status_code == 202:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def test_who_asks_for_it_is_told_that_a_tree_is_being_made(http: httpx.Client, service: Service) -> None:
    name = "making/told"
    path = f"/v1/{name}/images/latest/tree"
    with being_made(service.data, tree_name(files_of(name))):
        push_ready(http, name)
        answer = http.get(path, headers=_TOLD)
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["waiting"] == []
        assert set(answer.json()["making"]) == {"seconds", "steps"}
    assert eventually(http, path).json()["tree"].startswith("blake3:")


def test_others_wait_as_they_always_did(http: httpx.Client, service: Service) -> None:
    """A client of an earlier version understands no other answer."""
    name = "making/waits"
    path = f"/v1/{name}/images/latest/tree"
    with being_made(service.data, tree_name(files_of(name))) as held, ThreadPoolExecutor(4) as pool:
        push_ready(http, name)
        waiting = [pool.submit(httpx.get, f"{service.url}{path}", timeout=_TIMEOUT_S) for _ in range(4)]
        assert http.get(path, headers={**_TOLD, "Prefer": "respond-async, wait=1"}).status_code == 202
        assert not any(one.done() for one in waiting)
        held.release()
        answers = [one.result() for one in waiting]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["tree"] for answer in answers}) == 1


def test_the_steps_of_another_process_are_seen(http: httpx.Client, service: Service) -> None:
    name = "making/steps"
    path = f"/v1/{name}/images/latest/tree"
    with being_made(service.data, tree_name(files_of(name))) as held:
        push_ready(http, name)
        before = http.get(path, headers=_TOLD).json()["making"]["steps"]
        deadline, count = time.monotonic() + _TIMEOUT_S, 0
        while http.get(path, headers=_TOLD).json()["making"]["steps"] == before:
            assert time.monotonic() < deadline
            held.step(count := count + 1)
            time.sleep(0.02)
    assert eventually(http, path).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_asks_for_it_is_told_that_an_image_is_being_made(tmp_path: Path, method: str) -> None:
    with object_service(tmp_path / "data") as running, httpx.Client(base_url=running.url) as client:
        tree = running.image("making/erofs", files_of("erofs"))
        path = f"/v1/making/erofs/trees/{Digest('blake3', tree.digest)}/erofs"
        with being_made(tmp_path / "data", tree.digest.hex()):
            answer = client.request(method, path, headers=_TOLD)
            assert answer.status_code == 202
            assert answer.headers["preference-applied"] == "respond-async"
        assert eventually(client, path).headers["content-type"] == "application/vnd.pagepool.erofs.v1"


def test_who_asks_again_is_told_how_it_failed(tmp_path: Path) -> None:
    """And who asks after that has it tried once more."""
    with object_service(tmp_path / "data") as running, httpx.Client(base_url=running.url) as client:
        tree = running.image("making/fails", {"etc/small": b"a small file\n"})
        path = f"/v1/making/fails/trees/{Digest('blake3', tree.digest)}/erofs"
        break_frame(running.store, tree.object(0).digest)
        lock = tmp_path / "data" / "trees" / "making" / tree.digest.hex()
        with being_made(tmp_path / "data", tree.digest.hex()):
            assert client.get(path, headers=_TOLD).status_code == 202
        deadline = time.monotonic() + _TIMEOUT_S
        while lock.exists():  # until it has failed
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with being_made(tmp_path / "data", tree.digest.hex()):  # so that nothing more would come of it
            failed = eventually(client, path)
        assert failed.status_code == 500
        assert tree.object(0).digest.hex() in failed.text
        break_frame(running.store, tree.object(0).digest)  # once more makes it whole
        assert eventually(client, path).status_code == 200


def _make_once(directory: Path, made: Path, start: Any) -> None:
    makings = Makings(directory)
    start.wait()
    with makings.alone("one") as found:
        if not made.exists():
            for _ in range(3):
                found.step()
            with made.open("x") as file:
                file.write("made")


def test_several_processes_make_it_once(tmp_path: Path) -> None:
    """Whoever finds it made does not make it: `open("x")` fails if two do."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    found = [context.Process(target=_make_once, args=(tmp_path / "making", tmp_path / "made", start)) for _ in range(4)]
    for process in found:
        process.start()
    for process in found:
        process.join(_TIMEOUT_S)
    assert [process.exitcode for process in found] == [0] * 4
    assert (tmp_path / "made").read_text() == "made"
    assert list((tmp_path / "making").iterdir()) == []


def test_several_threads_are_alone_one_after_the_other(tmp_path: Path) -> None:
    makings, inside, most = Makings(tmp_path / "making"), [0], [0]

    def work(_: int) -> None:
        with makings.alone("one"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert most == [1]


def test_where_no_file_can_be_made_each_makes_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    makings = Makings(tmp_path / "file" / "making")
    assert not makings.is_busy("one")
    with makings.alone("one") as found:
        found.step(3)
    assert makings.steps.count == 3


def test_what_is_made_ahead_stands_back(tmp_path: Path) -> None:
    """Whoever makes it is not waited for: layers of other images are read meanwhile."""
    with Store.open(tmp_path / "data") as store:
        digest = add_image(store, files_of("ahead"))
        ingest_all(store)
        WantedImages(store.data).add("app", digest)
        prebuilder = Prebuilder(store, store.data)
        with being_made(store.data, tree_name(files_of("ahead"))):
            assert not prebuilder.run_one()
        prebuilder.look_again()
        assert prebuilder.run_one()


# -- clients ---------------------------------------------------------------------------------------------------


def resolve(service: Service, name: str, patience: Patience, clock: Callable[[], float] = time.monotonic) -> Digest:
    """The tree of an image, as clients ask for it."""
    with Session(service.url, timeout=httpx.Timeout(_TIMEOUT_S)) as session:
        return TreeClient(session, clock).resolve(name, "latest", patience=patience).tree


def test_a_client_waits_and_tells(http: httpx.Client, service: Service) -> None:
    name, told = "making/client", []
    with being_made(service.data, tree_name(files_of(name))) as held:
        push_ready(http, name)

        def tell(seconds: int) -> None:
            told.append(seconds)
            if len(told) == 2:
                held.release()

        found = resolve(service, name, Patience(tell=tell))
    assert len(told) >= 2
    assert told == sorted(told)
    assert str(found) == http.get(f"/v1/{name}/images/latest/tree").json()["tree"]


def test_a_client_waits_as_long_as_it_is_told_to(http: httpx.Client, service: Service) -> None:
    name = "making/limit"
    with being_made(service.data, tree_name(files_of(name))):
        push_ready(http, name)
        with pytest.raises(PendingError, match="making/limit:latest is not ready"):
            resolve(service, name, Patience(limit_s=0.0))


def test_a_client_does_not_wait_for_what_stands_still(http: httpx.Client, service: Service) -> None:
    """However long it may take: by a clock of the test's, each look at which is ten seconds later."""
    name, now = "making/still", [0.0]

    def clock() -> float:
        now[0] += 10.0
        return now[0]

    with being_made(service.data, tree_name(files_of(name))):
        push_ready(http, name)
        with pytest.raises(PendingError, match="making/still:latest is not ready"):
            resolve(service, name, Patience(limit_s=1e9), clock)


def test_a_client_waits_for_what_goes_on(http: httpx.Client, service: Service) -> None:
    name, now, told = "making/on", [0.0], []

    def clock() -> float:
        now[0] += 10.0
        return now[0]

    with being_made(service.data, tree_name(files_of(name))) as held:
        push_ready(http, name)
        stop = threading.Event()
        stepping = threading.Thread(target=_step_on, args=(held, stop))
        stepping.start()

        def tell(seconds: int) -> None:
            told.append(seconds)
            if len(told) == 20:
                held.release()

        try:
            resolve(service, name, Patience(limit_s=1e9, tell=tell), clock)
        finally:
            stop.set()
            stepping.join()
    assert len(told) >= 20


def _step_on(held: Held, stop: threading.Event) -> None:
    count = 0
    while not stop.wait(0.02):
        count += 1
        try:
            held.step(count)
        except OSError:  # it was released
            return
