"""The FUSE kernel protocol as bytes: numbers, structures, parsing of requests, encoding of answers. No input or output.

Follows ``include/uapi/linux/fuse.h`` of Linux 6.1 (protocol 7.38), of which what is used here has been there since
7.31 (Linux 5.4); kernels up to 6.18 (7.45) speak it to whoever answers INIT with an older minor version. Integers
are in the machine's own byte order. A request is a header and a body; names in a body end with a zero byte. Bodies
come from the kernel, but a body that is too short, or a name that does not end, is an error here like any other
(`ProtocolError`), and never read past.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.image.member import Kind
from pagepool.vfs.interface import FORMATS

if TYPE_CHECKING:
    from pagepool.vfs.interface import Attributes, Usage

MAJOR: Final = 7
MINOR: Final = 38
OLDEST_MINOR: Final = 31
"""Linux 5.4. Everything older misses a flag that is relied on."""

MAX_PAGES: Final = 256
MAX_IO: Final = MAX_PAGES * 4096
"""The most bytes of one READ or WRITE."""
BUFFER_SIZE: Final = MAX_IO + 4096
"""Room for any request: a WRITE of `MAX_IO`, and its headers."""

FOREVER_S: Final = 10 * 365 * 86400
"""How long the kernel may keep names and attributes: it makes every change itself, so it knows."""


class ProtocolError(ValueError):
    """A request that is not one."""


class Opcode(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlag(enum.IntFlag):
    """What kernel and server agree on in INIT; the first 32 bits, which are all that is used."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30


class Valid(enum.IntFlag):
    """What a SETATTR is to change."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


WRITE_KILL_SUIDGID: Final = 1 << 2
SETXATTR_ACL_KILL_SGID: Final = 1 << 0

IN_HEADER: Final = Struct("=IIQQIIIHH")
OUT_HEADER: Final = Struct("=IiQ")
_ATTR: Final = "QQQqqqIIIIIIIIII"
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTR)
ATTR_OUT: Final = Struct("=QII" + _ATTR)
INIT_IN: Final = Struct("=IIII")
INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")
SETATTR_IN: Final = Struct("=IIQQQqqqIIIIIIII")
READ_IN: Final = Struct("=QQIIQII")
WRITE_IN: Final = READ_IN
WRITE_OUT: Final = Struct("=II")
STATFS_OUT: Final = Struct("=QQQQQIII28x")
SETXATTR_IN: Final = Struct("=IIII")
SETXATTR_SHORT_IN: Final = Struct("=II")
GETXATTR_IN: Final = Struct("=II")
GETXATTR_OUT: Final = Struct("=II")
FALLOCATE_IN: Final = Struct("=QQQII")
LSEEK_IN: Final = Struct("=QQII")
LSEEK_OUT: Final = Struct("=Q")
MKNOD_IN: Final = Struct("=IIII")
MKDIR_IN: Final = Struct("=II")
RENAME_IN: Final = Struct("=Q")
RENAME2_IN: Final = Struct("=QII")
CREATE_IN: Final = Struct("=IIII")
OPEN_OUT: Final = Struct("=QIi")
LINK_IN: Final = Struct("=Q")
FORGET_IN: Final = Struct("=Q")
BATCH_FORGET_IN: Final = Struct("=II")
FORGET_ONE: Final = Struct("=QQ")
INTERRUPT_IN: Final = Struct("=Q")
DIRENT: Final = Struct("=QQII")

OPENED: Final = OPEN_OUT.pack(0, 1 << 1, 0)
"""The end of the answer to TMPFILE: no handle, and the page cache is kept, as where OPEN is not asked for."""
NO_ENTRY: Final = ENTRY_OUT.pack(0, 0, FOREVER_S, 0, *(0,) * 18)
"""A name that is not there, to be remembered as such."""
_NO_LOOKUP: Final = bytes(ENTRY_OUT.size)
_PADDING: Final = tuple(bytes(count) for count in range(8))
_NS: Final = 1_000_000_000
_TYPES: Final = {kind: format_ >> 12 for kind, format_ in FORMATS.items()}
KINDS: Final = {format_: kind for kind, format_ in FORMATS.items()} | {0: Kind.REGULAR}
"""What a node is, by the file type bits of its mode. None of them means a regular file, as for mknod(2)."""


class Init(NamedTuple):
    """An INIT request."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class SetAttr(NamedTuple):
    """A SETATTR request; what is not in `valid` means nothing."""

    valid: int
    size: int
    atime_ns: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int


def unpack(structure: Struct, body: memoryview) -> tuple[int, ...]:
    """Take a structure off the beginning of a body."""
    if len(body) < structure.size:
        raise ProtocolError(f"a body of {len(body)} bytes is too short for one of {structure.size}")
    return structure.unpack_from(body)


def parse_name(body: memoryview, start: int = 0) -> bytes:
    """The name that a body ends with.

    Args:
        start: where it begins.
    """
    name = bytes(body[start:])
    if len(name) < 2 or name.find(0) != len(name) - 1:
        raise ProtocolError("a name that does not end, or none at all")
    return name[:-1]


