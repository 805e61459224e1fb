"""What changed between two file systems, as a list of paths: the plan of a layer.

Two ways to tell what is the same. Without hints any two file systems are compared, by path and content: everything is
read, but of two images, whose contents have names. With hints (`Touched`) the one is an overlay over the other, whose
inodes keep their numbers: only what was touched is looked at, so that a diff costs what was changed, not what there is.
Then an inode of another number is another file, even with the same content, and a directory that took the place of
another hides it (is *opaque*).

What makes a difference: kind, mode, owner, modification time, extended attributes but those of the host, content,
target, device numbers, and which names are one inode. What does not: access and change times, the count of links in
itself, and the mode of a symlink. Sockets are taken for absent: no layer can hold one.

The list is in the order in which a layer has it: a directory before what is in it, names as bytes. It has a change for
every name of an inode that is to be written, also where only another of its names is new: a layer cannot refer to a
file below it, so that all names have to come together.

Nothing is locked: whoever wants a diff of one moment keeps others from writing meanwhile.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pagepool.image import Kind
from pagepool.overlay.holes import WORTH, next_data
from pagepool.vfs import ROOT, TreeFileSystem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from pagepool.overlay.changes import ChangeView
    from pagepool.overlay.filesystem import OverlayFileSystem
    from pagepool.vfs import Attributes, Entry, FileSystem

HOST_XATTRS: Final = frozenset((b"security.selinux", b"system.nfs4_acl"))
"""Attributes that belong to the machine, not to an image; merging layers leaves them out too."""
_PIECE: Final = 1 << 20


class ChangeKind(enum.Enum):
    """What happened to a name."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"

    @property
    def letter(self) -> str:
        """As ``docker diff`` shows it: A, C or D."""
        return {"added": "A", "modified": "C", "deleted": "D"}[self.value]


class Change(NamedTuple):
    """One name that changed.

    Args:
        kind: what happened.
        path: relative to the root, ``b""`` for the root itself.
        ino: the inode now; of a deleted name the one that it had in the base.
        opaque: a directory that took the place of another one: nothing of that is to show through.
    """

    kind: ChangeKind
    path: bytes
    ino: int
    opaque: bool = False


class Touched(Protocol):
    """What an overlay knows of its own changes."""

    def touched(self) -> Collection[int]:
        """Numbers of the base's inodes of which anything may differ: attributes, content, entries, or names.

        All others are as they were, under the names that they had, but where a directory above them was moved. Those
        that have no name any more may be left out.
        """
        ...

    def has_own_content(self, ino: int) -> bool:
        """Whether the content of a touched regular file may differ from what the base has."""
        ...


class OverlayTouched:
    """What an overlay tells of its changes, as `Touched`.

    Args:
        view: the overlay's `changes()`.
    """

    def __init__(self, view: ChangeView) -> None:
        self._view = view

    def touched(self) -> list[int]:
        """See `Touched`."""
        return [ino for ino in self._view.inodes() if self._view.base_number(ino) is not None]

    def has_own_content(self, ino: int) -> bool:
        """See `Touched`."""
        return self._view.content_changed(ino)


def plan_overlay(overlay: OverlayFileSystem) -> list[Change]:
    """What an overlay changed, as `plan_diff` gives it; it costs what was changed, not what there is."""
    view = overlay.changes()
    return plan_diff(overlay, view.base, OverlayTouched(view))


def plan_diff(now: FileSystem, base: FileSystem, hints: Touched | None = None) -> list[Change]:
    """What changed from one file system to another.

    Args:
        now: the file system as it is.
        base: the one that it is compared with.
        hints: what `now` knows of its changes, if it is an overlay over `base`.

    Returns:
        the changes, in the order of a layer; a deleted directory is one change.

    Raises:
        CorruptError, UnreachableError: content had to be compared and cannot be had.
    """
    comparison = _Comparison(now, base, hints)
    if hints is None:
        return _Walk(comparison, None).run()
    touched = comparison.touched
    dirty = _directories_of(base, touched) if touched else set()
    while dirty:
        walk = _Walk(comparison, dirty)
        changes = walk.run()
        # A moved directory may hold one of several names of a file that was not touched itself.
        missing = walk.incomplete and _directories_of(base, walk.incomplete) - dirty
        if not missing:
            return changes
        dirty |= missing
    return []


