"""Plans of diffs: which names changed, and what is not looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pagepool.image import Kind, Node
from pagepool.overlay import plan_diff
from tests.image.umoci import read_tree
from tests.overlay.layers import make_layer, rows, whole_layer
from tests.support.nodes import NodeFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.vfs import Entry


@dataclass
class Pair:
    """A file system, and a copy of it to change."""

    base: NodeFileSystem
    now: NodeFileSystem

    def node(self, path: str) -> Node:
        """A node of the copy."""
        return dict(self.now.walk())[path.encode()]

    def plan(self, *, hints: bool) -> list[str]:
        """The changes as ``docker diff`` shows them, with a star where a directory is opaque."""
        self.now.settle()
        changes = plan_diff(self.now, self.base, self.now if hints else None)
        return [f"{c.kind.letter} /{c.path.decode()}{'*' if c.opaque else ''}" for c in changes]


@pytest.fixture
def pair() -> Pair:
    """/d/a and /e/b are one file; /d/one, /e/s -> one, /e/sub/deep, and an empty /void."""
    base = NodeFileSystem(Node(Kind.DIRECTORY, 0o755, children={}), {})
    for path in (b"d", b"e", b"e/sub", b"void"):
        parent, _, name = path.rpartition(b"/")
        base.put(dict(base.walk())[parent], name, base.new(Kind.DIRECTORY))
    places = dict(base.walk())
    linked = base.new(Kind.REGULAR, b"linked")
    base.put(places[b"d"], b"a", linked)
    base.put(places[b"e"], b"b", linked)
    base.put(places[b"d"], b"one", base.new(Kind.REGULAR, b"1"))
    base.put(places[b"e"], b"s", base.new(Kind.SYMLINK, b"one"))
    base.put(places[b"e/sub"], b"deep", base.new(Kind.REGULAR, b"deep"))
    base.settle()
    now = base.copy()
    now.kept = max(base.nodes)
    return Pair(base, now)


def _nothing(pair: Pair) -> None:
    pair.now.touch(pair.node("d/one"))


def _write(pair: Pair) -> None:
    pair.now.write(pair.node("d/one"), b"2")


def _write_the_same(pair: Pair) -> None:
    pair.now.write(pair.node("d/one"), b"1")


def _chmod(pair: Pair) -> None:
    pair.node("e/sub/deep").mode = 0o600
    pair.now.touch(pair.node("e/sub/deep"))


def _set_xattr(pair: Pair) -> None:
    pair.node("d/one").xattrs = {b"user.a": b"1"}
    pair.now.touch(pair.node("d/one"))


def _label(pair: Pair) -> None:
    pair.node("d/one").xattrs = {b"security.selinux": b"label"}
    pair.now.touch(pair.node("d/one"))


def _chmod_of_the_root(pair: Pair) -> None:
    pair.now.root.mode = 0o700
    pair.now.touch(pair.now.root)


def _write_a_link(pair: Pair) -> None:
    pair.now.write(pair.node("d/a"), b"other")


def _unlink_a_link(pair: Pair) -> None:
    pair.now.remove(pair.node("d"), b"a")


def _link_to_a_link(pair: Pair) -> None:
    pair.now.put(pair.node("void"), b"c", pair.node("d/a"))


def _link_to_a_file(pair: Pair) -> None:
    pair.now.put(pair.node("void"), b"c", pair.node("e/sub/deep"))


def _remove_a_tree(pair: Pair) -> None:
    node = pair.now.remove(pair.now.root, b"e")
    assert node is not None
    pair.now.forget(node)


def _rename_a_tree(pair: Pair) -> None:
    node = pair.now.remove(pair.now.root, b"e")
    assert node is not None
    pair.now.put(pair.node("void"), b"f", node)


def _replace_a_tree(pair: Pair) -> None:
    _remove_a_tree(pair)
    pair.now.put(pair.now.root, b"e", pair.now.new(Kind.DIRECTORY))
    pair.now.put(pair.node("e"), b"s", pair.now.new(Kind.REGULAR))
    pair.now.put(pair.node("e"), b"new", pair.now.new(Kind.REGULAR))


def _replace_an_empty_directory(pair: Pair) -> None:
    pair.now.put(pair.now.root, b"void", pair.now.new(Kind.DIRECTORY, mode=0o700))


def _directory_to_file(pair: Pair) -> None:
    _remove_a_tree(pair)
    pair.now.put(pair.now.root, b"e", pair.now.new(Kind.REGULAR))


def _file_to_directory(pair: Pair) -> None:
    pair.now.put(pair.node("d"), b"one", pair.now.new(Kind.DIRECTORY))
    pair.now.put(pair.node("d/one"), b"in", pair.now.new(Kind.REGULAR))


def _socket(pair: Pair) -> None:
    pair.now.put(pair.node("d"), b"one", pair.now.new(Kind.SOCKET))
    pair.now.put(pair.node("d"), b"two", pair.now.new(Kind.SOCKET))


def _retarget(pair: Pair) -> None:
    pair.now.put(pair.node("e"), b"s", pair.now.new(Kind.SYMLINK, b"two"))


_CASES: list[tuple[Callable[[Pair], None], str]] = [
    (_nothing, ""),
    (_write, "C /d/one"),
    (_write_the_same, ""),
    (_chmod, "C /e/sub/deep"),
    (_set_xattr, "C /d/one"),
    (_label, ""),
    (_chmod_of_the_root, "C /"),
    (_write_a_link, "C /d/a, C /e/b"),
    (_unlink_a_link, "D /d/a"),
    (_link_to_a_link, "C /d/a, C /e/b, A /void/c"),
    (_link_to_a_file, "C /e/sub/deep, A /void/c"),
    (_remove_a_tree, "D /e"),
    (_rename_a_tree, "C /d/a, D /e, A /void/f, A /void/f/b, A /void/f/s, A /void/f/sub, A /void/f/sub/deep"),
    (_directory_to_file, "C /e"),
    (_file_to_directory, "C /d/one, A /d/one/in"),
    (_socket, "D /d/one"),
    (_retarget, "C /e/s"),
]


@pytest.mark.parametrize("hints", [True, False], ids=["hints", "content"])
@pytest.mark.parametrize(("change", "expected"), _CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_plan(pair: Pair, change: Callable[[Pair], None], expected: str, hints: bool) -> None:
    change(pair)
    assert ", ".join(pair.plan(hints=hints)) == expected
    layers = [whole_layer(pair.base), make_layer(pair.now, pair.base, pair.now if hints else None)]
    assert read_tree(layers) == rows(pair.now)


def test_a_directory_instead_of_another_hides_it(pair: Pair) -> None:
    """With hints inodes are told apart; by content two directories are one that changed."""
    _replace_a_tree(pair)
    assert pair.plan(hints=True) == ["C /e*", "D /e/b", "A /e/new", "C /e/s", "D /e/sub"]
    assert pair.plan(hints=False) == ["D /e/b", "A /e/new", "C /e/s", "D /e/sub"]


def test_an_empty_directory_hides_nothing(pair: Pair) -> None:
    _replace_an_empty_directory(pair)
    assert pair.plan(hints=True) == ["C /void"]


def test_links_that_were_taken_apart(pair: Pair) -> None:
    """Two files with the content of one are two, whatever their content."""
    pair.now.put(pair.node("e"), b"b", pair.now.new(Kind.REGULAR, b"linked"))
    assert pair.plan(hints=False) == ["C /e/b"]
    pair.now.put(pair.node("d"), b"a", pair.now.new(Kind.REGULAR, b"linked"))
    assert pair.plan(hints=False) == ["C /e/b"]
    assert pair.plan(hints=True) == ["C /d/a", "C /e/b"]


def test_files_that_became_one(pair: Pair) -> None:
    pair.now.put(pair.node("e/sub"), b"deep", pair.node("d/one"))
    assert pair.plan(hints=True) == pair.plan(hints=False) == ["C /d/one", "C /e/sub/deep"]


class _Watched(NodeFileSystem):
    """Notes which directories were listed."""

    listed: list[int]

    def entries(self, directory: int) -> list[Entry]:
        self.listed.append(directory)
        return super().entries(directory)


@pytest.mark.parametrize("touch", [False, True])
def test_untouched_directories_are_not_read(pair: Pair, touch: bool) -> None:
    """The cost of a diff is that of what changed: of nothing, none; of a directory, the way to it."""
    watched = _Watched(pair.base.root, pair.base.data)
    watched.listed = []
    if touch:
        pair.now.put(pair.node("e/sub"), b"new", pair.now.new(Kind.REGULAR))
    pair.now.settle()
    changes = plan_diff(pair.now, watched, pair.now)
    way = [pair.base.root.number, pair.node("e").number, pair.node("e/sub").number]
    assert (len(changes), watched.listed) == ((1, way) if touch else (0, []))
