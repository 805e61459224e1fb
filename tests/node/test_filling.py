"""Filling: what is fetched of an image when there is time, and what becomes of it when that breaks off."""

from __future__ import annotations

import math
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pagepool.content import ObjectCache, TreeContent
from pagepool.errors import PagepoolError
from pagepool.node.filling import Filler, missing, steps
from pagepool.node.places import NodePlaces
from pagepool.node.records import SourceRecord
from pagepool.node.sources import Sources
from pagepool.pool import Pool
from pagepool.pool.layout import object_name
from tests.content.scripted import Source as Service
from tests.content.scripted import make_tree, noise
from tests.node.conftest import CONTENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.node.source import Source


@pytest.fixture
def source(places: NodePlaces, record: SourceRecord) -> Iterator[Source]:
    """A tree with a file, of a service that nobody answers for."""
    sources = Sources(places, ObjectCache(None), 0.1, lambda _digest: False)
    yield sources.add(record)
    sources.close()


class Traffic:
    """Whether somebody waits for an object: as a test says, which can wait until that was asked."""

    def __init__(self) -> None:
        self.waits = True
        self._asked = threading.Semaphore(0)

    def __call__(self) -> bool:
        self._asked.release()
        return self.waits

    def was_asked_twice(self) -> None:
        """Wait until it was asked again, and once more after that."""
        while self._asked.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self._asked.acquire(timeout=60)


FILES = {
    "large": noise(5 << 20, 1),
    **{f"middle/{number}": noise((1 << 20) + number, 2 + number) for number in range(6)},
    **{f"small/{number}": noise(1000 + number, 100 + number) for number in range(700)},
}


def test_steps() -> None:
    """Of a few megabytes, or some hundred files; small ones first, all once."""
    tree = make_tree(FILES)
    found = list(steps(tree, range(tree.object_count)))
    assert sorted(index for step in found for index in step) == list(range(tree.object_count))
    sizes = [[tree.object_key(index)[1] for index in step] for step in found]
    assert [size for step in sizes for size in step] == sorted(map(len, FILES.values()))
    assert [len(step) for step in sizes] == [512, 188 + 4, 3]
    assert list(steps(tree, [])) == []


def test_the_rest_of_an_image_stands_back_between_its_steps(places: NodePlaces) -> None:
    """While somebody waits for an object nothing more is asked for; a step that was begun is finished."""
    tree, traffic = make_tree(FILES), Traffic()
    (places.tree_files / tree.digest.hex()).write_bytes(tree.raw)
    record = SourceRecord(tree.digest.hex(), "http://127.0.0.1:9", "repository", "image:1")
    service, synced = Service.of(*FILES.values()), threading.Event()

    def somebody_comes() -> None:
        traffic.waits = True

    service.before = somebody_comes
    with Pool.open(places.pool, budget=64 << 20) as pool:
        cache = ObjectCache(pool, 64 << 20)
        sources = Sources(places, cache, 0.1, lambda _digest: False)
        source = sources.add(record)
        source.content = TreeContent(cache, source.tree, service)
        filler = Filler(places.objects, traffic, synced.set, begin_s=0.0)
        filler.complete(source)
        wanted = list(steps(tree, range(tree.object_count)))
        for number, step in enumerate(wanted):
            traffic.was_asked_twice()
            assert len(service.asked) == number
            traffic.waits = False
            while len(service.asked) == number:
                assert not synced.wait(0.001)
            digests = {digest for index in step for digest in tree.object(index).extents()}
            assert set(service.asked[number]) == digests
        assert synced.wait(60)
        _wait_idle(filler, record.tree)
        assert missing(source.tree, places.objects) == []
        assert len(service.asked) == len(wanted)
        filler.close()
        sources.close()
        cache.close()


def _wait_idle(filler: Filler, tree: str) -> None:
    while filler.is_filling(tree):
        threading.Event().wait(0.001)


def test_what_broke_off_is_taken_up_again(places: NodePlaces, source: Source) -> None:
    """Though nobody mounts the image again: its service may just have been away."""
    synced = threading.Event()
    tree, digest = source.record.tree, source.tree.object_key(0)[0]
    with Pool.open(places.pool, budget=1 << 20) as pool:
        filler = Filler(places.objects, lambda: False, synced.set, begin_s=0.0, again_s=0.0)
        filler.complete(source)
        _wait_idle(filler, tree)
        assert missing(source.tree, places.objects) == [0]
        assert source.failure is not None
        assert not synced.is_set()
        file = pool.put(digest, CONTENT)  # somebody else has brought it
        assert file is not None
        file.close()
        assert (places.objects / object_name(digest)).exists()
        filler.take_up(source)
        assert synced.wait(60)
        _wait_idle(filler, tree)
        synced.clear()
        filler.take_up(source)  # it is done
        assert not filler.is_filling(tree)
        filler.close()


def test_what_broke_off_is_left_alone_for_a_while(places: NodePlaces, source: Source) -> None:
    filler = Filler(places.objects, lambda: False, lambda: None, begin_s=0.0, again_s=3600.0)
    filler.complete(source)
    _wait_idle(filler, source.record.tree)
    failure = source.failure
    filler.take_up(source)
    assert not filler.is_filling(source.record.tree)
    filler.close()
    assert source.failure == failure


def test_a_service_where_packets_vanish_holds_up_no_other(places: NodePlaces, record: SourceRecord) -> None:
    """Neither what is filled of its images, nor who waits for one of their files once that was in vain."""
    with socket.create_server(("127.0.0.1", 0)) as hanging, Pool.open(places.pool, budget=1 << 20) as pool:
        cache, synced = ObjectCache(pool, 1 << 20), threading.Event()
        sources = Sources(places, cache, 3600.0, lambda _digest: False)
        lost = sources.add(replace(record, url=f"http://127.0.0.1:{hanging.getsockname()[1]}"))
        tree = make_tree({"file": b"other" * 100})
        (places.tree_files / tree.digest.hex()).write_bytes(tree.raw)
        other = sources.add(replace(record, tree=tree.digest.hex()))
        other.content = TreeContent(cache, other.tree, Service.of(b"other" * 100))
        sources._patience._down[lost.record.url] = -math.inf
        reader = threading.Thread(target=lambda: suppressed(sources.bring, lost.tree.object_key(0)[0]))
        reader.start()
        filler = Filler(places.objects, sources.busy, synced.set, begin_s=0.0)
        filler.complete(lost)
        with hanging.accept()[0], hanging.accept()[0], hanging:  # both wait for an answer
            filler.complete(other)
            assert synced.wait(60)
        reader.join()
        _wait_idle(filler, lost.record.tree)
        filler.close()
        sources.close()
        cache.close()


def suppressed(call: Callable[[bytes], object], digest: bytes) -> None:
    """Make a call that fails."""
    with suppress(PagepoolError):
        call(digest)
