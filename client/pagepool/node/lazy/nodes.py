"""Numbers of the nodes of the lazy mount, and the file in which those of large objects are written down.

Numbers of directories are fixed. A large object gets one when it is first looked up, written down *before* the kernel
hears of it, so that a server that is started after a crash knows every number that the kernel has:

    bytes 0-31   digest          a record; its place in the file is its number: `FIRST_OBJECT` + place
    bytes 32-39  size            little endian
    bytes 40-43  CRC-32 of bytes 0-39
    bytes 44-47  zero

Records are appended, and neither changed nor removed: a number never means another object. A torn record at the end
was never told to anybody, and is taken away; a damaged one keeps its place, and its number means nothing. The file
lives as long as the mount does, on a tmpfs: it has to outlive processes, not the machine's boot. It is locked by who
serves the mount, so that no two processes give the same number away.
"""

from __future__ import annotations

import fcntl
import os
import re
import zlib
from struct import Struct
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.errors import BusyError

if TYPE_CHECKING:
    from pathlib import Path

ROOT: Final = 1
FETCH: Final = 2
FAIL: Final = 3
PROBE: Final = 4
"""An empty file in the root, that `mounting.settle` opens."""
FETCH_CHILDREN: Final = 0x100
FAIL_CHILDREN: Final = 0x200
"""The directory `ab` has this number + 0xab."""
FIRST_OBJECT: Final = 0x1000

_RECORD: Final = Struct("<32sQII")
_CHECKED: Final = 40
_DIRECTORY_NAME: Final = re.compile(rb"[0-9a-f]{2}")
_OBJECT_NAME: Final = re.compile(rb"[0-9a-f]{62}")


class Object(NamedTuple):
    """An object that has a node.

    Args:
        digest: its BLAKE3.
        size: its bytes.
    """

    digest: bytes
    size: int


def child_number(parent: int, name: bytes) -> int | None:
    """The number of a directory in a directory; None if it has none of that name."""
    if parent == ROOT:
        return {b"fetch": FETCH, b"fail": FAIL}.get(name)
    if parent in (FETCH, FAIL) and _DIRECTORY_NAME.fullmatch(name):
        return (FETCH_CHILDREN if parent == FETCH else FAIL_CHILDREN) + int(name, 16)
    return None


def is_directory(node: int) -> bool:
    """Whether a number is that of a directory."""
    return node in (ROOT, FETCH, FAIL) or FETCH_CHILDREN <= node < FAIL_CHILDREN + 256


def digest_of(parent: int, name: bytes) -> bytes | None:
    """The object that a name in a directory of ``fetch/`` stands for; None if it is no such name."""
    if not FETCH_CHILDREN <= parent < FETCH_CHILDREN + 256 or not _OBJECT_NAME.fullmatch(name):
        return None
    return bytes((parent - FETCH_CHILDREN,)) + bytes.fromhex(name.decode())


class NodeTable:
    """The numbers of large objects. Thread-safe.

    Args:
        path: the file; made if it is not there.

    Raises:
        BusyError: another process has it, and serves the mount.
        OSError: it cannot be opened, or read.
    """

    def __init__(self, path: Path) -> None:
        self._lock = Lock()
        self._objects: list[Object | None] = []
        self._numbers: dict[bytes, int] = {}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock(path)
            self._read()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take_lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{path} is in use: another process serves the lazy mount") from None

    def _read(self) -> None:
        with open(self._descriptor, "rb", closefd=False) as file:
            data = file.read()
        count = len(data) // _RECORD.size
        if len(data) % _RECORD.size:
            os.ftruncate(self._descriptor, count * _RECORD.size)
        for digest, size, checksum, _ in _RECORD.iter_unpack(data[: count * _RECORD.size]):
            if zlib.crc32(digest + size.to_bytes(8, "little")) == checksum:
                self._numbers[digest] = FIRST_OBJECT + len(self._objects)
                self._objects.append(Object(digest, size))
            else:
                self._objects.append(None)

    def number(self, digest: bytes) -> int | None:
        """The number of an object, if it has one."""
        return self._numbers.get(digest)

    def object(self, node: int) -> Object | None:
        """What a number stands for; None: no object."""
        place = node - FIRST_OBJECT
        return self._objects[place] if 0 <= place < len(self._objects) else None

    def add(self, digest: bytes, size: int) -> int:
        """The number of an object; it is written down when this returns.

        Raises:
            OSError: it cannot be written down; the object has no number then.
        """
        with self._lock:
            number = self._numbers.get(digest)
            if number is not None:
                return number
            self._append(digest, size)
            number = FIRST_OBJECT + len(self._objects)
            self._objects.append(Object(digest, size))
            self._numbers[digest] = number
            return number

    def _append(self, digest: bytes, size: int) -> None:
        checksum = zlib.crc32(digest + size.to_bytes(8, "little"))
        record, start = _RECORD.pack(digest, size, checksum, 0), len(self._objects) * _RECORD.size
        written = 0
        while written < len(record):
            written += os.pwrite(self._descriptor, record[written:], start + written)

    def digests(self) -> list[bytes]:
        """The objects that have a number."""
        with self._lock:
            return list(self._numbers)

    def __len__(self) -> int:
        return len(self._objects)

    def close(self) -> None:
        """Let go of the file. Its numbers can still be asked for."""
        os.close(self._descriptor)
