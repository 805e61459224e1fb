"""Filling: what is fetched of an image when there is time, and what becomes of it when that breaks off."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from pagepool.content import ObjectCache
from pagepool.node.filling import Filler, missing
from pagepool.node.places import NodePlaces
from pagepool.node.records import SourceRecord
from pagepool.node.sources import Sources
from pagepool.pool import Pool
from pagepool.pool.layout import object_name
from tests.node.conftest import CONTENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.node.source import Source


@pytest.fixture
def source(places: NodePlaces, record: SourceRecord) -> Iterator[Source]:
    """A tree with a file, of a service that nobody answers for."""
    sources = Sources(places, ObjectCache(None), 0.1, lambda _digest: False)
    yield sources.add(record)
    sources.close()


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
