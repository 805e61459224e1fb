"""An image, a file system that differs from it in every way there is, and what both are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.image import Kind
from pagepool.overlay import plan_diff
from tests.oci.samples import Sample
from tests.overlay.layers import empty, whole_layer
from tests.support.randomtrees import populate

if TYPE_CHECKING:
    from pagepool.image import Node
    from pagepool.overlay import Change
    from tests.support.nodes import NodeFileSystem

TIME_NS = 1_700_000_000_000_000_000


class Changed:
    """A parent image in memory, and a changed file system.

    Args:
        lower: the layers of the parent, in the form that `Sample.add_image` takes; the populated tree comes on top.
    """

    def __init__(self, *lower: bytes) -> None:
        self.base = empty()
        populate(self.base)
        _date(self.base)
        self.parent = Sample()
        self.parent.add_image([*lower, whole_layer(self.base)])
        self.now: NodeFileSystem = self.base.copy()
        self.now.kept = max(self.base.nodes)
        self.nodes = dict(self.now.walk())
        nodes = self.nodes
        self.now.write(nodes[b"a/c"], b"written" * 1000)  # one of two names
        nodes[b"a/a"].mode = 0o1777
        self.now.touch(nodes[b"a/a"])
        self.now.put(nodes[b"b"], b"link", nodes[b"b/a/b"])  # a new name of a file that did not change
        self._put(b"b/new", Kind.REGULAR, b"new", mode=0o4755, uid=1000, gid=2**31)
        self._put(b"b/symlink", Kind.SYMLINK, b"../a")
        self._put(b"b/pipe", Kind.FIFO)
        self._put(b"b/null", Kind.CHAR, devmajor=1, devminor=3)
        self._put(b"b/" + b"n" * 200, Kind.REGULAR, b"long")
        self.now.forget(nodes[b"a/b"])
        self._put(b"a/b", Kind.DIRECTORY)  # another directory
        self._put(b"a/b/only", Kind.REGULAR, b"only")
        moved = self.now.remove(nodes[b"a/a"], b"c")
        assert moved is not None
        self.now.put(nodes[b""], b"moved", moved)
        self.now.settle()
        _date(self.now)

    def plan(self) -> list[Change]:
        """What changed."""
        return plan_diff(self.now, self.base, self.now)

    def _put(self, path: bytes, kind: Kind, data: bytes = b"", **fields: int) -> Node:
        directory, _, name = path.rpartition(b"/")
        node = self.now.new(kind, data, **({"mode": 0o755} if kind is Kind.DIRECTORY else {}) | fields)
        self.now.put(dict(self.now.walk())[directory], name, node)
        return node


def _date(system: NodeFileSystem) -> None:
    """Give everything a time that unpacking cannot be mistaken for."""
    for _, node in system.walk():
        node.mtime_ns = TIME_NS
        if node.kind is Kind.SYMLINK:
            node.mode = 0o777