class _Comparison:
    """Tells whether two inodes are the same file."""

    def __init__(self, now: FileSystem, base: FileSystem, hints: Touched | None) -> None:
        self.now = now
        self.base = base
        self.hints = hints
        self.touched: frozenset[int] = frozenset(hints.touched()) if hints else frozenset()

    def same(self, ino: int, other: int) -> bool:
        """Whether an inode of `now` is one of `base`, as it was."""
        if self.hints is not None:
            if ino != other:
                return False
            if ino not in self.touched:
                return True
        return self._same_metadata(ino, other) and self._same_content(ino, other)

    def _same_metadata(self, ino: int, other: int) -> bool:
        mine, theirs = self.now.attributes(ino), self.base.attributes(other)
        if _identity(mine) != _identity(theirs):
            return False
        if mine.kind is Kind.SYMLINK and self.now.readlink(ino) != self.base.readlink(other):
            return False
        return image_xattrs(self.now, ino) == image_xattrs(self.base, other)

    def _same_content(self, ino: int, other: int) -> bool:
        attributes = self.now.attributes(ino)
        if attributes.kind is not Kind.REGULAR:
            return True
        if self.hints is not None and not self.hints.has_own_content(ino):
            return True
        if isinstance(self.now, TreeFileSystem) and isinstance(self.base, TreeFileSystem):
            return _object_of(self.now, ino) == _object_of(self.base, other)
        offset, size = 0, attributes.size
        while offset < size:
            if size >= WORTH:  # what is a hole in both is the same
                ahead = (next_data(self.now, ino, offset, size), next_data(self.base, other, offset, size))
                offset = min(ahead)
                if offset >= size:
                    break
            if bytes(self.now.read(ino, offset, _PIECE)) != bytes(self.base.read(other, offset, _PIECE)):
                return False
            offset += _PIECE
        return True


class _Step(NamedTuple):
    """A directory to walk: its path, and its numbers; 0 where the base has none there.

    Args:
        fresh: nothing of the base shows through here: all of it is to be written.
    """

    path: bytes
    ino: int
    other: int
    fresh: bool


class _Walk:
    """One walk through both file systems at once.

    Args:
        dirty: the base's directories to go into; None for all.
    """

    def __init__(self, comparison: _Comparison, dirty: Collection[int] | None) -> None:
        self._comparison = comparison
        self._now, self._base = comparison.now, comparison.base
        self._dirty = dirty
        self._changes: list[Change] = []
        # Of inodes with several names: each with the number that the base has there, and where in the changes it is.
        self._links: dict[int, list[tuple[int, int]]] = {}
        self._pending: set[int] = set()
        self._claims: dict[int, int] = {}
        self.incomplete: set[int] = set()
        """Inodes that are to be written, of which the walk did not come by all names."""

    def run(self) -> list[Change]:
        """The changes."""
        if not self._comparison.same(ROOT, ROOT):
            self._add(ChangeKind.MODIFIED, b"", ROOT)
        stack: list[Iterator[_Step]] = [iter([_Step(b"", ROOT, ROOT, False)])]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
            else:
                stack.append(self._directory(step))
        same = {ino for ino in self._links if self._is_same_group(ino)}
        return [c for at, c in enumerate(self._changes) if at not in self._pending or c.ino not in same]

    def _directory(self, step: _Step) -> Iterator[_Step]:
        """Note what changed in a directory, in order; yields the directories in it as they come up."""
        prefix = step.path + b"/" if step.path else b""
        mine = (entry for entry in self._now.entries(step.ino) if entry.kind is not Kind.SOCKET)
        theirs = self._base.entries(step.other) if step.other else ()
        for name, entry, other in _join(mine, theirs):
            path = prefix + name
            if entry is None:
                assert other is not None
                self._add(ChangeKind.DELETED, path, other.ino)
            elif entry.kind is Kind.DIRECTORY:
                if (below := self._subdirectory(path, entry, other, step.fresh)) is not None:
                    yield below
            else:
                self._file(path, entry, other, step.fresh)

    def _subdirectory(self, path: bytes, entry: Entry, other: Entry | None, fresh: bool) -> _Step | None:
        """Note what happened to a directory itself; returns how to walk it, or None if nothing in it changed."""
        if other is None or other.kind is not Kind.DIRECTORY:
            self._add(ChangeKind.ADDED if other is None else ChangeKind.MODIFIED, path, entry.ino)
            return _Step(path, entry.ino, 0, True)
        if fresh:
            self._add(ChangeKind.MODIFIED, path, entry.ino)
            return _Step(path, entry.ino, other.ino, True)
        if self._dirty is not None:
            if entry.ino != other.ino:
                hides = any(True for _ in self._base.entries(other.ino))
                self._add(ChangeKind.MODIFIED, path, entry.ino, opaque=hides)
                return _Step(path, entry.ino, other.ino, True)
            if entry.ino not in self._dirty:
                return None
        if not self._comparison.same(entry.ino, other.ino):
            self._add(ChangeKind.MODIFIED, path, entry.ino)
        return _Step(path, entry.ino, other.ino, False)

    def _file(self, path: bytes, entry: Entry, other: Entry | None, fresh: bool) -> None:
        counterpart = 0 if other is None or fresh or other.kind is not entry.kind else other.ino
        kind = ChangeKind.ADDED if other is None else ChangeKind.MODIFIED
        if self._now.attributes(entry.ino).nlink > 1:
            self._links.setdefault(entry.ino, []).append((counterpart, len(self._changes)))
            self._pending.add(len(self._changes))
            self._add(kind, path, entry.ino)
        elif not counterpart or not self._is_claimed(entry.ino, counterpart):
            self._add(kind, path, entry.ino)

    def _is_claimed(self, ino: int, other: int) -> bool:
        """Whether an inode is that one of the base; no two can be."""
        if self._claims.get(other, ino) != ino or not self._comparison.same(ino, other):
            return False
        self._claims[other] = ino
        return True

    def _is_same_group(self, ino: int) -> bool:
        """Whether all names of an inode are names of one inode in the base, which is the same file."""
        found = self._links[ino]
        counterparts = {other for other, _ in found}
        if len(counterparts) == 1 and 0 not in counterparts and self._is_claimed(ino, counterparts.pop()):
            return True
        if self._dirty is not None and len(found) < self._now.attributes(ino).nlink:
            self.incomplete.add(ino)
        return False

    def _add(self, kind: ChangeKind, path: bytes, ino: int, *, opaque: bool = False) -> None:
        self._changes.append(Change(kind, path, ino, opaque))


