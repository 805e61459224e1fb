"""The state machine of an overlay: its changed inodes, and what each record does to them.

Pure and deterministic: no file, no clock; times and numbers come with the call, and the image never changes. An
operation calls the method with what it has written to the journal, and a replay with what it read there, so both reach
the same state. The methods check nothing (the operation has) and fail only where a journal contradicts itself.

Inodes 1 to `base_inodes` are the image's. One that was changed has a `Node` here, which stands before the
image's; one that lost its last name and holder is in `gone`. New inodes have higher numbers, never used twice.
A directory's `entries` are what differs from the image's directory of that number: a number, or 0 for an entry that
was removed. So moving a directory moves one entry. Not thread-safe.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind
from pagepool.overlay.blockmap import HOLE
from pagepool.overlay.node import Node
from pagepool.overlay.records import KILL
from pagepool.vfs.interface import RENAME_EXCHANGE, Attributes, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pagepool.overlay.records import Piece, Setting
    from pagepool.overlay.slots import Run
    from pagepool.vfs.interface import FileSystem

CAPABILITY: Final = b"security.capability"
_MOST_NS: Final = (1 << 63) - 1


class State:
    """All that differs from the image.

    Args:
        base: the image.
        base_inodes: how many inodes it has.
        free: told of slots that nothing refers to any more.
    """

    def __init__(self, base: FileSystem, base_inodes: int, free: Callable[[Sequence[Run]], None]) -> None:
        self.base = base
        self.base_inodes = base_inodes
        self.free = free
        self.next_ino = base_inodes + 1
        self.nodes: dict[int, Node] = {}
        self.gone: set[int] = set()
        self.orphans: set[int] = set()
        """Inodes that have no name and are held."""
        self.linkable: set[int] = set()
        """Those of them that never had one, and may get one."""

    # -- questions ---------------------------------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        """An inode; where it was not changed, a copy of the image's that belongs to nobody. ESTALE if there is none."""
        return self.nodes.get(ino) or self._from_base(ino)

    def child(self, directory: Node, name: bytes) -> int:
        """The number of an entry's inode; 0 if there is none."""
        found = directory.entries.get(name)
        if found is not None:
            return found
        if not directory.based:
            return 0
        try:
            return self.base.lookup(directory.ino, name)
        except FileNotFoundError:
            return 0

    def kind(self, ino: int) -> Kind:
        """What an inode is."""
        node = self.nodes.get(ino)
        return self.base.attributes(ino).kind if node is None else node.kind

    def parent(self, directory: int) -> int:
        """Where a directory is."""
        node = self.nodes.get(directory)
        return self.base.parent(directory) if node is None else node.parent

    def is_empty(self, directory: Node) -> bool:
        """Whether a directory has no entries."""
        entries = directory.entries
        if any(entries.values()):
            return False
        return not directory.based or all(entry.name in entries for entry in self.base.entries(directory.ino))

    def is_within(self, directory: int, above: int) -> bool:
        """Whether a directory is another one, or below it."""
        while directory != above:
            up = self.parent(directory)
            if up == directory:
                return False
            directory = up
        return True

    # -- what records do ---------------------------------------------------------------------------------------

    def open(self, time_ns: int) -> None:  # noqa: ARG002 (for people who read journals)
        """The overlay is opened: nobody holds anything."""
        for ino in list(self.orphans):
            self.forget(ino)

    def sync(self, durable: int) -> None:
        """Nothing changes."""

    def create(
        self,
        time_ns: int,
        parent: int,
        ino: int,
        kind: Kind,
        mode: int,
        uid: int,
        gid: int,
        device: tuple[int, int],
        name: bytes,
        target: bytes,
    ) -> None:
        """An inode with its first name."""
        is_directory = kind is Kind.DIRECTORY
        fields = (ino, kind, mode, uid, gid, len(target), 2 if is_directory else 1, time_ns, time_ns, time_ns)
        self.nodes[ino] = Node(
            Attributes(*fields, *device), based=False, parent=parent if is_directory else 0, target=target
        )
        self.next_ino = ino + 1
        directory = self._own(parent)
        directory.entries[name] = ino
        directory.nlink += is_directory
        directory.mtime_ns = directory.ctime_ns = time_ns

    def link(self, time_ns: int, ino: int, parent: int, name: bytes) -> None:
        """A further name."""
        node, directory = self._own(ino), self._own(parent)
        self.orphans.discard(ino)
        self.linkable.discard(ino)
        node.nlink += 1
        node.ctime_ns = time_ns
        directory.entries[name] = ino
        directory.mtime_ns = directory.ctime_ns = time_ns

    def remove(self, time_ns: int, parent: int, name: bytes, held: int) -> None:
        """A name less."""
        directory = self._own(parent)
        node = self._own(self.child(directory, name))
        self._unset(directory, name)
        directory.nlink -= node.kind is Kind.DIRECTORY
        directory.mtime_ns = directory.ctime_ns = time_ns
        self._lose_name(node, time_ns, held)

    def rename(
        self, time_ns: int, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, held: int
    ) -> None:
        """An entry moved, or two exchanged."""
        old, new = self._own(parent), self._own(new_parent)
        node = self._own(self.child(old, name))
        number = self.child(new, new_name)
        other = self._own(number) if number else None
        self._move(node, old, new)
        if flags == RENAME_EXCHANGE and other is not None:
            self._move(other, new, old)
            old.entries[name] = other.ino
            other.ctime_ns = time_ns
        else:
            self._unset(old, name)
            if other is not None:
                new.nlink -= other.kind is Kind.DIRECTORY
                self._lose_name(other, time_ns, held)
        new.entries[new_name] = node.ino
        node.ctime_ns = time_ns
        old.mtime_ns = old.ctime_ns = new.mtime_ns = new.ctime_ns = time_ns

    def whiteout(
        self,
        time_ns: int,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        held: int,
        ino: int,
        uid: int,
        gid: int,
    ) -> None:
        """An entry moved, and a device 0:0 left in its place."""
        self.rename(time_ns, parent, name, new_parent, new_name, flags, held)
        self.create(time_ns, parent, ino, Kind.CHAR, 0, uid, gid, (0, 0), name, b"")

    def unnamed(self, time_ns: int, ino: int, mode: int, uid: int, gid: int, linkable: int) -> None:
        """A regular file without a name, which is held."""
        shown = Attributes(ino, Kind.REGULAR, mode, uid, gid, 0, 0, time_ns, time_ns, time_ns)
        self.nodes[ino] = Node(shown, based=False, parent=0, target=b"")
        self.next_ino = ino + 1
        self.orphans.add(ino)
        if linkable:
            self.linkable.add(ino)

    def set(
        self,
        time_ns: int,
        ino: int,
        setting: Setting,
        flags: int,
        pieces: Sequence[Piece],
        crcs: Sequence[int],  # noqa: ARG002 (for recovery)
    ) -> None:
        """Attributes changed."""
        node = self._own(ino)
        mode, uid, gid, size, atime_ns, mtime_ns = setting
        if size is not None:
            if size < node.size:
                node.version += 1  # before slots are free: a free one may lose its bytes at once
                self.free(node.blocks.truncate(size))
            self._put(node, pieces)
            node.size = size
            node.mtime_ns = time_ns
        node.mode = node.mode if mode is None else mode
        node.uid = node.uid if uid is None else uid
        node.gid = node.gid if gid is None else gid
        node.atime_ns = node.atime_ns if atime_ns is None else atime_ns
        node.mtime_ns = node.mtime_ns if mtime_ns is None else mtime_ns
        node.ctime_ns = time_ns
        if flags & KILL:
            self._kill_privileges(node)

    def content(
        self,
        time_ns: int,
        ino: int,
        size: int,
        flags: int,
        dropped: tuple[int, int],
        pieces: Sequence[Piece],
        crcs: Sequence[int],  # noqa: ARG002 (for recovery)
    ) -> None:
        """A file's blocks changed."""
        node = self._own(ino)
        if dropped[0] < dropped[1]:
            node.version += 1
            self.free(node.blocks.drop(*dropped))
        self._put(node, pieces)
        node.size = size
        node.mtime_ns = node.ctime_ns = time_ns
        if flags & KILL:
            self._kill_privileges(node)

    def xattr(self, time_ns: int, ino: int, name: bytes, value: bytes) -> None:
        """An extended attribute set."""
        node = self._own(ino)
        node.xattrs = {**self.xattrs(node), name: value}
        node.ctime_ns = time_ns

    def no_xattr(self, time_ns: int, ino: int, name: bytes) -> None:
        """An extended attribute removed."""
        node = self._own(ino)
        node.xattrs = {key: value for key, value in self.xattrs(node).items() if key != name}
        node.ctime_ns = time_ns

    def forget(self, ino: int) -> None:
        """Nobody holds an inode without names any more."""
        self.orphans.remove(ino)
        self.linkable.discard(ino)
        self._drop(self.nodes[ino])

    # -- snapshots ---------------------------------------------------------------------------------------------

    def load_numbers(self, next_ino: int) -> None:
        """The number of the next inode."""
        self.next_ino = next_ino

    def load_node(
        self,
        ino: int,
        kind: Kind,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        nlink: int,
        times: tuple[int, int, int],
        device: tuple[int, int],
        parent: int,
        base_end: int,
        target: bytes,
    ) -> None:
        """An inode. Without the next records it has the image's xattrs, entries and blocks."""
        attributes = Attributes(ino, kind, mode, uid, gid, size, nlink, *times, *device)
        node = self.nodes[ino] = Node(attributes, based=ino <= self.base_inodes, parent=parent, target=target)
        if kind is Kind.REGULAR:
            node.blocks.base_end = base_end
        if not nlink:
            self.orphans.add(ino)

    def load_xattrs(self, ino: int, xattrs: Mapping[bytes, bytes]) -> None:
        """The extended attributes of an inode."""
        self.nodes[ino].xattrs = xattrs

    def load_entries(self, ino: int, entries: Mapping[bytes, int]) -> None:
        """Entries of a directory."""
        self.nodes[ino].entries.update(entries)

    def load_blocks(self, ino: int, runs: Sequence[tuple[int, int, int]]) -> None:
        """Blocks of a file."""
        table = self.nodes[ino].blocks
        for block, count, value in runs:
            if value == HOLE:
                table.drop(block, block + count)
            else:
                table.put(block, value - 1, count)

    def load_gone(self, numbers: Sequence[int]) -> None:
        """Inodes of the image that are gone."""
        self.gone.update(numbers)

    # -- helpers -----------------------------------------------------------------------------------------------

    def xattrs(self, node: Node) -> Mapping[bytes, bytes]:
        """The extended attributes of a node."""
        return self.base.xattrs(node.ino) if node.xattrs is None else node.xattrs

    def _from_base(self, ino: int) -> Node:
        if not 0 < ino <= self.base_inodes or ino in self.gone:
            fail(errno.ESTALE, ino)
        found = self.base.attributes(ino)
        # Records have 64 bits of nanoseconds: a file of a later century is as old as they can say, once it is changed.
        atime_ns, mtime_ns, ctime_ns = (max(-_MOST_NS, min(time_ns, _MOST_NS)) for time_ns in found[7:10])
        found = found._replace(atime_ns=atime_ns, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
        parent = self.base.parent(ino) if found.kind is Kind.DIRECTORY else 0
        target = self.base.readlink(ino) if found.kind is Kind.SYMLINK else b""
        return Node(found, based=True, parent=parent, target=target)

    def _own(self, ino: int) -> Node:
        node = self.nodes.get(ino)
        if node is None:
            node = self.nodes[ino] = self._from_base(ino)
        return node

    def _unset(self, directory: Node, name: bytes) -> None:
        """Take an entry away, whosever it is."""
        directory.entries.pop(name, None)
        if directory.based and self.child(directory, name):
            directory.entries[name] = 0

    def _move(self, node: Node, old: Node, new: Node) -> None:
        """A directory changes its parent; for anything else there is nothing to note."""
        if node.kind is Kind.DIRECTORY:
            old.nlink -= 1
            new.nlink += 1
            node.parent = new.ino

    def _lose_name(self, node: Node, time_ns: int, held: int) -> None:
        node.nlink = 0 if node.kind is Kind.DIRECTORY else node.nlink - 1
        node.ctime_ns = time_ns
        if not node.nlink:
            if held:
                self.orphans.add(node.ino)
            else:
                self._drop(node)

    def _drop(self, node: Node) -> None:
        if node.kind is Kind.REGULAR and node.blocks.private:
            node.version += 1
            self.free(node.blocks.slots())
        del self.nodes[node.ino]
        if node.based:
            self.gone.add(node.ino)

    def _put(self, node: Node, pieces: Sequence[Piece]) -> None:
        node.version += 1
        for block, slot, count in pieces:
            freed = node.blocks.put(block, slot, count)
            if freed:
                self.free(freed)

    def _kill_privileges(self, node: Node) -> None:
        node.mode &= ~stat.S_ISUID
        if node.mode & stat.S_IXGRP:
            node.mode &= ~stat.S_ISGID
        if CAPABILITY in (xattrs := self.xattrs(node)):
            node.xattrs = {key: value for key, value in xattrs.items() if key != CAPABILITY}
