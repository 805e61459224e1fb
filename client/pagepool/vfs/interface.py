"""What a file system is here: inodes by number, operations on them, and errors as Linux has them.

`FileSystem` is what can be read, `WritableFileSystem` what can be changed too. Everything that shows files stands on
them: paths (`vfs.rootfs`), FUSE, fsspec, the commands. Two things implement them: `vfs.treefs` (an image, read-only)
and `overlay` (an image with private changes).

Rules that hold for both:

- Inodes are numbers; `ROOT` is the root. A node keeps its number as long as it has a name or is held (`hold`).
- Names are bytes, single components: neither empty, nor with a slash or a zero byte, nor ``.`` or ``..``. Whoever has a
  path resolves it first (`vfs.rootfs`), so nothing here leads out of the root.
- An operation that the file system refuses raises OSError with the errno that Linux would give (`fail`). Content that
  cannot be had raises what says why: CorruptError, UnreachableError, or another PagepoolError; a mount answers
  those with EIO.
- An operation that raised changed nothing.
- Permissions are not checked: whoever calls decides (the kernel, for a mount).
- Thread-safe.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol, runtime_checkable

from pagepool.image.member import NO_XATTRS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

ROOT: Final = 1
PAGE_SIZE: Final = 4096
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

FORMATS: Final = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.REGULAR: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
"""The file type bits of `st_mode`."""


class Attributes(NamedTuple):
    """What ``stat`` shows of an inode.

    Args:
        ino: its number.
        kind: any but a hard link.
        mode: permission bits with setuid, setgid and sticky, without the file type.
        uid: owner.
        gid: group.
        size: bytes of a regular file, or of a symlink's target; else 0.
        nlink: names it has; for a directory two and one for each directory in it; 0 once it has none.
        atime_ns: nanoseconds since 1970; not kept up by reading.
        mtime_ns: when its content changed.
        ctime_ns: when anything of it changed.
        devmajor: of a device.
        devminor: of a device.
        blocks: units of 512 bytes that it takes, as ``du`` counts; holes are not counted where that is known.
    """

    ino: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    devmajor: int = 0
    devminor: int = 0
    blocks: int = 0

    @property
    def st_mode(self) -> int:
        """Mode and file type, as ``st_mode`` has them."""
        return self.mode | FORMATS[self.kind]

    @property
    def st_rdev(self) -> int:
        """The device number of a device."""
        return os.makedev(self.devmajor, self.devminor)


class Entry(NamedTuple):
    """A name in a directory."""

    name: bytes
    ino: int
    kind: Kind


class Changes(NamedTuple):
    """What `WritableFileSystem.set_attributes` is to change; None leaves a thing as it is.

    Args:
        size: of a regular file; bytes beyond the old size are zero.
        kill_privileges: take setuid and setgid (where group execution is set) and ``security.capability`` away, as a
            write, a truncation or a change of owner by somebody without CAP_FSETID does.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_privileges: bool = False


class Usage(NamedTuple):
    """What ``statfs`` shows. Blocks are of 4096 bytes.

    Args:
        blocks: in all.
        free: of them not in use, and that this user may take.
        inodes: in all.
        inodes_free: of them not in use.
    """

    blocks: int
    free: int
    inodes: int
    inodes_free: int


@runtime_checkable
class FileSystem(Protocol):
    """A file system that can be read."""

    @property
    def read_only(self) -> bool:
        """Whether it can only be read. If not, it is a `WritableFileSystem`."""
        ...

    def lookup(self, parent: int, name: bytes) -> int:
        """The number of an entry's inode.

        Raises:
            OSError: ENOENT, ENOTDIR, ENAMETOOLONG; ESTALE if there is no inode `parent`.
        """
        ...

    def attributes(self, ino: int) -> Attributes:
        """What there is to know of an inode. ESTALE if there is none."""
        ...

    def parent(self, directory: int) -> int:
        """The directory that a directory is in; the root's is itself. ENOTDIR for anything else."""
        ...

    def readlink(self, ino: int) -> bytes:
        """The target of a symlink. EINVAL for anything else."""
        ...

    def entries(self, directory: int) -> Iterable[Entry]:
        """The entries of a directory by name, without ``.`` and ``..``, as of one moment. ENOTDIR for anything else."""
        ...

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """The extended attributes of an inode."""
        ...

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        """Bytes of a regular file. Blocks while they are fetched.

        Returns:
            at most `size` bytes, fewer only at the end of the file. Where all of them are the image's own and lie in
            one object it is a view of the pool's pages, without a copy; it stays valid, and shows what was there at
            the time of the call.

        Raises:
            OSError: EISDIR, EINVAL (not a regular file, or a negative offset).
            CorruptError, UnreachableError: the content cannot be had.
        """
        ...

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """The next data (`os.SEEK_DATA`) or hole (`os.SEEK_HOLE`) at or after an offset; ENXIO beyond the end."""
        ...

    def usage(self) -> Usage:
        """How full it is."""
        ...

    def hold(self, ino: int) -> None:
        """Keep an inode, though it may lose its last name, until `release` was called as often."""
        ...

    def release(self, ino: int, count: int = 1) -> None:
        """Give `hold` back. An inode without names and holders is gone."""
        ...

    def close(self) -> None:
        """Let go of everything. What was acknowledged is kept; views that were handed out stay valid."""
        ...


