"""A private, copy-on-write file system over an image, durable in a directory of its own.

Owns the operations: what Linux allows and refuses, and what each of them changes. They check, write blocks, and commit
one record (`storage`); the state machine (`state`) does what the record says. Reading is in `reading`, the bytes of
blocks in `content`, the directory's layout and what a crash leaves in `storage`.

Two overlays of one image share the image and nothing else. A directory is open once at a time.
"""

from __future__ import annotations

import errno
import stat
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from pagepool.image.member import MAX_NAME, NO_XATTRS, Kind
from pagepool.overlay.changes import ChangeView
from pagepool.overlay.content import (
    NO_BLOCKS,
    Change,
    Fetched,
    NeedsBase,
    cut_block,
    write_blocks,
    zero_blocks,
)
from pagepool.overlay.limits import (
    MAX_LINKS,
    MAX_XATTR_VALUE,
    check_end,
    check_name,
    check_target,
    check_xattr,
    check_xattr_kind,
)
from pagepool.overlay.reading import OverlayReader, check_regular
from pagepool.overlay.records import (
    HELD,
    KILL,
    Setting,
    encode_content,
    encode_create,
    encode_link,
    encode_no_xattr,
    encode_remove,
    encode_rename,
    encode_set,
    encode_unnamed,
    encode_whiteout,
    encode_xattr,
)
from pagepool.overlay.state import CAPABILITY
from pagepool.overlay.storage import open_storage
from pagepool.vfs.interface import (
    PAGE_SIZE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    XATTR_CREATE,
    XATTR_REPLACE,
    Changes,
    fail,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from typing_extensions import Buffer

    from pagepool.overlay.node import Node
    from pagepool.overlay.storage import Storage
    from pagepool.vfs.interface import FileSystem

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2 | _KEEP_SIZE
_ZERO_RANGE: Final = 16
_NO_CHANGES: Final = Changes()
_NO_DROP: Final = (0, 0)


class OverlayFileSystem(OverlayReader):
    """An overlay; implements `WritableFileSystem`. Made by `open`."""

    def __init__(self, storage: Storage, base: FileSystem, clock: Callable[[], int]) -> None:
        super().__init__(storage, base)
        self._clock = clock

    @classmethod
    def open(
        cls,
        directory: Path,
        base: FileSystem,
        *,
        tree: bytes,
        info: Mapping[str, object] | None = None,
        clock: Callable[[], int] = time.time_ns,
        boot: bytes | None = None,
    ) -> OverlayFileSystem:
        """Open an overlay; make it if the directory is empty or not there.

        Args:
            directory: its own; on a file system with flock and, for large holes, fallocate.
            base: the image. Closed by the caller, after the overlay: several overlays may share it.
            tree: digest of the image's tree.
            info: what `read_info` is to show, JSON values by name; kept when the overlay is made, ignored later.
            clock: nanoseconds since 1970.
            boot: 16 bytes that name the machine's boot, the kernel's own by default.

        Raises:
            BusyError: it is open already.
            InvalidError: it lies over another tree, or the directory holds something else.
            CorruptError: its files are damaged.
            StoreFormatError: it was written by a version that this one does not know.
            OSError: the directory cannot be used.
        """
        return cls(open_storage(directory, base, tree, info, clock(), boot), base, clock)

    # -- names -------------------------------------------------------------------------------------------------

    def create(
        self,
        parent: int,
        name: bytes,
        kind: Kind,
        mode: int,
        uid: int,
        gid: int,
        *,
        target: bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[bytes, bytes] = NO_XATTRS,
    ) -> int:
        """See `WritableFileSystem`."""
        target = check_target(target) if kind is Kind.SYMLINK else b""
        device = device if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0)
        if kind is Kind.HARDLINK:
            fail(errno.EINVAL, name)
        with self._lock:
            directory = self._new_entry(parent, name)
            mode &= 0o7777
            if directory.mode & stat.S_ISGID:
                gid = directory.gid
                mode |= stat.S_ISGID if kind is Kind.DIRECTORY else 0
            ino = self._state.next_ino
            arguments = (self._clock(), parent, ino, kind, mode, uid, gid, device, name, target)
            try:
                body = encode_create(*arguments)
            except struct.error:
                fail(errno.EINVAL, name)
            more = [self._xattr_of(ino, key, value) for key, value in xattrs.items()]
            self._storage.commit(body, self._state.create, arguments, *more)
        self._tend()
        return ino

    def create_unnamed(self, parent: int, mode: int, uid: int, gid: int, *, linkable: bool = True) -> int:
        """See `WritableFileSystem`."""
        self._storage.renew()
        with self._lock:
            directory = self._directory(parent)
            if not directory.nlink:
                fail(errno.ENOENT, parent)
            gid = directory.gid if directory.mode & stat.S_ISGID else gid
            ino = self._state.next_ino
            arguments = (self._clock(), ino, mode & 0o7777, uid, gid, int(linkable))
            try:
                body = encode_unnamed(*arguments)
            except struct.error:
                fail(errno.EINVAL, parent)
            self._storage.commit(body, self._state.unnamed, arguments)
            self._holds[ino] = 1
        self._tend()
        return ino

    def link(self, ino: int, parent: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        with self._lock:
            self._new_entry(parent, name)
            node = self._state.node(ino)
            if node.kind is Kind.DIRECTORY:
                fail(errno.EPERM, ino)
            if not node.nlink and ino not in self._state.linkable:
                fail(errno.ENOENT, ino)
            if node.nlink >= MAX_LINKS:
                fail(errno.EMLINK, ino)
            arguments = (self._clock(), ino, parent, name)
            self._storage.commit(encode_link(*arguments), self._state.link, arguments)
        self._tend()

    def unlink(self, parent: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        self._remove(parent, name, is_directory=False)

    def rmdir(self, parent: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        self._remove(parent, name, is_directory=True)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        *,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        """See `WritableFileSystem`."""
        whiteout, flags = flags & RENAME_WHITEOUT, flags & ~RENAME_WHITEOUT
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE) or (whiteout and flags == RENAME_EXCHANGE):
            fail(errno.EINVAL, name)
        if whiteout:
            self._storage.renew()
        with self._lock:
            state = self._state
            old, new = self._directory(parent), self._directory(new_parent)
            ino = self._entry(old, name)
            check_name(new_name)
            other = state.child(new, new_name)
            if other and flags == RENAME_NOREPLACE:
                fail(errno.EEXIST, new_name)
            if not new.nlink or (not other and flags == RENAME_EXCHANGE):
                fail(errno.ENOENT, new_name)
            self._check_loops(ino, other, parent, new_parent, flags)
            if ino == other:
                return
            if other and flags != RENAME_EXCHANGE:
                self._check_replace(ino, other, new_name)
            held = HELD if other in self._holds else 0
            arguments = (self._clock(), parent, name, new_parent, new_name, flags, held)
            if whiteout:
                self._commit_whiteout(old, arguments, owner)
            else:
                self._storage.commit(encode_rename(*arguments), state.rename, arguments)
        self._tend()

    # -- attributes --------------------------------------------------------------------------------------------

    def set_attributes(self, ino: int, changes: Changes) -> None:
        """See `WritableFileSystem`."""
        mode, uid, gid, size, atime_ns, mtime_ns, kill = changes
        with self._lock:
            node = self._state.node(ino)
            flags = self._kill_flag(node, mode) if kill else 0
            if changes._replace(kill_privileges=False) == _NO_CHANGES and not flags:
                return
            blocks = NO_BLOCKS
            if size is not None:
                check_regular(node)
                check_end(ino, 0, size)
            setting = Setting(None if mode is None else mode & 0o7777, uid, gid, size, atime_ns, mtime_ns)
            try:
                encode_set(0, ino, setting, flags, (), ())
            except struct.error:
                fail(errno.EINVAL, ino)
            if size is not None:
                blocks = cut_block(self._storage.arena, node, size)
            arguments = (self._clock(), ino, setting, flags, blocks.pieces, blocks.crcs)
            self._storage.commit_blocks(blocks.runs, encode_set(*arguments), self._state.set, arguments)
        self._tend()

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """See `WritableFileSystem`."""
        if not 0 < len(name) <= MAX_NAME:
            fail(errno.ERANGE, name)
        if len(value) > MAX_XATTR_VALUE:
            fail(errno.E2BIG, name)
        if flags not in (0, XATTR_CREATE, XATTR_REPLACE):
            fail(errno.EINVAL, name)
        with self._lock:
            node = self._state.node(ino)
            check_xattr_kind(node.kind, name)
            check_xattr(self._state.xattrs(node), name, value, flags)
            arguments = (self._clock(), ino, name, bytes(value))
            self._storage.commit(encode_xattr(*arguments), self._state.xattr, arguments)
        self._tend()

    def remove_xattr(self, ino: int, name: bytes) -> None:
        """See `WritableFileSystem`."""
        with self._lock:
            node = self._state.node(ino)
            check_xattr_kind(node.kind, name)
            if name not in self._state.xattrs(node):
                fail(errno.ENODATA, name)
            arguments = (self._clock(), ino, name)
            self._storage.commit(encode_no_xattr(*arguments), self._state.no_xattr, arguments)
        self._tend()

    # -- content -----------------------------------------------------------------------------------------------

    def write(self, ino: int, offset: int, data: Buffer, *, kill_privileges: bool = False) -> int:
        """See `WritableFileSystem`."""
        view = _flat(data)
        end = check_end(ino, offset, len(view))

        def change(node: Node, fetched: Fetched) -> None:
            if offset == end:
                return
            flags = self._kill_flag(node) if kill_privileges else 0
            blocks = write_blocks(self._storage.arena, node, offset, view, fetched)
            self._commit_content(node, max(node.size, end), flags, _NO_DROP, blocks)

        self._change_content(ino, change)
        return end - offset

    def append(self, ino: int, data: Buffer) -> int:
        """See `WritableFileSystem`."""
        view = _flat(data)
        end = 0

        def change(node: Node, fetched: Fetched) -> None:
            nonlocal end
            end = check_end(ino, node.size, len(view))
            if len(view):
                blocks = write_blocks(self._storage.arena, node, node.size, view, fetched)
                self._commit_content(node, end, 0, _NO_DROP, blocks)

        self._change_content(ino, change)
        return end

    def allocate(self, ino: int, offset: int, size: int, mode: int) -> None:
        """See `WritableFileSystem`. What the disk has no room for is ENOSPC, but nothing is reserved: a later write may
        still find it full.
        """
        if mode not in (0, _KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE):
            fail(errno.EOPNOTSUPP, ino)
        end = check_end(ino, offset, size) if size else fail(errno.EINVAL, ino)

        def change(node: Node, fetched: Fetched) -> None:
            if mode != _PUNCH_HOLE and end - max(offset, node.size) > self._free_bytes():
                fail(errno.ENOSPC, ino)
            new_size = node.size if mode & _KEEP_SIZE else max(node.size, end)
            dropped, blocks = _NO_DROP, NO_BLOCKS
            if mode & ~_KEEP_SIZE:
                dropped, blocks = zero_blocks(self._storage.arena, node, offset, end, fetched)
            elif new_size == node.size:
                return
            self._commit_content(node, new_size, 0, dropped, blocks)

        self._change_content(ino, change)

    # -- durability --------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """See `WritableFileSystem`."""
        self._storage.sync()

    def close(self) -> None:
        """See `FileSystem`. Syncs; what is held is held no longer. The image stays open."""
        self._storage.close()

    def changes(self) -> ChangeView:
        """Questions about what differs from the image."""
        return ChangeView(self._state, self._lock)

    # -- helpers -----------------------------------------------------------------------------------------------

    def _free_bytes(self) -> int:
        return self.usage().free * PAGE_SIZE

    def _xattr_of(self, ino: int, name: bytes, value: bytes) -> tuple[bytes, Callable[[], None]]:
        """An attribute of an inode that is being made: the record, and what it says."""
        arguments = (self._clock(), ino, name, value)
        return encode_xattr(*arguments), partial(self._state.xattr, *arguments)

    def _tend(self) -> None:
        if self._storage.wants_tending:
            self._storage.tend()

    def _directory(self, ino: int) -> Node:
        node = self._state.node(ino)
        if node.kind is not Kind.DIRECTORY:
            fail(errno.ENOTDIR, ino)
        return node

    def _new_entry(self, parent: int, name: bytes) -> Node:
        """The directory that is to have a further entry."""
        directory = self._directory(parent)
        check_name(name)
        if not directory.nlink:
            fail(errno.ENOENT, name)
        if self._state.child(directory, name):
            fail(errno.EEXIST, name)
        return directory

    def _entry(self, directory: Node, name: bytes) -> int:
        if len(name) > MAX_NAME:
            fail(errno.ENAMETOOLONG, name)
        return self._state.child(directory, name) or fail(errno.ENOENT, name)

    def _remove(self, parent: int, name: bytes, *, is_directory: bool) -> None:
        with self._lock:
            ino = self._entry(self._directory(parent), name)
            node = self._state.node(ino)
            if is_directory and node.kind is not Kind.DIRECTORY:
                fail(errno.ENOTDIR, name)
            if not is_directory and node.kind is Kind.DIRECTORY:
                fail(errno.EISDIR, name)
            if is_directory and not self._state.is_empty(node):
                fail(errno.ENOTEMPTY, name)
            arguments = (self._clock(), parent, name, HELD if ino in self._holds else 0)
            self._storage.commit(encode_remove(*arguments), self._state.remove, arguments)
        self._tend()

    def _commit_whiteout(
        self, old: Node, moved: tuple[int, int, bytes, int, bytes, int, int], owner: tuple[int, int]
    ) -> None:
        uid, gid = owner
        gid = old.gid if old.mode & stat.S_ISGID else gid
        arguments = (*moved, self._state.next_ino, uid, gid)
        try:
            body = encode_whiteout(*arguments)
        except struct.error:
            fail(errno.EINVAL, moved[2])
        self._storage.commit(body, self._state.whiteout, arguments)

    def _check_loops(self, ino: int, other: int, parent: int, new_parent: int, flags: int) -> None:
        """A directory does not go below itself, nor does it replace one that it is below."""
        state = self._state
        if state.kind(ino) is Kind.DIRECTORY and state.is_within(new_parent, ino):
            fail(errno.EINVAL, ino)
        if other and state.kind(other) is Kind.DIRECTORY and state.is_within(parent, other):
            fail(errno.EINVAL if flags == RENAME_EXCHANGE else errno.ENOTEMPTY, other)

    def _check_replace(self, ino: int, other: int, name: bytes) -> None:
        replaced = self._state.node(other)
        if self._state.kind(ino) is not Kind.DIRECTORY:
            if replaced.kind is Kind.DIRECTORY:
                fail(errno.EISDIR, name)
        elif replaced.kind is not Kind.DIRECTORY:
            fail(errno.ENOTDIR, name)
        elif not self._state.is_empty(replaced):
            fail(errno.ENOTEMPTY, name)

    def _kill_flag(self, node: Node, mode: int | None = None) -> int:
        """Whether there are privileges to take away, of an inode that gets a mode."""
        mode = node.mode if mode is None else mode
        marked = mode & stat.S_ISUID or (mode & stat.S_ISGID and mode & stat.S_IXGRP)
        if node.kind is Kind.DIRECTORY or not (marked or CAPABILITY in self._state.xattrs(node)):
            return 0
        return KILL

    def _change_content(self, ino: int, change: Callable[[Node, Fetched], None]) -> None:
        """Change a file's blocks, as often as it takes until what that needs of the image is there."""
        fetched: Fetched = {}
        while True:
            try:
                with self._lock:
                    node = self._state.node(ino)
                    check_regular(node)
                    change(node, fetched)
                break
            except NeedsBase as needed:
                block = needed.block
            fetched[block] = self.base.read(ino, block * PAGE_SIZE, PAGE_SIZE)
        self._tend()

    def _commit_content(self, node: Node, size: int, flags: int, dropped: tuple[int, int], blocks: Change) -> None:
        arguments = (self._clock(), node.ino, size, flags, dropped, blocks.pieces, blocks.crcs)
        self._storage.commit_blocks(blocks.runs, encode_content(*arguments), self._state.content, arguments)


def _flat(data: Buffer) -> memoryview:
    """A view of bytes, whatever the items of a buffer are."""
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
