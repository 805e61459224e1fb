"""The 512-byte header block of a tar, in every dialect.

v7, ustar (prefix), star (shorter prefix), GNU (base-256 numbers, times where ustar has the prefix) and PAX
(ustar). Where the dialects leave room this module does what Go's archive/tar does, because every container
runtime reads layers with it: a number must be octal digits (or base-256) between spaces and NULs, the magic
decides which fields exist, both checksums are accepted.

Pure functions; nothing here holds state beyond bounded caches of parsed numbers.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from pagepool.image.member import MAX_OWNER

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

_OWNER = slice(100, 124)  # mode, uid, gid
_SIZE = slice(124, 136)
_MTIME = slice(136, 148)
_CHECKSUM = slice(148, 156)
_TYPE_TO_END = slice(156, 512)
# type linkname magic uname gname devmajor devminor rest
_TYPE_FIELDS = struct.Struct("c100s8s32s32s8s8s167s")
# name owner size mtime checksum, and from the type to the end
_QUICK_FIELDS = struct.Struct("100s24s12s12s8s356s")
_SUM_END = b"\0 "
_ODD_START = b"./"
_SLASH = ord("/")
_NUMBERS = ("mode", "uid", "gid", "mtime", "devmajor", "devminor")
_Common = tuple[int, int, int, int, bytes, bytes, bytes, bytes, int, int, bool, bytes, str]
_INT64_MIN = -(1 << 63)
_INT64_MAX = (1 << 63) - 1


class Header(NamedTuple):
    """The fields of one header block, before extended headers are applied.

    `bad` names the first numeric field that is not a number (such a field reads as 0), or is "". `gnu` is
    true for the GNU dialect, where the block may hold a sparse map.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    typeflag: bytes
    linkname: bytes
    uname: bytes
    gname: bytes
    devmajor: int
    devminor: int
    gnu: bool
    bad: str


def parse_number(field: bytes) -> int | None:
    """A numeric field: octal digits, or base-256 when the top bit of the first byte is set.

    Returns:
        the number, 0 for a blank field, None when the field is not a number or does not fit 64 bits.
    """
    digits = field[:-1]
    if field[-1] or not digits.isdigit():  # nearly every writer fills the field, up to a NUL
        if field[0] & 0x80:
            return _parse_base256(field)
        digits = field.strip(b" \0").partition(b"\0")[0]
        if not digits:
            return 0
        if not digits.isdigit():
            return None
    try:
        return int(digits, 8)
    except ValueError:  # an 8 or a 9
        return None


def _parse_base256(field: bytes) -> int | None:
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    if field[0] & 0x40:
        value -= 1 << bits
    return value if _INT64_MIN <= value <= _INT64_MAX else None


# Owners, modes, devices and times repeat from member to member.
_cached_number = lru_cache(maxsize=4096)(parse_number)


@lru_cache(maxsize=4096)
def _cached_time(field: bytes) -> int | None:
    seconds = parse_number(field)
    return None if seconds is None else seconds * 1_000_000_000


def cut_text(field: bytes) -> bytes:
    """A text field: everything before the first NUL."""
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


@lru_cache(maxsize=4096)
def _expected_sum(field: bytes) -> int | None:
    """What all 512 bytes must add up to if the checksum field is right (it counts as eight spaces)."""
    if field[0] & 0x80:
        return None
    stored = parse_number(field)
    return None if stored is None else stored - 8 * 0x20 + sum(field)


def sum_block(block: bytes | bytearray) -> int:
    """The sum of the 512 bytes of a block.

    The low half of Adler-32 is one plus the sum of the bytes, modulo 65521, which 256 bytes cannot reach, nor 512 of
    ASCII: an exact sum at C speed. sum() would take a third of the time that a member may take in all.
    """
    if block.isascii():
        return (adler32(block) & 0xFFFF) - 1
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2


def has_valid_checksum(block: bytes, field: bytes) -> bool:
    """Whether the checksum field (of `block`) is the unsigned or the signed sum of the block."""
    expected = _expected_sum(field)
    if expected is None:
        return False
    total = sum_block(block)
    if total == expected:
        return True
    high = sum(byte >= 0x80 for byte in block) - sum(byte >= 0x80 for byte in field)
    return total - 256 * high == expected


