"""The records of an overlay's journal: what they are in bytes, and which change of the state each one is.

Owns the bodies of docs/format/overlay.md; the frame round them, with length and checksum, is the journal's. A body is a
byte that names the kind, and fields. `decode` gives the name of the method of `State` that applies it, and its
arguments: the same call that the operation itself made.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pagepool.image.member import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Code(IntEnum):
    """The first byte of a body."""

    OPEN = 1
    SYNC = 2
    CREATE = 3
    LINK = 4
    REMOVE = 5
    RENAME = 6
    SET = 7
    CONTENT = 8
    XATTR = 9
    NO_XATTR = 10
    FORGET = 11
    UNNAMED = 12
    WHITEOUT = 13
    NUMBERS = 16
    NODE = 17
    NODE_XATTRS = 18
    ENTRIES = 19
    BLOCKS = 20
    GONE = 21


KINDS: Final = (Kind.DIRECTORY, Kind.REGULAR, Kind.SYMLINK, Kind.CHAR, Kind.BLOCK, Kind.FIFO, Kind.SOCKET)
"""By their code in records."""
KIND_CODES: Final = {kind: code for code, kind in enumerate(KINDS)}
SYNC_MARK: Final = b"\xb5durable"
"""How the body of a sync goes on, so that it is found behind damage."""

KILL: Final = 1
"""Flag: setuid, setgid and the capability attribute are taken away."""
HELD: Final = 1
"""Flag: what loses its last name is held, and stays until FORGET."""

_OPEN = struct.Struct("<B16sq")
_SYNC = struct.Struct("<B8sQ")
_CREATE = struct.Struct("<BqQQBHIIIIHH")
_LINK = struct.Struct("<BqQQ")
_REMOVE = struct.Struct("<BqQB")
_RENAME = struct.Struct("<BqQQBBH")
_SET = struct.Struct("<BqQBBHIIQqqI")
_UNNAMED = struct.Struct("<BqQHIIB")
_WHITEOUT = struct.Struct("<BqQQBBQIIH")
_CONTENT = struct.Struct("<BqQQBQQI")
_PIECE = struct.Struct("<QII")
_ONE_BLOCK = struct.Struct("<BqQQBQQIQIII")
_XATTR = struct.Struct("<BqQH")
_FORGET = struct.Struct("<BQ")
_NUMBERS = struct.Struct("<BQ")
_NODE = struct.Struct("<BQBHIIQIqqqIIQQ")
_NODE_XATTRS = struct.Struct("<BQI")
_PAIR = struct.Struct("<HI")
_ENTRIES = struct.Struct("<BQI")
_ENTRY = struct.Struct("<QH")
_BLOCKS = struct.Struct("<BQI")
_GONE = struct.Struct("<BI")

_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME = (1 << bit for bit in range(6))


class Piece(NamedTuple):
    """Blocks of a file that lie in a run of slots."""

    block: int
    slot: int
    length: int


class Setting(NamedTuple):
    """What a SET record changes; None leaves a thing as it is."""

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime_ns: int | None
    mtime_ns: int | None


Decoded = tuple[str, tuple[Any, ...]]
"""The method of `State`, and its arguments."""


def encode_open(boot: bytes, time_ns: int) -> bytes:
    """The overlay was opened. What had no name any more is gone."""
    return _OPEN.pack(Code.OPEN, boot, time_ns)


def encode_sync(durable: int) -> bytes:
    """All records before a place in the journal, and their blocks, are on disk."""
    return _SYNC.pack(Code.SYNC, SYNC_MARK, durable)


def encode_create(
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
) -> bytes:
    """An inode with its first name."""
    head = _CREATE.pack(
        Code.CREATE, time_ns, parent, ino, KIND_CODES[kind], mode, uid, gid, *device, len(name), len(target)
    )
    return head + name + target


def encode_link(time_ns: int, ino: int, parent: int, name: bytes) -> bytes:
    """A further name."""
    return _LINK.pack(Code.LINK, time_ns, ino, parent) + name


def encode_remove(time_ns: int, parent: int, name: bytes, held: int) -> bytes:
    """A name less, of a file or an empty directory."""
    return _REMOVE.pack(Code.REMOVE, time_ns, parent, held) + name


def encode_rename(
    time_ns: int, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, held: int
) -> bytes:
    """An entry moved, or two exchanged."""
    return _RENAME.pack(Code.RENAME, time_ns, parent, new_parent, flags, held, len(name)) + name + new_name


def encode_whiteout(
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
) -> bytes:
    """An entry moved, and a device 0:0 left in its place."""
    head = _WHITEOUT.pack(Code.WHITEOUT, time_ns, parent, new_parent, flags, held, ino, uid, gid, len(name))
    return head + name + new_name


def encode_unnamed(time_ns: int, ino: int, mode: int, uid: int, gid: int, linkable: int) -> bytes:
    """A regular file without a name, which is held."""
    return _UNNAMED.pack(Code.UNNAMED, time_ns, ino, mode, uid, gid, linkable)


def encode_set(
    time_ns: int, ino: int, setting: Setting, flags: int, pieces: Sequence[Piece], crcs: Sequence[int]
) -> bytes:
    """Attributes changed; the pieces are the last block, where a truncation cut it."""
    mask = sum(1 << bit for bit, value in enumerate(setting) if value is not None)
    values = (value or 0 for value in setting)
    return _SET.pack(Code.SET, time_ns, ino, mask, flags, *values, len(pieces)) + _encode_pieces(pieces, crcs)


def encode_content(
    time_ns: int,
    ino: int,
    size: int,
    flags: int,
    dropped: tuple[int, int],
    pieces: Sequence[Piece],
    crcs: Sequence[int],
) -> bytes:
    """A file's blocks changed: those in `dropped` read as zeros, those in pieces are private."""
    if len(crcs) == 1:
        return _ONE_BLOCK.pack(Code.CONTENT, time_ns, ino, size, flags, *dropped, 1, *pieces[0], crcs[0])
    head = _CONTENT.pack(Code.CONTENT, time_ns, ino, size, flags, *dropped, len(pieces))
    return head + _encode_pieces(pieces, crcs)


