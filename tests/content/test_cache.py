"""The cache over a real pool: one fetch for all who wait, what others have begun, full pools, few descriptors."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.content import ObjectCache
from pagepool.content.cache import default_open
from pagepool.content.ticking import Ticker
from pagepool.errors import TreeUnknownError, UnreachableError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool, PoolFile
from tests.content.scripted import Source, extent_names, info_of, make_tree, noise
from tests.support.descriptors import count_open

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.image.treefile import ObjectInfo

BUDGET = 64 << 20
LARGE = noise(5 * EXTENT_SIZE + 77, 1)
SMALL = noise(9000, 2)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(tmp_path / "pool", budget=BUDGET) as opened:
        yield opened


@pytest.fixture
def cache(pool: Pool) -> Iterator[ObjectCache]:
    opened = ObjectCache(pool, BUDGET)
    yield opened
    opened.close()


def info(data: bytes) -> ObjectInfo:
    """An object by itself."""
    return info_of(make_tree({"file": data}), data)


def read(cache: ObjectCache, data: bytes, source: Source) -> bytes:
    """All of an object."""
    return b"".join(cache.pieces(info(data), 0, len(data), source))


def test_an_extent_is_fetched_once_for_all_threads(cache: ObjectCache) -> None:
    """All threads are in the middle of reading when the first answer comes."""
    source, ready = Source.of(LARGE, SMALL), threading.Barrier(8)

    def run() -> tuple[bytes, bytes]:
        ready.wait(30)
        return read(cache, LARGE, source), read(cache, SMALL, source)

    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(run) for _ in range(8)]
    assert all(result.result() == (LARGE, SMALL) for result in results)
    assert sorted(source.names) == sorted(extent_names(LARGE) + extent_names(SMALL))


def test_what_another_process_began_is_gone_on_with(pool: Pool, cache: ObjectCache) -> None:
    names = extent_names(LARGE)
    with pool.partial(info(LARGE).digest, len(LARGE), names) as partial:
        for number in (1, 3):
            partial.write(number, LARGE[number * EXTENT_SIZE : (number + 1) * EXTENT_SIZE])
    source = Source.of(LARGE)
    assert cache.missing(info(LARGE)) == [0, 2, 4, 5]
    assert read(cache, LARGE, source) == LARGE
    assert source.names == [names[number] for number in (0, 2, 4, 5)]
    assert cache.missing(info(LARGE)) == []
    with pool.get(info(LARGE).digest) or pytest.fail("not published") as file:
        assert file.view == LARGE


def test_nobody_gets_the_error_of_another_image(cache: ObjectCache) -> None:
    """Two images have the object, and one of them is removed while both wait for it."""
    waiting, gone = threading.Event(), Source.of(SMALL)
    gone.error = TreeUnknownError("blake3:00")
    gone.before = lambda: until_awaited(cache, waiting)
    good = Source.of(SMALL)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(read, cache, SMALL, gone)
        assert waiting.wait(30)
        assert threads.submit(read, cache, SMALL, good).result(30) == SMALL
        with pytest.raises(TreeUnknownError):
            first.result(30)


def test_that_the_service_is_gone_is_told_to_all_who_wait_at_once(cache: ObjectCache) -> None:
    """Trying again would take each of them as long as it took the first."""
    waiting, source = threading.Event(), Source.of(SMALL)
    source.error = UnreachableError("server", "timed out")
    source.before = lambda: until_awaited(cache, waiting)
    other = Source.of(SMALL)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(read, cache, SMALL, source)
        assert waiting.wait(30)
        second = threads.submit(read, cache, SMALL, other)
        for result in (first, second):
            with pytest.raises(UnreachableError):
                result.result(30)
    assert not other.asked
    assert read(cache, SMALL, other) == SMALL


def until_awaited(cache: ObjectCache, waiting: threading.Event) -> None:
    """Say that this thread is about to bring something, and wait until another one waits for that."""
    waiting.set()
    (future,) = cache._under_way.values()
    while not future._condition._waiters:  # type: ignore[attr-defined]
        os.sched_yield()


def test_objects_may_be_let_go_of_while_they_are_filled_and_read(pool: Pool) -> None:
    """Far more objects than may be open, so that threads close them under each other all the time."""
    cache = ObjectCache(pool, BUDGET, most_open=2)
    contents = [noise(3 * EXTENT_SIZE + 5, seed) for seed in range(8)]
    infos, source = [info(data) for data in contents], Source.of(*contents)

    def run(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(80):
            which, number = choice.randrange(8), choice.randrange(4)
            start, end = number * EXTENT_SIZE, min((number + 1) * EXTENT_SIZE, len(contents[which]))
            assert b"".join(cache.pieces(infos[which], start, end, source)) == contents[which][start:end]
            if not choice.randrange(10):
                cache.tick()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as threads:
            for result in [threads.submit(run, seed) for seed in range(6)]:
                result.result()
    finally:
        sys.setswitchinterval(before)
    cache.close()


def test_objects_that_are_being_filled_count_for_the_descriptors_that_they_take(pool: Pool) -> None:
    """Four each: a program that begins many, as a fill does whose pieces come slowly, keeps descriptors of its own."""
    contents = [noise(2 * EXTENT_SIZE, seed) for seed in range(60)]
    source = Source.of(*contents)
    before = count_open()
    cache = ObjectCache(pool, BUDGET, most_open=60)
    for data in contents:
        assert b"".join(cache.pieces(info(data), 0, 1, source)) == data[:1]
    assert count_open() - before <= 60
    for data in contents:
        assert read(cache, data, source) == data
    assert count_open() - before <= 60
    cache.close()


def test_what_this_process_holds_makes_room(tmp_path: Path) -> None:
    """A pool that is full of objects that are open here only: they are let go of, and new ones are kept."""
    contents = [noise(EXTENT_SIZE * 2, seed) for seed in range(24)]
    source = Source.of(*contents)
    with Pool.open(tmp_path / "small", budget=8 * EXTENT_SIZE * 2) as pool:
        cache = ObjectCache(pool, pool.budget)
        for data in contents:
            assert read(cache, data, source) == data
            assert pool.get(info(data).digest) is not None, "it was not kept"
        assert len(source.names) == 48, "each was fetched once"
        cache.close()


def test_a_pool_that_takes_nothing_is_not_asked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything in it is held by others: what is read is right, it is said once, and later it is tried again."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    contents = [noise(9000, seed) for seed in range(20)]
    source = Source.of(LARGE, *contents)
    with Pool.open(tmp_path / "small", budget=1 << 20) as pool:
        holders = [pool.put(info(data).digest, data) for data in (noise(1 << 18, seed) for seed in range(50, 54))]
        cache, tried, original = ObjectCache(pool, 1 << 22), [], pool.put

        def put(digest: bytes, data: memoryview) -> PoolFile | None:
            tried.append(digest)
            return original(digest, data)

        monkeypatch.setattr(pool, "put", put)
        with caplog.at_level(logging.WARNING):
            assert all(read(cache, data, source) == data for data in contents)
            assert read(cache, LARGE, source) == LARGE
        assert len(tried) == 1
        assert len(caplog.records) == 1
        for holder in holders:
            assert holder is not None
            holder.close()
        now[0] += 2
        assert read(cache, contents[0], source) == contents[0]
        assert pool.get(info(contents[0]).digest) is not None
        cache.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_descriptors_closes_some(cache: ObjectCache, pool: Pool, number: int) -> None:
    contents = [noise(9000, seed) for seed in range(10)]
    source = Source.of(LARGE, *contents)
    for data in contents:
        read(cache, data, source)
    original = pool.get

    def get(digest: bytes, /) -> PoolFile | None:
        if len(cache._held) > 5:
            raise OSError(number, "Too many open files")
        return original(digest)

    pool.get = get  # type: ignore[method-assign]
    try:
        assert read(cache, LARGE, source) == LARGE
    finally:
        pool.get = original  # type: ignore[method-assign]
    assert original(info(LARGE).digest) is not None, "it was kept all the same"


def test_a_filled_object_takes_one_descriptor(cache: ObjectCache) -> None:
    """As many as small ones, though filling it took three."""
    contents = [noise(2 * EXTENT_SIZE, seed) for seed in range(20)]
    source, before = Source.of(*contents), count_open()
    for data in contents:
        assert read(cache, data, source) == data
    assert count_open() == before + 20


def test_half_of_the_descriptors_are_left_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((100, 64), (1000, 500), (1 << 20, 1024), (resource.RLIM_INFINITY, 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert default_open() == expected


def test_what_was_damaged_and_repaired_is_read_anew(cache: ObjectCache, pool: Pool) -> None:
    """Whoever reads an object all the time would read the damage for ever; those that are being filled, too."""
    source, whole, begun = Source.of(LARGE, SMALL), info(SMALL), info(LARGE)
    assert read(cache, SMALL, source) == SMALL
    assert cache.fill(begun, 0, begun.extent_count, source)
    for one in (whole, begun):
        path = pool.path / "objects" / one.digest.hex()[:2] / one.digest.hex()[2:]
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"damaged")
        assert bytes(cache.view(one, 0, 7) or b"") == b"damaged", "nobody has looked yet"
        assert pool.remove(one.digest)
    with pool.put(whole.digest, SMALL) or pytest.fail("not kept"):
        cache.tick()
    assert bytes(cache.view(whole, 0, whole.size) or b"") == SMALL
    assert cache.view(begun, 0, 7) is None
    assert read(cache, LARGE, source) == LARGE
    cache.tick()
    assert cache._held.keys() == {whole.digest, begun.digest}, "what is right stays open"


def test_an_idle_process_lets_go(cache: ObjectCache, pool: Pool) -> None:
    """Nobody reads any more, so nobody but the ticker can let the pool have what was read."""
    source = Source.of(SMALL)
    read(cache, SMALL, source)
    assert pool.stats(inspect=True).held_bytes
    ticked = threading.Event()
    original = cache.tick
    calls: list[int] = []

    def tick() -> None:
        original()
        calls.append(1)
        if len(calls) == 4:
            ticked.set()

    cache.tick = tick  # type: ignore[method-assign]
    ticker = Ticker(cache, 0.001)
    assert ticked.wait(30)
    ticker.close()
    assert not pool.stats(inspect=True).held_bytes