@runtime_checkable
class WritableFileSystem(FileSystem, Protocol):
    """A file system that can be changed. Each operation is all or nothing, also in a crash."""

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
        """Make an inode with its first name. A setgid parent hands its group on (and to directories the bit).

        Args:
            target: of a symlink.
            device: of a device, major and minor.
            xattrs: what it has from the beginning; within the limits of `set_xattr`.

        Returns:
            its number.

        Raises:
            OSError: EEXIST, ENOENT (the parent has no name any more), ENOTDIR, ENAMETOOLONG, ENOSPC.
        """
        ...

    def create_unnamed(self, parent: int, mode: int, uid: int, gid: int, *, linkable: bool = True) -> int:
        """Make a regular file without a name, as O_TMPFILE does. It is held once; with the last `release` it is gone,
        unless `link` gave it a name before.

        Args:
            parent: a setgid one hands its group on.
            linkable: whether `link` may give it one.

        Returns:
            its number.

        Raises:
            OSError: ENOENT (the parent has no name any more), ENOTDIR, ENOSPC.
        """
        ...

    def link(self, ino: int, parent: int, name: bytes) -> None:
        """Give an inode a further name. EEXIST, EPERM for a directory, EMLINK, ENOENT if it has no name any more."""
        ...

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of anything but a directory. ENOENT, EISDIR."""
        ...

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. ENOENT, ENOTDIR, ENOTEMPTY."""
        ...

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
        """Move an entry, over an existing one if there is one, as rename(2) and renameat2(2) do.

        Args:
            flags: 0, `RENAME_NOREPLACE` or `RENAME_EXCHANGE`. `RENAME_WHITEOUT`, alone or with the first, leaves a
                character device 0:0 without permissions where the entry was.
            owner: user and group of that device.

        Raises:
            OSError: ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL (a directory into itself; other flags).
        """
        ...

    def set_attributes(self, ino: int, changes: Changes) -> None:
        """Change what ``chmod``, ``chown``, ``utimes`` and ``truncate`` change, all at once. EISDIR, EINVAL, EFBIG."""
        ...

    def write(self, ino: int, offset: int, data: Buffer, *, kill_privileges: bool = False) -> int:
        """Write into a regular file, and make it longer if need be. All of `data`, or nothing.

        Only the blocks that it touches are copied. Survives the death of the process when it returns, and power loss
        after `sync`.

        Raises:
            OSError: EISDIR, EINVAL, EFBIG, ENOSPC.
            CorruptError, UnreachableError: the rest of a block that is written in part cannot be had.
        """
        ...

    def append(self, ino: int, data: Buffer) -> int:
        """As `write` at the end of the file, wherever that is by then: what two append comes one after the other.

        Returns:
            where the end is now.
        """
        ...

    def allocate(self, ino: int, offset: int, size: int, mode: int) -> None:
        """As fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE; EOPNOTSUPP for other modes."""
        ...

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute. EEXIST, ENODATA (by `flags`), ERANGE (name), E2BIG, ENOSPC.

        EPERM for `user.` names on what is no regular file or directory.
        """
        ...

    def remove_xattr(self, ino: int, name: bytes) -> None:
        """Remove one. ENODATA; EPERM as `set_xattr`."""
        ...

    def sync(self) -> None:
        """Make all that was done durable. Blocks."""
        ...


class Content(Protocol):
    """The bytes of the objects of one tree, by their place in the tree's list. Thread-safe."""

    def view(self, index: int, start: int, end: int) -> memoryview:
        """The bytes `[start, end)` of an object, fetched if they are not here. Blocks.

        Returns:
            a read-only view, which stays valid; of the pool's pages, where the object is or can be kept.

        Raises:
            CorruptError: they cannot be had right; it names object and extent.
            UnreachableError: the service cannot be asked.
        """
        ...

    def whole(self, index: int) -> memoryview | None:
        """All of an object if it is here; nothing is fetched."""
        ...

    def prefetch(self, indices: Iterable[int]) -> None:
        """Fetch objects that are not here, in as few requests as possible. Blocks. Raises as `view`."""
        ...

    def close(self) -> None:
        """Let go of open objects."""
        ...


def fail(number: int, name: bytes | int | None = None) -> NoReturn:
    """Raise the OSError of an errno.

    Args:
        name: what it is about: a name, or the number of an inode.
    """
    if isinstance(name, int):
        raise OSError(number, os.strerror(number), f"inode {name}")
    raise OSError(number, os.strerror(number), *(() if name is None else (os.fsdecode(name),)))