def image_xattrs(system: FileSystem, ino: int) -> dict[bytes, bytes]:
    """The extended attributes of an inode that belong into a layer."""
    return {name: value for name, value in system.xattrs(ino).items() if name not in HOST_XATTRS}


def _object_of(system: TreeFileSystem, ino: int) -> bytes:
    """The name of a regular file's content in an image; b"" if it is empty."""
    index = system.node(ino).object
    return b"" if index < 0 else system.tree.object(index).digest


def _identity(attributes: Attributes) -> tuple[object, ...]:
    """What of an inode's attributes makes a difference."""
    kind = attributes.kind
    return (
        kind,
        0 if kind is Kind.SYMLINK else attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.mtime_ns,
        attributes.size if kind is Kind.REGULAR else 0,
        (attributes.devmajor, attributes.devminor) if kind in (Kind.CHAR, Kind.BLOCK) else (),
    )


def _join(mine: Iterable[Entry], theirs: Iterable[Entry]) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """The entries of two directories side by side, by name."""
    tagged = heapq.merge(
        ((entry.name, 0, entry) for entry in mine), ((entry.name, 1, entry) for entry in theirs), key=lambda t: t[:2]
    )
    for name, group in itertools.groupby(tagged, key=lambda item: item[0]):
        sides: list[Entry | None] = [None, None]
        for _, side, entry in group:
            sides[side] = entry
        yield name, sides[0], sides[1]


def _directories_of(base: FileSystem, inodes: Collection[int]) -> set[int]:
    """The base's directories that are among these inodes or have a name of one of them, and all above those."""
    kinds = {ino: base.attributes(ino).kind for ino in inodes}
    found = {ino for ino, kind in kinds.items() if kind is Kind.DIRECTORY}
    files = kinds.keys() - found
    if files:
        found |= _holders(base, files)
    todo = list(found)
    while todo:
        parent = base.parent(todo.pop())
        if parent not in found:
            found.add(parent)
            todo.append(parent)
    return found


def _holders(base: FileSystem, files: Collection[int]) -> set[int]:
    """The base's directories that have a name of one of these files: looked for until all names are found."""
    left = sum(base.attributes(ino).nlink for ino in files)
    found = set()
    stack = [ROOT]
    while stack and left:
        directory = stack.pop()
        for _, ino, kind in base.entries(directory):
            if kind is Kind.DIRECTORY:
                stack.append(ino)
            elif ino in files:
                found.add(directory)
                left -= 1
    return found
