"""What the files of an image must hold: one file that every client maps, and compares what it reads with.

Made of the layers themselves (`TruthBuilder`, in `layertruth`), by nothing that pagepool reads images with: SHA-256 of
each file, and of each of its pages the first 16 bytes of SHA-256. Integers are little-endian:

    8 bytes      PPTRUTH1
    3 x u64      files n, pages p, bytes of names
    n x u64      sizes
    (n+1) x u64  number of each file's first page; the last is p
    (n+1) x u64  where each name begins
    n x 32       SHA-256 of each file
    p x 16       of each page
    names        absolute paths without the slash in front, sorted, end to end
"""

from __future__ import annotations

import hashlib
import mmap
import sys
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from pagepool.errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PAGE: Final = 4096
PART: Final = 16
_MAGIC: Final = b"PPTRUTH1"
_HEAD: Final = 32


class TruthInvalidError(InvalidError):
    """No such file, or a damaged one."""

    what = "truth file"


@dataclass(frozen=True, slots=True)
class TrueFile:
    """What one file must hold.

    Args:
        path: absolute, without the slash in front.
        size: bytes.
        digest: SHA-256 of all of it.
        pages: `page_digest` of each page, joined.
    """

    path: bytes
    size: int
    digest: bytes
    pages: bytes


def page_digest(page: bytes | memoryview) -> bytes:
    """What stands for a page; the last one of a file is as long as it is."""
    return hashlib.sha256(page).digest()[:PART]


def encode_truth(files: Iterable[TrueFile]) -> bytes:
    """Write a truth file."""
    _check_order()
    ordered = sorted(files, key=lambda file: file.path)
    sizes, pages, names = array("Q"), array("Q", [0]), array("Q", [0])
    for file in ordered:
        sizes.append(file.size)
        pages.append(pages[-1] + len(file.pages) // PART)
        names.append(names[-1] + len(file.path))
    head = _MAGIC + array("Q", [len(ordered), pages[-1], names[-1]]).tobytes()
    parts = [head, sizes.tobytes(), pages.tobytes(), names.tobytes()]
    parts += [file.digest for file in ordered]
    parts += [file.pages for file in ordered]
    parts += [file.path for file in ordered]
    return b"".join(parts)


class Truth:
    """A truth file, mapped. Files and pages go by number. Thread-safe; close it.

    Args:
        data: the file; kept.

    Raises:
        TruthInvalidError: it is none.
    """

    def __init__(self, data: bytes | mmap.mmap, name: str = "truth") -> None:
        _check_order()
        self._data = data
        view = memoryview(data)
        if len(view) < _HEAD or bytes(view[:8]) != _MAGIC:
            raise TruthInvalidError(name, "does not begin as one")
        self.count, self.pages, names = view[8:_HEAD].cast("Q")
        sizes = _HEAD + 8 * self.count
        first = sizes + 8 * (self.count + 1)
        self._digests = first + 8 * (self.count + 1)
        self._parts = self._digests + 32 * self.count
        self._names = self._parts + PART * self.pages
        if self._names + names != len(view):
            raise TruthInvalidError(name, f"has {len(view)} bytes instead of {self._names + names}")
        self._sizes, self._first = view[_HEAD:sizes].cast("Q"), view[sizes:first].cast("Q")
        self._starts = view[first : self._digests].cast("Q")
        self._view = view

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file.

        Raises:
            OSError: it cannot be read.
            TruthInvalidError: it is none.
        """
        with path.open("rb") as file:
            if path.stat().st_size < _HEAD:
                raise TruthInvalidError(str(path), "is too short")
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))

    def path(self, file: int) -> bytes:
        """The path of a file, without the slash in front."""
        start, end = self._starts[file], self._starts[file + 1]
        return bytes(self._view[self._names + start : self._names + end])

    def size(self, file: int) -> int:
        """Its bytes."""
        return self._sizes[file]

    def digest(self, file: int) -> bytes:
        """SHA-256 of all of it."""
        at = self._digests + 32 * file
        return bytes(self._view[at : at + 32])

    def find(self, path: bytes) -> int:
        """The number of a file by its path; -1 if there is none."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self.path(middle) < path:
                low = middle + 1
            else:
                high = middle
        return low if low < self.count and self.path(low) == path else -1

    def locate(self, page: int) -> tuple[int, int]:
        """Which file a page of the image is of, and its offset in it."""
        file = bisect_right(self._first, page) - 1
        return file, (page - self._first[file]) * PAGE

    def expected(self, file: int, page: int) -> bytes:
        """The `page_digest` that a page of a file must have."""
        at = self._parts + PART * (self._first[file] + page)
        return bytes(self._view[at : at + PART])

    def close(self) -> None:
        """Let go of the file."""
        for view in (self._sizes, self._first, self._starts, self._view):
            view.release()
        if isinstance(self._data, mmap.mmap):
            self._data.close()


def _check_order() -> None:
    if sys.byteorder != "little":
        raise UnsupportedError("load tests run on little-endian machines only")
