"""Repair frames and the index of extents.

A damaged frame is taken apart: what of it still has its BLAKE3, and what is found elsewhere, goes into new frames, the
index follows in the same transaction, and the old record goes into the quarantine. The index is made again out of the
heads of frames. An extent that is found nowhere leaves the index, so that whoever brings it again stores it anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE, Frame, FrameHead, Role, encode_frame
from pagepool_service.repair.bits import is_sound
from pagepool_service.repair.context import Action, expect
from pagepool_service.repair.finder import find_extents
from pagepool_service.store.checks.findings import LISTED
from pagepool_service.store.checks.walk import walk_values
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import Location, u64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pagepool_service.repair.context import Context
    from pagepool_service.repair.finder import Found
    from pagepool_service.store.environment import Reader, Writer

_FRAME_EXTENTS = 2  # of 128 KiB: frames of 256 KiB, as pushes make them
_HEAD, _HEAD_EXTENT = 12, 36  # bytes, docs/format/frame.md
_PIECE = 1 << 10

Placed = list[tuple[bytes, int, int]]
"""Extents: digest, offset in the plain data, and length."""


def repair_frames(context: Context) -> None:
    """Take damaged frames apart, and mend the index of extents."""
    numbers = {int(name) for name in context.names("frame") if name.isdigit()}
    named = {bytes.fromhex(name) for name in context.names("extent") if len(name) == 64}
    if max(len(numbers), len(named)) >= LISTED:  # fsck has not listed all of them
        _add_unlisted(context, numbers, named)
    if not numbers and not named:
        return
    wrong, places = _look_for(context, named)
    numbers |= wrong
    indexed = _indexed(context, numbers)
    wanted = {digest for placed in indexed.values() for digest, _, _ in placed}
    good: dict[int, dict[bytes, bytes]] = {}
    for number in numbers:
        value = context.value(Table.FRAMES, u64(number)) or b""
        good[number] = salvage_frame(memoryview(value)[:-CHECKSUM_SIZE], indexed[number])
    left = wanted - {digest for known in good.values() for digest in known}
    found = find_extents(context, left | (named - places.keys()), numbers)
    for number in sorted(numbers):
        _replace_frame(context, number, indexed[number], good[number], found)
    moved = {digest for known in good.values() for digest in known} | wanted
    for digest in sorted(named - moved):
        _mend_index(context, digest, places.get(digest), found)


def _add_unlisted(context: Context, numbers: set[int], named: set[bytes]) -> None:
    """Find all damaged frames, and all extents that the index does not lead to rightly, by looking at each."""

    def visit(txn: Reader, key: bytes, value: memoryview) -> None:
        number = int.from_bytes(key, "big")
        try:
            if not is_sound(Table.FRAMES, key, bytes(value)):
                raise CorruptError("frame", str(number), "")
            head, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], str(number))
        except CorruptError:
            numbers.add(number)
            return
        for digest, offset, size in _places(head):
            try:
                found = context.store.extents.find(txn, digest)
            except CorruptError:
                found = None
            if found is None or (found.frame == number and found != Location(number, offset, size)):
                named.add(digest)

    walk_values(context.env, Table.FRAMES, visit)


def _look_for(context: Context, named: set[bytes]) -> tuple[set[int], dict[bytes, Location]]:
    """Look for extents in all frames that say that they hold them.

    Returns:
        the frames that hold other bytes under such a name, and where the others are.
    """
    bad: set[int] = set()
    places: dict[bytes, Location] = {}

    def visit(_txn: Reader, key: bytes, value: memoryview) -> None:
        number = int.from_bytes(key, "big")
        try:
            head, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], str(number))
            here = named.intersection(digest for digest, _ in head.extents)
            if not here or not is_sound(Table.FRAMES, key, bytes(value)):
                return
            frame = Frame.decode(number, value[:-CHECKSUM_SIZE])
        except CorruptError:
            return  # named as a frame, unless nothing refers to it
        for digest in here:
            at, size = frame.index[digest]
            if blake3_raw(frame.view[at : at + size]) == digest:
                places[digest] = Location(number, at, size)
            else:
                bad.add(number)

    walk_values(context.env, Table.FRAMES, visit)
    return bad, places


def _indexed(context: Context, numbers: set[int]) -> dict[int, Placed]:
    """What the index says lies in some frames."""
    placed: dict[int, Placed] = {number: [] for number in numbers}

    def visit(_txn: Reader, key: bytes, value: memoryview) -> None:
        try:
            location = Location.decode(value[:-CHECKSUM_SIZE])
        except CorruptError:
            return
        if location.frame in placed:
            placed[location.frame].append((key, location.offset, location.length))

    walk_values(context.env, Table.EXTENTS, visit)
    return placed


def salvage_frame(payload: memoryview, indexed: Placed) -> dict[bytes, bytes]:
    """The extents of a damaged frame that still have their BLAKE3.

    Args:
        indexed: what should lie in it, where its head cannot be read.
    """
    places, count = list(indexed), len(indexed)
    try:
        head, _ = FrameHead.decode(payload, "")
        places += _places(head)
        count = len(head.extents)
    except CorruptError:
        count = int.from_bytes(payload[8:12], "big") if len(payload) > _HEAD else 0
    good: dict[bytes, bytes] = {}
    for extents in {count, len(indexed)}:
        stored = payload[_HEAD + extents * _HEAD_EXTENT :]
        for plain in (bytes(stored), _decompressed(stored)):
            for digest, offset, size in places:
                data = plain[offset : offset + size]
                if digest not in good and len(data) == size and blake3_raw(data) == digest:
                    good[digest] = data
    return good


def _places(head: FrameHead) -> Iterator[tuple[bytes, int, int]]:
    offset = 0
    for digest, size in head.extents:
        yield digest, offset, size
        offset += size


def _decompressed(stored: memoryview) -> bytes:
    """What comes out of zstd before it meets the damage, or all if it does not."""
    parts: list[bytes] = []
    size = 0
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        for at in range(0, len(stored), _PIECE):
            parts.append(decompressor.decompress(stored[at : at + _PIECE]))
            size += len(parts[-1])
            if size > 8 * EXTENT_SIZE:
                break
    except zstandard.ZstdError:
        pass
    return b"".join(parts)


def _replace_frame(context: Context, number: int, indexed: Placed, good: dict[bytes, bytes], found: Found) -> None:
    """Put what is known of a frame's extents into new frames, and take the old one out."""
    key = u64(number)
    value = context.value(Table.FRAMES, key)
    if value is None:
        return
    names = [digest for digest, _, _ in indexed]
    # The index may have lost some, too: there is no other copy of them.
    names += [digest for digest in good if digest not in names and context.value(Table.EXTENTS, digest) is None]
    known = good | {digest: data for digest, (data, _) in found.items()}
    kept = {digest: known[digest] for digest in names if digest in known}
    role = _role(value)
    frames = [encode_frame(group, role) for group in _groups(kept.items())]
    lost = len(names) - len(kept)

    def apply(txn: Writer) -> None:
        expect(txn, Table.FRAMES, key, value)
        for digest in names:
            if _lies_in(txn, digest, number):
                txn.delete(Table.EXTENTS, digest)
        txn.delete(Table.FRAMES, key)
        context.store.extents.put_frames(txn, frames)

    context.recount = True
    of_itself = sum(digest in good for digest in names)
    how = f"{of_itself} of its {len(names)} extents are sound and stored anew, {len(kept) - of_itself} more were found"
    how += f" in {_where(found, kept.keys() - good.keys())}" if len(kept) > of_itself else ""
    images = context.images("frame", str(number))
    action = Action("frame", str(number), "set aside" if lost else "repaired", how, images)
    context.remove(action, [(Table.FRAMES, key)], apply)


