"""Find the bytes of extents that a store has lost: in other frames, the service's pool, the spool, and other places.

Whatever is found is compared with its BLAKE3 before it is returned.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE, Frame, FrameHead
from pagepool.pool.layout import OBJECTS, object_name
from pagepool_service.store.checks.walk import walk_values
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import ContentKind, ObjectRecord, u64

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pagepool_service.repair.context import Context
    from pagepool_service.store.environment import Reader

log = logging.getLogger("pagepool.repair")

Found = dict[bytes, tuple[bytes, str]]
"""Extents: their bytes, and where they were found, in words."""


def find_extents(context: Context, wanted: set[bytes], bad_frames: Iterable[int] = ()) -> Found:
    """Find the bytes of extents.

    Args:
        bad_frames: not to be looked into again.
    """
    found: Found = {}
    if wanted:
        _in_frames(context, wanted, set(bad_frames), found)
    if left := wanted - found.keys():
        _in_files(context, left, found)
    for digest in wanted - found.keys():
        for source in context.sources:
            _take(found, digest, source.extent(digest), source.where)
    return found


def _take(found: Found, digest: bytes, data: bytes | None, where: str) -> None:
    if data is not None and digest not in found and blake3_raw(data) == digest:
        found[digest] = data, where


def _in_frames(context: Context, wanted: set[bytes], bad: set[int], found: Found) -> None:
    """In frames that hold them, too: copies that the index does not lead to."""
    places: dict[int, set[bytes]] = {}

    def visit(_txn: Reader, key: bytes, value: memoryview) -> None:
        number = int.from_bytes(key, "big")
        try:
            head, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], "")
        except CorruptError:
            return
        here = wanted.intersection(digest for digest, _ in head.extents)
        if here and number not in bad:
            places[number] = here

    walk_values(context.env, Table.FRAMES, visit)
    for number, here in places.items():
        value = context.value(Table.FRAMES, u64(number))
        try:
            frame = None if value is None else Frame.decode(number, memoryview(value)[:-CHECKSUM_SIZE])
        except CorruptError:
            continue
        for digest in here if frame else ():
            assert frame is not None
            offset, size = frame.index[digest]
            _take(found, digest, frame.plain[offset : offset + size], f"frame {number}")


def _in_files(context: Context, wanted: set[bytes], found: Found) -> None:
    """In objects of the pool, and in blobs' files in the spool: by the objects that the extents are parts of."""
    parents: dict[bytes, list[tuple[int, bytes]]] = {digest: [(0, digest)] for digest in wanted}

    def visit(_txn: Reader, key: bytes, value: memoryview) -> None:
        try:
            record = ObjectRecord.decode(value[:-CHECKSUM_SIZE], key.hex())
        except CorruptError:
            return
        if wanted.intersection(digest for _, digest in record.runs):
            parents[key] = [(offset, digest) for offset, digest in record.extents() if digest in wanted]

    walk_values(context.env, Table.OBJECTS, visit)
    spooled = _spooled(context)
    for name, parts in parents.items():
        pool = None if context.cache is None else context.cache / OBJECTS / object_name(name)
        for path, where in ((pool, "the pool"), (spooled.get(name), "the spool")):
            if path is not None:
                _in_file(path, parts, where, found)


def _in_file(path: Path, parts: list[tuple[int, bytes]], where: str, found: Found) -> None:
    try:
        with path.open("rb") as file:
            for offset, digest in parts:
                if digest not in found:
                    file.seek(offset)
                    _take(found, digest, file.read(EXTENT_SIZE), where)
    except FileNotFoundError:
        return
    except OSError as error:  # another user's pool; a disk that does not read
        log.info("%s: %s", path, error.strerror)


def _spooled(context: Context) -> dict[bytes, Path]:
    """The files of blobs in the spool, by the BLAKE3 of the blobs."""
    files: dict[bytes, Path] = {}
    for digest, record in context.blobs().items():
        if record.content is ContentKind.SPOOL:
            files[record.object] = context.store.blobs.spool_path(digest)
    return files