def parse_header(block: bytes) -> Header | None:
    """Parse one header block.

    Args:
        block: 512 bytes, not all zero.

    Returns:
        the fields, or None when the block is not a header (its checksum is wrong).
    """
    field = block[_CHECKSUM]
    if sum_block(block) != _expected_sum(field) and not has_valid_checksum(block, field):
        return None
    mode, uid, gid, mtime_ns, flag, link, uname, gname, major, minor, gnu, prefix, bad = _parse_common(
        block[_OWNER], block[_MTIME], block[_TYPE_TO_END]
    )
    name = block[:100].partition(b"\0")[0]
    if prefix:
        name = prefix + b"/" + name
    size = parse_number(block[_SIZE])
    if size is None:  # named first: it decides whether the stream can be followed
        size, bad = 0, "size"
    fields = name, mode, uid, gid, size, mtime_ns, flag, link, uname, gname, major, minor, gnu, bad
    return tuple.__new__(Header, fields)  # half the time of Header(...)


def read_ordinary(chunk: bytes, position: int) -> tuple[bytes, int] | None:
    """The name and size in the header of an ordinary file: the quick way through most headers of most layers.

    Ordinary is what writers write when nothing is unusual: a regular file, its size and checksum as octal digits that
    fill their fields, a relative name without ``.`` and ``..`` in it, an owner that Linux has. `parse_header` would
    find no fault with it, and nothing in it but name, size and checksum that needs to be looked at.

    Args:
        chunk: bytes of a tar.
        position: of the block's first byte in it; the whole block is there.

    Returns:
        the name as the header has it, and the size; None for every other block.
    """
    name, owner, size, mtime, stored, rest = _QUICK_FIELDS.unpack_from(chunk, position)
    if not _is_ordinary(owner, mtime, rest):
        return None
    digits = size[:11]
    if size[11] or not digits.isdigit() or stored[6:] != _SUM_END or not stored[:6].isdigit():
        return None
    if sum_block(chunk[position : position + BLOCK]) != _expected_sum(stored):
        return None
    name = name.rstrip(b"\0")
    path = name[2:] if name.startswith(b"./") else name
    if not path or path[0] in _ODD_START or path[-1] == _SLASH or b"/." in path or b"//" in path or b"\0" in path:
        return None
    try:
        return name, int(digits, 8)
    except ValueError:  # an 8 or a 9
        return None


@lru_cache(maxsize=512)
def _is_ordinary(owner: bytes, mtime: bytes, rest: bytes) -> bool:
    """Whether a header with these fields (see `_parse_common`) is that of an ordinary file, if the others agree."""
    _, uid, gid, _, flag, _, _, _, _, _, _, prefix, bad = _parse_common(owner, mtime, rest)
    return not bad and not prefix and flag in (b"0", b"\0") and 0 <= uid <= MAX_OWNER and 0 <= gid <= MAX_OWNER


@lru_cache(maxsize=512)
def _parse_common(owner: bytes, mtime: bytes, rest: bytes) -> _Common:
    """What neighbours in a layer mostly have in common: everything but name, size and checksum.

    Args:
        owner: the fields from mode to gid.
        mtime: the field.
        rest: the fields from the type to the end of the block.
    """
    typeflag, link, magic, *extra = _TYPE_FIELDS.unpack(rest)
    numbers = (_cached_number(owner[:8]), _cached_number(owner[8:16]), _cached_number(owner[16:]), _cached_time(mtime))
    uname = gname = prefix = b""
    devices: tuple[int | None, int | None] = (0, 0)
    gnu = magic == b"ustar  \0"
    if gnu or magic[:6] == b"ustar\0":
        uname, gname = cut_text(extra[0]), cut_text(extra[1])
        devices = (_cached_number(extra[2]), _cached_number(extra[3]))
        if extra[4][0]:
            prefix = _gnu_prefix(extra[4]) if gnu else _prefix(extra[4])
    bad = next((name for name, value in zip(_NUMBERS, numbers + devices, strict=True) if value is None), "")
    if bad:
        uname = gname = b""
    mode, uid, gid, mtime_ns, major, minor = (value or 0 for value in numbers + devices)
    return mode, uid, gid, mtime_ns, typeflag, cut_text(link), uname, gname, major, minor, gnu, prefix, bad


def _prefix(rest: bytes) -> bytes:
    """The prefix field: 155 bytes in ustar, 131 in star (which signs the block's last four bytes)."""
    return cut_text(rest[:131] if rest.endswith(b"tar\0") else rest[:155])


def _gnu_prefix(rest: bytes) -> bytes:
    """GNU has times where ustar has the prefix; Go before 1.8 wrote a prefix there all the same.

    As Go does: when the times are not numbers and the field is ASCII, it is a prefix.
    """
    atime, ctime = rest[:12], rest[12:24]
    if all(not time[0] or _cached_number(time) is not None for time in (atime, ctime)):
        return b""
    prefix = cut_text(rest[:155])
    return prefix if prefix.isascii() else b""
