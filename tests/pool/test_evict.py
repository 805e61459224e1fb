"""The budget is kept, by what is least wanted and by nothing that is held; and the queue survives."""

from __future__ import annotations

import fcntl
import os
import random
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import StoreFullError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool
from tests.faults import filled, small_file_system, stop_writing
from tests.pool.helpers import PAGE, check_account, files_below, fill, object_path, thing

if TYPE_CHECKING:
    from pathlib import Path

    from tests.pool.helpers import Thing

BUDGET = 64 * PAGE


def put(pool: Pool, *things: Thing) -> None:
    """Put objects and let go of them."""
    for one in things:
        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
            pass


def test_the_budget_is_kept(place: Path) -> None:
    """At every step, with sizes of all kinds, and partial objects in between."""
    source = random.Random(5)
    with Pool.open(place, budget=40 * EXTENT_SIZE) as pool:
        for number in range(300):
            one = thing(number, source.randrange(3 * EXTENT_SIZE))
            if number % 10 == 9 and one.size:
                with pool.partial(one.digest, one.size, one.extents) as partial:
                    partial.write(0, one.parts[0])
            else:
                put(pool, one)
            if number % 10 == 0:
                check_account(pool.path, pool.stats())
        stats = pool.stats()
        assert stats.evictions > 100
        assert stats.used > stats.budget // 2
        check_account(pool.path, stats)


def test_what_is_used_outlives_a_scan(place: Path) -> None:
    """Objects read again and again stay while many more than fit pass through once."""
    with Pool.open(place, budget=BUDGET) as pool:
        wanted = [thing(number) for number in range(20)]
        put(pool, *wanted)
        for one in wanted * 2:
            with pool.get(one.digest) or pytest.fail("not there"):
                pass
        for number in range(100, 400):
            put(pool, thing(number))
        assert all(pool.get(one.digest) for one in wanted)
        assert pool.stats().evictions >= 250


def test_the_queue_is_shared_and_survives(place: Path) -> None:
    """One process reads, another evicts, a third goes on where both have ended; and it is made again if it is lost."""
    wanted = [thing(number) for number in range(20)]
    with Pool.open(place, budget=BUDGET) as pool, Pool.open(place, budget=BUDGET) as evictor:
        put(evictor, *wanted)
        for one in wanted * 2:
            with pool.get(one.digest) or pytest.fail("not there"):
                pass
        pool.stats()  # tells the others
        put(evictor, *(thing(number) for number in range(100, 200)))
    with Pool.open(place, budget=BUDGET) as pool:
        put(pool, *(thing(number) for number in range(200, 300)))
        assert all(pool.get(one.digest) for one in wanted)
    queue = place / "queue"
    queue.write_bytes(queue.read_bytes()[:-1] + b"x")
    with Pool.open(place, budget=BUDGET) as pool:
        put(pool, *(thing(number) for number in range(300, 400)))
        check_account(pool.path, pool.stats())


def test_a_lost_queue_is_made_again(place: Path) -> None:
    """What it knew goes before what came since; what the log has lost is found by walking."""
    with Pool.open(place, budget=BUDGET) as pool:
        put(pool, *(thing(number) for number in range(70)))
    (place / "queue").unlink()
    os.truncate(place / "log", 0)
    newer = [thing(number) for number in range(100, 105)]
    with Pool.open(place, budget=BUDGET) as pool:
        for digest in list(pool.digests())[:10]:
            pool.remove(digest)
        put(pool, *newer, thing(300, 20 * PAGE))
        assert all(pool.get(one.digest) for one in newer)
        check_account(pool.path, pool.stats())
    os.truncate(place / "log", 0)
    whole = thing(1, BUDGET)
    with Pool.open(place, budget=BUDGET) as pool:
        put(pool, *(thing(number) for number in range(200, 203)))
        os.truncate(place / "log", 0)
        put(pool, whole)
        assert pool.stats().objects == 1


