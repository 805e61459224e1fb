"""What a diff asks: which inodes differ from the image, in what, and where something may have changed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from pagepool.image import Kind
from pagepool.overlay import Range, Source
from pagepool.vfs import Changes
from tests.overlay.harness import PAGE, Pair
from tests.overlay.test_operations import find, make

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.overlay import OverlayFileSystem
    from pagepool.vfs import FileSystem


def touched(overlay: OverlayFileSystem) -> set[int]:
    """The directories of the image for which `below` is true."""
    view = overlay.changes()
    return {ino for ino in range(1, 100) if view.below(ino)}


def test_nothing_has_changed_at_first(overlay: OverlayFileSystem) -> None:
    view = overlay.changes()
    assert (view.inodes(), view.removed(), touched(overlay)) == ([], [], set())
    ino = find(overlay, "b")
    asked = (view.metadata_changed, view.content_changed, view.xattrs_changed, view.links_changed)
    assert not any(question(ino) for question in asked)
    assert view.ranges(ino) == [Range(0, 70_000, Source.IMAGE)]
    assert view.base_number(ino) == ino
    assert view.base is overlay.base
    assert view.entries(1) == {}


def test_each_kind_of_change_is_told_from_the_others(overlay: OverlayFileSystem) -> None:
    ino, parent = find(overlay, "a/b/b"), find(overlay, "a/b")

    def asked() -> tuple[bool, ...]:
        view = overlay.changes()
        return (
            view.metadata_changed(ino),
            view.content_changed(ino),
            view.xattrs_changed(ino),
            view.links_changed(ino),
        )

    before = overlay.attributes(ino)
    overlay.set_attributes(ino, Changes(mode=0o600))
    assert asked() == (True, False, False, False)
    overlay.set_attributes(ino, Changes(mode=before.mode))
    assert asked() == (False, False, False, False)
    overlay.set_xattr(ino, b"user.a", b"")
    assert asked() == (False, False, True, False)
    overlay.remove_xattr(ino, b"user.a")
    assert asked() == (False, False, False, False)
    overlay.link(ino, parent, b"other")
    assert asked() == (False, False, False, True)
    assert overlay.changes().entries(parent) == {b"other": ino}
    overlay.unlink(parent, b"other")
    assert asked() == (False, False, False, False)
    overlay.write(ino, 0, b"x")
    overlay.set_attributes(ino, Changes(mtime_ns=before.mtime_ns))
    assert asked() == (False, True, False, False)


def test_new_and_removed_inodes(overlay: OverlayFileSystem) -> None:
    gone, held = find(overlay, "b"), find(overlay, "c")
    overlay.hold(held)
    overlay.unlink(1, b"b")
    overlay.unlink(1, b"c")
    new = make(overlay)
    view = overlay.changes()
    assert view.removed() == [gone, held]
    assert view.inodes() == [1, new]
    assert view.base_number(new) is None
    assert view.entries(1) == {b"b": 0, b"c": 0, b"new": new}
    assert view.metadata_changed(new)
    assert view.content_changed(new)
    assert view.links_changed(new)
    assert not view.xattrs_changed(new)
    assert view.ranges(new) == []


def test_ranges_of_a_file(overlay: OverlayFileSystem) -> None:
    ino = find(overlay, "b")
    overlay.write(ino, PAGE + 1, b"x")
    overlay.write(ino, 2 * PAGE, b"y" * PAGE)
    overlay.allocate(ino, 5 * PAGE, 2 * PAGE, 3)
    overlay.set_attributes(ino, Changes(size=20 * PAGE + 7))
    overlay.write(ino, 20 * PAGE, b"z")
    assert overlay.changes().ranges(ino) == [
        Range(0, PAGE, Source.IMAGE),
        Range(PAGE, 3 * PAGE, Source.PRIVATE),
        Range(3 * PAGE, 5 * PAGE, Source.IMAGE),
        Range(5 * PAGE, 7 * PAGE, Source.HOLE),
        Range(7 * PAGE, 70_000, Source.IMAGE),
        Range(70_000, 20 * PAGE, Source.HOLE),
        Range(20 * PAGE, 20 * PAGE + 7, Source.PRIVATE),
    ]


def test_directories_above_a_change(overlay: OverlayFileSystem) -> None:
    """A hard link of the image has changed under both its names; a directory that moved under its new one."""
    a, d = find(overlay, "a"), find(overlay, "d")
    shared = find(overlay, "a/a")
    overlay.set_attributes(shared, Changes(mode=0o600))
    assert touched(overlay) == {1, a, d}
    overlay.unlink(d, b"b")
    assert touched(overlay) == {1, a, d}


@pytest.mark.parametrize("seed", range(3))
def test_below_misses_nothing(seed: int, tmp_path: Path) -> None:
    """A subtree of which it is said that nothing changed is the image's, after any operations."""
    pair = Pair(tmp_path, seed)
    for _ in range(40):
        for _ in range(5):
            pair.step()
        view = pair.overlay.changes()
        for ino in set(range(1, pair.base.usage().inodes + 1)) - set(view.removed()):
            if pair.base.attributes(ino).kind is Kind.DIRECTORY and not view.below(ino):
                assert not view.entries(ino)
                assert subtree(pair.overlay, ino) == subtree(pair.base, ino)
        if random.Random(seed).random() < 0.1:
            pair.reopen()
    pair.overlay.close()


def subtree(files: FileSystem, ino: int) -> list[object]:
    """Everything below a directory, but for access times."""
    found: list[object] = [files.attributes(ino), dict(files.xattrs(ino)), files.parent(ino)]
    for entry in files.entries(ino):
        if entry.kind is Kind.DIRECTORY:
            found.append((entry, subtree(files, entry.ino)))
        else:
            shown = files.attributes(entry.ino)
            data = bytes(files.read(entry.ino, 0, shown.size)) if entry.kind is Kind.REGULAR else b""
            found.append((entry, shown, dict(files.xattrs(entry.ino)), data))
    return found
