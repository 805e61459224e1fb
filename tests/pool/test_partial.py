"""Objects that are filled extent by extent, by several at once; and those whose extents do not make them."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, InvalidError, RangeInvalidError, StoreFullError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool
from pagepool.pool.mapfile import MapFile, data_path, map_path
from tests.pool.helpers import Thing, check_account, files_below, object_path, thing
from tests.support.descriptors import count_open

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool.pool import Partial

SIZE = 4 * EXTENT_SIZE + 1000


def write_all(partial: Partial, numbers: Iterable[int], one: Thing) -> bool:
    """Write extents in an order; whether the object was whole at the end."""
    return [partial.write(number, one.parts[number]) for number in numbers][-1]


def test_the_last_extent_makes_it_whole(pool: Pool) -> None:
    """Before that only what is there can be seen, and the object has no name."""
    one = thing(1, SIZE)
    with pool.partial(one.digest, one.size, one.extents) as partial:
        assert partial.missing(0, 5) == [0, 1, 2, 3, 4]
        for number in (4, 0, 2, 1):
            assert not partial.write(number, memoryview(one.parts[number]))
            assert partial.has(number)
            assert pool.get(one.digest) is None
            check_account(pool.path, pool.stats())
        assert partial.missing(0, 5) == [3]
        assert partial.missing(0, 3) == []
        assert bytes(partial.view(10, 3 * EXTENT_SIZE - 10)) == one.data[10 : 3 * EXTENT_SIZE]
        assert bytes(partial.view(4 * EXTENT_SIZE, 1000)) == one.parts[4]
        for offset, size in ((0, SIZE), (3 * EXTENT_SIZE - 1, 2), (SIZE - 1, 2), (-1, 2)):
            with pytest.raises(RangeInvalidError):
                partial.view(offset, size)
        assert not partial.write(0, one.parts[0])
        assert partial.write(3, one.parts[3])
        assert partial.write(3, one.parts[3])
        view = partial.view(0, SIZE)
    assert bytes(view) == one.data
    with pool.get(one.digest) or pytest.fail("not published") as file:
        assert bytes(file.view) == one.data
    assert object_path(pool.path, one.digest).stat().st_mode & 0o777 == 0o444
    assert not files_below(pool.path / "partial")
    check_account(pool.path, pool.stats())


def test_a_hole_is_not_written(pool: Pool) -> None:
    """It counts as what it would take. Where something may have been written before, zeros are written."""
    one = Thing(bytes(EXTENT_SIZE) + b"x" * EXTENT_SIZE + bytes(61 * EXTENT_SIZE) + bytes(1000))
    with pool.partial(one.digest, one.size, one.extents) as partial:
        os.pwrite(partial.descriptor, b"from a writer that was killed", 2 * EXTENT_SIZE)
        partial.write(1, one.parts[1])
        partial._keeper.charge_extent(partial, 2)
        assert write_all(partial, range(64), one)
        check_account(pool.path, pool.stats())
    with pool.get(one.digest) or pytest.fail("not published") as file:
        assert bytes(file.view) == one.data
    status = object_path(pool.path, one.digest).stat()
    if pool.path.parts[1] != "dev":  # tmpfs makes pages of what is mapped and looked at, as all of it is
        assert status.st_blocks * 512 < 4 * EXTENT_SIZE < status.st_size


def test_a_wrong_extent_is_not_taken(pool: Pool) -> None:
    """The error names object and extent; what is there stays."""
    one = thing(1, SIZE)
    with pool.partial(one.digest, one.size, one.extents) as partial:
        partial.write(0, one.parts[0])
        for data in (one.parts[2], one.parts[1][:-1], b""):
            with pytest.raises(CorruptError, match=f"{one.digest.hex()}.*extent 1 should be {one.extents[1].hex()}"):
                partial.write(1, data)
        assert partial.missing(0, 5) == [1, 2, 3, 4]


def test_a_lying_list_of_extents_hurts_nobody_else(pool: Pool) -> None:
    """Extents that are right one by one and do not make the object: it is given up, and gets no name."""
    one = thing(1, SIZE)
    lie = [*one.extents[:2], thing(2, EXTENT_SIZE).digest, *one.extents[3:]]
    parts = [*one.parts[:2], thing(2, EXTENT_SIZE).data, *one.parts[3:]]
    honest = pool.partial(one.digest, one.size, one.extents)
    liar, witness = (pool.partial(one.digest, one.size, lie) for _ in range(2))
    for number in range(4):
        honest.write(number, one.parts[number])
        liar.write(number, parts[number])
    with pytest.raises(CorruptError, match=f"object {one.digest.hex()}: its 5 extents make"):
        liar.write(4, parts[4])
    assert pool.get(one.digest) is None
    with pytest.raises(CorruptError, match="given up"):
        witness.finish()
    assert pool.stats().retired_bytes == 5 * EXTENT_SIZE - EXTENT_SIZE + 4096
    for partial in (liar, witness):
        partial.close()
    del liar, witness, partial
    assert honest.write(4, one.parts[4])
    honest.close()
    with pool.get(one.digest) or pytest.fail("not published") as file:
        assert bytes(file.view) == one.data
    with pool.partial(one.digest, one.size, lie) as again:
        # The object is there: what its extents are is no question any more.
        assert again.missing(0, 5) == []
        assert bytes(again.view(0, SIZE)) == one.data
        assert again.write(0, one.parts[0])
    check_account(pool.path, pool.stats())


@pytest.mark.parametrize("last", [b"and more", b"."], ids=["longer", "shorter"])
def test_an_extent_of_another_size_than_its_place_is_not_taken(pool: Pool, last: bytes) -> None:
    """The list lies: it names what begins as the object ends, and goes on. Nothing is written beyond the object."""
    one = Thing(thing(1, 2 * EXTENT_SIZE).data + b"and")
    lie = [*one.extents[:2], blake3_raw(last)]
    with pool.partial(one.digest, one.size, lie) as partial:
        partial.write(0, one.parts[0])
        partial.write(1, one.parts[1])
        with pytest.raises(CorruptError, match=f"extent 2 should have 3 bytes, and has {len(last)}"):
            partial.write(2, last)
        assert partial.missing(0, 3) == [2]
    assert pool.get(one.digest) is None
    with pool.partial(one.digest, one.size, one.extents) as partial:
        assert write_all(partial, range(3), one)
    with pool.get(one.digest) or pytest.fail("not published") as file:
        assert bytes(file.view) == one.data
    check_account(pool.path, pool.stats())


def test_impossible_lists_are_refused(pool: Pool) -> None:
    """Too few, too many, none, of the wrong length; and objects that could never fit."""
    one = thing(1, SIZE)
    for size, extents in ((SIZE, one.extents[1:]), (SIZE, [*one.extents, bytes(32)]), (0, []), (10, [b"short"])):
        with pytest.raises(InvalidError):
            pool.partial(one.digest, size, extents)
    count = pool.budget // EXTENT_SIZE + 1
    with pytest.raises(StoreFullError, match="budget"):
        pool.partial(one.digest, count * EXTENT_SIZE, [bytes(32)] * count)
    check_account(pool.path, pool.stats())


def test_two_fill_at_the_same_time(pool: Pool) -> None:
    """Through two openers, as two processes would: each sees what the other wrote, and nothing counts twice."""
    one = thing(1, 32 * EXTENT_SIZE)
    with Pool.open(pool.path, budget=pool.budget) as other:
        partials = [each.partial(one.digest, one.size, one.extents) for each in (pool, other)]
        orders = (range(32), range(31, -1, -1))
        with ThreadPoolExecutor(2) as threads:
            fillings = [threads.submit(write_all, *each, one) for each in zip(partials, orders, strict=True)]
            assert any(filling.result() for filling in fillings)
        for partial in partials:
            assert partial.missing(0, 32) == []
            assert bytes(partial.view(0, one.size)) == one.data
            partial.close()
    del partials, partial, fillings
    with pool.get(one.digest) or pytest.fail("not published") as file:
        assert bytes(file.view) == one.data
    check_account(pool.path, pool.stats())
    assert pool.stats().used == one.size


def test_a_filler_goes_on_where_another_left_off(place: Path) -> None:
    """Also after the pool was closed in between; and an object put meanwhile ends the filling."""
    one, two = thing(1, SIZE), thing(2, SIZE)
    with Pool.open(place, budget=16 << 20) as pool:
        for each in (one, two):
            with pool.partial(each.digest, each.size, each.extents) as partial:
                partial.write(1, each.parts[1])
    with Pool.open(place, budget=16 << 20) as pool:
        with pool.partial(one.digest, one.size, one.extents) as partial:
            assert partial.missing(0, 5) == [0, 2, 3, 4]
            assert bytes(partial.view(EXTENT_SIZE, EXTENT_SIZE)) == one.parts[1]
            for number in (0, 2, 3, 4):
                whole = partial.write(number, one.parts[number])
            assert whole
        with pool.partial(two.digest, two.size, two.extents) as partial:
            pool.put(two.digest, two.data)
            for number in (0, 2, 3, 4):
                whole = partial.write(number, two.parts[number])
            assert whole
            assert pool.stats().retired_bytes == 4 * EXTENT_SIZE + 4096
        del partial
        assert pool.stats().objects == 2
        check_account(pool.path, pool.stats())


def test_a_filling_can_be_given_up(pool: Pool) -> None:
    """Its bytes count until it is closed."""
    one = thing(1, SIZE)
    partial = pool.partial(one.digest, one.size, one.extents)
    partial.write(0, one.parts[0])
    view = partial.view(0, 100)
    partial.discard()
    partial.discard()
    with pytest.raises(CorruptError, match="given up"):
        partial.write(1, one.parts[1])
    partial.close()
    partial.close()
    with pytest.raises(ValueError, match="closed"):
        partial.view(0, 100)
    assert bytes(view) == one.data[:100]
    assert pool.stats().used == EXTENT_SIZE
    del view
    assert pool.stats().used == 0
    assert not files_below(pool.path / "partial")
    with pool.partial(one.digest, one.size, one.extents) as partial:
        assert partial.missing(0, 5) == [0, 1, 2, 3, 4]


def test_files_that_are_no_partial_count_nothing(place: Path) -> None:
    """A map that does not belong to its bytes: of another size, of another format, or cut."""
    one = thing(1, SIZE)
    with Pool.open(place, budget=16 << 20) as pool, pool.partial(one.digest, one.size, one.extents) as partial:
        partial.write(0, one.parts[0])
        key, marks, data = partial.key, map_path(place, partial.key), data_path(place, partial.key)
        good = marks.read_bytes()
        assert MapFile.read_charged(place, key) == EXTENT_SIZE
        for bad in (b"x" + good[1:], good[:-1], good + b"\0", good[:10], b""):
            marks.write_bytes(bad)
            assert MapFile.read_charged(place, key) is None
        marks.write_bytes(good)
        os.truncate(data, SIZE - 1)
        assert MapFile.read_charged(place, key) is None


def test_a_whole_object_that_cannot_be_mapped(place: Path) -> None:
    """As where addresses are limited (ulimit -v). Its descriptor is closed once: later the number may be another's."""
    one = Thing(bytes(32 << 20))
    names = one.digest, one.size, one.extents
    with Pool.open(place, budget=64 << 20) as pool, pool.put(one.digest, one.data) or pytest.fail("it fits"):
        before, limits = count_open(place), resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])  # once what can be collected is
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 20), limits[1]))
        try:
            with pytest.raises(OSError, match="allocate memory"):
                pool.partial(*names)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert count_open(place) == before
        with pool.partial(*names) as whole:
            assert whole.finish()
