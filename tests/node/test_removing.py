"""What a mount has written is removed, however deep it is, and found again if that could not be done."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from pagepool.linux import mounts
from pagepool.node.mounts import NodeMounts
from tests.support.deep import make_deep

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.node.places import NodePlaces


def _left_over(places: NodePlaces) -> Path:
    """What a temporary mount of a node that was killed has left."""
    directory = places.containers / "0123456789ab"
    (directory / "upper").mkdir(parents=True)
    (directory / "temporary").touch()
    return directory


def test_directories_that_are_deeper_than_a_stack(places: NodePlaces) -> None:
    """A container that made them could not be taken away, and nor could anything else at the start of a node."""
    directory = _left_over(places)
    make_deep(directory / "upper", sys.getrecursionlimit())
    NodeMounts(places, lambda _: None).remove_orphans()
    assert not directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
def test_what_cannot_be_removed_now_is_found_later(places: NodePlaces) -> None:
    """As is what was being removed when the worker was killed."""
    directory = _left_over(places)
    busy = directory / "upper/busy"
    busy.touch()
    node = NodeMounts(places, lambda _: None)
    mounts.mount(str(busy), str(busy), flags=mounts.MS_BIND)
    try:
        node.remove_orphans()
        assert busy.exists()
    finally:
        mounts.unmount(busy)
    node.remove_orphans()
    assert not directory.exists()
