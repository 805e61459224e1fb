"""What a pool owes to those who look into it by name: second names, what goes first, what is in use without a name."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from pagepool import linux
from pagepool.errors import InvalidError, StoreFullError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Custody, Pool, custody
from pagepool.pool.handles import HandleDoor
from pagepool.pool.secondnames import LINKED_S
from tests.faults import file_size_limit, filled, small_file_system
from tests.pool.helpers import PAGE, check_account, object_path, thing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.pool.helpers import Thing

BUDGET = 16 * PAGE


class Node:
    """The directories of a node, and what its mounted trees have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used: set[bytes] = set()
        self.released, self.later_s = 0, 0.0
        self.on_release: Callable[[], None] = lambda: None
        for name in ("run", "fetched"):
            (root / name).mkdir(exist_ok=True)

    def custody(self, floor: int | None = 0) -> Custody:
        """As a process of the node begins with it."""
        return Custody(
            *(self.root / "run", self.root / "fetched", self.used.__contains__),
            release=self.release,
            floor=floor,
            clock=lambda: time.monotonic() + self.later_s,
        )

    @contextmanager
    def pool(self, budget: int = BUDGET, floor: int | None = 0) -> Iterator[tuple[Pool, Custody]]:
        """The node's pool, opened."""
        held = self.custody(floor)
        with Pool.open(self.root / "pool", budget=budget, durable=True, custody=held) as pool:
            yield pool, held

    def release(self) -> None:
        """Overlays are asked to forget."""
        self.released += 1
        self.on_release()

    def second(self, digest: bytes) -> Path:
        """Where an object's second name is."""
        return self.root / "fetched" / digest.hex()[:2] / digest.hex()[2:]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """On whatever temporary directories are on."""
    return Node(tmp_path)


def put(pool: Pool, *things: Thing) -> None:
    """Put objects and let go of them."""
    for one in things:
        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
            pass


def things(first: int, count: int) -> list[Thing]:
    """Objects of one page."""
    return [thing(number) for number in range(first, first + count)]


def has(pool: Pool, *wanted: Thing) -> list[bool]:
    """Which of some objects a pool has, without using them."""
    return [object_path(pool.path, one.digest).exists() for one in wanted]


@pytest.fixture
def needs_handles(tmp_path: Path) -> None:
    """Skip where files cannot be found by their handles."""
    door = HandleDoor(tmp_path)
    door.close()
    if not door.usable:
        pytest.skip("file handles need CAP_DAC_READ_SEARCH, and a file system that has them")


def test_objects_of_no_mounted_tree_go_first(node: Node) -> None:
    """Though they came last, and some were used; nobody is asked to forget anything for it."""
    with node.pool() as (pool, _):
        mounted, other = things(0, 8), things(100, 8)
        node.used.update(one.digest for one in mounted)
        put(pool, *mounted, *other)
        for one in other:
            with pool.get(one.digest) or pytest.fail("not there"):
                pass
        put(pool, *things(200, 16))
        assert all(has(pool, *mounted))
        assert node.released == 0
        check_account(pool.path, pool.stats())


