"""Tree files: every tree comes back out of its file, look-ups agree with it, and damaged bytes are an error of ours."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, DigestMismatchError
from pagepool.extents import EXTENT_SIZE, ZERO_EXTENT
from pagepool.image import Kind, Node, Tree, TreeFile, encode_tree
from pagepool.image.treefile import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_KINDS = (Kind.DIRECTORY, Kind.REGULAR, Kind.REGULAR, Kind.REGULAR, Kind.SYMLINK, Kind.CHAR, Kind.BLOCK, Kind.FIFO)


def runs_of(digest: bytes, size: int) -> list[tuple[int, bytes]]:
    """Extents of a large object: two of its own, the rest holes."""
    count = -(-size // EXTENT_SIZE)
    first, last = blake3_raw(digest + b"first"), blake3_raw(digest + b"last")
    middle = [(count - 2, blake3_raw(bytes(EXTENT_SIZE)))] if count > 2 else []
    return [(1, first), *middle, (1, last)]


def make_node(chance: random.Random) -> Node:
    """A node of any kind with any metadata that a layer can bring."""
    kind = chance.choice(_KINDS)
    xattrs = {
        f"user.{number}".encode(): chance.randbytes(chance.randrange(40)) for number in range(chance.randrange(3))
    }
    node = Node(
        kind,
        chance.randrange(0o10000),
        uid=chance.choice((0, 1000, 2**32 - 2)),
        gid=chance.choice((0, 1000, 2**32 - 2)),
        mtime_ns=chance.choice((0, -1, -(10**9), 10**18 + 7, 2**62, -(2**70))),
        xattrs=xattrs,
        children={} if kind is Kind.DIRECTORY else None,
    )
    if kind is Kind.REGULAR:
        node.size = chance.choice((0, 1, 4096, EXTENT_SIZE, EXTENT_SIZE + 1, 10 * EXTENT_SIZE + 5))
        node.object = blake3_raw(f"{chance.randrange(20)} {node.size}".encode()) if node.size else None
    elif kind is Kind.SYMLINK:
        node.target = chance.randbytes(chance.randrange(1, 300))
        node.size = len(node.target)
    elif kind in (Kind.CHAR, Kind.BLOCK):
        node.devmajor, node.devminor = chance.randrange(1 << 12), chance.randrange(1 << 20)
    return node


def make_tree(seed: int, count: int) -> Tree:
    """A random tree, hard links among it."""
    chance = random.Random(seed)
    root = Node(Kind.DIRECTORY, 0o755, children={})
    directories, files = [root], [make_node(chance) for _ in range(3)]
    for _ in range(count):
        parent = chance.choice(directories)
        assert parent.children is not None
        linkable = [node for node in files if node.children is None]
        node = chance.choice(linkable) if linkable and chance.random() < 0.1 else make_node(chance)
        name = chance.randbytes(chance.choice((1, 2, 8, 255))).replace(b"/", b"_").replace(b"\0", b"0")
        if name in (b".", b"..") or name in parent.children:
            continue
        parent.children[name] = node
        (directories if node.children is not None else files).append(node)
    return Tree(root)


def assert_equal(found: TreeFile, tree: Tree) -> None:
    """The file says of every name what the tree says."""
    assert found.node_count == tree.size
    sizes: dict[bytes, int] = {}
    for _, node in tree.walk():
        got = found.node(node.number)
        assert got[:9] == (
            *(node.number, node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.size, node.nlink),
            node.devmajor,
        )
        assert (got.devminor, got.target) == (node.devminor, node.target)
        assert found.xattrs(node.number) == node.xattrs
        if node.object is None:
            assert got.object == -1
        else:
            sizes[node.object] = node.size
            info = found.object(got.object)
            assert (info.digest, info.size) == (node.object, node.size)
            assert found.find_object(node.object) == got.object
        assert_directory(found, node)
    assert found.object_count == len(sizes)
    assert found.object_bytes == sum(sizes.values())
    assert_extents(found, sizes)


def assert_directory(found: TreeFile, node: Node) -> None:
    """Its entries are those of a directory; a file has none."""
    children = node.children or {}
    assert list(found.entries(node.number)) == [(name, child.number) for name, child in sorted(children.items())]
    for name, child in children.items():
        assert found.child(node.number, name) == child.number
        assert found.child(node.number, name + b"\xff") == 0
        if child.children is not None:
            assert found.parent(child.number) == node.number
    assert found.child(node.number, b"no such name") == 0


def assert_extents(found: TreeFile, sizes: dict[bytes, int]) -> None:
    """The extents of all objects, and no other."""
    expected = set()
    for digest, size in sizes.items():
        info = found.object(found.find_object(digest))
        assert info.runs == (tuple(runs_of(digest, size)) if size > EXTENT_SIZE else ((1, digest),))
        extents = info.extents()
        assert len(extents) == info.extent_count
        assert info.extents(1, 3) == extents[1:3]
        expected |= set(extents)
    raw = bytes(found.extents)
    listed = [raw[start : start + 32] for start in range(0, len(raw), 32)]
    assert listed == sorted(expected)
    assert all(found.has_extent(digest) for digest in listed)
    assert not found.has_extent(bytes(32))
    assert not found.has_extent(b"\xff" * 32)
    assert found.find_object(bytes(32)) == -1


@pytest.mark.parametrize("seed", range(12))
def test_round_trip(seed: int, tmp_path: Path) -> None:
    tree = make_tree(seed, 40 * seed)
    raw = encode_tree(tree, runs_of)
    path = tmp_path / "tree"
    path.write_bytes(raw)
    found = TreeFile.open(path, blake3_raw(raw))
    path.unlink()
    assert_equal(found, tree)
    assert found.parent(ROOT) == ROOT
    assert found.digest == blake3_raw(raw)
    found.close()


def test_equal_trees_are_equal_bytes() -> None:
    assert encode_tree(make_tree(5, 200), runs_of) == encode_tree(make_tree(5, 200), runs_of)
    assert encode_tree(make_tree(5, 200), runs_of) != encode_tree(make_tree(6, 200), runs_of)


def test_an_empty_tree() -> None:
    found = TreeFile(encode_tree(Tree(Node(Kind.DIRECTORY, 0o700, children={})), runs_of))
    assert found.node(ROOT).mode == 0o700
    assert list(found.entries(ROOT)) == []
    assert found.object_count == found.extent_count == 0


def test_holes_are_the_extents_of_zeros() -> None:
    """At any place of an object, and none in a tree without zeros."""
    zeros, other = ZERO_EXTENT, blake3_raw(b"other")
    runs = {
        b"none": [(2, other), (1, blake3_raw(b"more"))],
        b"some": [(2, zeros), (1, other), (1, zeros), (3, other), (1, zeros)],
        b"all": [(4, zeros)],
    }
    of_object = {blake3_raw(key): found for key, found in runs.items()}

    def make(key: bytes) -> Node:
        if key == b"one":
            return Node(Kind.REGULAR, 0o644, size=EXTENT_SIZE, object=zeros)
        size = sum(count for count, _ in runs[key]) * EXTENT_SIZE
        return Node(Kind.REGULAR, 0o644, size=size, object=blake3_raw(key))

    def holes(names: Iterable[bytes]) -> dict[bytes, list[tuple[int, int]]]:
        root = Node(Kind.DIRECTORY, 0o755, children={name: make(name) for name in names})
        found = TreeFile(encode_tree(Tree(root), lambda digest, _: of_object[digest]))
        assert found.holes(-1) == found.holes(found.object_count) == []
        return {name: found.holes(found.node(number).object) for name, number in found.entries(ROOT)}

    expected = {b"all": [(0, 4)], b"none": [], b"one": [(0, 1)], b"some": [(0, 2), (3, 4), (7, 8)]}
    assert holes(expected) == expected
    assert holes([b"none"]) == {b"none": []}


def test_another_digest() -> None:
    raw = encode_tree(make_tree(1, 10), runs_of)
    with pytest.raises(DigestMismatchError, match="digest mismatch"):
        TreeFile(raw, bytes(32))


def test_a_file_without_an_object() -> None:
    root = Node(Kind.DIRECTORY, 0o755, children={b"f": Node(Kind.REGULAR, 0o644, size=3)})
    with pytest.raises(CorruptError, match="no object"):
        encode_tree(Tree(root), runs_of)


def read_everything(found: TreeFile) -> None:
    """Ask for all there is."""
    for number in range(found.node_count + 2):
        for ask in (found.node, found.xattrs, found.parent, lambda one: found.child(one, b"x")):
            ask_once(ask, number)
        ask_once(lambda one: list(found.entries(one)), number)
    for index in range(-1, found.object_count + 1):
        ask_once(found.object, index)
    found.find_object(b"\x80" * 32)
    found.has_extent(b"\x80" * 32)


def ask_once(ask: object, number: int) -> None:
    """Ask, and take an answer or CorruptError."""
    assert callable(ask)
    with contextlib.suppress(CorruptError):
        ask(number)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes(seed: int) -> None:
    """Whatever is in a file, reading it ends, with an answer or with CorruptError."""
    chance = random.Random(seed)
    raw = bytearray(encode_tree(make_tree(seed, 20), runs_of))
    for _ in range(20):
        damaged = bytearray(raw)
        for _ in range(chance.choice((1, 1, 3, 30))):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            found = TreeFile(bytes(damaged))
        except CorruptError:
            continue
        read_everything(found)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    path.touch()
    with pytest.raises(CorruptError, match="empty"):
        TreeFile.open(path)
