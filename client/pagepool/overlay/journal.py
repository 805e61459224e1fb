"""The journal of an overlay: one file, a header and then framed records, appended one at a time.

Owns the file ``journal`` and the frame of docs/format/overlay.md: length and checksum, the latter begun with the
journal's nonce and the record's place, so that bytes which a container chose, or a record from elsewhere, are
no record here. What the bodies mean is `records`'.

A crash of the process leaves at most the beginning of one record at the end. Power loss may leave any pages out
that no sync covered. `scan` says where the good records end, and tells that from damage to what was durable.
Not thread-safe.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from pagepool.errors import CorruptError, StoreFormatError
from pagepool.overlay.records import SYNC_MARK, Code, encode_sync, read_sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAME: Final = "journal"
MAGIC: Final = b"PPOVER\r\n"
VERSION: Final = 2
OLDEST_VERSION: Final = 1
# magic, version, checksum of what follows, length of the header; nonce, inodes of the image, lengths of tree and info
_HEADER: Final = struct.Struct("<8sIII")
_FIXED: Final = struct.Struct("<QQHI")
_FRAME: Final = struct.Struct("<II")
_BODY_AT: Final = _FRAME.size
_U32: Final = 0xFFFFFFFF
# The sync's mark is its second field.
_MARK: Final = bytes((Code.SYNC,)) + SYNC_MARK


@dataclass(frozen=True, slots=True)
class Header:
    """How a journal begins.

    Args:
        tree: digest of the tree that the overlay lies over.
        base_inodes: how many inodes it has.
        info: what the opener noted, JSON values by name.
        nonce: a number that nobody but the journal knows.
        version: of the format; an older one has fewer kinds of records.
    """

    tree: bytes
    base_inodes: int
    info: Mapping[str, object]
    nonce: int
    version: int = VERSION

    @classmethod
    def new(cls, tree: bytes, base_inodes: int, info: Mapping[str, object]) -> Header:
        """A header with a nonce of its own."""
        return cls(tree, base_inodes, info, int.from_bytes(os.urandom(8), "little"))

    def encode(self) -> bytes:
        """The bytes."""
        info = json.dumps(self.info, sort_keys=True).encode()
        rest = _FIXED.pack(self.nonce, self.base_inodes, len(self.tree), len(info)) + self.tree + info
        return _HEADER.pack(MAGIC, self.version, crc32(rest), _HEADER.size + len(rest)) + rest


class Record(NamedTuple):
    """A record in a journal: where it begins, where it ends, its body."""

    start: int
    end: int
    body: memoryview


class Scan(NamedTuple):
    """What a journal holds.

    Args:
        records: that are whole, up to the first that is not.
        durable: the end of what a sync has covered.
        end: where they end.
        wrong: whether something follows that has the length of a record and another checksum. Power loss leaves
            that; the death of a process only cuts the last record short.
    """

    records: list[Record]
    durable: int
    end: int
    wrong: bool


class Journal:
    """An open journal, to append to.

    Args:
        path: the file.
        header: its header.
        position: where the next record goes; the file ends there.
    """

    def __init__(self, path: Path, header: Header, position: int) -> None:
        self.path = path
        self.header = header
        self.position = position
        self.torn = False
        """Whether a part of a record may stand at the end, which could not be cut off."""
        self._seed = header.nonce
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def append(self, *bodies: bytes) -> None:
        """Append records, all or none. They survive the death of the process when this returns.

        Raises:
            OSError: ENOSPC or another; nothing was appended.
        """
        at = self.position
        data = b""
        for body in bodies:
            data += frame(body, at + len(data), self._seed)
        try:
            done = os.pwrite(self._fd, data, at)
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], at + done)
        except BaseException:
            self.torn = True
            self.cut(at)
            self.torn = False
            raise
        self.position = at + len(data)

    def append_sync(self, durable: int) -> None:
        """Note that everything before a position is on disk."""
        self.append(encode_sync(durable))

    def cut(self, position: int) -> None:
        """Make the file end at a position."""
        os.ftruncate(self._fd, position)
        self.position = position

    def write_again(self, start: int) -> None:
        """Write what lies behind a position once more, as it is: see `Arena.write_again`."""
        data = os.pread(self._fd, self.position - start, start)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], start + done)

    def flush(self) -> None:
        """Wait until the file is on disk."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def write_journal(path: Path, header: Header, bodies: Iterable[bytes]) -> Journal:
    """Write a whole journal, and put it in its place once it is on disk; the caller syncs the directory.

    Args:
        path: its place. What is there is replaced.
        header: as what.
        bodies: its records; a sync that covers them follows.

    Returns:
        the journal, open.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "wb", opener=_open_private) as file:
            file.write(header.encode())
            at = file.tell()
            for body in bodies:
                file.write(frame(body, at, header.nonce))
                at += _BODY_AT + len(body)
            file.write(frame(encode_sync(at), at, header.nonce))
            at = file.tell()
            file.flush()
            os.fsync(file.fileno())
        journal = Journal(beside, header, at)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    try:
        beside.rename(path)
    except BaseException:
        journal.close()
        beside.unlink(missing_ok=True)
        raise
    journal.path = path
    return journal


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def frame(body: bytes, at: int, nonce: int) -> bytes:
    """A record as it stands in the file."""
    return _FRAME.pack(crc32(body, nonce + at & _U32), len(body)) + body


def sync_directory(directory: Path) -> None:
    """Wait until a directory's entries are on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def parse_header(data: bytes | memoryview, path: Path) -> tuple[Header, int]:
    """A journal's header, and where its records begin.

    Raises:
        CorruptError: it is none, or it is damaged.
        StoreFormatError: of a version that is not known here.
    """
    try:
        magic, version, checksum, size = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise CorruptError("overlay journal", str(path), "it does not begin as one, at offset 0")
        if not OLDEST_VERSION <= version <= VERSION:
            raise StoreFormatError(f"overlay journal {path} is of version {version}; this is {VERSION}")
        rest = memoryview(data)[_HEADER.size : size]
        if len(rest) != size - _HEADER.size or crc32(rest) != checksum:
            raise CorruptError("overlay journal", str(path), "its header, at offset 0, has another checksum")
        nonce, inodes, tree_size, info_size = _FIXED.unpack_from(rest)
        tree = bytes(rest[_FIXED.size : _FIXED.size + tree_size])
        info = json.loads(bytes(rest[_FIXED.size + tree_size :])[:info_size])
    except (struct.error, ValueError) as error:
        raise CorruptError("overlay journal", str(path), f"its header, at offset 0, is cut ({error})") from error
    return Header(tree, inodes, info, nonce, version), size