def test_retired_bytes_make_room_when_they_are_let_go_of(place: Path) -> None:
    """Without anyone asking for figures in between; nothing else has to go."""
    with Pool.open(place, budget=BUDGET) as pool:
        half, more, small = thing(1, BUDGET // 2), thing(2, BUDGET // 2), thing(3)
        put(pool, small)
        held = pool.put(half.digest, half.data) or pytest.fail("not kept")
        pool.remove(half.digest)
        assert held.read() == half.data
        held.close()
        put(pool, more)
        assert pool.get(small.digest)
        assert pool.stats().evictions == 0


def test_what_is_held_stays(place: Path) -> None:
    """Held objects are passed over; when all is held nothing more is kept, until something is let go of."""
    with Pool.open(place, budget=16 * PAGE) as pool, Pool.open(place, budget=16 * PAGE) as other:
        things = [thing(number) for number in range(16)]
        files = [pool.put(one.digest, one.data) or pytest.fail("not kept") for one in things]
        views = [file.view for file in files[:8]]
        for file in files[:8]:
            file.close()
        more = thing(100)
        assert other.put(more.digest, more.data) is None
        assert pool.put(more.digest, more.data) is None
        with pytest.raises(StoreFullError), other.partial(more.digest, PAGE, [more.digest]) as partial:
            partial.write(0, more.data)
        del partial
        check_account(pool.path, pool.stats())
        assert pool.stats(inspect=True).held_bytes == 16 * PAGE
        views.pop()
        with other.put(more.digest, more.data) or pytest.fail("not kept"):
            pass
        assert pool.get(things[7].digest) is None
        assert all(bytes(view) == one.data for view, one in zip(views, things, strict=False))
        for file in files:
            file.close()


def test_a_second_name_counts_as_use(place: Path) -> None:
    """An object that is linked elsewhere would free nothing. Removed, it counts until the other name is gone."""
    with Pool.open(place, budget=8 * PAGE) as pool:
        things = [thing(number) for number in range(8)]
        put(pool, *things)
        other = place.with_name("linked")
        os.link(object_path(place, things[0].digest), other)
        put(pool, *(thing(number) for number in range(100, 120)))
        assert pool.get(things[0].digest)
        assert pool.get(things[1].digest) is None
        pool.remove(things[0].digest)
        assert pool.stats().retired_bytes == PAGE
        other.unlink()
        assert pool.stats().retired_bytes == 0
        check_account(place, pool.stats())


def test_use_that_the_pool_does_not_see_can_be_told(place: Path) -> None:
    """What is said to be used stays, as if it had been got."""
    with Pool.open(place, budget=BUDGET) as pool:
        wanted = [thing(number) for number in range(20)]
        put(pool, *wanted)
        pool.note_use(one.digest for one in wanted)
        put(pool, *(thing(number) for number in range(100, 400)))
        assert all(pool.get(one.digest) for one in wanted)


def test_too_large_for_the_budget(place: Path) -> None:
    """It is not kept, and nothing else goes for it."""
    with Pool.open(place, budget=BUDGET) as pool:
        big = thing(2, BUDGET + 1)
        assert pool.put(big.digest, big.data) is None
        put(pool, thing(1))
        assert pool.put(big.digest, big.data) is None
        assert pool.stats().objects == 1
        exact = thing(3, BUDGET)
        put(pool, exact)
        assert pool.stats().used == BUDGET


def test_a_smaller_budget_counts_at_once(place: Path) -> None:
    """Opening with it evicts."""
    with Pool.open(place, budget=BUDGET) as pool:
        put(pool, *(thing(number) for number in range(60)))
    with Pool.open(place, budget=BUDGET // 4) as pool:
        check_account(pool.path, pool.stats())
        assert pool.stats().objects >= 10


def test_partials_that_nobody_has_open_go_too(place: Path) -> None:
    """Those that somebody fills stay."""
    budget = 8 * EXTENT_SIZE
    with Pool.open(place, budget=budget) as pool:
        one, two = thing(1, 4 * EXTENT_SIZE), thing(2, 4 * EXTENT_SIZE)
        with pool.partial(one.digest, one.size, one.extents) as partial:
            partial.write(0, one.parts[0])
        held = pool.partial(two.digest, two.size, two.extents)
        held.write(1, two.parts[1])
        for number in range(10, 20):
            put(pool, thing(number, EXTENT_SIZE))
        assert [path.name.endswith(".data") for path in files_below(pool.path / "partial")] == [True, False]
        assert bytes(held.view(EXTENT_SIZE, EXTENT_SIZE)) == two.parts[1]
        check_account(pool.path, pool.stats())
        held.close()


def test_a_partial_that_is_used_outlives_a_scan(place: Path) -> None:
    """As a whole object does: it is opened again and again by whoever reads a part of a large file."""
    with Pool.open(place, budget=16 * EXTENT_SIZE) as pool:
        used, unused = thing(1, 2 * EXTENT_SIZE), thing(2, 2 * EXTENT_SIZE)
        for one in (used, unused, used):
            with pool.partial(one.digest, one.size, one.extents) as partial:
                partial.write(0, one.parts[0])
        for number in range(10, 40):
            put(pool, thing(number, EXTENT_SIZE))
        with pool.partial(used.digest, used.size, used.extents) as partial:
            assert partial.missing(0, 2) == [1]
        with pool.partial(unused.digest, unused.size, unused.extents) as partial:
            assert partial.missing(0, 2) == [0, 1]


def test_a_reader_that_locks_files_stops_nobody(pool: Pool) -> None:
    """Anyone who can open an object can lock it: that keeps it from being evicted, and from nothing else."""
    one = thing(1)
    put(pool, one)
    hostile = os.open(object_path(pool.path, one.digest), os.O_RDONLY)
    fcntl.flock(hostile, fcntl.LOCK_EX)
    with pool.get(one.digest) or pytest.fail("not there") as file:
        assert bytes(file.view) == one.data
    assert pool.remove(one.digest)
    assert pool.stats().retired_bytes == PAGE
    os.close(hostile)
    assert pool.stats().used == 0


def test_a_full_disk(tmp_path: Path) -> None:
    """An error that says so; nothing is left behind, and it works again when there is room."""
    with small_file_system(tmp_path, 24 << 20) as target, Pool.open(target / "pool", budget=1 << 30) as pool:
        one, big = thing(1), thing(2, 4 * EXTENT_SIZE)
        with filled(target):
            with pytest.raises(StoreFullError):
                put(pool, *(thing(number) for number in range(10, 1000)))
            with pytest.raises(StoreFullError):
                fill(pool.partial(big.digest, big.size, big.extents), big)
        assert not files_below(pool.path / "tmp")
        put(pool, one)
        with pool.partial(big.digest, big.size, big.extents) as partial:
            assert fill(partial, big)
        with pool.get(big.digest) or pytest.fail("not published") as file:
            assert bytes(file.view) == big.data
        del partial, file
        check_account(pool.path, pool.stats())


def test_a_disk_that_takes_no_writes_any_more(tmp_path: Path) -> None:
    """What is here can be read, as often as anybody likes, and looked at."""
    things = [thing(number) for number in range(70)]  # uses are told in batches
    with small_file_system(tmp_path, 24 << 20) as target, Pool.open(target / "pool", budget=1 << 30) as pool:
        put(pool, *things)
        pool.sync()
        stop_writing(target)
        with pytest.raises(OSError, match="Read-only"):
            put(pool, thing(100))
        for one in things * 2:
            with pool.get(one.digest) or pytest.fail("not there") as file:
                assert bytes(file.view) == one.data
        assert pool.stats().objects == len(things)
