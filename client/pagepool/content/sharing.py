"""What a pool saves: the same content in several images, or several times in one, is there once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pagepool.image.member import Kind

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from pagepool.image.treefile import TreeFile


class Sharing(NamedTuple):
    """How often what a pool has is used.

    Args:
        trees: images that were looked at.
        logical_bytes: of all their files whose content is in the pool: what they would take one by one.
        unique_bytes: of these contents, each once.
    """

    trees: int
    logical_bytes: int
    unique_bytes: int

    @property
    def saved_bytes(self) -> int:
        """What is not there a second time."""
        return self.logical_bytes - self.unique_bytes


def measure_sharing(trees: Iterable[TreeFile], present: Container[bytes]) -> Sharing:
    """Go through trees and count; about a microsecond for each file.

    Args:
        trees: each is closed afterwards.
        present: digests of the objects that the pool has.
    """
    count = logical = 0
    unique: dict[bytes, int] = {}
    for tree in trees:
        count += 1
        names = _names(tree)
        for index in range(tree.object_count):
            info = tree.object(index)
            if info.digest in present:
                unique[info.digest] = info.size
                logical += info.size * max(1, names[index])
        tree.close()
    return Sharing(count, logical, sum(unique.values()))


def _names(tree: TreeFile) -> list[int]:
    """Of each object, how many inodes have it. Hard links are one inode."""
    counts = [0] * tree.object_count
    for number in range(1, tree.node_count + 1):
        if tree.kind(number) is Kind.REGULAR and (place := tree.node(number).object) >= 0:
            counts[place] += 1
    return counts