def scan(data: memoryview, start: int, nonce: int, path: Path) -> Scan:
    """Find the records of a journal, up to the first that is none.

    Args:
        data: the file.
        start: where they begin.
        nonce: the header's.
        path: for errors.

    Raises:
        CorruptError: a record is damaged that was durable.
    """
    records: list[Record] = []
    durable, at, size = start, start, len(data)
    unpack, sync = _FRAME.unpack_from, int(Code.SYNC)
    while size - at >= _BODY_AT:
        checksum, length = unpack(data, at)
        end = at + _BODY_AT + length
        body = data[at + _BODY_AT : end]
        if end > size or not length or crc32(body, nonce + at & _U32) != checksum:
            break
        if body[0] == sync:
            durable = max(durable, _covered(body, at))
        records.append(Record(at, end, body))
        at = end
    if at == size:
        return Scan(records, durable, at, wrong=False)
    covered = _durable_after(data, at, nonce)
    if covered > at:
        raise damaged(path, at)
    end, _ = _check(data, at, nonce)
    return Scan(records, max(durable, covered), at, wrong=end <= size)


def damaged(path: Path, at: int) -> CorruptError:
    """The error of a record that should be good."""
    return CorruptError("overlay journal", str(path), f"the record at offset {at} has another checksum")


def _check(data: memoryview, at: int, nonce: int) -> tuple[int, bool]:
    """Where a record ends, and whether it is one."""
    if len(data) - at < _BODY_AT:
        return len(data) + 1, False
    checksum, length = _FRAME.unpack_from(data, at)
    end = at + _BODY_AT + length
    good = length > 0 and end <= len(data)
    return end, good and crc32(data[at + _BODY_AT : end], nonce + at & _U32) == checksum


def _covered(body: memoryview, at: int) -> int:
    """The end of what a sync at a place says is durable; 0 if it is none."""
    try:
        durable = read_sync(body)
    except ValueError:
        return 0
    return durable if durable <= at else 0


def _durable_after(data: memoryview, start: int, nonce: int) -> int:
    """The end of what syncs behind a damaged place say is durable; 0 if there are none."""
    whole = bytes(data[start:])
    durable, found = 0, whole.find(_MARK)
    while found >= 0:
        at = start + found - _BODY_AT
        end, good = _check(data, at, nonce) if at >= start else (0, False)
        if good:
            durable = max(durable, _covered(data[at + _BODY_AT : end], at))
        found = whole.find(_MARK, found + 1)
    return durable
