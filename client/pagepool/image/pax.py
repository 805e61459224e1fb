"""PAX extended headers: records, times, extended attributes.

Records are ``LENGTH KEY=VALUE\\n``. An empty value keeps what the ustar header says (as Go's archive/tar has
it). GNU's sparse format 0.0 repeats two keys; they are gathered into the map of format 0.1, under its key.

Pure functions. A malformed header raises `ValueError` with the reason; the caller knows the member.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from pagepool.image.header import Header

_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_TEXT_KEYS = frozenset((b"path", b"linkpath", b"uname", b"gname"))
_SPARSE_00 = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
SPARSE_MAP = b"GNU.sparse.map"

# Leading zeros are allowed, and any number of them, as Go and GNU tar have it.
_INTEGER = re.compile(rb"([+-]?)0*([0-9]{1,19})")
_TIME = re.compile(rb"([+-]?)0*([0-9]{1,19})(?:\.([0-9]*))?")


def parse_records(body: bytes) -> dict[bytes, bytes]:
    """Parse the records of one extended header; the last of a key wins.

    Raises:
        ValueError: a record is malformed.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    start, size = 0, len(body)
    while start < size:
        space = body.find(b" ", start, start + 20)
        length = body[start:space] if space > 0 else b""
        end = start + int(length) if length.isdigit() else 0
        if not space + 2 < end <= size or body[end - 1] != 0x0A:
            raise ValueError("a record with a wrong length")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in (value if key in _TEXT_KEYS else key):
            raise ValueError("a record that is not key=value")
        if key in _SPARSE_00:
            if key != _SPARSE_00[len(sparse) % 2] or b"," in value:
                raise ValueError("a sparse map out of order")
            sparse.append(value)
        else:
            records[key] = value
        start = end
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


def parse_integer(value: bytes) -> int:
    """A decimal number of at most 64 bits.

    Raises:
        ValueError: it is none.
    """
    match = _INTEGER.fullmatch(value)
    number = int(match[1] + match[2]) if match else 1 << 63
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"a bad number {_quote(value)}")
    return number


def parse_time(value: bytes) -> int:
    """Seconds with a decimal fraction, as nanoseconds; digits beyond nanoseconds are dropped.

    Raises:
        ValueError: it is no time.
    """
    match = _TIME.fullmatch(value)
    seconds = int(match[1] + match[2]) if match else 1 << 63
    if match is None or not -(1 << 63) <= seconds < 1 << 63:
        raise ValueError(f"a bad time {_quote(value)}")
    nanoseconds = int((match[3] or b"")[:9].ljust(9, b"0"))
    return seconds * 1_000_000_000 + (-nanoseconds if value.startswith(b"-") else nanoseconds)


def _quote(value: bytes) -> str:
    return repr(value[:40].decode("ascii", "backslashreplace"))


def parse_xattrs(records: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The extended attributes among the records.

    bsdtar writes each twice (``SCHILY.xattr.`` plain, ``LIBARCHIVE.xattr.`` with an encoded name and value);
    the plain one, which runtimes read, wins.

    Raises:
        ValueError: an encoded value is not base64.
    """
    xattrs: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_SCHILY):
            xattrs[key[len(_SCHILY) :]] = value
        elif key.startswith(_LIBARCHIVE):
            try:
                plain = binascii.a2b_base64(value + b"=" * (-len(value) % 4))
            except binascii.Error as error:
                raise ValueError("an attribute that is not base64") from error
            xattrs.setdefault(unquote_to_bytes(key[len(_LIBARCHIVE) :]), plain)
    return xattrs


def apply_records(header: Header, records: Mapping[bytes, bytes]) -> Header:
    """What the records make of the header block they belong to.

    Raises:
        ValueError: a value is malformed.
    """
    values = {key: value for key, value in records.items() if value}
    return header._replace(
        name=values.get(b"path", header.name),
        linkname=values.get(b"linkpath", header.linkname),
        uname=values.get(b"uname", header.uname),
        gname=values.get(b"gname", header.gname),
        uid=parse_integer(values[b"uid"]) if b"uid" in values else header.uid,
        gid=parse_integer(values[b"gid"]) if b"gid" in values else header.gid,
        size=parse_integer(values[b"size"]) if b"size" in values else header.size,
        mtime_ns=parse_time(values[b"mtime"]) if b"mtime" in values else header.mtime_ns,
    )