def _where(found: Found, digests: Iterable[bytes]) -> str:
    return ", ".join(sorted({found[digest][1] for digest in digests})[:4])


def _role(value: bytes) -> Role:
    return Role.OPAQUE if value[1:2] == b"\x01" else Role.FILES


def _groups(extents: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    group: list[tuple[bytes, bytes]] = []
    size = 0
    for digest, data in extents:
        group.append((digest, data))
        size += len(data)
        if size >= _FRAME_EXTENTS * EXTENT_SIZE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _mend_index(context: Context, digest: bytes, place: Location | None, found: Found) -> None:
    """Make the index lead to an extent: into the frame that holds it, or a new one; or nowhere, if it is lost."""
    with context.env.read() as reader:
        if context.store.extents.is_sound(reader, digest):
            return
    before = context.value(Table.EXTENTS, digest)
    frames = [encode_frame([(digest, found[digest][0])], Role.FILES)] if digest in found and place is None else []

    def apply(txn: Writer) -> None:
        expect(txn, Table.EXTENTS, digest, before)
        txn.delete(Table.EXTENTS, digest)
        if place is not None:
            txn.put(Table.EXTENTS, digest, place.encode())
        context.store.extents.put_frames(txn, frames)

    context.recount = True
    if place is not None:
        context.repaired("extent", digest.hex(), f"the index leads to it again, in frame {place.frame}", apply)
    elif frames:
        context.repaired("extent", digest.hex(), f"it was found in {found[digest][1]}", apply)
    elif before is not None:
        how = "it was found nowhere, and is not in the index any more"
        action = Action("extent", digest.hex(), "set aside", how, context.images("extent", digest.hex()))
        context.remove(action, [(Table.EXTENTS, digest)], apply)


def _lies_in(txn: Reader, digest: bytes, number: int) -> bool:
    value = txn.get_unchecked(Table.EXTENTS, digest)
    try:
        return value is not None and Location.decode(value[:-CHECKSUM_SIZE]).frame == number
    except CorruptError:
        return True
