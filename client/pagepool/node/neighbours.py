"""Where the objects of a tree are in it: which file lies beside another, and what a path leads to.

`Neighbours` decides which small files come along with one that a starting container was missing: files of the same
directory and of the same kind, by the ending of their names, those that follow it first; more with every further miss
there. Programs that load modules miss many files of few directories, in no order; each miss that waits costs a round
trip, in which the link has nothing else to do.

Then those of the same name below and beside it, with what lies beside those if that is little: a package is a directory
with a file of a name that all packages have (`__init__.py`, `package.json`), and who loads one loads others that are in
it or lie beside it.

Pure. Goes through the tree's records once, about a microsecond each. Not exact between threads, which costs a fetch at
most.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.image.member import Kind
from pagepool.image.treefile import ENTRY, HEADER, NODE, ROOT
from pagepool.image.treescan import DIRECTORY, REGULAR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pagepool.image.treefile import TreeFile

LARGEST: Final = 512 << 10
"""Bytes of a file that comes along, or that others come along with."""
FIRST: Final = (16, 512 << 10)
"""Files, and their bytes, that come along with the first one of a directory that is missed; twice as many with the
next, and so on."""
MOST: Final = (64, 1 << 20)
PACKAGES: Final = (256, 1 << 20)
"""Files, and their bytes, that come along because one of the same name was missed elsewhere."""
SMALL: Final = 128 << 10
"""Bytes of all files of that kind in a directory that come along with one of them."""
_HOLDERS: Final = frozenset({b"__pycache__"})
"""Directories that hold what belongs to the one that they are in."""
_MOST_DIRECTORIES: Final = 512
"""That are looked into for a name."""
_MOST_LINKS: Final = 40
_MOST_STEPS: Final = 512


class _File(NamedTuple):
    object: int
    size: int
    ending: bytes


class TreeMap:
    """The way from an object to its place in a tree.

    Args:
        tree: has to stay open.
    """

    def __init__(self, tree: TreeFile) -> None:
        self._tree = tree
        self._nodes: dict[int, int] = {}  # object -> the first node that has it
        self._directories: list[int] = []
        self._firsts: list[int] = []  # of those, the first entries: ascending
        records = NODE.iter_unpack(tree.raw[HEADER.size : HEADER.size + tree.node_count * NODE.size])
        for number, record in enumerate(records, 1):
            if record[0] == REGULAR and record[9]:
                self._nodes.setdefault(record[9] - 1, number)
            elif record[0] == DIRECTORY and record[10]:
                self._directories.append(number)
                self._firsts.append(record[9])

    @cached_property
    def _places(self) -> dict[int, int]:
        """Of every node an entry that names it."""
        raw = self._tree.raw
        start = HEADER.size + self._tree.node_count * NODE.size
        end = start + HEADER.unpack_from(raw)[3] * ENTRY.size
        return {node: place for place, (_, node, _) in enumerate(ENTRY.iter_unpack(raw[start:end]))}

    def place(self, index: int) -> tuple[int, int]:
        """The directory that an object is in, and its node there; the first of several. Zeros if it is in none."""
        node = self._nodes.get(index, 0)
        place = self._places.get(node, -1)
        at = bisect_right(self._firsts, place) - 1
        return (self._directories[at], node) if node and at >= 0 else (0, 0)

    def name(self, node: int) -> bytes:
        """Under which name a node is where `place` says; b"" for the root."""
        place = self._places.get(node, -1)
        return self._tree.entry_name(place) if place >= 0 else b""

    def find(self, path: bytes, directory: int = ROOT) -> tuple[int, int]:
        """Follow a path, and the symlinks on it, as a process whose root is the tree's would.

        Args:
            directory: where a path begins that does not begin with a slash.

        Returns:
            the directory that it ends in, and the node there; zeros if there is none.
        """
        left = self._split(path)
        above, at, links, steps = 0, ROOT if path.startswith(b"/") else directory, 0, 0
        while left:
            name = left.pop()
            steps += 1
            if steps > _MOST_STEPS:
                return 0, 0
            if name == b"..":
                at = self._tree.parent(at) if self._tree.kind(at) is Kind.DIRECTORY else 0
                above = self._tree.parent(at) if at else 0
            else:
                above, at = at, self._tree.child(at, name)
            if not at:
                return 0, 0
            if self._tree.kind(at) is Kind.SYMLINK:
                links += 1
                target = self._tree.node(at).target
                if links > _MOST_LINKS:
                    return 0, 0
                left += self._split(target)
                at = ROOT if target.startswith(b"/") else above
        return above, at

    def object(self, node: int) -> int:
        """The object of a regular file; -1 if it has none, or is something else."""
        return self._tree.node(node).object if node else -1

    def subdirectories(self, path: bytes) -> list[bytes]:
        """The names of the directories in one."""
        _, node = self.find(path)
        entries = self._tree.entries(node) if node else ()
        return [name for name, one in entries if self._tree.kind(one) is Kind.DIRECTORY]

    @staticmethod
    def _split(path: bytes) -> list[bytes]:
        """The names on a path, the last one first."""
        return [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]


class Neighbours:
    """Which objects come along with one that was missed.

    Args:
        tree: has to stay open.
        places: of its objects.
    """

    def __init__(self, tree: TreeFile, places: TreeMap) -> None:
        self._tree = tree
        self._places = places
        self._listed: dict[int, list[_File]] = {}
        self._budgets: dict[int, tuple[int, int]] = {}

    def next(self, index: int) -> list[int]:
        """The objects to ask for beside one that is missing, most likely first; those that are here already, too."""
        if self._tree.object_key(index)[1] > LARGEST:
            return []
        directory, node = self._places.place(index)
        files = self._list(directory) if directory else []
        at = next((number for number, file in enumerate(files) if file.object == index), -1)
        if at < 0:
            return []
        most, left = self._budgets.get(directory, FIRST)
        self._budgets[directory] = min(2 * most, MOST[0]), min(2 * left, MOST[1])
        ordered = (*files[at + 1 :], *reversed(files[:at]))
        alike = (file for file in ordered if file.ending == files[at].ending and file.size <= LARGEST)
        found = [*_take(alike, most, left), *_take(self._namesakes(directory, node), *PACKAGES)]
        return [one for one in dict.fromkeys(found) if one != index]

    def _namesakes(self, directory: int, node: int) -> Iterator[_File]:
        """The files of the same name below the directory that a file belongs to, then in those beside that."""
        tree = self._tree
        path = [self._places.name(node)]
        ending = path[0].rpartition(b".")[2]
        above, holder = tree.parent(directory), self._places.name(directory)
        if holder in _HOLDERS:
            path.insert(0, holder)
            directory, above = above, tree.parent(above)
        below = (one for _, one in tree.entries(directory))
        beside = (one for _, one in tree.entries(above))
        for start in islice((one for one in chain(below, beside) if one != directory), _MOST_DIRECTORIES):
            where, at = 0, start
            for name in path:
                where, at = at, tree.child(at, name) if at and tree.kind(at) is Kind.DIRECTORY else 0
            if at and (found := tree.node(at)).kind is Kind.REGULAR and found.object >= 0:
                first = _File(found.object, found.size, ending)
                files = [file for file in self._list(where) if file.ending == ending and file.object != first.object]
                yield first
                yield from files if first.size + sum(file.size for file in files) <= SMALL else ()

    def _list(self, directory: int) -> list[_File]:
        if directory not in self._listed:
            self._listed[directory] = [
                _File(node.object, node.size, name.rpartition(b".")[2])
                for name, number in self._tree.entries(directory)
                if (node := self._tree.node(number)).kind is Kind.REGULAR and node.object >= 0
            ]
        return self._listed[directory]


def _take(files: Iterable[_File], most: int, left: int) -> Iterator[int]:
    """Their objects, as long as they are not too many or too large together."""
    for file in islice(files, most):
        left -= file.size
        if left < 0:
            return
        yield file.object
