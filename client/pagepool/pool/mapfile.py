"""The map beside an object that is being filled: which of its extents are there (docs/format/pool.md).

A head, then one byte for each extent: 0 absent, 2 counted against the budget and perhaps being written, 1 written. The
byte becomes 1 after the data was written, so a filler that is killed leaves an extent that counts as absent. Bytes of
different extents are independent: any number of processes fill at the same time. Changes from 0 are made with the
ledger's lock held, and so are those of the state in the head.

What survives the machine's power is another matter: the byte may be on the disk and the data not. The head has the boot
during which the map was last trusted; in another boot every extent is verified before the map is believed.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pagepool import linux
from pagepool.digest import blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.pool.layout import PARTIAL, cost

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ABSENT, PRESENT, CHARGED = 0, 1, 2
FILLING, PUBLISHED, DISCARDED = 0, 1, 2
HEAD: Final = struct.Struct("<8s16sIIQ32s8x")
_STATE_OFFSET: Final = 24
_MAGIC: Final = b"PPMAP\0\0\x01"


def partial_key(digest: bytes, size: int, extents: Sequence[bytes]) -> bytes:
    """The name of an object that is being filled: of the object *and* of the list of extents it is said to have.

    A tree that lies about an object's extents gets a partial of its own, and hurts nobody else's.
    """
    return blake3_raw(b"".join((digest, size.to_bytes(8, "little"), *extents)))


def data_path(pool: Path, key: bytes) -> Path:
    """Where the bytes of a partial are."""
    return pool / PARTIAL / f"{key.hex()}.data"


def map_path(pool: Path, key: bytes) -> Path:
    """Where its map is."""
    return pool / PARTIAL / f"{key.hex()}.map"


def remove_partial(pool: Path, key: bytes) -> None:
    """Remove a partial's files, as far as they are there. The map goes first: without it the bytes say nothing."""
    for path in (map_path(pool, key), data_path(pool, key)):
        with suppress(FileNotFoundError):
            path.unlink()


def extent_cost(size: int, number: int) -> int:
    """What one extent of an object counts against a budget."""
    return cost(min(EXTENT_SIZE, size - number * EXTENT_SIZE))


def _charged(size: int, marks: bytes) -> int:
    """What the marked extents count together."""
    total = (len(marks) - marks.count(ABSENT)) * EXTENT_SIZE
    return total - (EXTENT_SIZE - extent_cost(size, len(marks) - 1)) if marks and marks[-1] else total


class MapFile:
    """A map, mapped. Reading is free of locks. It is changed by writes, as the account is (`pagepool.pool.ledger`).

    Args:
        pool: the pool's directory.
        key: the partial's.
    """

    def __init__(self, pool: Path, key: bytes) -> None:
        descriptor = os.open(map_path(pool, key), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        except BaseException:
            os.close(descriptor)
            raise
        self._file = descriptor
        self.marks = memoryview(self._map)[HEAD.size :]
        self.size: int = HEAD.unpack_from(self._map)[4]

    @staticmethod
    def create(pool: Path, key: bytes, digest: bytes, size: int, count: int, boot: bytes) -> None:
        """Write an empty map."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(map_path(pool, key), flags, 0o600), "wb") as file:
            linux.stay_in_place(file.fileno())
            file.write(HEAD.pack(_MAGIC, boot, FILLING, count, size, digest) + bytes(count))

    @staticmethod
    def read_charged(pool: Path, key: bytes) -> int | None:
        """What a partial counts against the budget; None if its files are not a partial."""
        try:
            raw = map_path(pool, key).read_bytes()
            status = data_path(pool, key).stat()
        except FileNotFoundError:
            return None
        if len(raw) < HEAD.size:
            return None
        magic, _, _, count, size, _ = HEAD.unpack_from(raw)
        marks = raw[HEAD.size :]
        if magic != _MAGIC or status.st_size != size or not size:
            return None
        if not len(marks) == count == -(-size // EXTENT_SIZE):
            return None
        return _charged(size, marks)

    @property
    def boot(self) -> bytes:
        """The boot in which the map was last trusted."""
        return self._map[8:_STATE_OFFSET]

    @boot.setter
    def boot(self, value: bytes) -> None:
        os.pwrite(self._file, value, 8)

    @property
    def state(self) -> int:
        """Whether the object is being filled, was published, or was given up."""
        return self._map[_STATE_OFFSET]

    @state.setter
    def state(self, value: int) -> None:
        os.pwrite(self._file, bytes((value,)), _STATE_OFFSET)

    def mark(self, number: int, value: int) -> None:
        """Say of an extent that it is there, or is not.

        Raises:
            OSError: the disk does not take it.
        """
        os.pwrite(self._file, bytes((value,)), HEAD.size + number)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    @property
    def whole(self) -> bool:
        """Whether all extents are there."""
        return bytes(self.marks).count(PRESENT) == len(self.marks)

    @property
    def charged(self) -> int:
        """What its extents count against the budget."""
        return _charged(self.size, bytes(self.marks))
