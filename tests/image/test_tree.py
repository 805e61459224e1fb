"""Merging layers into a tree, and finding paths in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from blake3 import blake3

from pagepool.errors import LayerInvalidError, PathUnknownError
from pagepool.image import Kind, Node, Tree, TreeMerger, iter_members, merge_layers
from tests.image.harness import ingest, make_extension
from tests.image.stacks import BASE, REFUSED, STACKS, directory, file, hardlink, layer, opaque, symlink, whiteout


def merge(*layers: bytes) -> Tree:
    sinks = [ingest(tar) for tar in layers]
    assert [sink.problem for sink in sinks] == [""] * len(sinks)
    return merge_layers(iter_members(sink.decoded) for sink in sinks)


def names(tree: Tree) -> list[bytes]:
    return [path for path, _ in tree.walk()]


def test_walk_is_in_order_and_numbers_nodes() -> None:
    tree = merge(layer(file(b"b"), file(b"a/z"), hardlink(b"a/b", b"b"), file(b"a.x"), directory(b"c")))
    found = [(path, node.number, node.nlink) for path, node in tree.walk()]
    assert found == [
        (b"", 1, 4),
        (b"a", 2, 2),
        (b"a/b", 3, 2),
        (b"a/z", 4, 1),
        (b"a.x", 5, 1),
        (b"b", 3, 2),
        (b"c", 6, 2),
    ]
    assert tree.size == 6


def test_nodes_carry_their_content() -> None:
    tree = merge(BASE)
    one = tree.lookup(b"a/one")
    assert (one.kind, one.size, one.object) == (Kind.REGULAR, 3, blake3(b"one").digest())
    assert (one.uid, one.gid, one.mode, one.mtime_ns) == (3, 0, 0o644, 1_600_000_001 * 10**9)
    assert tree.lookup(b"a/two") is tree.lookup(b"a/three")
    assert tree.lookup(b"null").devminor == 3
    assert tree.lookup(b"suid").mode == 0o4755
    link = tree.lookup(b"lib", follow=False)
    assert (link.kind, link.target, link.size, link.object) == (Kind.SYMLINK, b"usr/lib", 7, None)
    assert merge(layer(file(b"e"))).lookup(b"e").object is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"", b""),
        (b"/", b""),
        (b"..", b""),
        (b"/usr/lib/", b"usr/lib"),
        (b"lib", b"usr/lib"),
        (b"lib/x", b"usr/lib/x"),
        (b"abs/../lib/./x", b"usr/lib/x"),
        (b"lib/..", b"usr"),
        (b"../../lib/x", b"usr/lib/x"),
    ],
)
def test_lookup(path: bytes, name: bytes) -> None:
    tree = merge(BASE)
    assert tree.lookup(path) is dict(tree.walk())[name]


@pytest.mark.parametrize("path", [b"none", b"a/one/x", b"a/none/x", b"null/x"])
@pytest.mark.parametrize("follow", [True, False])
def test_lookup_of_nothing(path: bytes, follow: bool) -> None:
    with pytest.raises(PathUnknownError, match=path.decode()):
        merge(BASE).lookup(path, follow)


def test_lookup_without_following() -> None:
    tree = merge(BASE)
    assert tree.lookup(b"/lib", follow=False).kind is Kind.SYMLINK
    assert tree.lookup(b"lib/x", follow=False) is tree.lookup(b"usr/lib/x")
    assert tree.lookup(b"", follow=False) is tree.root
    assert tree.lookup(b"lib/..", follow=False) is tree.lookup(b"usr")


def test_lookup_in_a_loop() -> None:
    tree = merge(layer(symlink(b"p", b"q"), symlink(b"q", b"p")))
    assert tree.lookup(b"p", follow=False).target == b"q"
    with pytest.raises(PathUnknownError, match="too many symbolic links"):
        tree.lookup(b"p")


def test_lookup_through_many_links() -> None:
    links = [symlink(b"l%d" % number, b"l%d" % (number + 1)) for number in range(60)]
    tree = merge(layer(*links, directory(b"l60")))
    assert tree.lookup(b"l20").kind is Kind.DIRECTORY
    with pytest.raises(PathUnknownError, match="too many symbolic links"):
        tree.lookup(b"l19")


def test_list() -> None:
    tree = merge(BASE)
    assert [name for name, _ in tree.list(b"/lib/..")] == [b"lib"]
    assert [name for name, _ in tree.list(b"a")] == [b"one", b"sub", b"three", b"two"]
    assert tree.list(b"a/one") == [(b"one", tree.lookup(b"a/one"))]
    with pytest.raises(PathUnknownError):
        tree.list(b"none")


def test_aufs_files_are_left_out() -> None:
    tree = merge(layer(directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/1.2"), file(b".wh..wh.aufs"), file(b"a")))
    assert names(tree) == [b"", b"a"]
    tree = merge(layer(file(b"d/.wh..wh.orph/.wh.x"), file(b"d/.wh..wh.orph/.wh..wh..opq"), file(b"d/a")))
    assert names(tree) == [b"", b"d", b"d/a"]


def test_links_to_what_aufs_kept_for_them() -> None:
    """As docker and containerd read them; only in the same layer."""
    kept = file(b".wh..wh.plnk/1.2", b"kept", mode=0o755)
    tree = merge(layer(kept, hardlink(b"a", b"/.wh..wh.plnk/1.2"), hardlink(b"d/b", b".wh..wh.plnk/1.2")))
    assert names(tree) == [b"", b"a", b"d", b"d/b"]
    node = tree.lookup(b"a")
    assert (node.size, node.mode, node.nlink, tree.lookup(b"d/b")) == (4, 0o755, 2, node)
    with pytest.raises(LayerInvalidError, match="which is not there"):
        merge(layer(kept), layer(hardlink(b"a", b".wh..wh.plnk/1.2")))


def test_names_that_only_look_like_whiteouts() -> None:
    tree = merge(layer(file(b"a.wh.b"), file(b"x.wh..wh..opq")))
    assert names(tree) == [b"", b"a.wh.b", b"x.wh..wh..opq"]


def test_a_parent_that_is_no_directory_is_replaced() -> None:
    tree = merge(BASE, layer(file(b"a/one/in", b"1")))
    assert tree.lookup(b"a/one").kind is Kind.DIRECTORY
    assert tree.lookup(b"a/one/in").size == 1


def test_layers_do_not_share_what_they_touched() -> None:
    tree = merge(layer(file(b"a/x")), layer(file(b"a/y")), layer(whiteout(b"a/y"), opaque(b"b")))
    assert names(tree) == [b"", b"a", b"a/x"]


def test_deep_trees() -> None:
    tree = merge(layer(make_extension(b"L", b"d/" * 2000 + b"f"), file(b"f", b"1")))
    assert tree.lookup(b"d/" * 2000 + b"f").size == 1
    assert tree.size == 2002


def test_too_many_directories() -> None:
    merger = TreeMerger(max_nodes=100)
    merger.apply_layer(iter_members(ingest(layer(file(b"d/" * 49 + b"f", b"1"))).decoded))
    merger.apply_layer(iter_members(ingest(layer(file(b"e/" * 49 + b"f", b"1"))).decoded))
    with pytest.raises(LayerInvalidError, match="'g': is beyond the limit of 100 files"):
        merger.apply_layer(iter_members(ingest(layer(file(b"g", b"1"))).decoded))


@pytest.mark.parametrize(("layers", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(layers: Sequence[bytes], reason: str) -> None:
    with pytest.raises(LayerInvalidError) as caught:
        merge(*layers)
    assert reason in str(caught.value)


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS.keys())
def test_trees_are_deterministic(layers: Sequence[bytes]) -> None:
    def dump(tree: Tree) -> list[tuple[bytes, int, Kind, bytes | None]]:
        return [(path, node.number, node.kind, node.object) for path, node in tree.walk()]

    tree = merge(*layers)
    assert dump(tree) == dump(merge(*layers))
    nodes: list[Node] = [node for _, node in tree.walk()]
    assert {node.number for node in nodes} == set(range(1, tree.size + 1))