def test_then_those_of_mounted_trees(node: Node) -> None:
    """First those that are not in memory. Overlays were asked to forget them before."""
    with node.pool() as (pool, _):
        mounted, more = things(0, 16), things(100, 4)
        node.used.update(one.digest for one in (*mounted, *more))
        put(pool, *mounted)
        pool.sync()
        for one in mounted[8:12]:
            descriptor = os.open(object_path(pool.path, one.digest), os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        put(pool, *more)
        assert has(pool, *mounted) == [True] * 8 + [False] * 4 + [True] * 4
        assert node.released == 1
        node.used.update(one.digest for one in things(200, 64))
        put(pool, *things(200, 64))
        assert not any(has(pool, *mounted[:8]))
        check_account(pool.path, pool.stats())


def test_who_cannot_tell_is_in_use(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """An error of the node's evicts nothing that it might need, and breaks nothing."""
    with node.pool() as (pool, held):
        put(pool, *things(0, 8))
        held._in_use = lambda _digest: 1 // 0 > 1
        put(pool, *things(100, 16))
        assert sum("cannot be told" in record.message for record in caplog.records) == 1
        check_account(pool.path, pool.stats())


def full(*_arguments: object) -> None:
    """What a system call does on a full disk."""
    raise OSError(errno.ENOSPC, "full")


class TestSecondNames:
    """What overlays find in the moment after a lookup."""

    def test_made_and_taken_away(self, node: Node) -> None:
        """It is the same file, for a while; one that is left over from an earlier process goes, too."""
        with node.pool() as (pool, held):
            one, two = things(0, 2)
            put(pool, one, two, thing(2))
            assert held.link(one.digest)
            assert held.link(one.digest)
            assert held.link(two.digest)
            assert node.second(one.digest).samefile(object_path(pool.path, one.digest))
            assert not held.link(thing(5).digest)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "link", full)
                assert not held.link(things(2, 1)[0].digest)
            assert held.unlink_old() == 0
        with node.pool() as (pool, held):
            node.later_s = LINKED_S - 1
            assert held.unlink_old() == 0
            node.later_s = LINKED_S + 1
            assert held.unlink_old() == 2
            assert has(pool, one, two) == [True, True]
            assert not node.second(one.digest).exists()

    def test_of_another_file(self, node: Node) -> None:
        """What is there of an object that was lost some other way is replaced."""
        with node.pool() as (pool, held):
            one = thing(0)
            put(pool, one)
            held.link(one.digest)
            object_path(pool.path, one.digest).unlink()
        with node.pool() as (pool, held):
            put(pool, one)
            assert held.link(one.digest)
            assert node.second(one.digest).samefile(object_path(pool.path, one.digest))

    def test_a_fresh_one_is_not_evicted(self, node: Node) -> None:
        """Somebody is about to look for it. One that is not fresh goes when nothing else is left, with both names.

        What is fresh is as good as pinned: it keeps nothing else from coming.
        """
        with node.pool(floor=4 * PAGE) as (pool, held):
            mine, rest = things(0, 8), things(100, 8)
            put(pool, *mine, *rest)
            for one in mine:
                assert held.link(one.digest)
            put(pool, *things(200, 8))
            assert has(pool, *mine, *rest) == [True] * 8 + [False] * 8
            big, more = thing(300, 12 * PAGE), thing(301, 12 * PAGE)
            assert pool.put(big.digest, big.data) is None
            assert all(has(pool, *mine))
            for one in things(400, 12):
                put(pool, one)
                assert held.link(one.digest)
            assert all(has(pool, *mine, *things(400, 12)))
            node.later_s = custody.FRESH_S + 1
            put(pool, more)
            for one, there in zip(mine, has(pool, *mine), strict=True):
                assert node.second(one.digest).exists() == there
            assert has(pool, *mine).count(True) <= 4
            check_account(pool.path, pool.stats())

    @pytest.mark.parametrize("held_open", [False, True])
    def test_removing_takes_both(self, node: Node, *, held_open: bool) -> None:
        """A damaged object must not be found under its other name; whether or not somebody has it open."""
        with node.pool() as (pool, held), ExitStack() as stack:
            one = thing(0)
            file = pool.put(one.digest, one.data) or pytest.fail("not kept")
            stack.enter_context(file)
            held.link(one.digest)
            if not held_open:
                file.close()
            assert pool.remove(one.digest)
            assert not node.second(one.digest).exists()
            assert has(pool, one) == [False]
            assert pool.stats().retired_bytes == PAGE * held_open
            check_account(pool.path, pool.stats())


@pytest.mark.usefixtures("needs_handles")
class TestPinned:
    """Files without names that somebody has, who holds no lock: as an overlay does."""

    def test_counts_until_it_is_let_go_of(self, node: Node) -> None:
        """Also for the next process, and if the account is made anew; a torn record is none."""
        with node.pool() as (pool, held):
            one, two = things(0, 2)
            put(pool, one, two)
            descriptor = os.open(object_path(pool.path, one.digest), os.O_RDONLY)
            pool.remove(one.digest)
            pool.remove(two.digest)
            assert held.pinned == PAGE
            stats = pool.stats()
            assert (stats.pinned_bytes, stats.retired_bytes, stats.used) == (PAGE, 0, PAGE)
        with (node.root / "run" / "custody").open("ab") as file:
            file.write(bytes(100))
        (node.root / "pool" / "state").write_bytes(bytes(PAGE))
        with node.pool() as (pool, held):
            assert held.pinned == PAGE
            assert pool.stats().used == PAGE
            os.close(descriptor)
            held.probe(everything=True)
            assert pool.stats().used == 0
            check_account(pool.path, pool.stats())

    def test_of_another_boot(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is pinned by what ended."""
        with node.pool() as (pool, _):
            put(pool, thing(0))
            descriptor = os.open(object_path(pool.path, thing(0).digest), os.O_RDONLY)
            pool.remove(thing(0).digest)
        monkeypatch.setattr(linux, "boot_id", lambda: bytes(16))
        with node.pool() as (pool, held):
            assert held.pinned == 0
        os.close(descriptor)

    def test_a_noted_file_that_has_its_name(self, node: Node) -> None:
        """A process was killed between the two: nothing is counted twice."""
        with node.pool() as (pool, held):
            put(pool, thing(0))
            descriptor = os.open(object_path(pool.path, thing(0).digest), os.O_RDONLY)
            held.note(descriptor, thing(0).digest, PAGE)
        with node.pool() as (pool, held):
            assert held.pinned == 0
            assert pool.stats().used == PAGE
        os.close(descriptor)

    def test_held_and_then_pinned(self, node: Node) -> None:
        """Who holds it lets go, and an overlay still has it."""
        with node.pool() as (pool, _):
            one = thing(0)
            with pool.put(one.digest, one.data) or pytest.fail("not kept"):
                descriptor = os.open(object_path(pool.path, one.digest), os.O_RDONLY)
                pool.remove(one.digest)
                assert (pool.stats().retired_bytes, pool.stats().pinned_bytes) == (PAGE, 0)
            assert (pool.stats().retired_bytes, pool.stats().pinned_bytes) == (0, PAGE)
            os.close(descriptor)

    def test_the_floor(self, node: Node) -> None:
        """However much is pinned, something is left to go on with; what is beyond the budget is counted and shown."""
        with node.pool(floor=4 * PAGE) as (pool, held):
            mounted = things(0, 16)
            node.used.update(one.digest for one in mounted)
            put(pool, *mounted)
            pins = [os.open(object_path(pool.path, one.digest), os.O_RDONLY) for one in mounted]
            put(pool, *things(100, 40))
            stats = pool.stats()
            assert stats.pinned_bytes > 12 * PAGE
            assert PAGE < stats.bytes <= 4 * PAGE
            assert stats.budget < stats.used == stats.pinned_bytes + stats.bytes
            for descriptor in pins:
                os.close(descriptor)
            held.probe(everything=True)
            put(pool, *things(200, 16))
            assert pool.stats().bytes > 12 * PAGE
            check_account(pool.path, pool.stats())

    def test_forgetting_comes_first(self, node: Node) -> None:
        """What overlays let go of when they are asked is evicted, and nothing of it is pinned."""
        with node.pool() as (pool, _):
            mounted = things(0, 16)
            node.used.update(one.digest for one in mounted)
            put(pool, *mounted)
            pins = [os.open(object_path(pool.path, one.digest), os.O_RDONLY) for one in mounted]

            def close_all() -> None:
                for descriptor in pins:
                    os.close(descriptor)

            node.on_release = close_all
            put(pool, *things(100, 4))
            assert node.released == 1
            assert pool.stats().pinned_bytes == 0
            check_account(pool.path, pool.stats())

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    @pytest.mark.parametrize("steps", [40, 60, 85])
    def test_a_process_that_is_killed(self, node: Node, steps: int) -> None:
        """Whatever it was doing, the next one knows what is pinned, and the account is what is on the disk."""
        with node.pool() as (pool, _):
            mounted = things(0, 12)
            node.used.update(one.digest for one in mounted)
            put(pool, *mounted)
        pins = [os.open(object_path(node.root / "pool", one.digest), os.O_RDONLY) for one in mounted]
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            try:
                for descriptor in pins:
                    os.close(descriptor)
                with node.pool(floor=2 * PAGE) as (pool, _):
                    for number in itertools.count(100):
                        node.used.add(thing(number).digest)
                        put(pool, thing(number))
                        os.write(writing, b".")
            finally:
                os._exit(1)
        os.close(writing)
        seen = 0
        while seen < steps:
            got = len(os.read(reading, 1))
            assert got, "the process ended by itself"
            seen += got
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading)
        with node.pool(floor=2 * PAGE) as (pool, held):
            stats = pool.stats()
            gone = sum(os.fstat(descriptor).st_nlink == 0 for descriptor in pins)
            assert stats.pinned_bytes == gone * PAGE > 0
            assert stats.used == stats.bytes + stats.pinned_bytes
            check_account(pool.path, stats)
            for descriptor in pins:
                os.close(descriptor)
            held.probe(everything=True)
            assert pool.stats().pinned_bytes == 0
            check_account(pool.path, pool.stats())

    def test_the_file_does_not_grow_for_ever(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is written anew, with what is pinned."""
        monkeypatch.setattr(custody, "_SLACK", 10)
        monkeypatch.setattr(custody, "_PROBE_S", 0.0)
        with node.pool() as (pool, _):
            put(pool, thing(0))
            descriptor = os.open(object_path(pool.path, thing(0).digest), os.O_RDONLY)
            pool.remove(thing(0).digest)
            put(pool, *things(100, 200))
            pool.stats()
        assert (node.root / "run" / "custody").stat().st_size <= 24 + 20 * 176
        with node.pool() as (pool, held):
            assert held.pinned == PAGE
        os.close(descriptor)

    def test_a_full_disk(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is not noted is forgotten by the next process; what is noted later is not, and nobody is kept from going
        on when the file cannot be written anew."""
        path = node.root / "run" / "custody"
        with node.pool() as (pool, held):
            one, two = things(0, 2)
            put(pool, one, two)
            pins = [os.open(object_path(pool.path, thing.digest), os.O_RDONLY) for thing in (one, two)]
            with file_size_limit(path.stat().st_size + 100):
                pool.remove(one.digest)
            pool.remove(two.digest)
            assert held.pinned == 2 * PAGE
            monkeypatch.setattr(custody, "_SLACK", -10)
            monkeypatch.setattr(custody, "_PROBE_S", 0.0)
            with file_size_limit(100):
                assert pool.stats().pinned_bytes == 2 * PAGE
            monkeypatch.undo()
        assert [file.name for file in path.parent.iterdir()] == ["custody"]
        with node.pool() as (pool, held):
            assert held.pinned == PAGE
        for descriptor in pins:
            os.close(descriptor)

    def test_the_file_is_as_documented(self, node: Node) -> None:
        """Header and one record."""
        with node.pool() as (pool, _):
            put(pool, thing(0))
            descriptor = os.open(object_path(pool.path, thing(0).digest), os.O_RDONLY)
            pool.remove(thing(0).digest)
        os.close(descriptor)
        path = node.root / "run" / "custody"
        assert path.stat().st_mode & 0o777 == 0o600
        raw = path.read_bytes()
        assert raw[:8] == b"PPCUST\0\x01"
        assert raw[8:24] == linux.boot_id()
        (record,) = (raw[24:][at : at + 176] for at in range(0, len(raw) - 24, 176))
        assert 0 < record[0] <= 128
        assert record[1:4] == bytes(3)
        assert int.from_bytes(record[8:16], "little") == PAGE
        assert record[16:48] == thing(0).digest
        assert record[48 + record[0] :] == bytes(128 - record[0])


def test_without_handles(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a mounted tree has counts until none has it, whether or not it is in use."""

    def cannot(_door: HandleDoor, _descriptor: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(HandleDoor, "name", cannot)
    with node.pool() as (pool, held):
        one, two = things(0, 2)
        node.used.add(one.digest)
        put(pool, one, two)
        pool.remove(one.digest)
        pool.remove(two.digest)
        assert pool.stats().pinned_bytes == PAGE
    with node.pool() as (pool, held):
        assert pool.stats().pinned_bytes == PAGE
        node.used.clear()
        held.probe(everything=True)
        assert pool.stats().pinned_bytes == 0


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_handles_of_file_systems(tmp_path: Path, kind: str) -> None:
    """A file is found by its handle while somebody has it, and not a moment longer."""
    with small_file_system(tmp_path, 320 << 20, kind) as target:
        door = HandleDoor(target)
        assert door.usable
        (target / "file").write_bytes(bytes(100_000))
        descriptor = os.open(target / "file", os.O_RDONLY)
        handle = door.name(descriptor)
        assert door.links(handle) == 1
        (target / "file").unlink()
        assert door.links(handle) == 0
        os.close(descriptor)
        assert door.links(handle) is None
        (target / "other").write_bytes(bytes(100_000))
        assert door.links(handle) is None
        door.close()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_full_disk_evicts(tmp_path: Path, kind: str) -> None:
    """The budget would allow more, and somebody else has filled the disk: what is not in use goes for what is new.

    Also extents of an object that is being filled.
    """
    size = 48 << 20 if kind == "ext4" else 320 << 20
    with small_file_system(tmp_path, size, kind) as target, Pool.open(target / "pool", budget=1 << 40) as pool:
        for number in range(8):
            put(pool, thing(number, 3 << 20))
        pool.sync()
        with filled(target):
            put(pool, thing(100, 3 << 20))
            assert pool.stats().objects < 9
            more = thing(101, 3 * EXTENT_SIZE)
            with pool.partial(more.digest, more.size, more.extents) as partial:
                assert [partial.write(number, part) for number, part in enumerate(more.parts)][-1]
            assert pool.stats().evictions > 0
            with pool.get(thing(100, 3 << 20).digest) or pytest.fail("not there") as file:
                assert file.read() == thing(100, 3 << 20).data
            check_account(pool.path, pool.stats())


def test_a_disk_that_stays_full(tmp_path: Path) -> None:
    """With nothing to evict it is an error as before, and nothing is left of it."""
    with small_file_system(tmp_path, 24 << 20) as target, Pool.open(target / "pool", budget=1 << 30) as pool:
        one = thing(1, 4 << 20)
        with filled(target), pytest.raises(StoreFullError):
            pool.put(one.digest, one.data)
        assert pool.stats().used == 0


def test_a_reserve_is_left_free(tmp_path: Path) -> None:
    """Whatever the budget, for what is written beside the pool; it is remembered, and shown."""
    reserve = 16 << 20
    with small_file_system(tmp_path, 48 << 20) as target:
        with Pool.open(target / "pool", budget=1 << 30, reserve=reserve) as pool:
            for number in range(40):
                put(pool, thing(number, 1 << 20))
                pool.sync()
            assert os.statvfs(target).f_bavail * os.statvfs(target).f_frsize >= reserve - (2 << 20)
            assert pool.stats().objects >= 8
        with Pool.open(target / "pool", budget=None) as pool:
            stats = pool.stats()
            assert stats.reserve == reserve
            assert stats.used <= stats.effective_budget + (2 << 20) < stats.budget
            before = stats.objects
            with filled(target, leave=10 << 20):
                put(pool, thing(100, 1 << 20))
                assert pool.stats().objects < before
            put(pool, *(thing(number, 1 << 20) for number in range(200, 205)))
        with pytest.raises(InvalidError):
            Pool.open(target / "pool", budget=None, reserve=-1)
