"""Sparse maps: where the stored bytes of a sparse member lie in the file.

GNU tar has written four forms. Old GNU ('S') keeps four entries in the header block and twenty-one in each
extension block after it. PAX 0.0 and 0.1 keep them in the extended header, PAX 1.0 in decimal lines in front
of the data, padded to a block. The stored bytes of all segments follow each other without padding, as
libarchive and Go read it.

A malformed map raises `ValueError` with the reason; the caller knows the member.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pagepool.image.header import BLOCK, Header, parse_number
from pagepool.image.pax import SPARSE_MAP, parse_integer

Segments = list[tuple[int, int]]

_ENTRY = 24
_IN_HEADER = slice(386, 386 + 4 * _ENTRY + 1)
_IN_EXTENSION = slice(0, 21 * _ENTRY + 1)
_REAL_SIZE = slice(483, 495)


def parse_gnu_header(block: bytes) -> tuple[Segments, bool, int]:
    """The part of an old GNU map that is in the header block.

    Returns:
        the segments, whether an extension block follows, and the logical size of the file.

    Raises:
        ValueError: the map is malformed.
    """
    size = parse_number(block[_REAL_SIZE])
    if size is None:
        raise ValueError("a bad size")
    segments, extended = _parse_entries(block[_IN_HEADER])
    return segments, extended, size


def _parse_entries(area: bytes) -> tuple[Segments, bool]:
    segments: Segments = []
    for start in range(0, len(area) - 1, _ENTRY):
        if not area[start]:
            break
        offset = parse_number(area[start : start + 12])
        size = parse_number(area[start + 12 : start + 24])
        if offset is None or size is None:
            raise ValueError("a bad number")
        segments.append((offset, size))
    return segments, area[-1] > 0


def pax_version(records: Mapping[bytes, bytes]) -> str | None:
    """Which PAX form the records announce: "0" (0.0 and 0.1), "1", or None when the member is not sparse."""
    major, minor = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if major == b"0" and minor in (b"0", b"1"):
        return "0"
    if major == b"1" and minor == b"0":
        return "1"
    # The first two versions had no version records.
    return "0" if not major and not minor and records.get(SPARSE_MAP) else None


def parse_pax_map(records: Mapping[bytes, bytes]) -> Segments:
    """The map of PAX 0.0 and 0.1.

    Raises:
        ValueError: the map is malformed, or has not the announced number of entries.
    """
    count = parse_integer(records.get(b"GNU.sparse.numblocks", b""))
    text = records.get(SPARSE_MAP, b"")
    numbers = [parse_integer(number) for number in text.split(b",")] if text else []
    if len(numbers) != 2 * count:
        raise ValueError("a number of entries that is not the announced one")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


class PendingMap:
    """The map of one member while its blocks are read.

    Args:
        header: the member's header, with extended headers applied; its `size` counts all bytes stored.
        size: logical size of the file.
        segments: the entries known from the headers.

    Attributes:
        map_size: bytes of the blocks read so far.
    """

    def __init__(self, header: Header, size: int, segments: Segments) -> None:
        self.header = header
        self.size = size
        self.segments = segments
        self.map_size = 0
        self._text = bytearray()
        self._lines = 0

    def read_gnu(self, block: bytes, max_size: int) -> bool:
        """Read one extension block of an old GNU map; returns whether it was the last.

        Raises:
            ValueError: the map is malformed, or larger than `max_size` bytes.
        """
        self._count(max_size)
        segments, extended = _parse_entries(block[_IN_EXTENSION])
        self.segments += segments
        return not extended

    def read_data(self, block: bytes, max_size: int) -> bool:
        """Read one block of a PAX 1.0 map, from the start of the data; returns whether it was the last.

        Raises:
            ValueError: the map is malformed, larger than `max_size` bytes or than the data.
        """
        self._count(min(max_size, self.header.size))
        self._text += block
        self._lines += block.count(b"\n")
        lines = 2 * parse_integer(bytes(self._text[:20]).partition(b"\n")[0])
        if lines < 0:
            raise ValueError("a bad number of entries")
        if self._lines <= lines:
            return False
        numbers = [parse_integer(line) for line in bytes(self._text).split(b"\n", lines + 1)[1 : lines + 1]]
        self.segments = list(zip(numbers[::2], numbers[1::2], strict=True))
        return True

    def _count(self, max_size: int) -> None:
        self.map_size += BLOCK
        if self.map_size > max_size:
            raise ValueError(f"more than {max_size} bytes")


def check_segments(segments: Segments, size: int, stored_size: int) -> str:
    """What is wrong with a map, or "".

    Args:
        segments: the map.
        size: logical size of the file.
        stored_size: bytes of the member's data in the archive, without the map.
    """
    end = total = 0
    for offset, length in segments:
        if offset < 0 or length < 0:
            return "has a sparse map with a negative number"
        if offset < end:
            return "has a sparse map that overlaps or is out of order"
        end = offset + length
        total += length
    if size < 0 or end > size:
        return "has a sparse map that reaches beyond its size"
    if total != stored_size:
        return f"has a sparse map of {total} bytes over {stored_size} stored bytes"
    return ""


def stored_pieces(segments: tuple[tuple[int, int], ...], start: int, size: int) -> Iterator[tuple[int, int]]:
    """Where stored bytes of a sparse member lie in the file.

    Args:
        segments: the member's segments.
        start: offset in the stored data.
        size: how many stored bytes.

    Returns:
        (offset in the file, length) of each contiguous piece, in order.
    """
    for offset, length in segments:
        if start < length and size:
            taken = min(length - start, size)
            yield offset + start, taken
            size -= taken
            start = 0
        else:
            start = max(0, start - length)
