"""Writing headers of a tar: ustar, with a PAX header before it where ustar cannot say something.

Deterministic, and what Go's archive/tar (and so every runtime) reads back as it was meant: names that are not ASCII
or do not fit are PAX records, bytes as they are, UTF-8 or not (as GNU tar does it, which warns of
``hdrcharset=BINARY``); so are numbers that do not fit their field, times before 1970 or with a fraction, and extended
attributes (``SCHILY.xattr.NAME``). Sparse files have the PAX form 1.0 of GNU tar: to whom does not know it, the header
is that of another file, which begins with the map. `tar` reads all of it.

Pure functions.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pagepool.errors import LayerInvalidError
from pagepool.image.header import BLOCK, sum_block
from pagepool.image.member import Kind, Member, check_member, show_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.image.sparse import Segments

END: Final = bytes(2 * BLOCK)
"""What a tar ends with."""
MAX_PAX: Final = 1 << 20
"""Bytes of one PAX header: Go refuses more."""

_FLAGS: Final = {
    Kind.REGULAR: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHAR: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
# name mode uid gid size mtime checksum type linkname magic uname gname devmajor devminor prefix rest
_USTAR: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_CHECKSUM: Final = slice(148, 156)
_NAME, _PREFIX = 100, 155
_SPARSE_NAME: Final = b"GNUSparseFile.0/"
_SECOND: Final = 10**9


def encode_member(member: Member) -> bytes:
    """The header of a member: one block, with a PAX header before it if it needs one.

    Args:
        member: it is written under `path` (a directory with a slash at its end), whatever `raw_path` says, and its
            data is not sparse: see `encode_sparse`.

    Raises:
        LayerInvalidError: no layer can hold it; it says why.
    """
    path = (member.path or b".") + b"/" if member.kind is Kind.DIRECTORY else member.path
    records: list[tuple[bytes, bytes]] = []
    return _encode(member, *_split_name(path, records), member.size, records)


def encode_sparse(member: Member, segments: Segments) -> bytes:
    """The header and the map of a sparse file. Behind them come the stored bytes of its segments, and then `padding` of
    their number.

    Args:
        member: a regular file, as for `encode_member`, of its logical size.
        segments: where its stored bytes are, in order: (offset, size). They must not be so many that the map is larger
            than `MAX_PAX`.

    Raises:
        LayerInvalidError: as `encode_member`.
    """
    # GNU tar sets the file's size by the last entry.
    if not segments or sum(segments[-1]) < member.size:
        segments = [*segments, (member.size, 0)]
    lines = b"".join(b"%d\n%d\n" % segment for segment in segments)
    table = b"%d\n" % len(segments) + lines
    table += padding(len(table))
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", member.path),
        (b"GNU.sparse.realsize", b"%d" % member.size),
    ]
    name = _SPARSE_NAME + _legible(member.path.rpartition(b"/")[2])[: _NAME - len(_SPARSE_NAME)]
    stored = len(table) + sum(size for _, size in segments)
    return _encode(member, name, b"", stored, records) + table


def _encode(member: Member, name: bytes, prefix: bytes, stored_size: int, records: list[tuple[bytes, bytes]]) -> bytes:
    if wrong := check_member(member):
        raise LayerInvalidError(show_name(member.path), wrong)
    link = _fit_text(b"linkpath", member.linkname, records)
    uid, gid = (_fit_number(key, n, 7, records) for key, n in ((b"uid", member.uid), (b"gid", member.gid)))
    size = _fit_number(b"size", stored_size, 11, records)
    mtime = _fit_time(member.mtime_ns, records)
    records += [(b"SCHILY.xattr." + _check_xattr(member, key), member.xattrs[key]) for key in sorted(member.xattrs)]
    flag = _FLAGS[member.kind]
    device = (member.devmajor, member.devminor)
    block = _block(name, prefix, member.mode, (uid, gid), size, mtime, flag, link, device)
    return _encode_pax(member, records) + block if records else block


def padding(size: int) -> bytes:
    """What fills the last block after so many bytes of data."""
    return bytes(-size % BLOCK)


def encode_records(records: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The body of a PAX header."""
    return b"".join(_record(key, value) for key, value in records)


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3  # the blank, the equals sign, the newline
    total = size + len(b"%d" % size)
    total = size + len(b"%d" % total)  # one digit more can make one digit more
    return b"%d %b=%b\n" % (total, key, value)


def _encode_pax(member: Member, records: list[tuple[bytes, bytes]]) -> bytes:
    body = encode_records(records)
    if len(body) > MAX_PAX:
        raise LayerInvalidError(show_name(member.path), f"has {len(body)} bytes of extended attributes, too many")
    header = _block(b"PaxHeaders.0/member", b"", 0, (0, 0), len(body), 0, b"x", b"", (0, 0))
    return header + body + padding(len(body))


def _block(
    name: bytes,
    prefix: bytes,
    mode: int,
    owner: tuple[int, int],
    size: int,
    mtime: int,
    flag: bytes,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    numbers = [b"%07o" % number for number in (mode, *owner)] + [b"%011o" % number for number in (size, mtime)]
    devices = [b"%07o" % number for number in device]
    rest = (flag, link, b"ustar\x0000", b"", b"", *devices, prefix, b"")
    block = bytearray(_USTAR.pack(name, *numbers, b" " * 8, *rest))
    block[_CHECKSUM] = b"%06o\0 " % sum_block(block)
    return bytes(block)


def _split_name(path: bytes, records: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Name and prefix; what does not fit becomes a record."""
    if path.isascii():
        if len(path) <= _NAME:
            return path, b""
        # The slash between them is not written; the name must not be empty.
        at = path.find(b"/", max(0, len(path) - _NAME - 1))
        if 0 < at <= _PREFIX and at < len(path) - 1:
            return path[at + 1 :], path[:at]
    records.append((b"path", path))
    slash = b"/" if path.endswith(b"/") else b""
    return _legible(path.rstrip(b"/"))[: _NAME - 1] + slash, b""


def _fit_text(key: bytes, text: bytes, records: list[tuple[bytes, bytes]]) -> bytes:
    if len(text) <= _NAME and text.isascii():
        return text
    records.append((key, text))
    return _legible(text)[:_NAME]


def _fit_number(key: bytes, number: int, digits: int, records: list[tuple[bytes, bytes]]) -> int:
    if number < 8**digits:
        return number
    records.append((key, b"%d" % number))
    return 0


def _fit_time(mtime_ns: int, records: list[tuple[bytes, bytes]]) -> int:
    seconds, fraction = divmod(mtime_ns, _SECOND)
    if not fraction and 0 <= seconds < 8**11:
        return seconds
    whole, part = divmod(abs(mtime_ns), _SECOND)
    text = b"%b%d" % (b"-" if mtime_ns < 0 else b"", whole)
    records.append((b"mtime", text + (b".%09d" % part).rstrip(b"0") if part else text))
    return min(max(seconds, 0), 8**11 - 1)


def _check_xattr(member: Member, key: bytes) -> bytes:
    if b"=" in key or b"\0" in key:
        name = show_name(key)
        raise LayerInvalidError(show_name(member.path), f"has an extended attribute {name!r}, which no tar can hold")
    return key


def _legible(text: bytes) -> bytes:
    """For readers that know no PAX."""
    return bytes(byte if byte < 0x80 else 0x3F for byte in text)
