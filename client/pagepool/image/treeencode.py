"""Writes a merged tree as one file (docs/format/tree.md). Deterministic: equal trees become equal bytes.

Every regular file that is not empty needs an object. A recipe may keep the data of one as literal; reading a layer
(`pagepool_service.ingest`) never makes such a recipe, whatever the layer.

Pure. Takes about 10 µs and, while it runs, a few hundred bytes for each node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError, LimitError
from pagepool.extents import EXTENT_SIZE
from pagepool.image.member import Kind
from pagepool.image.treefile import (
    ENTRY,
    HEADER,
    KINDS,
    MAGIC,
    NODE,
    OBJECT,
    RUN,
    U32,
    VERSION,
    XATTR,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pagepool.image.tree import Node, Tree

    Runs = Sequence[tuple[int, bytes]]

_CODES: Final = {kind: code for code, kind in enumerate(KINDS)}
# Outside of it no file system has times either; kept inside the 64 bits of the record.
_MOST_SECONDS: Final = (1 << 62) - 1
# What an offset in a record can reach, and the length of the name of an extended attribute.
_MOST_BYTES: Final = (1 << 32) - 2
_LONGEST_NAME: Final = (1 << 16) - 1


def encode_tree(tree: Tree, runs_of: Callable[[bytes, int], Runs]) -> bytes:
    """Encode a tree.

    Args:
        tree: what layers were merged to.
        runs_of: tells of an object of more than one extent, by digest and size, its runs of (repeat, extent digest).

    Returns:
        the file. Its BLAKE3 is the tree's digest.

    Raises:
        CorruptError: a file has data and no object.
        LimitError: its names, targets or extended attributes are more than the format can say.
    """
    return _Encoder(tree, runs_of).encode()


class _Encoder:
    def __init__(self, tree: Tree, runs_of: Callable[[bytes, int], Runs]) -> None:
        self._nodes = _nodes(tree)
        self._runs_of = runs_of
        self._strings = _Strings()
        self._xattrs: dict[bytes, int] = {}
        self._xattrs_size = 0
        self._sizes = _object_sizes(self._nodes)
        self._places = {digest: place for place, digest in enumerate(sorted(self._sizes))}

    def encode(self) -> bytes:
        entries = self._encode_entries()
        nodes = b"".join(map(self._encode_node, self._nodes))
        objects, runs, extents = self._encode_objects()
        strings = self._strings.data
        head = HEADER.pack(
            MAGIC,
            VERSION,
            len(self._nodes),
            len(entries) // ENTRY.size,
            len(self._places),
            len(runs) // RUN.size,
            len(extents),
            self._xattrs_size,
            len(strings),
            sum(self._sizes.values()),
        )
        return b"".join((head, nodes, entries, objects, runs, *extents, *self._xattrs, strings))

    def _encode_entries(self) -> bytes:
        """All directories' entries; notes of each directory where its own begin, and of each its parent."""
        parts: list[bytes] = []
        self._first: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        for node in self._nodes:
            if node.children is None:
                continue
            self._first[node.number] = len(parts)
            for name, child in sorted(node.children.items()):
                parts.append(ENTRY.pack(self._strings.add(name), child.number, len(name)))
                if child.children is not None:
                    self._parents[child.number] = node.number
        return b"".join(parts)

    def _encode_node(self, node: Node) -> bytes:
        first, second = self._details(node)
        seconds, ns = divmod(node.mtime_ns, 10**9)
        seconds = max(-_MOST_SECONDS, min(seconds, _MOST_SECONDS))
        xattrs = self._add_xattrs(node.xattrs) if node.xattrs else 0
        parent = self._parents.get(node.number, 0)
        code = _CODES[node.kind]
        return NODE.pack(
            code, node.mode, node.nlink, node.uid, node.gid, seconds, ns, xattrs, node.size, first, second, parent
        )

    def _details(self, node: Node) -> tuple[int, int]:
        if node.children is not None:
            return self._first[node.number], len(node.children)
        if node.kind is Kind.REGULAR:
            return (self._places[node.object] + 1 if node.object is not None and node.size else 0), 0
        if node.kind is Kind.SYMLINK:
            return self._strings.add(node.target), len(node.target)
        return node.devmajor, node.devminor

    def _add_xattrs(self, xattrs: Mapping[bytes, bytes]) -> int:
        """Where a set of extended attributes is written, plus one. Equal sets are written once."""
        parts = [U32.pack(len(xattrs))]
        for name, value in sorted(xattrs.items()):
            _check("name of an extended attribute", len(name), _LONGEST_NAME)
            parts += (XATTR.pack(len(name), len(value)), name, value)
        encoded = b"".join(parts)
        place = self._xattrs.get(encoded)
        if place is None:
            place = self._xattrs[encoded] = self._xattrs_size + 1
            self._xattrs_size += len(encoded)
            _check("extended attributes", self._xattrs_size, _MOST_BYTES)
        return place

    def _encode_objects(self) -> tuple[bytes, bytes, list[bytes]]:
        """The records of objects and of runs, and the digests of all extents, sorted."""
        runs = {
            digest: self._runs_of(digest, self._sizes[digest])
            for digest in self._places
            if self._sizes[digest] > EXTENT_SIZE
        }
        small = (digest for digest in self._places if digest not in runs)
        extents = sorted({*small, *(extent for found in runs.values() for _, extent in found)})
        numbers = {extent: number for number, extent in enumerate(extents)}
        objects: list[bytes] = []
        written: list[bytes] = []
        for digest in self._places:
            found = runs.get(digest, ())
            objects.append(OBJECT.pack(digest, self._sizes[digest], len(written), len(found)))
            written += [RUN.pack(repeat, numbers[extent]) for repeat, extent in found]
        return b"".join(objects), b"".join(written), extents


class _Strings:
    """Names and targets one after the other, each once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._places: dict[bytes, int] = {}

    def add(self, text: bytes) -> int:
        """Where it is."""
        place = self._places.get(text)
        if place is None:
            place = self._places[text] = len(self.data)
            self.data += text
            _check("names and targets", len(self.data), _MOST_BYTES)
        return place


def _check(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise LimitError(what, size, limit)


def _nodes(tree: Tree) -> list[Node]:
    """Every node once, by number."""
    found: list[Node] = []
    for _, node in tree.walk():
        if node.number == len(found) + 1:
            found.append(node)
    return found


def _object_sizes(nodes: Sequence[Node]) -> dict[bytes, int]:
    sizes: dict[bytes, int] = {}
    for node in nodes:
        if node.kind is Kind.REGULAR and node.size:
            if node.object is None:
                raise CorruptError("tree", "", f"node {node.number} has {node.size} bytes and no object")
            sizes[node.object] = node.size
    return sizes
