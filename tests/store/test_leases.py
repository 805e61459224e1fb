"""Leases in the store: taken, renewed, ended, expired, removed, and checked by fsck."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.errors import CorruptError, LeaseUnknownError, LimitError, StoreFullError, TreeUnknownError
from pagepool_service.maintenance import Maintenance
from pagepool_service.store import cycle
from pagepool_service.store import leases as leases_module
from pagepool_service.store.clock import Moment
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.leases import Leases
from pagepool_service.store.schema import LeaseName, LeaseRecord
from pagepool_service.store.store import Store
from tests.faults import flip_record, records, replace_record
from tests.store.helpers import ingest_all, make_tar, push

if TYPE_CHECKING:
    from pathlib import Path

TAR = make_tar({"etc/hello": b"hello\n"})
LAYER = Digest.of(TAR)
ORIGIN = (Digest.of(b"manifest"), (LAYER, LAYER))
TREE = b"t" * 32
NAME = "some/app"


class Clock:
    """Nanoseconds that go on when a test says so."""

    def __init__(self) -> None:
        self.now = 10**18
        self.set_by = 0  # how much of that did not pass

    def __call__(self) -> Moment:
        return Moment(self.now, self.now - self.set_by)

    def jump(self, ns: int) -> None:
        """Somebody sets it."""
        self.now += ns
        self.set_by += ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(store: Store, clock: Clock) -> Leases:
    push(store, TAR)
    ingest_all(store)
    return Leases(store.env, clock)


def test_a_lease_is_found_until_it_expires(leases: Leases, clock: Clock) -> None:
    taken = leases.take(NAME, TREE, "node a", 60, ORIGIN)
    assert taken.expires_ns == clock.now + 60 * 10**9
    found = leases.find(NAME, TREE)
    assert found is not None
    assert (found.manifest, found.layers, found.holder) == (*ORIGIN, "node a")
    assert leases.find("some", TREE) is None
    assert leases.find(NAME, b"u" * 32) is None
    clock.now += 60 * 10**9
    assert leases.find(NAME, TREE) is None


def test_renewing_moves_the_end_and_nothing_else(leases: Leases, clock: Clock, store: Store) -> None:
    taken = leases.take(NAME, TREE, "node a", 60, ORIGIN)
    created = clock.now
    clock.now += 59 * 10**9
    assert leases.renew(NAME, TREE, taken.id, "node b", 60).expires_ns == clock.now + 60 * 10**9
    clock.now += 59 * 10**9
    with store.env.read() as txn:
        assert list(leases.roots(txn)) == [
            (
                LeaseName(NAME, TREE, taken.id),
                LeaseRecord(created, clock.now + 10**9, ORIGIN[0], ORIGIN[1], "node b"),
            )
        ]
    clock.now += 10**9
    with pytest.raises(LeaseUnknownError):
        leases.renew(NAME, TREE, taken.id, "node b", 60)
    with store.env.read() as txn:
        assert list(leases.roots(txn)) == []


def test_a_renewal_is_told_to_a_collector_and_counts_from_its_own_transaction(
    leases: Leases, clock: Clock, store: Store
) -> None:
    """A collector that looked when it had just expired must hear of it; one that ends while it waits has ended."""
    taken = leases.take(NAME, TREE, "node a", 60, ORIGIN)
    with store.env.write() as txn:
        cycle.Cycle.begin(txn, clock.now)
    clock.now += 59 * 10**9
    for ttl_s in (120, 60):  # the second is well before its end: it needs no word
        leases.renew(NAME, TREE, taken.id, "node a", ttl_s)
        with store.env.read() as txn:
            assert [found.key for found in cycle.notes_after(txn, 0, 10)] == [layer.key for layer in ORIGIN[1]]
    with ThreadPoolExecutor(1) as pool:
        with store.env.write():
            renewing = pool.submit(leases.renew, NAME, TREE, taken.id, "node a", 60)
            time.sleep(0.1)
            clock.now += 60 * 10**9
        with pytest.raises(LeaseUnknownError):
            renewing.result()


def test_it_is_of_one_tree_in_one_repository(leases: Leases) -> None:
    taken = leases.take(NAME, TREE, "a", 60, ORIGIN)
    for name, tree, lease in (("other", TREE, taken.id), (NAME, b"u" * 32, taken.id), (NAME, TREE, bytes(16))):
        with pytest.raises(LeaseUnknownError):
            leases.renew(name, tree, lease, "a", 60)
        with pytest.raises(LeaseUnknownError):
            leases.release(name, tree, lease)
    leases.release(NAME, TREE, taken.id)
    assert leases.find(NAME, TREE) is None
    with pytest.raises(LeaseUnknownError):
        leases.release(NAME, TREE, taken.id)


def test_several_hold_one_tree(leases: Leases) -> None:
    first, second = (leases.take(NAME, TREE, holder, 60, ORIGIN) for holder in "ab")
    leases.release(NAME, TREE, first.id)
    found = leases.find(NAME, TREE)
    assert found is not None
    assert found.holder == "b"
    leases.release(NAME, TREE, second.id)
    assert leases.find(NAME, TREE) is None


def test_none_is_taken_on_layers_that_are_not_there(leases: Leases) -> None:
    """Collection and leases decide in one transaction each: a lease that was taken keeps what it names."""
    with pytest.raises(TreeUnknownError):
        leases.take(NAME, TREE, "a", 60, (ORIGIN[0], (LAYER, Digest.of(b"gone"))))
    assert leases.find(NAME, TREE) is None


def test_there_is_a_limit(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "MOST_LEASES", 2)
    taken = [leases.take(NAME, TREE, "a", 60, ORIGIN) for _ in range(2)]
    with pytest.raises(LimitError):
        leases.take(NAME, TREE, "a", 60, ORIGIN)
    leases.renew(NAME, TREE, taken[0].id, "a", 60)


def test_a_full_store_takes_none_and_renews_those_it_has(leases: Leases, clock: Clock, store: Store) -> None:
    taken = leases.take(NAME, TREE, "a", 60, ORIGIN)
    store.close()
    with Store.open(store.data, quota_bytes=1) as full:
        again = Leases(full.env, clock)
        with pytest.raises(StoreFullError):
            again.take(NAME, TREE, "b", 60, ORIGIN)
        assert again.renew(NAME, TREE, taken.id, "a", 90).expires_ns == clock.now + 90 * 10**9
        again.release(NAME, TREE, taken.id)


def test_expired_ones_are_removed(leases: Leases, clock: Clock, store: Store) -> None:
    kept = leases.take(NAME, TREE, "long", 600, ORIGIN)
    for _ in range(3):
        leases.take(NAME, TREE, "short", 6, ORIGIN)
    before = store.env.version()
    assert leases.remove_expired() == 0
    assert store.env.version() == before  # nothing was written
    clock.now += 6 * 10**9
    assert leases.remove_expired() == 3
    with store.env.read() as txn:
        assert [key for key, _ in txn.scan(Table.LEASES)] == [LeaseName(NAME, TREE, kept.id).key]


def test_one_that_is_renewed_while_expired_ones_are_removed_stays(
    leases: Leases, clock: Clock, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, whose clock is a little behind. One that is released meanwhile is no matter."""
    renewed, released, _ = (leases.take(NAME, TREE, holder, 60, ORIGIN).id for holder in "abc")
    behind = clock()
    clock.now += 61 * 10**9
    write = store.env.write

    def meanwhile() -> object:
        monkeypatch.undo()
        other = Leases(store.env, lambda: behind)
        other.renew(NAME, TREE, renewed, "a", 600)
        other.release(NAME, TREE, released)
        return write()

    monkeypatch.setattr(store.env, "write", meanwhile)
    assert leases.remove_expired() == 1
    with store.env.read() as txn:
        assert [LeaseName.parse(key).id for key, _ in txn.scan(Table.LEASES)] == [renewed]


