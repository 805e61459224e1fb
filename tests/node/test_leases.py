"""What a node does not need any more it lets go of, also when that is told at the wrong moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.content import ObjectCache
from pagepool.node.leases import LeaseKeeper
from pagepool.node.records import SourceRecord
from pagepool.node.sources import Sources
from pagepool.transport.leases import LeaseClient
from pagepool_service.store.store import Store
from tests.service.test_leases import FILES, make
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.digest import Digest
    from pagepool.node.places import NodePlaces
    from tests.support.server import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("leases") / "data") as running:
        yield running


@pytest.fixture
def sources(service: Service, places: NodePlaces, request: pytest.FixtureRequest) -> Iterator[Sources]:
    """A node's trees: one, which is mounted."""
    name = f"leased/{abs(hash(request.node.name))}"
    with httpx.Client(base_url=service.url, timeout=60) as http:
        path, _ = make(http, name, FILES | {"own": name.encode()})
        tree = path.rpartition(":")[2]
        (places.tree_files / tree).write_bytes(http.get(path).raise_for_status().content)
    made = Sources(places, ObjectCache(None), 30.0, lambda _digest: False)
    made.add(SourceRecord(tree, service.url, name, f"{name}:latest"))
    yield made
    made.close()


def held(service: Service, sources: Sources) -> int:
    """Leases that the service has on the tree."""
    (source,) = sources.all()
    with Store.open(service.data, readonly=True, shared=True) as store, store.env.read() as txn:
        return sum(lease.repository == source.record.repository for lease, _ in store.leases.roots(txn))


def await_held(service: Service, sources: Sources, count: int) -> None:
    deadline = time.monotonic() + 60
    while held(service, sources) != count:
        assert time.monotonic() < deadline, held(service, sources)
        time.sleep(0.02)


def let_go(keeper: LeaseKeeper, sources: Sources) -> None:
    """As a worker does when the last mount of a tree has gone."""
    (source,) = sources.all()
    keeper.release(source.record.tree)
    sources.update(source.record.tree, released=1.0, lease="")


def _go_on(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_a_node_that_ends_at_once_has_let_go(service: Service, sources: Sources) -> None:
    (source,) = sources.all()
    keeper = LeaseKeeper(sources)
    keeper.want(source.record.tree)
    await_held(service, sources, 1)
    let_go(keeper, sources)
    keeper.close()
    assert held(service, sources) == 0


def test_what_is_let_go_of_while_it_is_asked_for(service: Service, sources: Sources) -> None:
    """The service answers when nothing is mounted any more: nobody would have told it for a day."""
    (source,) = sources.all()
    keeper = LeaseKeeper(sources)
    stopped = [*service.children()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        keeper.want(source.record.tree)
        time.sleep(1)  # the request is on its way
        let_go(keeper, sources)
    finally:
        _go_on(stopped)
    time.sleep(2)  # it takes the lease
    await_held(service, sources, 0)
    keeper.close()


def test_a_node_that_ends_while_it_asks(service: Service, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the answer, and lets go of what it is given."""
    told: list[str] = []
    release = LeaseClient.release

    def tell(client: LeaseClient, name: str, tree: Digest, lease: str) -> None:
        release(client, name, tree, lease)
        told.append(lease)

    monkeypatch.setattr(LeaseClient, "release", tell)
    (source,) = sources.all()
    keeper = LeaseKeeper(sources)
    stopped = [*service.children()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    going_on = threading.Timer(1.5, _go_on, (stopped,))
    going_on.start()
    try:
        keeper.want(source.record.tree)
        time.sleep(0.5)  # the request is on its way
        let_go(keeper, sources)
        keeper.close()
        assert len(told) == 1
    finally:
        going_on.join()
    assert held(service, sources) == 0


def test_a_service_that_is_away_does_not_keep_a_node_from_ending(service: Service, sources: Sources) -> None:
    (source,) = sources.all()
    keeper = LeaseKeeper(sources)
    keeper.want(source.record.tree)
    await_held(service, sources, 1)
    stopped = [*service.children()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        let_go(keeper, sources)
        keeper.close()  # the requests' limit is half a minute; a test's is more
    finally:
        _go_on(stopped)
    await_held(service, sources, 0)
