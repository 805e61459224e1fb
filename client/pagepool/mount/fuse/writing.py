"""The requests that change something, done on a file system that can be written to. What reads is in `operations`.

Nothing is held back: a request that was answered is done, as far as the file system promises that. The kernel takes
locks of directories and files around requests, checks permissions, and says when somebody without the right to keep
them writes to a file with privileges (setuid, setgid, capabilities). Thread-safe.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind
from pagepool.mount.fuse import acl, protocol
from pagepool.mount.fuse.operations import Operations, nothing
from pagepool.mount.fuse.protocol import Opcode, Valid
from pagepool.vfs.interface import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Changes, fail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.mount.fuse.operations import Handler, Reply, Request
    from pagepool.mount.fuse.protocol import SetAttr
    from pagepool.vfs.interface import WritableFileSystem

_PERMISSIONS: Final = 0o7777
_OWNER: Final = Valid.UID | Valid.GID
_LATEST_NS: Final = (1 << 63) - 1
_EARLIEST_NS: Final = -_LATEST_NS


class WritingOperations(Operations):
    """The requests that read, and those that write.

    Args:
        filesystem: what is served.
    """

    def __init__(self, filesystem: WritableFileSystem) -> None:
        super().__init__(filesystem)
        self._writable = filesystem

    def handlers(self) -> dict[Opcode, Handler]:
        """See `Operations`."""
        return super().handlers() | {
            Opcode.SETATTR: self.setattr,
            Opcode.SYMLINK: self.symlink,
            Opcode.MKNOD: self.mknod,
            Opcode.MKDIR: self.mkdir,
            Opcode.TMPFILE: self.tmpfile,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.rmdir,
            Opcode.RENAME: self.rename,
            Opcode.RENAME2: self.rename2,
            Opcode.LINK: self.link,
            Opcode.WRITE: self.write,
            Opcode.FSYNC: self.sync,
            Opcode.FSYNCDIR: self.sync,
            Opcode.SYNCFS: self.sync,
            Opcode.SETXATTR: self.setxattr,
            Opcode.REMOVEXATTR: self.removexattr,
            Opcode.FALLOCATE: self.fallocate,
            Opcode.DESTROY: nothing,
        }

    def setattr(self, request: Request) -> Reply:
        """Mode, owner, size and times."""
        asked = protocol.parse_setattr(request.body)
        kind = self._filesystem.attributes(request.node).kind
        changes = plan_changes(asked, kind, time.time_ns())
        self._writable.set_attributes(request.node, changes)
        if changes.mode is not None and (value := self._filesystem.xattrs(request.node).get(acl.ACCESS)):
            entries = acl.with_mode(acl.parse_acl(value), changes.mode)
            self._writable.set_xattr(request.node, acl.ACCESS, acl.encode_acl(entries))
        return protocol.encode_attributes(self._filesystem.attributes(request.node))

    def symlink(self, request: Request) -> Reply:
        """Make a symlink."""
        name, target = protocol.parse_names(request.body)
        return self._make(request, name, Kind.SYMLINK, 0o777, 0, target=target)

    def mknod(self, request: Request) -> Reply:
        """Make a file, a device, a FIFO or a socket."""
        mode, device, umask, _ = protocol.unpack(protocol.MKNOD_IN, request.body)
        name = protocol.parse_name(request.body, protocol.MKNOD_IN.size)
        kind = protocol.KINDS.get(stat.S_IFMT(mode))
        if kind is None or kind in (Kind.DIRECTORY, Kind.SYMLINK):
            fail(errno.EINVAL, name)
        numbers = protocol.decode_device(device) if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0)
        return self._make(request, name, kind, mode & _PERMISSIONS, umask, device=numbers)

    def mkdir(self, request: Request) -> Reply:
        """Make a directory."""
        mode, umask = protocol.unpack(protocol.MKDIR_IN, request.body)
        name = protocol.parse_name(request.body, protocol.MKDIR_IN.size)
        return self._make(request, name, Kind.DIRECTORY, mode & _PERMISSIONS, umask)

    def _make(
        self,
        request: Request,
        name: bytes,
        kind: Kind,
        mode: int,
        umask: int,
        *,
        target: bytes = b"",
        device: tuple[int, int] = (0, 0),
    ) -> bytes:
        """Make a node. What a directory says of access to what is made in it goes before a umask."""
        mode, inherited = self._inherit(request.node, kind, mode, umask)
        try:
            ino = self._writable.create(
                *(request.node, name, kind, mode, request.uid, request.gid),
                target=target,
                device=device,
                xattrs=dict(inherited),
            )
        finally:
            self.listings.changed(request.node)
        return self.entry(ino)

    def _inherit(self, parent: int, kind: Kind, mode: int, umask: int) -> tuple[int, Sequence[tuple[bytes, bytes]]]:
        """Mode and access control lists of what is made in a directory."""
        default = None if kind is Kind.SYMLINK else self._filesystem.xattrs(parent).get(acl.DEFAULT)
        if not default:
            return mode & ~umask, ()
        entries = acl.inherit(acl.parse_acl(default), mode)
        lists = [] if acl.is_mode(entries) else [(acl.ACCESS, acl.encode_acl(entries))]
        if kind is Kind.DIRECTORY:
            lists.append((acl.DEFAULT, default))
        return acl.mode_of(entries, mode) if entries else mode & ~umask, lists

    def tmpfile(self, request: Request) -> Reply:
        """Make a file without a name, and open it (O_TMPFILE)."""
        flags, mode, umask, _ = protocol.unpack(protocol.CREATE_IN, request.body)
        mode, inherited = self._inherit(request.node, Kind.REGULAR, mode & _PERMISSIONS, umask)
        linkable = not flags & os.O_EXCL
        ino = self._writable.create_unnamed(request.node, mode, request.uid, request.gid, linkable=linkable)
        try:
            for key, value in inherited:
                self._writable.set_xattr(ino, key, value)
            return self.entry(ino) + protocol.OPENED
        finally:
            self._writable.release(ino)

    def link(self, request: Request) -> Reply:
        """Give a node a further name."""
        (ino,) = protocol.unpack(protocol.LINK_IN, request.body)
        name = protocol.parse_name(request.body, protocol.LINK_IN.size)
        try:
            self._writable.link(ino, request.node, name)
        finally:
            self.listings.changed(request.node)
        return self.entry(ino)

    def unlink(self, request: Request) -> Reply:
        """Take a name away."""
        try:
            self._writable.unlink(request.node, protocol.parse_name(request.body))
        finally:
            self.listings.changed(request.node)
        return b""

    def rmdir(self, request: Request) -> Reply:
        """Take a directory away."""
        try:
            self._writable.rmdir(request.node, protocol.parse_name(request.body))
        finally:
            self.listings.changed(request.node)
        return b""

    def rename(self, request: Request) -> Reply:
        """As rename(2)."""
        (parent,) = protocol.unpack(protocol.RENAME_IN, request.body)
        return self._rename(request, parent, protocol.RENAME_IN.size, 0)

    def rename2(self, request: Request) -> Reply:
        """As renameat2(2)."""
        parent, flags, _ = protocol.unpack(protocol.RENAME2_IN, request.body)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            fail(errno.EINVAL)
        return self._rename(request, parent, protocol.RENAME2_IN.size, flags)

    def _rename(self, request: Request, parent: int, start: int, flags: int) -> bytes:
        name, new_name = protocol.parse_names(request.body, start)
        try:
            self._writable.rename(request.node, name, parent, new_name, flags, owner=(request.uid, request.gid))
        finally:
            self.listings.changed(request.node)
            self.listings.changed(parent)
        return b""

    def write(self, request: Request) -> Reply:
        """Write into a file."""
        _, offset, size, flags, *_ = protocol.unpack(protocol.WRITE_IN, request.body)
        data = request.body[protocol.WRITE_IN.size :].toreadonly()
        if len(data) != size:
            raise protocol.ProtocolError(f"{len(data)} bytes to write where {size} are announced")
        kill = bool(flags & protocol.WRITE_KILL_SUIDGID)
        written = self._writable.write(request.node, offset, data, kill_privileges=kill)
        return protocol.WRITE_OUT.pack(written, 0)

    def sync(self, _request: Request) -> Reply:
        """Make everything durable, whichever file is asked for."""
        self._writable.sync()
        return b""

    def setxattr(self, request: Request) -> Reply:
        """Set an extended attribute."""
        name, value, flags, extra = protocol.parse_setxattr(request.body, extended=self.extended_setxattr)
        if name == acl.ACCESS:
            self._set_access(request.node, value, flags, kill_group=bool(extra & protocol.SETXATTR_ACL_KILL_SGID))
        else:
            if name == acl.DEFAULT:
                acl.parse_acl(value)
            self._writable.set_xattr(request.node, name, value, flags)
        return b""

    def _set_access(self, ino: int, value: bytes, flags: int, *, kill_group: bool) -> None:
        """Set a list and the mode that goes with it; a list that says no more than a mode is only that."""
        entries = acl.parse_acl(value)
        if not entries or acl.is_mode(entries):
            if acl.ACCESS in self._filesystem.xattrs(ino):
                self._writable.remove_xattr(ino, acl.ACCESS)
        else:
            self._writable.set_xattr(ino, acl.ACCESS, value, flags)
        mode = self._filesystem.attributes(ino).mode
        if entries:
            mode = acl.mode_of(entries, mode & ~stat.S_ISGID if kill_group else mode)
            self._writable.set_attributes(ino, Changes(mode=mode))

    def removexattr(self, request: Request) -> Reply:
        """Remove an extended attribute."""
        self._writable.remove_xattr(request.node, protocol.parse_name(request.body))
        return b""

    def fallocate(self, request: Request) -> Reply:
        """As fallocate(2)."""
        _, offset, size, mode, _ = protocol.unpack(protocol.FALLOCATE_IN, request.body)
        self._writable.allocate(request.node, offset, size, mode)
        return b""


def plan_changes(asked: SetAttr, kind: Kind, now_ns: int) -> Changes:
    """What a SETATTR comes to.

    A change of owner takes privileges of anything but a directory, whoever makes it. So does a request that changes
    nothing: it is what becomes of chown(2) to -1, and of an fallocate(2) that is to take them. It also comes after the
    kernel has taken a file capability away because root wrote to the file; that this takes setuid too is more than
    other file systems do, and errs to the safe side. A time that cannot be kept becomes the next one that can.

    Args:
        kind: of the node.
        now_ns: the time, for what is set to it.
    """
    valid = asked.valid
    owner = bool(valid & _OWNER) or not valid & ~(Valid.FH | Valid.LOCKOWNER | Valid.CTIME | Valid.KILL_SUIDGID)
    kill = bool(valid & Valid.KILL_SUIDGID) or (owner and kind is not Kind.DIRECTORY and not valid & Valid.MODE)
    atime = now_ns if valid & Valid.ATIME_NOW else asked.atime_ns
    mtime = now_ns if valid & Valid.MTIME_NOW else asked.mtime_ns
    return Changes(
        mode=asked.mode & _PERMISSIONS if valid & Valid.MODE else None,
        uid=asked.uid if valid & Valid.UID else None,
        gid=asked.gid if valid & Valid.GID else None,
        size=asked.size if valid & Valid.SIZE else None,
        atime_ns=_nearest(atime) if valid & Valid.ATIME else None,
        mtime_ns=_nearest(mtime) if valid & Valid.MTIME else None,
        kill_privileges=kill,
    )


def _nearest(time_ns: int) -> int:
    """A time within what overlays keep, 1677 to 2262: Linux does so for the limits of any file system."""
    return min(max(time_ns, _EARLIEST_NS), _LATEST_NS)