def test_maintenance_removes_them(leases: Leases, clock: Clock, store: Store) -> None:
    leases.take(NAME, TREE, "a", 60, ORIGIN)
    clock.now += 61 * 10**9
    store.leases = leases
    maintenance = Maintenance(store)
    maintenance.tend()
    with store.env.read() as txn:
        assert txn.count(Table.LEASES) == 0
    leases.take(NAME, TREE, "a", 60, ORIGIN)
    clock.now += 61 * 10**9
    maintenance.tend()  # too early to look again
    with store.env.read() as txn:
        assert txn.count(Table.LEASES) == 1


@pytest.mark.parametrize("hours", [1, 23, 25, 24 * 365 * 10])
def test_none_ends_because_the_clock_was_set(leases: Leases, clock: Clock, hours: int) -> None:
    """Its holder renews it by a clock of his own, and knows nothing of it."""
    hour = 3600 * 10**9
    taken = leases.take(NAME, TREE, "a", 24 * 3600, ORIGIN)
    assert leases.remove_expired() == 0
    clock.now += 7 * hour
    clock.jump(hours * hour)
    for look in (False, True):
        if look:
            assert leases.remove_expired() == 0
        clock.now += 8 * hour
        assert leases.find(NAME, TREE) is not None
        clock.now -= 8 * hour
    clock.now += hour
    assert leases.renew(NAME, TREE, taken.id, "a", 24 * 3600).id == taken.id
    clock.now += 23 * hour
    assert leases.find(NAME, TREE) is not None
    clock.now += 8 * 24 * hour
    assert leases.find(NAME, TREE) is None
    assert leases.remove_expired() == 1


