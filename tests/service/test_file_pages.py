"""Listings of files in pages: together they are the whole, whichever ends they have, and each costs only itself."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest

from pagepool.image import Node, Tree
from pagepool_service import trees
from pagepool_service.trees import list_files
from tests.support.trees import TreeBuilder

NAMES = ("a", "a-b", "a.", "b", "b/x", "b/x/y", "b/x-y", "b-c/d", "c", "\udcff/z", "e" * 255)


def _tree() -> Tree:
    builder = TreeBuilder()
    builder.directory("b/x")
    builder.directory("empty")
    for name in NAMES:
        if name not in ("b", "b/x"):
            builder.file(name, b"")
    builder.symlink("link", "b")
    return Tree(builder.root)


def _paths(tree: Tree, path: bytes, limit: int, after: bytes | None = None) -> tuple[list[str], bytes | None]:
    page = list_files(tree, path, recursive=True, limit=limit, after=after)
    return [entry["path"] for entry in page.entries], None if page.next is None else unquote_to_bytes(page.next)


def _raw(shown: str) -> bytes:
    """A path without its slash, of one as JSON has it."""
    return shown[1:].replace("\\xff", "\xff").encode("latin-1")


@pytest.mark.parametrize("path", [b"/", b"/b", b"b/x/", b"/b/../b", b"/link", b"/a"])
def test_pages_are_the_whole(path: bytes) -> None:
    tree = _tree()
    whole, _ = _paths(tree, path, 1000)
    for limit in range(1, len(whole) + 1):
        found: list[str] = []
        after: bytes | None = None
        while True:
            page, after = _paths(tree, path, limit, after)
            found += page
            if after is None:
                break
        assert found == whole


@pytest.mark.parametrize("path", [b"/", b"/b", b"/b/x"])
def test_a_page_begins_behind_any_path(path: bytes) -> None:
    """Also one that is not there, or not below what is listed."""
    tree = _tree()
    whole, _ = _paths(tree, path, 1000)
    for after in (b"", b"0", b"a", b"a/none", b"b", b"b/", b"b/w", b"b/x", b"b/x/y", b"b/x/y/z", b"c/x", b"\xff", b"~"):
        behind = [name for name in whole if _raw(name).split(b"/") > after.split(b"/")]
        assert _paths(tree, path, 1000, after)[0] == behind, after


def test_the_last_page_costs_no_more_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before it is not looked at once more."""
    builder = TreeBuilder()
    for number in range(100):
        for name in range(20):
            builder.file(f"d{number:02}/f{name:02}", b"")
    tree, looked = Tree(builder.root), [0]
    real = trees._named

    def count(directory: bytes, children: dict[bytes, Node]) -> list[tuple[bytes, Node]]:
        looked[0] += 1
        return real(directory, children)

    monkeypatch.setattr(trees, "_named", count)
    assert len(_paths(tree, b"/", 10, b"d98/f15")[0]) == 10
    assert looked[0] < 20
