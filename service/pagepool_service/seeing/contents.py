"""What a tree holds, in numbers that can be compared with another's: its objects, its extents, its largest files.

A digest is reduced to its first eight bytes: two contents of a million that meet by chance have odds of one in 30
million, and all that would be wrong is a figure.
"""

from __future__ import annotations

import heapq
import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.errors import PagepoolError
from pagepool.extents import EXTENT_SIZE
from pagepool.image.treefile import ROOT
from pagepool.image.treescan import DIRECTORY, REGULAR, TreeScan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pagepool.image.treefile import ObjectInfo, TreeFile
    from pagepool_service.treecache import TreeCache

LARGEST_FILES = 50
_MOST_ENTRIES = 1_500_000  # objects and extents of all trees that are remembered, about 16 bytes each
_DEEPEST = 256  # directories above a file whose path is told


class Sizes:
    """Distinct contents: 8 bytes of each digest, and its bytes.

    Args:
        found: by those eight bytes, as a number.
    """

    __slots__ = ("_keys", "_sizes", "total")

    def __init__(self, found: dict[int, int]) -> None:
        self._keys = array("Q", found)
        self._sizes = array("Q", found.values())
        self.total = sum(self._sizes)
        """Bytes of all of them."""

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> array[int]:
        """The keys, in no order."""
        return self._keys

    def by_key(self) -> dict[int, int]:
        """Bytes by key."""
        return dict(zip(self._keys, self._sizes, strict=True))


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A file of an image: one of its paths, its bytes, the key of its object."""

    path: bytes
    size: int
    key: int


@dataclass(frozen=True, slots=True)
class TreeContents:
    """One tree.

    Args:
        files: regular files, hard links once.
        file_bytes: of all files, each counted by itself.
        objects: distinct contents of files.
        names: of each object, in the order of its keys, how many files have it.
        extents: distinct pieces of 128 KiB of them.
        largest: the largest files, the largest first.
    """

    files: int
    file_bytes: int
    objects: Sizes
    names: array[int]
    extents: Sizes
    largest: tuple[LargeFile, ...]

    @property
    def entries(self) -> int:
        """What it takes to remember it."""
        return len(self.objects) + len(self.extents)


def key_of(digest: bytes) -> int:
    """The key of a digest."""
    return int.from_bytes(digest[:8], "big")


def read_contents(tree: TreeFile) -> TreeContents:
    """Go through a tree: a few microseconds for each file."""
    scan = TreeScan(tree)
    infos = [tree.object(index) for index in range(tree.object_count)]
    uses = array("Q", bytes(8 * len(infos)))
    sizes: list[tuple[int, int]] = []
    for number, record in enumerate(scan.nodes(), 1):
        if record.kind == REGULAR:
            sizes.append((record.size, number))
            if 0 < record.first <= len(uses):
                uses[record.first - 1] += 1
    objects = {key_of(info.digest): info.size for info in infos}
    names: dict[int, int] = dict.fromkeys(objects, 0)
    for info, count in zip(infos, uses, strict=True):
        names[key_of(info.digest)] += count
    return TreeContents(
        files=len(sizes),
        file_bytes=sum(size for size, _ in sizes),
        objects=Sizes(objects),
        names=array("Q", names.values()),
        extents=Sizes(_extents(infos)),
        largest=_largest(tree, scan, heapq.nlargest(LARGEST_FILES, sizes)),
    )


def _extents(infos: Iterable[ObjectInfo]) -> dict[int, int]:
    found: dict[int, int] = {}
    for info in infos:
        last = info.size - (info.extent_count - 1) * EXTENT_SIZE
        for _, digest in info.runs:
            found.setdefault(key_of(digest), EXTENT_SIZE)
        found[key_of(info.runs[-1][1])] = last
    return found


def _largest(tree: TreeFile, scan: TreeScan, wanted: list[tuple[int, int]]) -> tuple[LargeFile, ...]:
    """The files of these sizes and node numbers, with a path of each."""
    told = {number for _, number in wanted}
    told.update(number for number, record in enumerate(scan.nodes(), 1) if record.kind == DIRECTORY)
    places: dict[int, tuple[int, bytes]] = {}  # of a file or directory, where it is and what it is called there
    for number, record in enumerate(scan.nodes(), 1):
        if record.kind == DIRECTORY:
            entries = scan.entries(number, record.first, record.second)
            places.update((child, (number, name)) for name, child in entries if child in told)
    found = []
    for size, number in wanted:
        index = tree.node(number).object
        key = key_of(tree.object_key(index)[0]) if index >= 0 else 0
        found.append(LargeFile(_path(places, number), size, key))
    return tuple(found)


def _path(places: dict[int, tuple[int, bytes]], number: int) -> bytes:
    parts: list[bytes] = []
    while number != ROOT and number in places and len(parts) < _DEEPEST:
        number, name = places[number]
        parts.append(name)
    return b"/" + b"/".join(reversed(parts))


class ContentsCache:
    """The contents of trees whose files are there. Thread-safe.

    Args:
        trees: the files.
    """

    def __init__(self, trees: TreeCache) -> None:
        self._trees = trees
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, TreeContents] = OrderedDict()
        self._entries = 0

    def get(self, tree: bytes) -> TreeContents | None:
        """The contents of a tree; None if there is no file of it, or it is damaged. Blocks while it is read."""
        with self._lock:
            found = self._kept.get(tree)
            if found is not None:
                self._kept.move_to_end(tree)
                return found
        opened = self._trees.load(tree)
        if opened is None:
            return None
        try:
            found = read_contents(opened)
        except PagepoolError:
            return None
        self._keep(tree, found)
        return found

    def forget(self, present: Collection[bytes]) -> None:
        """Let go of every tree but these."""
        with self._lock:
            for tree in [tree for tree in self._kept if tree not in present]:
                self._entries -= self._kept.pop(tree).entries

    def _keep(self, tree: bytes, contents: TreeContents) -> None:
        with self._lock:
            if tree not in self._kept:
                self._kept[tree] = contents
                self._entries += contents.entries
            while self._entries > _MOST_ENTRIES and len(self._kept) > 1:
                self._entries -= self._kept.popitem(last=False)[1].entries
