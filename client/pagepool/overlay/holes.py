"""Where a file of a file system has data, for a tar that does not write its holes.

Blocks as long as finding a few thousand places takes; reads nothing. Memory is bounded, and so is the map that the tar
has of them: of a file with very many holes the small ones are written.
"""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from pagepool.vfs.interface import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.image.sparse import Segments
    from pagepool.vfs import FileSystem

WORTH: Final = 256 << 20
"""Bytes of holes for which a file is written as a sparse one. Not for less: zeros cost little, and Docker 20.10, which
pulls, runs and pushes layers with such members, cannot save them."""
_SMALLEST: Final = 64 << 10
_MOST_SEGMENTS: Final = 24_000
"""Of up to 40 bytes each in the map, of which Go's archive/tar, and so every runtime, reads 1 MiB at most."""


def find_segments(system: FileSystem, ino: int, size: int) -> Segments | None:
    """Where a regular file has data.

    Args:
        size: of the file.

    Returns:
        (offset, bytes) of what is to be written, in order, in whole pages but for the end of the file: GNU tar wants
        whole blocks. None if its holes are not worth it.
    """
    if size < WORTH:
        return None
    segments: Segments = []
    for start, end in _data(system, ino, size):
        last = sum(segments[-1]) if segments else 0
        if start - last < _SMALLEST:
            start = segments.pop()[0] if segments else 0
        segments.append((start, end - start))
        if len(segments) > _MOST_SEGMENTS:
            segments = _keep_largest(segments, _MOST_SEGMENTS // 2)
    return segments if size - sum(length for _, length in segments) >= WORTH else None


def _keep_largest(segments: Segments, count: int) -> Segments:
    """Join segments, so that the largest of the holes between them are left."""
    holes = [(sum(before) - after[0], number) for number, (before, after) in enumerate(pairwise(segments), 1)]
    starts = [0, *sorted(number for _, number in sorted(holes)[: count - 1])]
    ends = [number - 1 for number in (*starts[1:], len(segments))]
    return [
        (segments[first][0], sum(segments[last]) - segments[first][0]) for first, last in zip(starts, ends, strict=True)
    ]


def next_data(system: FileSystem, ino: int, offset: int, size: int) -> int:
    """Where a regular file has data next, from an offset on; its size if it has none."""
    try:
        return system.seek(ino, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def _data(system: FileSystem, ino: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size and (start := next_data(system, ino, end, size)) < size:
        end = system.seek(ino, start, os.SEEK_HOLE)
        end = min(end + -end % PAGE_SIZE, size)
        yield start - start % PAGE_SIZE, end
