"""A merged tree as one file, mapped and read where it lies: a look-up touches a few records, none is decoded ahead.

Owns the reader of docs/format/tree.md; `treeencode` writes it. The file's BLAKE3 is the tree's digest: whoever has
verified it may trust what it says. Out of other bytes come wrong answers or CorruptError, no other error, and no way
down through directories is endless. Immutable; any number of threads may read. Views that were handed out keep the
buffer alive.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import CorruptError, DigestMismatchError
from pagepool.extents import EXTENT_SIZE, ZERO_EXTENT
from pagepool.image.member import NO_XATTRS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAGIC: Final = b"PPTREE\r\n"
VERSION: Final = 1
ROOT: Final = 1
# magic, version, nodes, entries, objects, runs, extents; bytes of xattrs, of strings, of all objects
HEADER: Final = struct.Struct("<8sIIIIIIQQQ")
NODE: Final = struct.Struct("<BxHIIIqIIQIII")
ENTRY: Final = struct.Struct("<IIH")
OBJECT: Final = struct.Struct("<32sQII")
RUN: Final = struct.Struct("<II")
XATTR: Final = struct.Struct("<HI")
U32: Final = struct.Struct("<I")
U64: Final = struct.Struct("<Q")
DIGEST_SIZE: Final = 32
KINDS: Final = (Kind.DIRECTORY, Kind.REGULAR, Kind.SYMLINK, Kind.CHAR, Kind.BLOCK, Kind.FIFO)
"""By their code in a node record."""


class TreeNode(NamedTuple):
    """One inode of a tree.

    Args:
        number: from 1, the root.
        kind: any but a hard link: those are names.
        mode: permission bits with setuid, setgid and sticky.
        uid: owner.
        gid: group.
        mtime_ns: nanoseconds since 1970, may be negative.
        size: bytes of a regular file, or of a symlink's target; else 0.
        nlink: how many names it has; for a directory two and one for each directory in it.
        devmajor: of a device.
        devminor: of a device.
        object: of a regular file the number of its object, -1 if it is empty; -1 for every other kind.
        target: of a symlink.
    """

    number: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    devmajor: int
    devminor: int
    object: int
    target: bytes


class ObjectInfo(NamedTuple):
    """One object of a tree: raw BLAKE3 digest, size in bytes, runs of (repeat, digest of an extent)."""

    digest: bytes
    size: int
    runs: tuple[tuple[int, bytes], ...]

    @property
    def extent_count(self) -> int:
        """How many extents it has, at least one."""
        return -(-self.size // EXTENT_SIZE)

    def extents(self, first: int = 0, end: int | None = None) -> list[bytes]:
        """The digests of extents `[first, end)`, in order."""
        last = self.extent_count if end is None else min(end, self.extent_count)
        found: list[bytes] = []
        start = 0
        for repeat, digest in self.runs:
            low, high = max(start, first), min(start + repeat, last)
            found += [digest] * (high - low)
            start += repeat
            if start >= last:
                break
        return found


class TreeFile:
    """A tree, read out of a buffer.

    Args:
        data: the file's bytes; kept, and never written to.
        digest: what its BLAKE3 has to be; None to take it as it is.

    Raises:
        DigestMismatchError: it has another digest.
        CorruptError: it is no tree file, or of a version that is not known.
    """

    def __init__(self, data: bytes | memoryview | mmap.mmap, digest: bytes | None = None) -> None:
        self._data = memoryview(data)
        if digest is not None:
            got = blake3_raw(self._data)
            if got != digest:
                raise DigestMismatchError(Digest("blake3", digest), Digest("blake3", got), len(self._data))
        self._given = digest
        self._read_header()

    @classmethod
    def open(cls, path: Path, digest: bytes | None = None) -> TreeFile:
        """Map a file.

        Args:
            path: it may be removed afterwards; it must not be changed.
            digest: as for the class.

        Raises:
            OSError: it cannot be opened.
            DigestMismatchError, CorruptError: as for the class.
        """
        with path.open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # nothing in it
                raise CorruptError("tree", path.name, "the file is empty") from error
        return cls(mapped, digest)

    def close(self) -> None:
        """Let go of the buffer, which is unmapped once nobody uses a view of it. Questions end in CorruptError then."""
        self._data = memoryview(b"")
        self.node_count = self.object_count = self.extent_count = 0

    @cached_property
    def digest(self) -> bytes:
        """Raw BLAKE3 of the file."""
        return self._given or blake3_raw(self._data)

    @property
    def raw(self) -> memoryview:
        """The file's bytes."""
        return self._data

    def node(self, number: int) -> TreeNode:
        """An inode.

        Raises:
            CorruptError: there is none of that number, or its record cannot be right.
        """
        code, mode, nlink, uid, gid, seconds, ns, _, size, first, second, _ = self._node(number)
        kind = KINDS[code]
        device = kind in (Kind.CHAR, Kind.BLOCK)
        if kind is Kind.REGULAR:
            self._check_content(number, size, first)
        return TreeNode(
            number,
            kind,
            mode,
            uid,
            gid,
            seconds * 10**9 + ns,
            size,
            nlink,
            first if device else 0,
            second if device else 0,
            first - 1 if kind is Kind.REGULAR else -1,
            self._string(first, second) if kind is Kind.SYMLINK else b"",
        )

    def kind(self, number: int) -> Kind:
        """What an inode is.

        Raises:
            CorruptError: as `node`.
        """
        return KINDS[self._node(number)[0]]

    def xattrs(self, number: int) -> Mapping[bytes, bytes]:
        """The extended attributes of an inode.

        Raises:
            CorruptError: as `node`.
        """
        place = self._node(number)[7]
        if not place:
            return NO_XATTRS
        try:
            at = self._xattrs_at + place - 1
            (count,) = U32.unpack_from(self._data, at)
            at += U32.size
            found: dict[bytes, bytes] = {}
            for _ in range(count):
                name_size, value_size = XATTR.unpack_from(self._data, at)
                at += XATTR.size
                name = bytes(self._data[at : at + name_size])
                value = bytes(self._data[at + name_size : at + name_size + value_size])
                if len(name) + len(value) != name_size + value_size:
                    raise self._corrupt(f"the xattrs of node {number} end early")
                found[name] = value
                at += name_size + value_size
        except struct.error as error:
            raise self._corrupt(f"the xattrs of node {number} end early") from error
        return found

    def child(self, directory: int, name: bytes) -> int:
        """The number of the node of that name in a directory; 0 if there is none, or it is no directory.

        Raises:
            CorruptError: as `node`.
        """
        first, count = self._entries_of(directory)
        place = bisect_left(range(first, first + count), name, key=self.entry_name)
        if place == count:
            return 0
        found, number = self._entry(directory, first + place)
        return number if found == name else 0

    def entries(self, directory: int) -> Iterator[tuple[bytes, int]]:
        """(name, node number) of a directory's entries, by name; of anything else none.

        Raises:
            CorruptError: as `node`.
        """
        first, count = self._entries_of(directory)
        for place in range(first, first + count):
            yield self._entry(directory, place)

    def entry_name(self, place: int) -> bytes:
        """The name in an entry, by its place in the list of all.

        Raises:
            CorruptError: as `node`.
        """
        offset, _, size = ENTRY.unpack_from(self._data, self._entries_at + place * ENTRY.size)
        return self._string(offset, size)

    def parent(self, directory: int) -> int:
        """The number of the directory that a directory is in; the root's is itself.

        Raises:
            CorruptError: as `node`.
        """
        return int(self._node(directory)[11]) or ROOT

    def object(self, index: int) -> ObjectInfo:
        """An object by its place in the sorted list.

        Raises:
            CorruptError: there is none, or its record cannot be right.
        """
        digest, size, first, count = self._object(index)
        if not count:
            if not 0 < size <= EXTENT_SIZE:
                raise self._corrupt(f"object {digest.hex()} of {size} bytes has no extents")
            return ObjectInfo(digest, size, ((1, digest),))
        if first + count > self._run_count:
            raise self._corrupt(f"the extents of object {digest.hex()} are not there")
        start = self._runs_at + first * RUN.size
        pairs = RUN.iter_unpack(self._data[start : start + count * RUN.size])
        runs = tuple((repeat, self._extent(number)) for repeat, number in pairs)
        if size <= EXTENT_SIZE or sum(repeat for repeat, _ in runs) != -(-size // EXTENT_SIZE):
            raise self._corrupt(f"the extents of object {digest.hex()} contradict its size, {size}")
        return ObjectInfo(digest, size, runs)

    def holes(self, index: int) -> list[tuple[int, int]]:
        """Where an object is zeros: extents `[first, end)` of each hole, in order. Costs little in a tree without any.

        Raises:
            CorruptError: as `object`.
        """
        if self._zeros < 0 or not 0 <= index < self.object_count:
            return []
        digest, _, first, count = OBJECT.unpack_from(self._data, self._objects_at + index * OBJECT.size)
        if not count:
            return [(0, 1)] if digest == ZERO_EXTENT else []
        if first + count > self._run_count:
            raise self._corrupt(f"the extents of object {digest.hex()} are not there")
        start = self._runs_at + first * RUN.size
        found: list[tuple[int, int]] = []
        end = 0
        for repeat, number in RUN.iter_unpack(self._data[start : start + count * RUN.size]):
            begin, end = end, end + repeat
            if number == self._zeros:
                found.append((begin, end))
        return found

    @cached_property
    def _zeros(self) -> int:
        """The number of the extent of zeros; -1 if no object has one."""
        place = bisect_left(range(self.extent_count), ZERO_EXTENT, key=self._extent)
        return place if place < self.extent_count and self._extent(place) == ZERO_EXTENT else -1

    def object_key(self, index: int) -> tuple[bytes, int]:
        """The digest and the size of an object, without its extents.

        Raises:
            CorruptError: there is none.
        """
        digest, size, _, _ = self._object(index)
        return digest, size

    def find_object(self, digest: bytes) -> int:
        """The place of an object in the sorted list, -1 if the tree does not have it."""
        place = bisect_left(range(self.object_count), digest, key=self._object_digest)
        return place if place < self.object_count and self._object_digest(place) == digest else -1

    @property
    def extents(self) -> memoryview:
        """The digests of all extents of all objects, 32 bytes each, sorted, each once."""
        return self._data[self._extents_at : self._extents_at + self.extent_count * DIGEST_SIZE]

    def has_extent(self, digest: bytes) -> bool:
        """Whether an object of the tree has this extent."""
        place = bisect_left(range(self.extent_count), digest, key=self._extent)
        return place < self.extent_count and self._extent(place) == digest

    def _read_header(self) -> None:
        try:
            magic, version, *counts = HEADER.unpack_from(self._data)
        except struct.error as error:
            raise self._corrupt("it is too short") from error
        if magic != MAGIC:
            raise self._corrupt("it is no tree file")
        if version != VERSION:
            raise self._corrupt(f"it is of version {version}, this program reads {VERSION}")
        self.node_count, entries, self.object_count, self._run_count, self.extent_count = counts[:5]
        xattrs_size, self._strings_size, self.object_bytes = counts[5:]
        self._entry_count = entries
        self._nodes_at = HEADER.size
        self._entries_at = self._nodes_at + self.node_count * NODE.size
        self._objects_at = self._entries_at + entries * ENTRY.size
        self._runs_at = self._objects_at + self.object_count * OBJECT.size
        self._extents_at = self._runs_at + self._run_count * RUN.size
        self._xattrs_at = self._extents_at + self.extent_count * DIGEST_SIZE
        self._strings_at = self._xattrs_at + xattrs_size
        size = self._strings_at + self._strings_size
        if not self.node_count or size != len(self._data):
            raise self._corrupt(f"it has {len(self._data)} bytes, its header says {size}")

    def _node(self, number: int) -> tuple[int, ...]:
        if not 0 < number <= self.node_count:
            raise self._corrupt(f"there is no node {number}" if self._data else "it was closed")
        record = NODE.unpack_from(self._data, self._nodes_at + (number - 1) * NODE.size)
        if record[0] >= len(KINDS):
            raise self._corrupt(f"node {number} is of kind {record[0]}")
        return record

    def _entries_of(self, directory: int) -> tuple[int, int]:
        record = self._node(directory)
        if KINDS[record[0]] is not Kind.DIRECTORY:
            return 0, 0
        first, count = record[9], record[10]
        if first + count > self._entry_count:
            raise self._corrupt(f"the entries of node {directory} are not there")
        return first, count

    def _entry(self, directory: int, place: int) -> tuple[bytes, int]:
        offset, number, size = ENTRY.unpack_from(self._data, self._entries_at + place * ENTRY.size)
        # Only a hard link leads back: a directory is numbered after the one it is in.
        if number <= directory and KINDS[self._node(number)[0]] is Kind.DIRECTORY:
            raise self._corrupt(f"node {directory} has node {number} below it, a directory that comes before it")
        if number > self.node_count:
            raise self._corrupt(f"entry {place} names node {number}")
        return self._string(offset, size), number

    def _check_content(self, number: int, size: int, place: int) -> None:
        """Raise unless a regular file's object is there, and of its size."""
        if not place:
            found = 0
        elif place <= self.object_count:
            (found,) = U64.unpack_from(self._data, self._objects_at + (place - 1) * OBJECT.size + DIGEST_SIZE)
        else:
            found = -1
        if found != size:
            raise self._corrupt(f"node {number} has {size} bytes, and its content is not there or of another size")

    def _object(self, index: int) -> tuple[bytes, int, int, int]:
        if not 0 <= index < self.object_count:
            raise self._corrupt(f"there is no object {index}" if self._data else "it was closed")
        return OBJECT.unpack_from(self._data, self._objects_at + index * OBJECT.size)

    def _object_digest(self, index: int) -> bytes:
        start = self._objects_at + index * OBJECT.size
        return bytes(self._data[start : start + DIGEST_SIZE])

    def _extent(self, number: int) -> bytes:
        if number >= self.extent_count:
            raise self._corrupt(f"there is no extent {number}")
        start = self._extents_at + number * DIGEST_SIZE
        return bytes(self._data[start : start + DIGEST_SIZE])

    def _string(self, offset: int, size: int) -> bytes:
        if offset + size > self._strings_size:
            raise self._corrupt("a name lies outside of it")
        start = self._strings_at + offset
        return bytes(self._data[start : start + size])

    def _corrupt(self, reason: str) -> CorruptError:
        return CorruptError("tree", self._given.hex() if self._given else "", reason)
