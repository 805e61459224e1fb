"""Hash a blob while it comes in: its OCI digest, its BLAKE3, and the BLAKE3 of each of its extents, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.digest import Digest, new_hasher
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sums:
    """What was computed over a blob: its size in bytes, OCI digest, and its object name and extents."""

    size: int
    digest: Digest
    object: bytes
    extents: tuple[bytes, ...]


class Summer:
    """Feed it a blob in order with `update`; `sums()` at the end. Not thread-safe; releases the GIL on large
    pieces.

    Args:
        algorithm: of the OCI digest.
    """

    def __init__(self, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self.size = 0
        self._oci = new_hasher(algorithm)
        self._object = blake3()
        self._extent = blake3()
        self._filled = 0
        self._extents: list[bytes] = []

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the blob."""
        view = memoryview(data)
        self._oci.update(view)
        self._object.update(view)
        self.size += len(view)
        while view:
            piece = view[: EXTENT_SIZE - self._filled]
            if len(piece) == EXTENT_SIZE:
                self._extents.append(blake3(piece).digest())
            else:
                self._extent.update(piece)
                self._filled += len(piece)
                if self._filled == EXTENT_SIZE:
                    self._close_extent()
            view = view[len(piece) :]

    def sums(self) -> Sums:
        """The result; more may still be fed afterwards."""
        last = [self._extent.digest()] if self._filled else []
        digest = Digest(self.algorithm, self._oci.digest())
        return Sums(self.size, digest, self._object.digest(), tuple(self._extents + last))

    def _close_extent(self) -> None:
        self._extents.append(self._extent.digest())
        self._extent = blake3()
        self._filled = 0


def sum_file(path: Path, algorithm: str, *, limit: int | None = None) -> Summer:
    """Hash a file's first `limit` bytes (all of them without it)."""
    summer = Summer(algorithm)
    left = limit if limit is not None else path.stat().st_size
    with path.open("rb", buffering=0) as file:
        while left and (data := file.read(min(1 << 20, left))):
            summer.update(data)
            left -= len(data)
    return summer
