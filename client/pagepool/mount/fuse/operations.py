"""What a request asks for, done on a file system that can be read; `writing` has what changes it.

A handler takes a request and returns the body of its answer: bytes, or a view of a file's pages, which goes out as it
is; None for requests that have no answer. It raises what the file system raises; the server makes an errno of it. A
handler that the kernel is never to ask again raises ENOSYS: it then does without, which is sound here because

- OPEN, RELEASE: a request carries its node, so a handle would say nothing more. The kernel keeps the page cache of a
  file over opens, and opens it without asking.
- OPENDIR, RELEASEDIR: likewise, and it keeps listings (see `listings`).
- CREATE: it makes the node with MKNOD, under the lock of the directory, and opens it without asking: one request, where
  CREATE needs a RELEASE too.
- ACCESS, BMAP, POLL, locks: it checks permissions and keeps locks itself.
- FLUSH: nothing is held back in memory that close(2) would have to hand over.

Thread-safe.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NoReturn

from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.listings import Listings
from pagepool.mount.fuse.lookups import Lookups
from pagepool.mount.fuse.protocol import Opcode
from pagepool.vfs.interface import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.vfs.interface import FileSystem

    Reply = bytes | memoryview | None
    Handler = Callable[["Request"], Reply]

TRUSTED: Final = b"trusted."


class Request:
    """A request that is being handled. One is used again for every request of a thread.

    Args:
        unique: its number.
        node: what it is about.
        uid: whose request it is.
        gid: likewise.
        body: what follows the header; only until it is answered.
    """

    __slots__ = ("body", "gid", "node", "opcode", "uid", "unique")

    def __init__(self) -> None:
        self.opcode = self.unique = self.node = self.uid = self.gid = 0
        self.body = memoryview(b"")


class Operations:
    """The requests that read.

    Args:
        filesystem: what is served.
    """

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem
        self.lookups = Lookups(filesystem)
        self.listings = Listings(filesystem)
        self.extended_setxattr = False
        """Whether the kernel agreed to `InitFlag.SETXATTR_EXT`."""

    def handlers(self) -> dict[Opcode, Handler]:
        """What handles which request."""
        refused = dict.fromkeys(_NEVER, never_again) | dict.fromkeys(_CHANGES, read_only)
        return refused | {
            Opcode.LOOKUP: self.lookup,
            Opcode.FORGET: self.forget,
            Opcode.BATCH_FORGET: self.batch_forget,
            Opcode.GETATTR: self.getattr,
            Opcode.READLINK: self.readlink,
            Opcode.READ: self.read,
            Opcode.READDIR: self.readdir,
            Opcode.READDIRPLUS: self.readdirplus,
            Opcode.STATFS: self.statfs,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.LSEEK: self.lseek,
            Opcode.DESTROY: nothing,
        }

    def lookup(self, request: Request) -> Reply:
        """A name in a directory. That there is none is remembered as well."""
        try:
            ino = self._filesystem.lookup(request.node, protocol.parse_name(request.body))
        except FileNotFoundError:
            return protocol.NO_ENTRY
        return self.entry(ino)

    def entry(self, ino: int) -> bytes:
        """Name a node to the kernel."""
        self.lookups.add(ino)
        try:
            return protocol.encode_entry(self._filesystem.attributes(ino))
        except BaseException:
            self.lookups.forget(ino, 1)
            raise

    def forget(self, request: Request) -> Reply:
        """See `Lookups.forget`."""
        self.lookups.forget(request.node, *protocol.unpack(protocol.FORGET_IN, request.body))
        return None

    def batch_forget(self, request: Request) -> Reply:
        """See `Lookups.forget`."""
        for ino, count in protocol.parse_forgets(request.body):
            self.lookups.forget(ino, count)
        return None

    def getattr(self, request: Request) -> Reply:
        """What stat(2) shows."""
        return protocol.encode_attributes(self._filesystem.attributes(request.node))

    def readlink(self, request: Request) -> Reply:
        """The target of a symlink."""
        return self._filesystem.readlink(request.node)

    def read(self, request: Request) -> Reply:
        """Bytes of a file: the pool's own pages, where they are."""
        _, offset, size, *_ = protocol.unpack(protocol.READ_IN, request.body)
        return self._filesystem.read(request.node, offset, min(size, protocol.MAX_IO))

    def readdir(self, request: Request) -> Reply:
        """Names of a directory."""
        _, cookie, size, *_ = protocol.unpack(protocol.READ_IN, request.body)
        piece = bytearray()
        for next_cookie, name, ino, kind in self.listings.after(request.node, cookie):
            record = protocol.encode_dirent(ino, kind, name, next_cookie)
            if len(piece) + len(record) > size:
                break
            piece += record
        return bytes(piece)

    def readdirplus(self, request: Request) -> Reply:
        """Names of a directory with what stat(2) shows of them."""
        _, cookie, size, *_ = protocol.unpack(protocol.READ_IN, request.body)
        attributes, add = self._filesystem.attributes, self.lookups.add
        piece = bytearray()
        for next_cookie, name, ino, kind in self.listings.after(request.node, cookie):
            record = protocol.encode_dirent(ino, kind, name, next_cookie)
            if len(piece) + protocol.ENTRY_OUT.size + len(record) > size:
                break
            if next_cookie in _DOTS:
                piece += protocol.encode_dirent_plus(None, record)
                continue
            piece += protocol.encode_dirent_plus(attributes(ino), record)
            add(ino)
        return bytes(piece)

    def statfs(self, _request: Request) -> Reply:
        """How full it is."""
        return protocol.encode_usage(self._filesystem.usage())

    def getxattr(self, request: Request) -> Reply:
        """An extended attribute."""
        size, _ = protocol.unpack(protocol.GETXATTR_IN, request.body)
        name = protocol.parse_name(request.body, protocol.GETXATTR_IN.size)
        value = self._filesystem.xattrs(request.node).get(name)
        if value is None:
            fail(errno.EOPNOTSUPP if name == _LABEL else errno.ENODATA, name)
        return _sized(value, size)

    def listxattr(self, request: Request) -> Reply:
        """The names of extended attributes. Those for administrators are shown to them only."""
        size, _ = protocol.unpack(protocol.GETXATTR_IN, request.body)
        names = self._filesystem.xattrs(request.node)
        shown = (name + b"\0" for name in names if request.uid == 0 or not name.startswith(TRUSTED))
        return _sized(b"".join(shown), size)

    def lseek(self, request: Request) -> Reply:
        """The next data or hole."""
        _, offset, whence, _ = protocol.unpack(protocol.LSEEK_IN, request.body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            fail(errno.EINVAL)
        return protocol.LSEEK_OUT.pack(self._filesystem.seek(request.node, offset, whence))


_DOTS: Final = (1, 2)
_LABEL: Final = b"security.selinux"
"""Asked for by ``ls -l`` for each file, until it hears once that a file system has no labels."""
_NEVER: Final = (
    *(Opcode.OPEN, Opcode.RELEASE, Opcode.OPENDIR, Opcode.RELEASEDIR, Opcode.CREATE, Opcode.TMPFILE),
    *(Opcode.FLUSH, Opcode.ACCESS, Opcode.BMAP, Opcode.POLL, Opcode.IOCTL, Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW),
    *(Opcode.FSYNC, Opcode.FSYNCDIR, Opcode.SYNCFS),
    *(Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64, Opcode.STATX, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING),
)
_CHANGES: Final = (
    *(Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.LINK),
    *(Opcode.RENAME, Opcode.RENAME2, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.FALLOCATE),
)


class NeverAgainError(Exception):
    """Answers ENOSYS: the kernel is to do without this kind of request."""


def never_again(_request: Request) -> NoReturn:
    """Refuse a kind of request for good."""
    raise NeverAgainError


def read_only(_request: Request) -> NoReturn:
    """Refuse to change anything."""
    fail(errno.EROFS)


def nothing(_request: Request) -> Reply:
    """Answer that it is done."""
    return b""


def _sized(value: bytes, size: int) -> bytes:
    """An answer that says how long it would be, or is as long."""
    if not size:
        return protocol.GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= size else fail(errno.ERANGE)
