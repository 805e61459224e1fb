"""Directories that are deeper than Python's stack, or than files can be open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagepool.linux.directories import remove_tree, walk_from_below
from pagepool.node.memory import resident_below
from tests.support.deep import make_deep
from tests.support.descriptors import count_open

_LEVELS = 1500
_COUNTED = 50  # so many levels between two looks at what is open, each of which takes a while
_PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Directories in one another, with a file in the innermost; beside them another, with a file, and a symlink."""
    path = tmp_path / "top"
    (path / "beside").mkdir(parents=True)
    (path / "beside" / "file").write_bytes(b"f")
    (path / "link").symlink_to(tmp_path)
    (tmp_path / "outside").touch()
    make_deep(path, _LEVELS)
    return path


def test_a_deep_tree(top: Path) -> None:
    most = 0
    found: list[tuple[list[str], list[str]]] = []
    for listing in walk_from_below(top):
        if len(found) % _COUNTED == 0:
            most = max(most, count_open(top))
        found.append((sorted(listing.directories), listing.others))
    assert len(found) == _LEVELS + 2
    assert found[-1] == (["beside", "d"], ["link"])
    assert found.count(([], ["file"])) == 2
    assert 0 < most < 100
    assert resident_below(top) == 2 * _PAGE
    remove_tree(top)
    assert not top.exists()
    assert (top.parent / "outside").exists()
    assert count_open(top) == 0


@pytest.mark.parametrize("depth", [10, 1000])
def test_what_is_moved_away_meanwhile(top: Path, depth: int) -> None:
    """From there the way up leads to where it is now, and is not taken; all else is found."""
    moved = top.parent / "moved"
    try:
        for listing in walk_from_below(top):
            if listing.others == ["file"] and not moved.exists():
                (top / "/".join(["d"] * depth)).rename(moved)
            assert "outside" not in listing.others
        assert sorted(listing.directories) == ["beside", "d"]
    finally:
        remove_tree(moved)
        remove_tree(top)
    assert sorted(path.name for path in top.parent.iterdir()) == ["outside"]