def test_the_time_that_the_machine_was_off_ends_none(leases: Leases, clock: Clock, store: Store) -> None:
    """Nobody could renew it."""
    hour = 3600 * 10**9
    leases.take(NAME, TREE, "a", 24 * 3600, ORIGIN)
    clock.now += 72 * hour
    after = Leases(store.env, lambda: Moment(clock.now, clock.now - 10**18, b"another boot    "))
    assert after.remove_expired() == 0
    clock.now += 23 * hour
    assert after.find(NAME, TREE) is not None
    clock.now += 2 * hour
    assert after.find(NAME, TREE) is None
    assert after.remove_expired() == 1


def test_a_damaged_one_does_not_hide_the_others(leases: Leases, clock: Clock, store: Store) -> None:
    for _ in range(2):
        leases.take(NAME, TREE, "a", 60, ORIGIN)
    store.close()
    flip_record(store.data, records(store.data, Table.LEASES)[0], 20)
    (problem,) = check_store(store.data, quick=True).problems
    assert (problem.kind, problem.reason) == ("lease", "its checksum does not match its bytes")
    assert problem.name.startswith(f"{NAME}@blake3:{TREE.hex()} ")
    with Store.open(store.data) as again:
        left = Leases(again.env, clock)
        assert left.find(NAME, TREE) is not None
        with again.env.read() as txn, pytest.raises(CorruptError):
            list(left.roots(txn))  # nobody knows what it keeps
        clock.now += 60 * 10**9
        assert left.remove_expired() == 1
        with again.env.read() as txn:
            assert txn.count(Table.LEASES) == 1


def test_fsck_follows_them(leases: Leases, data: Path, store: Store, clock: Clock) -> None:
    clock.now = 1 << 62  # long after the clock that fsck goes by
    leases.take(NAME, TREE, "a", 60, ORIGIN)
    report = check_store(data)
    assert (report.problems, report.checked["leases"]) == ([], 1)
    store.close()
    replace_record(data, Table.LAYERS, LAYER.key, None)
    problems = [problem for problem in check_store(data, quick=True).problems if problem.kind == "lease"]
    assert [problem.reason for problem in problems] == [f"the layer {LAYER} that it keeps is not there"]


@pytest.mark.parametrize(
    "payload",
    [b"", bytes(18), bytes(16) + b"\0\1\0a", bytes(16) + b"\0\0\x21" + LAYER.key + LAYER.key[:-1]],
)
def test_what_is_no_record(payload: bytes) -> None:
    with pytest.raises(CorruptError):
        LeaseRecord.decode(payload, "x")


def test_what_is_no_key() -> None:
    name = LeaseName(NAME, TREE, bytes(16))
    assert LeaseName.parse(name.key) == name
    for key in (b"", name.key[:-1], name.key + b"x", b"\xff\0" + bytes(48), b"\0" + bytes(48)):
        with pytest.raises(CorruptError):
            LeaseName.parse(key)
