"""Random trees: each comes back out of its file, and equal trees are equal bytes in whatever order they were made."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.digest import blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind, Node, Tree, TreeFile, encode_tree
from tests.image.test_treefile import assert_equal, runs_of

_NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
_OWNERS = st.integers(0, 2**32 - 2)
_XATTRS = st.dictionaries(st.binary(min_size=1, max_size=64), st.binary(max_size=64), max_size=3)
_METADATA = {
    "mode": st.integers(0, 0o7777),
    "uid": _OWNERS,
    "gid": _OWNERS,
    "mtime_ns": st.integers(-(2**90), 2**90),
    "xattrs": _XATTRS,
}


def _regular(size: int, seed: int, **metadata: object) -> Node:
    content = blake3_raw(f"{size} {seed}".encode()) if size else None
    return Node(Kind.REGULAR, size=size, object=content, **metadata)  # type: ignore[arg-type]


def _symlink(target: bytes, **metadata: object) -> Node:
    return Node(Kind.SYMLINK, size=len(target), target=target, **metadata)  # type: ignore[arg-type]


_SIZES = st.one_of(st.integers(0, 3 * EXTENT_SIZE), st.integers(0, 2**45))
_LEAVES = st.one_of(
    st.builds(_regular, _SIZES, st.integers(0, 3), **_METADATA),
    st.builds(_symlink, st.binary(min_size=1, max_size=300), **_METADATA),
    st.builds(
        Node,
        st.sampled_from([Kind.CHAR, Kind.BLOCK]),
        devmajor=st.integers(0, 4095),
        devminor=st.integers(0, 2**20 - 1),
        **_METADATA,
    ),
    st.builds(Node, st.just(Kind.FIFO), **_METADATA),
)


def _directory(below: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    children = st.dictionaries(_NAMES, below, max_size=6)
    return st.builds(Node, st.just(Kind.DIRECTORY), children=children, **_METADATA)


_ROOTS = st.recursive(_directory(_LEAVES), lambda below: _directory(st.one_of(_LEAVES, below)), max_leaves=20)


def _copy(node: Node, done: dict[Node, Node], *, backwards: bool) -> Node:
    """The same once more, names put in in the other order."""
    if node in done:
        return done[node]
    rows = sorted((node.children or {}).items(), reverse=backwards)
    children = (
        None if node.children is None else {name: _copy(child, done, backwards=backwards) for name, child in rows}
    )
    done[node] = copied = Node(
        *(node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.size, node.object, node.target),
        *(node.devmajor, node.devminor, dict(sorted(node.xattrs.items(), reverse=backwards)), children),
    )
    return copied


def _add_links(root: Node, names: list[bytes]) -> None:
    """Hard links in the root: to its files, and to those one level down."""
    assert root.children is not None
    inner = [node for child in root.children.values() for node in (child.children or {}).values()]
    files = [node for node in (*root.children.values(), *inner) if node.children is None]
    for name, node in zip(names, files, strict=False):
        root.children.setdefault(name, node)


@given(_ROOTS, st.lists(_NAMES, max_size=5))
@settings(max_examples=60, deadline=None)
def test_round_trip(root: Node, links: list[bytes]) -> None:
    _add_links(root, links)
    other = Tree(_copy(root, {}, backwards=True))
    tree = Tree(root)
    raw = encode_tree(tree, runs_of)
    assert raw == encode_tree(other, runs_of)
    assert_equal(TreeFile(raw, blake3_raw(raw)), tree)
