"""The content of a tree: gifts, reading ahead, damage, pools that take nothing, and pools that are somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.content import ObjectCache, TreeContent
from pagepool.errors import CorruptError, StoreFullError, UnreachableError, UnsupportedError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool
from tests.content.scripted import Source, extent_names, info_of, make_tree, noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pagepool.image.treefile import TreeFile

BUDGET = 256 << 20
LARGE = noise(40 * EXTENT_SIZE + 9, 1)
SMALL = [noise(2000 + seed, seed) for seed in range(100, 300)]
FILES = {"large": LARGE} | {f"small/{number:03}": data for number, data in enumerate(SMALL)}


@pytest.fixture
def tree() -> TreeFile:
    return make_tree(FILES)


@pytest.fixture
def source() -> Source:
    return Source.of(*FILES.values())


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(tmp_path / "pool", budget=BUDGET) as opened:
        yield opened


@pytest.fixture
def content(pool: Pool, tree: TreeFile, source: Source) -> Iterator[TreeContent]:
    cache = ObjectCache(pool, BUDGET)
    yield TreeContent(cache, tree, source)
    cache.close()


def place(tree: TreeFile, data: bytes) -> int:
    """Where the object with some content is in the tree."""
    return tree.find_object(info_of(tree, data).digest)


def test_what_came_unasked_is_not_asked_for_again(content: TreeContent, tree: TreeFile, source: Source) -> None:
    source.gifts = [extent_names(data)[0] for data in SMALL[50:60]]
    assert content.view(place(tree, SMALL[0]), 0, len(SMALL[0])) == SMALL[0]
    source.gifts = []
    requests = len(source.asked)
    for data in SMALL[50:60]:
        assert content.view(place(tree, data), 0, len(data)) == data
    assert len(source.asked) == requests


def test_reading_in_order_asks_ever_less_often(content: TreeContent, tree: TreeFile, source: Source) -> None:
    index = place(tree, LARGE)
    for start in range(0, len(LARGE), 4096):
        assert content.view(index, start, min(start + 4096, len(LARGE))) == LARGE[start : start + 4096]
    assert source.names == extent_names(LARGE), "each extent once, in order"
    assert [len(request) for request in source.asked] == [8, 16, 17]


def test_reading_here_and_there_fetches_what_is_read(content: TreeContent, tree: TreeFile, source: Source) -> None:
    index, names = place(tree, LARGE), extent_names(LARGE)
    for number in (30, 7, 22):
        content.view(index, number * EXTENT_SIZE + 5, number * EXTENT_SIZE + 10)
    assert source.asked == [[names[30]], [names[7]], [names[22]]]


def test_parts_are_fetched_in_one_request_in_the_order_of_asking(pool: Pool, tree: TreeFile, source: Source) -> None:
    in_order = Source.of(*FILES.values())
    content = TreeContent(ObjectCache(pool, BUDGET), tree, source, in_order=in_order)
    large, names, small = place(tree, LARGE), extent_names(LARGE), SMALL[7]
    content.prefetch_parts({large: (30, 7), place(tree, small): None})
    assert in_order.asked == [[names[7], names[30], *extent_names(small)]]
    assert content.is_here(large, 30 * EXTENT_SIZE, 31 * EXTENT_SIZE)
    assert not content.is_here(large, 30 * EXTENT_SIZE, 31 * EXTENT_SIZE + 1)
    content.prefetch_parts({large: (30, 7)})
    assert len(in_order.asked) == 1
    assert source.asked == []


def test_what_is_missing_is_fetched_with_its_neighbours(content: TreeContent, tree: TreeFile, source: Source) -> None:
    """Of an aligned piece, those that are not here; and who goes on in order gets more and more."""
    index, names = place(tree, LARGE), extent_names(LARGE)
    content.prefetch_parts({index: (9,)})
    for number in (10, 16, 24):
        content.view(index, number * EXTENT_SIZE + 5, number * EXTENT_SIZE + 10, 8)
    assert source.asked == [[names[9]], [names[8], *names[10:16]], names[16:24], names[24:40]]


def test_a_read_as_large_as_its_neighbourhood_is_one_request(
    content: TreeContent, tree: TreeFile, source: Source
) -> None:
    """Without neighbours: who reads as much has said what he wants."""
    index, names = place(tree, LARGE), extent_names(LARGE)
    content.view(index, 13 * EXTENT_SIZE + 5, 22 * EXTENT_SIZE, 8)
    assert source.asked == [names[13:22]]


def test_a_view_of_very_much_is_fetched_a_bounded_piece_at_a_time(pool: Pool) -> None:
    """What comes of a request is held in memory until the pool has it."""
    data = noise(200 * EXTENT_SIZE, 3)
    tree, source = make_tree({"much": data}), Source.of(data)
    content = TreeContent(ObjectCache(pool, BUDGET), tree, source)
    assert content.view(place(tree, data), 0, len(data)) == data
    assert source.names == extent_names(data)
    assert max(map(len, source.asked)) <= 64


def test_small_files_are_fetched_ahead_of_who_walks_the_tree(
    content: TreeContent, tree: TreeFile, source: Source
) -> None:
    for data in SMALL:
        assert content.view(place(tree, data), 0, len(data)) == data
    assert sorted(source.names) == sorted(extent_names(data)[0] for data in SMALL), "each once"
    assert len(source.asked) < 12
    assert [len(request) for request in source.asked[:3]] == sorted(len(request) for request in source.asked[:3])


def test_small_files_here_and_there_are_fetched_alone(content: TreeContent, tree: TreeFile, source: Source) -> None:
    for number in (150, 90, 20, 199, 60):
        content.view(place(tree, SMALL[number]), 0, 10)
    assert [len(request) for request in source.asked] == [1] * 5


def test_damage_is_named_and_tried_again(content: TreeContent, tree: TreeFile, source: Source) -> None:
    index, bad = place(tree, LARGE), extent_names(LARGE)[3]
    source.damaged = {bad}
    for _ in range(2):
        with pytest.raises(CorruptError) as caught:
            content.view(index, 3 * EXTENT_SIZE, 3 * EXTENT_SIZE + 1)
        assert (caught.value.kind, caught.value.name) == ("object", info_of(tree, LARGE).digest.hex())
        assert f"extent 3 ({bad.hex()})" in caught.value.reason
    with pytest.raises(CorruptError, match=bad.hex()):
        content.prefetch([index])
    source.damaged = set()
    assert content.view(index, 0, len(LARGE)) == LARGE


def test_filling_goes_on_where_it_stopped(content: TreeContent, pool: Pool, tree: TreeFile, source: Source) -> None:
    """Another process had begun: what it had is counted, and not fetched."""
    names, counted = extent_names(LARGE), [0]
    with pool.partial(info_of(tree, LARGE).digest, len(LARGE), names) as partial:
        partial.write(40, LARGE[40 * EXTENT_SIZE :])

    def count(size: int) -> None:
        counted[0] += size

    content.prefetch(range(tree.object_count), count)
    assert counted == [sum(map(len, FILES.values()))]
    assert names[40] not in source.names
    assert all(content.whole(index) is not None for index in range(tree.object_count))


def test_what_no_pool_takes_is_read_in_few_requests(tree: TreeFile, source: Source) -> None:
    """A file is read in small pieces: the same extent is not fetched for each of them."""
    content = TreeContent(ObjectCache(None), tree, source)
    index = place(tree, LARGE)
    for start in range(0, len(LARGE), 8192):
        assert content.view(index, start, min(start + 8192, len(LARGE))) == LARGE[start : start + 8192]
    assert source.names == extent_names(LARGE)
    assert len(source.asked) < 10
    assert content.view(index, 0, len(LARGE)) == LARGE
    assert len(content._passing) <= 32


def test_a_service_that_is_gone_is_waited_for_once(content: TreeContent, tree: TreeFile, source: Source) -> None:
    """Though the file would have been fetched with others, and alone if that fails."""
    source.error = UnreachableError("server", "timed out")
    for number, data in enumerate(SMALL[:4], 1):
        with pytest.raises(UnreachableError):
            content.view(place(tree, data), 0, 10)
        assert len(source.asked) == number


class Owner:
    """Whoever a pool belongs to. It notes what it was asked for.

    Args:
        pool: filled here; None if it takes nothing.
        most: pieces that it fills at a request.
    """

    def __init__(self, pool: Pool | None, source: Source, tree: TreeFile, most: int = 1 << 20) -> None:
        self._cache = ObjectCache(pool, BUDGET)
        self._source, self._tree, self._most = source, tree, most
        self.asked: list[int] = []

    def __call__(self, wanted: Sequence[tuple[bytes, int, int]]) -> int:
        """See `Ask`."""
        self.asked.append(len(wanted))
        for done, (digest, first, end) in enumerate(wanted):
            info = self._tree.object(self._tree.find_object(digest))
            if done == self._most or not self._cache.fill(info, first, end, self._source):
                return done
        return len(wanted)

    def close(self) -> None:
        """Let go of the pool."""
        self._cache.close()


@pytest.fixture
def theirs(tmp_path: Path, tree: TreeFile) -> Iterator[Callable[..., tuple[TreeContent, Owner, Source]]]:
    """Content that is read from a pool of somebody else; what it fetches itself is noted apart."""
    owners: list[tuple[Owner, ObjectCache]] = []

    def make(*, keeps: bool = True, most: int = 1 << 20) -> tuple[TreeContent, Owner, Source]:
        pool = Pool.open(tmp_path / "theirs", budget=BUDGET)
        owner = Owner(pool if keeps else None, Source.of(*FILES.values()), tree, most)
        cache = ObjectCache(Pool.attach(pool.path, pool.id))
        if not keeps:
            pool.close()
        owners.append((owner, cache))
        source = Source.of(*FILES.values())
        return TreeContent(cache, tree, source, owner), owner, source

    yield make
    for owner, cache in owners:
        owner.close()
        cache.close()


def test_what_no_pool_of_that_size_keeps_is_not_fetched_for_it(pool: Pool, tree: TreeFile, source: Source) -> None:
    """It is read as it is fetched, when it is read; a hole of it could be of any length."""
    cache = ObjectCache(pool, 4 * (len(LARGE) - 1))
    counted: list[int] = []
    TreeContent(cache, tree, source).prefetch(range(tree.object_count), counted.append)
    assert sum(counted) == sum(map(len, SMALL))
    assert not set(source.names) & set(extent_names(LARGE))
    cache.close()


def test_another_ones_pool_is_filled_by_its_owner(
    theirs: Callable[..., tuple[TreeContent, Owner, Source]], tree: TreeFile
) -> None:
    content, owner, source = theirs()
    assert content.view(place(tree, LARGE), 5, 50) == LARGE[5:50]
    content.prefetch(range(tree.object_count))
    assert all(content.whole(index) is not None for index in range(tree.object_count))
    assert owner.asked
    assert not source.asked


def test_an_owner_that_does_little_at_a_time_is_asked_until_it_is_done(
    theirs: Callable[..., tuple[TreeContent, Owner, Source]], tree: TreeFile
) -> None:
    content, owner, source = theirs(most=0)
    owner._most = 1
    assert content.view(place(tree, LARGE), 0, len(LARGE)) == LARGE
    assert not source.asked
    counted: list[int] = []
    content.prefetch([place(tree, data) for data in SMALL[:20]], counted.append)
    assert sum(counted) == sum(map(len, SMALL[:20]))


def test_what_its_owner_does_not_take_is_fetched(
    theirs: Callable[..., tuple[TreeContent, Owner, Source]], tree: TreeFile
) -> None:
    """However many objects: it is not asked twice for each of them."""
    content, owner, source = theirs(keeps=False)
    assert content.view(place(tree, LARGE), 5, 50) == LARGE[5:50]
    assert len(owner.asked) == 2
    counted: list[int] = []
    content.prefetch(range(tree.object_count), counted.append)
    assert sum(counted) == 0
    assert len(owner.asked) < 40
    assert source.asked


@pytest.mark.parametrize("error", [UnsupportedError("this service keeps no pool"), StoreFullError("full")])
def test_a_service_with_another_pool_or_none(
    theirs: Callable[..., tuple[TreeContent, Owner, Source]], tree: TreeFile, error: Exception
) -> None:
    """It was started again: what is not in the old pool is fetched, and the new one is left alone for a while."""
    content, owner, source = theirs()
    calls: list[int] = []

    def ask(wanted: Sequence[tuple[bytes, int, int]]) -> int:
        calls.append(len(wanted))
        raise error

    content._ask = ask
    if isinstance(error, UnsupportedError):
        for data in SMALL[:5]:
            assert content.view(place(tree, data), 0, len(data)) == data
        assert len(calls) == 1
        assert source.asked
        assert not owner.asked
    else:
        with pytest.raises(StoreFullError):
            content.view(place(tree, SMALL[0]), 0, 1)
