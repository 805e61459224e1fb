"""Which small files to fetch ahead: a pure decision, from the order in which files of a tree were missed.

A program that walks a tree (a shell's glob, an import, a package manager, ``tar``) misses files in the order of the
tree's nodes. Each miss that follows closely upon the last one doubles the number of files that are fetched with it;
one that does not begins anew with the file alone, so that nothing is fetched for who reads here and there.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from pagepool.extents import EXTENT_SIZE
from pagepool.image.member import Kind

if TYPE_CHECKING:
    from pagepool.image.treefile import TreeFile

MOST_FILES: Final = 512
MOST_BYTES: Final = 16 << 20
_NEAR: Final = 16  # files that may lie between two misses of one walk
_NOWHERE: Final = 0xFFFFFFFF


class FilesAhead:
    """Remembers where a tree was missed. Not exact between threads, which costs a fetch at most.

    Args:
        tree: the order is that of its nodes.
    """

    def __init__(self, tree: TreeFile) -> None:
        self._tree = tree
        self._order: array[int] | None = None  # small objects, in the order of the nodes that have them first
        self._places: array[int] = array("I")  # of each object, where it is in that order
        self._expected = 0
        self._window = 1

    def next(self, index: int) -> list[int]:
        """The objects to fetch now that a small one was missed: that one first.

        Args:
            index: its place in the tree's list.
        """
        order = self._order or self._number()
        place = self._places[index]
        if place == _NOWHERE:
            return [index]
        near = self._expected <= place <= self._expected + _NEAR
        self._window = min(self._window * 2, MOST_FILES) if near else 1
        chosen: list[int] = []
        size = 0
        for one in order[place : place + self._window]:
            size += self._tree.object(one).size
            if chosen and size > MOST_BYTES:
                break
            chosen.append(one)
        self._expected = place + len(chosen)
        return chosen

    def _number(self) -> array[int]:
        """Go through the nodes once, at the first miss: about a microsecond each."""
        tree = self._tree
        places = array("I", [_NOWHERE]) * tree.object_count
        order = array("I")
        for number in range(1, tree.node_count + 1):
            if tree.kind(number) is Kind.REGULAR:
                node = tree.node(number)
                if 0 < node.size <= EXTENT_SIZE and places[node.object] == _NOWHERE:
                    places[node.object] = len(order)
                    order.append(node.object)
        self._places, self._order = places, order
        return order
