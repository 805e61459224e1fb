"""The tree files and metadata images of a node: how long they are kept."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.node.images import Images
from pagepool.node.links import Links
from pagepool.transport import Session

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.node.places import NodePlaces
    from pagepool.node.records import SourceRecord

_SIZE = 1000


def _make(places: NodePlaces, name: str, hours_ago: float) -> Path:
    path = places.tree_files / name
    path.write_bytes(bytes(_SIZE))
    then = time.time() - hours_ago * 3600
    os.utime(path, (then, then))
    return path


def test_what_no_tree_needs_is_kept_within_a_bound(places: NodePlaces) -> None:
    """Every image that a node had ever mounted left its tree file and metadata image on the disk, for good."""
    needed, oldest, older, old, young = (letter * 64 for letter in "abcde")
    for tree, hours_ago in ((needed, 9), (oldest, 8), (older, 7), (old, 6), (young, 0.5)):
        _make(places, tree, hours_ago)
        _make(places, f"{tree}.{tree}.erofs", hours_ago)
    cut_off, coming = _make(places, f".{old}.17.erofs", 2), _make(places, f".{young}.18.erofs", 0)
    images = Images(places, Links())
    images.forget_unused({needed}, 3 * _SIZE)
    kept = {path.name[:64] for path in places.tree_files.iterdir() if path.name[0] != "."}
    assert kept == {needed, old, young}
    assert not cut_off.exists()
    assert coming.exists()
    images.forget_unused({needed}, 0)
    assert {path.name[:64] for path in places.tree_files.iterdir() if path.name[0] != "."} == {needed, young}


def test_what_is_used_is_not_the_oldest(places: NodePlaces, record: SourceRecord) -> None:
    """Mounting an image once more counts as use; nothing is fetched for that, nor verified once more."""
    path, images = places.tree_files / record.tree, Images(places, Links())
    os.utime(path, (0, 0))
    with Session(record.url) as session:
        for _ in range(2):
            images.tree(session, record.repository, Digest("blake3", bytes.fromhex(record.tree)))
            assert images._is_verified(path)
            images.forget_unused((), 0)
            assert path.exists()