def parse_names(body: memoryview, start: int = 0) -> tuple[bytes, bytes]:
    """The two names, or name and target, that a body ends with."""
    parts = bytes(body[start:]).split(b"\0")
    if len(parts) != 3 or not parts[0] or not parts[1] or parts[2]:
        raise ProtocolError("not two names")
    return parts[0], parts[1]


def parse_init(body: memoryview) -> Init:
    """An INIT request. Its second set of flags is not used."""
    return Init(*unpack(INIT_IN, body))


def parse_setattr(body: memoryview) -> SetAttr:
    """A SETATTR request."""
    fields = unpack(SETATTR_IN, body)
    valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    return SetAttr(valid, size, atime * _NS + atime_ns, mtime * _NS + mtime_ns, mode, uid, gid)


def parse_setxattr(body: memoryview, *, extended: bool) -> tuple[bytes, bytes, int, int]:
    """A SETXATTR request: name, value, the flags of setxattr(2), and those of the protocol.

    Args:
        extended: whether kernel and server agreed on `InitFlag.SETXATTR_EXT`.
    """
    size, flags, extra, _ = unpack(SETXATTR_IN, body) if extended else (*unpack(SETXATTR_SHORT_IN, body), 0, 0)
    start = SETXATTR_IN.size if extended else SETXATTR_SHORT_IN.size
    name, end, value = bytes(body[start:]).partition(b"\0")
    if not name or not end or len(value) != size:
        raise ProtocolError("an extended attribute without a name, or with a value of another size")
    return name, value, flags, extra


def parse_forgets(body: memoryview) -> list[tuple[int, int]]:
    """A BATCH_FORGET request: nodes, and how many look-ups of each are given back."""
    count, _ = unpack(BATCH_FORGET_IN, body)
    rest = body[BATCH_FORGET_IN.size :]
    if len(rest) != count * FORGET_ONE.size:
        raise ProtocolError(f"{len(rest)} bytes cannot be {count} nodes to forget")
    return list(FORGET_ONE.iter_unpack(rest))


def encode_init(minor: int, max_readahead: int, flags: int, *, background: int) -> bytes:
    """The answer to INIT.

    Args:
        background: requests that nobody waits for (read-ahead) that the kernel sends at the same time.
    """
    congested = background * 3 // 4
    return INIT_OUT.pack(MAJOR, minor, max_readahead, flags, background, congested, MAX_IO, 1, MAX_PAGES, 0, 0)


def encode_entry(attributes: Attributes) -> bytes:
    """A name's node: the answer to LOOKUP, MKNOD and the like."""
    return ENTRY_OUT.pack(attributes[0], 0, FOREVER_S, FOREVER_S, 0, 0, *_attr(attributes))


def encode_attributes(attributes: Attributes) -> bytes:
    """The answer to GETATTR and SETATTR."""
    return ATTR_OUT.pack(FOREVER_S, 0, 0, *_attr(attributes))


def _attr(attributes: Attributes) -> tuple[int, ...]:
    ino, kind, mode, uid, gid, size, nlink, atime, mtime, ctime, major, minor, blocks = attributes
    atime_s, atime_ns = divmod(atime, _NS)
    mtime_s, mtime_ns = divmod(mtime, _NS)
    ctime_s, ctime_ns = divmod(ctime, _NS)
    device = encode_device(major, minor) if major or minor else 0
    return (
        *(ino, size, blocks, atime_s, mtime_s, ctime_s, atime_ns, mtime_ns, ctime_ns),
        *(mode | FORMATS[kind], nlink, uid, gid, device, 4096, 0),
    )


def encode_device(major: int, minor: int) -> int:
    """A device number, as the kernel hands it to user space (``new_encode_dev``)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12) & 0xFFFFFFFF


def decode_device(number: int) -> tuple[int, int]:
    """Major and minor of a device number."""
    return (number >> 8) & 0xFFF, (number & 0xFF) | (number >> 12) & 0xFFF00


def encode_usage(usage: Usage) -> bytes:
    """The answer to STATFS."""
    blocks, free, inodes, inodes_free = usage
    return STATFS_OUT.pack(blocks, free, free, inodes, inodes_free, 4096, 255, 4096)


def encode_dirent(ino: int, kind: Kind, name: bytes, cookie: int) -> bytes:
    """An entry of the answer to READDIR.

    Args:
        cookie: where the next READDIR goes on.
    """
    size = len(name)
    return DIRENT.pack(ino, cookie, size, _TYPES[kind]) + name + _PADDING[-size & 7]


def encode_dirent_plus(attributes: Attributes | None, dirent: bytes) -> bytes:
    """An entry of the answer to READDIRPLUS; without attributes the kernel looks the name up if it needs to."""
    return (encode_entry(attributes) if attributes is not None else _NO_LOOKUP) + dirent


def encode_error(unique: int, number: int) -> bytes:
    """The whole answer to a request that failed.

    Args:
        number: the errno; 0 for a request that has nothing more to say than that it is done.
    """
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def encode_header(unique: int, size: int) -> bytes:
    """What goes in front of an answer of a size."""
    return OUT_HEADER.pack(OUT_HEADER.size + size, 0, unique)
