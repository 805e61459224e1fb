"""What an ELF file needs to be run: the interpreter and the libraries that it names. Reads a few kilobytes of it.

Only files of 64 bits and little-endian are read, which is what x86-64, arm64 and riscv64 have; of others, and of files
that are damaged, nothing is known. Pure, but for what `read` does.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]
    """The bytes `[start, end)` of the file."""

MAGIC: Final = b"\x7fELF\x02\x01"
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_ENTRY: Final = struct.Struct("<qQ")
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_END, _NEEDED, _STRINGS, _STRINGS_SIZE = 0, 1, 5, 10
_PATHS: Final = (15, 29)
"""DT_RPATH and DT_RUNPATH, of which a file has one each."""
_MOST_SEGMENTS: Final = 128
_MOST_DYNAMIC: Final = 64 << 10
_MOST_STRINGS: Final = 8 << 20
_MOST_NAME: Final = 4096
_MOST_LIBRARIES: Final = 64
_MOST_DIRECTORIES: Final = 32
"""Of a file: who made it may want to keep a node busy."""


class Needs(NamedTuple):
    """What a file names.

    Args:
        interpreter: path of the program that loads it; b"" if it has none.
        libraries: names, in the order in which they are loaded.
        directories: where else to look for them, ``$ORIGIN`` being the file's own.
    """

    interpreter: bytes = b""
    libraries: tuple[bytes, ...] = ()
    directories: tuple[bytes, ...] = ()


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int


def read_needs(read: Read, size: int) -> Needs:
    """What a file needs; nothing, if it is no ELF file that can be read.

    Args:
        read: raises what it likes.
        size: of the file.
    """
    head = read(0, min(size, _HEADER.size))
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        return Needs()
    fields = _HEADER.unpack(head)
    at, entry_size, count = fields[5], fields[9], min(fields[10], _MOST_SEGMENTS)
    if entry_size != _SEGMENT.size or at + count * entry_size > size:
        return Needs()
    table = read(at, at + count * entry_size)
    segments = [_Segment(one[0], one[2], one[3], one[5]) for one in _SEGMENT.iter_unpack(table)]
    interpreter = next((_piece(read, size, one, _MOST_NAME) for one in segments if one.kind == _INTERPRETER), b"")
    dynamic = next((_piece(read, size, one, _MOST_DYNAMIC) for one in segments if one.kind == _DYNAMIC), b"")
    entries = list(_entries(dynamic))
    names = _Names(read, size, segments, dict(entries))
    wanted = dict.fromkeys(value for tag, value in entries if tag == _NEEDED)
    libraries = tuple(name for value in list(wanted)[:_MOST_LIBRARIES] if (name := names.get(value)))
    paths = (names.get(value) for value in list(dict.fromkeys(value for tag, value in entries if tag in _PATHS))[:2])
    directories = dict.fromkeys(path for text in paths for path in text.split(b":", _MOST_DIRECTORIES) if path)
    return Needs(interpreter.rstrip(b"\0"), libraries, tuple(directories)[:_MOST_DIRECTORIES])


def _piece(read: Read, size: int, segment: _Segment, most: int) -> bytes:
    end = min(segment.offset + min(segment.size, most), size)
    return read(segment.offset, end) if segment.offset < end else b""


def _entries(dynamic: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in _ENTRY.iter_unpack(dynamic[: len(dynamic) - len(dynamic) % _ENTRY.size]):
        if tag == _END:
            return
        yield tag, value


class _Names:
    """The strings that entries refer to."""

    def __init__(self, read: Read, size: int, segments: list[_Segment], entries: dict[int, int]) -> None:
        address = entries.get(_STRINGS, -1)
        loaded = (one for one in segments if one.kind == _LOAD and 0 <= address - one.address < one.size)
        segment = next(loaded, None)
        at = -1 if segment is None else segment.offset + address - segment.address
        end = min(at + min(entries.get(_STRINGS_SIZE, 0), _MOST_STRINGS), size)
        self._text = read(at, end) if 0 <= at < end else b""

    def get(self, offset: int) -> bytes:
        return self._text[offset : offset + _MOST_NAME].partition(b"\0")[0] if offset < len(self._text) else b""