def encode_xattr(time_ns: int, ino: int, name: bytes, value: bytes) -> bytes:
    """An extended attribute set."""
    return _XATTR.pack(Code.XATTR, time_ns, ino, len(name)) + name + value


def encode_no_xattr(time_ns: int, ino: int, name: bytes) -> bytes:
    """An extended attribute removed."""
    return _LINK.pack(Code.NO_XATTR, time_ns, ino, 0) + name


def encode_forget(ino: int) -> bytes:
    """An inode without names is held by nobody any more."""
    return _FORGET.pack(Code.FORGET, ino)


def encode_numbers(next_ino: int) -> bytes:
    """Snapshot: the number of the next inode."""
    return _NUMBERS.pack(Code.NUMBERS, next_ino)


def encode_node(
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
) -> bytes:
    """Snapshot: an inode."""
    numbers = (ino, KIND_CODES[kind], mode, uid, gid, size, nlink, *times, *device, parent, base_end)
    return _NODE.pack(Code.NODE, *numbers) + target


def encode_node_xattrs(ino: int, xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Snapshot: the extended attributes of an inode, where they may not be the image's."""
    pairs = [_PAIR.pack(len(name), len(value)) + name + value for name, value in xattrs]
    return _NODE_XATTRS.pack(Code.NODE_XATTRS, ino, len(pairs)) + b"".join(pairs)


def encode_entries(ino: int, entries: Sequence[tuple[bytes, int]]) -> bytes:
    """Snapshot: entries of a directory that are not the image's; the number 0 removes one of the image's."""
    parts = [_ENTRY.pack(number, len(name)) + name for name, number in entries]
    return _ENTRIES.pack(Code.ENTRIES, ino, len(parts)) + b"".join(parts)


def encode_blocks(ino: int, runs: Sequence[tuple[int, int, int]]) -> bytes:
    """Snapshot: (first block, count, entry) of blocks of a file, as `BlockMap.runs` has them."""
    parts = [_PIECE.pack(block, value, count) for block, count, value in runs]
    return _BLOCKS.pack(Code.BLOCKS, ino, len(parts)) + b"".join(parts)


def encode_gone(numbers: Sequence[int]) -> bytes:
    """Snapshot: inodes of the image that are gone."""
    return _GONE.pack(Code.GONE, len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)


def decode(body: memoryview) -> Decoded:
    """What a record does.

    Raises:
        ValueError, struct.error: it is none.
    """
    decoder = _DECODERS.get(body[0])
    if decoder is None:
        raise ValueError(f"there is no record of kind {body[0]}")
    return decoder(body)


def read_sync(body: memoryview) -> int:
    """The end of what a SYNC record says is durable. ValueError if it is none."""
    if len(body) != _SYNC.size or bytes(body[1 : 1 + len(SYNC_MARK)]) != SYNC_MARK:
        raise ValueError("it is no sync")
    durable: int = _SYNC.unpack(body)[2]
    return durable


def read_boot(body: memoryview) -> bytes:
    """The boot that an OPEN record names."""
    return bytes(body[1:17])


def _encode_pieces(pieces: Sequence[Piece], crcs: Sequence[int]) -> bytes:
    return b"".join([_PIECE.pack(*piece) for piece in pieces]) + struct.pack(f"<{len(crcs)}I", *crcs)


def _decode_pieces(body: memoryview, count: int) -> tuple[list[Piece], tuple[int, ...]]:
    split = count * _PIECE.size
    pieces = [Piece(*fields) for fields in _PIECE.iter_unpack(body[:split])]
    blocks = sum(piece.length for piece in pieces)
    if len(pieces) != count or len(body) != split + 4 * blocks:
        raise ValueError("its blocks do not fill it")
    return pieces, struct.unpack(f"<{blocks}I", body[split:])


def _open(body: memoryview) -> Decoded:
    return "open", _OPEN.unpack(body)[2:]


def _sync(body: memoryview) -> Decoded:
    return "sync", (read_sync(body),)


def _create(body: memoryview) -> Decoded:
    _, time_ns, parent, ino, kind, mode, uid, gid, major, minor, name_size, size = _CREATE.unpack_from(body)
    name, target = _texts(body, _CREATE.size, name_size)
    if len(target) != size:
        raise ValueError("its target does not fill it")
    return "create", (time_ns, parent, ino, KINDS[kind], mode, uid, gid, (major, minor), name, target)


def _link(body: memoryview) -> Decoded:
    return "link", (*_LINK.unpack_from(body)[1:], bytes(body[_LINK.size :]))


def _remove(body: memoryview) -> Decoded:
    _, time_ns, parent, held = _REMOVE.unpack_from(body)
    return "remove", (time_ns, parent, bytes(body[_REMOVE.size :]), held)


def _rename(body: memoryview) -> Decoded:
    _, time_ns, parent, new_parent, flags, held, size = _RENAME.unpack_from(body)
    name, new_name = _texts(body, _RENAME.size, size)
    return "rename", (time_ns, parent, name, new_parent, new_name, flags, held)


def _whiteout(body: memoryview) -> Decoded:
    _, time_ns, parent, new_parent, flags, held, ino, uid, gid, size = _WHITEOUT.unpack_from(body)
    name, new_name = _texts(body, _WHITEOUT.size, size)
    return "whiteout", (time_ns, parent, name, new_parent, new_name, flags, held, ino, uid, gid)


def _unnamed(body: memoryview) -> Decoded:
    return "unnamed", _UNNAMED.unpack(body)[1:]


def _set(body: memoryview) -> Decoded:
    _, time_ns, ino, mask, flags, *values, count = _SET.unpack_from(body)
    setting = Setting(*(value if mask >> bit & 1 else None for bit, value in enumerate(values)))
    return "set", (time_ns, ino, setting, flags, *_decode_pieces(body[_SET.size :], count))


def _content(body: memoryview) -> Decoded:
    _, time_ns, ino, size, flags, first, end, count = _CONTENT.unpack_from(body)
    return "content", (time_ns, ino, size, flags, (first, end), *_decode_pieces(body[_CONTENT.size :], count))


def _xattr(body: memoryview) -> Decoded:
    _, time_ns, ino, size = _XATTR.unpack_from(body)
    return "xattr", (time_ns, ino, *_texts(body, _XATTR.size, size))


def _no_xattr(body: memoryview) -> Decoded:
    return "no_xattr", (*_LINK.unpack_from(body)[1:3], bytes(body[_LINK.size :]))


def _forget(body: memoryview) -> Decoded:
    return "forget", _FORGET.unpack(body)[1:]


def _numbers(body: memoryview) -> Decoded:
    return "load_numbers", _NUMBERS.unpack(body)[1:]


def _node(body: memoryview) -> Decoded:
    _, ino, kind, mode, uid, gid, size, nlink, *rest = _NODE.unpack_from(body)
    atime_ns, mtime_ns, ctime_ns, major, minor, parent, base_end = rest
    times, device = (atime_ns, mtime_ns, ctime_ns), (major, minor)
    target = bytes(body[_NODE.size :])
    return "load_node", (ino, KINDS[kind], mode, uid, gid, size, nlink, times, device, parent, base_end, target)


def _node_xattrs(body: memoryview) -> Decoded:
    _, ino, count = _NODE_XATTRS.unpack_from(body)
    at = _NODE_XATTRS.size
    found: dict[bytes, bytes] = {}
    for _ in range(count):
        name_size, value_size = _PAIR.unpack_from(body, at)
        at += _PAIR.size
        found[bytes(body[at : at + name_size])] = bytes(body[at + name_size : at + name_size + value_size])
        at += name_size + value_size
    return "load_xattrs", (ino, found)


def _entries(body: memoryview) -> Decoded:
    _, ino, count = _ENTRIES.unpack_from(body)
    at = _ENTRIES.size
    found: dict[bytes, int] = {}
    for _ in range(count):
        number, size = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size
        found[bytes(body[at : at + size])] = number
        at += size
    return "load_entries", (ino, found)


def _blocks(body: memoryview) -> Decoded:
    _, ino, count = _BLOCKS.unpack_from(body)
    runs = [(block, number, value) for block, value, number in _PIECE.iter_unpack(body[_BLOCKS.size :])]
    if len(runs) != count:
        raise ValueError("its blocks do not fill it")
    return "load_blocks", (ino, runs)


def _gone(body: memoryview) -> Decoded:
    (count,) = _GONE.unpack_from(body)[1:]
    return "load_gone", (struct.unpack(f"<{count}Q", body[_GONE.size :]),)


def _texts(body: memoryview, start: int, size: int) -> tuple[bytes, bytes]:
    """A text of `size` bytes, and what follows it."""
    if len(body) < start + size:
        raise ValueError("it ends in a name")
    return bytes(body[start : start + size]), bytes(body[start + size :])


_DECODERS: Final[dict[int, Callable[[memoryview], Decoded]]] = {
    Code.OPEN: _open,
    Code.SYNC: _sync,
    Code.CREATE: _create,
    Code.LINK: _link,
    Code.REMOVE: _remove,
    Code.RENAME: _rename,
    Code.SET: _set,
    Code.CONTENT: _content,
    Code.XATTR: _xattr,
    Code.NO_XATTR: _no_xattr,
    Code.FORGET: _forget,
    Code.UNNAMED: _unnamed,
    Code.WHITEOUT: _whiteout,
    Code.NUMBERS: _numbers,
    Code.NODE: _node,
    Code.NODE_XATTRS: _node_xattrs,
    Code.ENTRIES: _entries,
    Code.BLOCKS: _blocks,
    Code.GONE: _gone,
}
