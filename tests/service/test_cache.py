"""The extent cache by itself: an extent is read once for all who wait, and idle objects are let go of."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE
from pagepool_service import cache as subject
from pagepool_service.cache import ExtentCache
from pagepool_service.extentstream import read_extents
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from tests.store.helpers import noise, text
from tests.support.objects import MemoryFile, MemoryPool, add_layer, build_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pagepool.image.treefile import ObjectInfo

SMALL = text(9000, 1)
LARGE = noise(20 * EXTENT_SIZE + 1, 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def infos(store: Store) -> dict[str, ObjectInfo]:
    tree = build_tree(store, [add_layer(store, {"small": SMALL, "large": LARGE})])
    return {
        name: tree.object(tree.find_object(blake3_raw(data))) for name, data in (("small", SMALL), ("large", LARGE))
    }


def seen(cache: ExtentCache, info: ObjectInfo, start: int, end: int) -> bytes | None:
    """What the cache has of a range."""
    view = cache.view(info, start, end)
    return None if view is None else bytes(view)


def test_an_extent_is_read_once_for_all_who_wait(
    store: Store, infos: dict[str, ObjectInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen threads want the same; the first read goes on only when the others wait for it, or have been served."""
    pool, gate = MemoryPool(), threading.Event()
    cache = ExtentCache(store, pool, 1 << 30)
    asked: list[bytes] = []

    def slow(store: Store, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview | CorruptError]]:
        asked.extend(wanted)
        assert gate.wait(30)
        return read_extents(store, wanted)

    monkeypatch.setattr(subject, "read_extents", slow)
    with ThreadPoolExecutor(16) as threads:
        reads = [threads.submit(lambda: b"".join(cache.pieces(infos["large"], 5, 6 * EXTENT_SIZE))) for _ in range(16)]
        gate.set()
        assert all(read.result() == LARGE[5 : 6 * EXTENT_SIZE] for read in reads)
    assert sorted(asked) == sorted(infos["large"].extents(0, 6))
    assert len(pool.written) == len(set(pool.written))
    cache.close()


def test_damage_reaches_all_who_wait_and_the_next_read_tries_again(store: Store, infos: dict[str, ObjectInfo]) -> None:
    info = infos["large"]
    bad = info.extents(9, 10)[0]
    with store.env.write() as txn:
        place = bytes(txn.get(Table.EXTENTS, bad) or b"")
        txn.delete(Table.EXTENTS, bad)
    cache = ExtentCache(store, MemoryPool(), 1 << 30)
    for _ in range(2):
        with pytest.raises(CorruptError) as caught:
            cache.fill(info, 8, 12)
        assert (caught.value.kind, caught.value.name) == ("object", info.digest.hex())
        assert f"extent 9 ({bad.hex()})" in caught.value.reason
    assert cache.fill(info, 10, 12), "others are not concerned"
    with store.env.write() as txn:
        txn.put(Table.EXTENTS, bad, place)
    assert cache.fill(info, 8, 12)
    assert seen(cache, info, 9 * EXTENT_SIZE, 9 * EXTENT_SIZE + 5) == LARGE[9 * EXTENT_SIZE : 9 * EXTENT_SIZE + 5]
    cache.close()


def test_views_hold_the_part_that_was_asked_for(store: Store, infos: dict[str, ObjectInfo]) -> None:
    cache = ExtentCache(store, MemoryPool(), 1 << 30)
    info = infos["large"]
    assert cache.view(info, 0, 1) is None
    assert cache.fill(info, 1, 2)
    assert seen(cache, info, EXTENT_SIZE, 2 * EXTENT_SIZE) == LARGE[EXTENT_SIZE : 2 * EXTENT_SIZE]
    assert cache.view(info, EXTENT_SIZE - 1, EXTENT_SIZE + 1) is None
    assert cache.view(info, 2 * EXTENT_SIZE - 1, 2 * EXTENT_SIZE + 1) is None
    assert cache.fill(info, 0, info.extent_count)
    assert seen(cache, info, 0, info.size) == LARGE
    cache.close()


def test_what_was_not_read_for_a_while_is_let_go_of(store: Store, infos: dict[str, ObjectInfo]) -> None:
    opened: list[MemoryFile] = []

    class Pool(MemoryPool):
        def get(self, digest: bytes, /) -> MemoryFile | None:
            file = super().get(digest)
            opened.extend([file] if file else [])
            return file

    pool = Pool()
    cache = ExtentCache(store, pool, 1 << 30)
    pool.objects[infos["small"].digest] = SMALL
    view = cache.view(infos["small"], 0, 4096)
    for _ in range(5):
        cache.tick()
    assert [file.closed for file in opened] == [1]
    assert view is not None
    assert bytes(view) == SMALL[:4096], "a view that is on its way out stays valid"
    for _ in range(5):
        assert seen(cache, infos["small"], 0, 10) == SMALL[:10]
        cache.tick()
    assert [file.closed for file in opened] == [1, 0], "what is read is kept"
    cache.close()
    assert [file.closed for file in opened] == [1, 1]


def test_what_is_too_large_for_the_pool_is_read_all_the_same(store: Store, infos: dict[str, ObjectInfo]) -> None:
    pool = MemoryPool()
    cache = ExtentCache(store, pool, len(LARGE))
    assert b"".join(cache.pieces(infos["large"], 0, len(LARGE))) == LARGE
    assert b"".join(cache.pieces(infos["large"], 131_000, 400_000)) == LARGE[131_000:400_000]
    assert not pool.written
    assert b"".join(cache.pieces(infos["small"], 0, len(SMALL))) == SMALL
    assert pool.written == [(infos["small"].digest, 0)]
    without = ExtentCache(store, None)
    assert b"".join(without.pieces(infos["small"], 3, 8000)) == SMALL[3:8000]
    cache.close()
    without.close()
