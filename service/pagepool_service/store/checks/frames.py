"""Frames and extents: every frame read once and each extent in it hashed, and the index compared both ways.

A few frames at a time are copied out, in one transaction with what the index says of their extents; checksums, zstd
and BLAKE3 then run in threads while the next ones are copied. A bounded number of frames is in memory.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import Frame, FrameHead
from pagepool_service.store.checks.context import THREADS
from pagepool_service.store.checks.naming import name_record
from pagepool_service.store.checks.walk import walk, walk_values
from pagepool_service.store.environment import CHECKSUM_SIZE, Table, checksum
from pagepool_service.store.schema import Location, u64

if TYPE_CHECKING:
    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Reader

_GROUP_BYTES = 2 << 20  # stored bytes of the frames that one call of a thread verifies


@dataclass(frozen=True, slots=True)
class TakenFrame:
    """A frame as it was taken out of the store.

    Args:
        key: of its record.
        value: of its record, with the checksum.
        contradictions: what the index says otherwise, by extent; to be believed if the frame is sound.
        dead: plain bytes of extents that are indexed elsewhere.
    """

    key: bytes
    value: bytes
    contradictions: tuple[tuple[bytes, str], ...]
    dead: int


def check_frames(context: Context) -> None:
    """Read every frame."""
    with context.env.read() as txn:
        context.findings.stage("frames", txn.table_bytes(Table.FRAMES))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fsck") as pool:
        reading = _Frames(context, pool)
        count = walk_values(context.env, Table.FRAMES, reading.take)
        reading.finish()
    context.findings.count("frames", count)
    context.seen[Table.FRAMES.label] = count
    if reading.bad:
        _report_bad(context, reading.bad)


class _Frames:
    """The frames under way from the store to the threads, and what these found."""

    def __init__(self, context: Context, pool: ThreadPoolExecutor) -> None:
        self._context = context
        self._pool = pool
        self._group: list[TakenFrame] = []
        self._group_bytes = 0
        self._slots = threading.Semaphore(2 * THREADS)
        self._under_way: list[Future[None]] = []
        self._lock = threading.Lock()
        self.bad: dict[int, str] = {}

    def take(self, txn: Reader, key: bytes, value: memoryview) -> bool:
        """Copy a frame out. Returns whether the transaction has lasted long enough."""
        contradictions, dead = _compare(txn, key, value[:-CHECKSUM_SIZE])
        self._group.append(TakenFrame(key, bytes(value), contradictions, dead))
        self._group_bytes += len(value)
        if self._group_bytes < _GROUP_BYTES:
            return False
        self._hand_over()
        return True

    def finish(self) -> None:
        """Wait for the threads."""
        self._hand_over()
        for work in self._under_way:
            work.result()

    def _hand_over(self) -> None:
        self._slots.acquire()
        work = self._pool.submit(self._verify, self._group)
        work.add_done_callback(lambda _: self._slots.release())
        self._under_way = [other for other in self._under_way if not other.done() or other.exception()]
        self._under_way.append(work)
        self._group, self._group_bytes = [], 0

    def _verify(self, group: list[TakenFrame]) -> None:
        for frame in group:
            try:
                self._verify_one(frame)
            except CorruptError as error:
                with self._lock:
                    self.bad[int.from_bytes(frame.key, "big")] = error.reason
            self._context.findings.advance(len(frame.value))

    def _verify_one(self, taken: TakenFrame) -> None:
        number = int.from_bytes(taken.key, "big")
        payload = memoryview(taken.value)[:-CHECKSUM_SIZE]
        if checksum(Table.FRAMES, taken.key, payload) != taken.value[-CHECKSUM_SIZE:]:
            raise CorruptError("frame", str(number), "its checksum does not match its bytes")
        head, _ = FrameHead.decode(payload, str(number))
        for extent, reason in taken.contradictions:
            self._context.findings.problem("extent", extent.hex(), reason)
        if not self._context.quick:
            self._hash_extents(Frame.decode(number, payload))
        with self._lock:
            totals = self._context.recounted
            totals.count_frame(head.role, head.plain_size, len(payload), len(head.extents))
            totals.dead_bytes += taken.dead

    def _hash_extents(self, frame: Frame) -> None:
        findings = self._context.findings
        for digest, (offset, size) in frame.index.items():
            if blake3(frame.view[offset : offset + size]).digest() != digest:
                findings.problem("extent", digest.hex(), f"frame {frame.number} holds other bytes under its name")
        findings.count("extents hashed", len(frame.index))
        findings.count("plain bytes", len(frame.plain))


def _compare(txn: Reader, key: bytes, payload: memoryview) -> tuple[tuple[tuple[bytes, str], ...], int]:
    """What the index says otherwise of a frame's extents, and how many bytes of them are indexed elsewhere."""
    number = int.from_bytes(key, "big")
    try:
        head, _ = FrameHead.decode(payload, str(number))
    except CorruptError:
        return (), 0
    contradictions: list[tuple[bytes, str]] = []
    offset = dead = 0
    for digest, size in head.extents:
        try:
            found = txn.get(Table.EXTENTS, digest)
            location = None if found is None else Location.decode(found)
        except CorruptError:
            offset += size  # reported where the index is walked
            continue
        if location is None:
            contradictions.append((digest, f"it lies in frame {number}, and the index does not have it"))
        elif location.length != size or (location.frame == number and location.offset != offset):
            contradictions.append((digest, f"the index contradicts the head of frame {number}"))
        elif location.frame != number:
            dead += size
        offset += size
    return tuple(contradictions), dead


def _report_bad(context: Context, bad: dict[int, str]) -> None:
    """Tell damaged frames that hold extents in use from those that nothing refers to any more."""
    lost = dict.fromkeys(bad, 0)

    def count(_txn: Reader, _key: bytes, value: memoryview) -> None:
        if len(value) == _LOCATION_SIZE:
            frame = Location.decode(value[:-CHECKSUM_SIZE]).frame
            if frame in lost:
                lost[frame] += 1

    walk_values(context.env, Table.EXTENTS, count)
    for number, reason in sorted(bad.items()):
        if lost[number]:
            context.bad_frames.add(number)
            context.findings.problem("frame", str(number), f"{reason} ({lost[number]} extents lie in it)")
        else:
            context.complete = False
            context.findings.note(f"frame {number}, which nothing refers to any more, is damaged: {reason}")


_LOCATION_SIZE = len(Location(0, 0, 0).encode()) + CHECKSUM_SIZE


def check_extents(context: Context) -> None:
    """Compare the index of extents with the heads of the frames."""

    def visit(txn: Reader, key: bytes, payload: memoryview) -> None:
        if len(payload) + CHECKSUM_SIZE != _LOCATION_SIZE:
            raise CorruptError("extent", key.hex(), f"its index record has {len(payload)} bytes")
        location = Location.decode(payload)
        if location.frame not in context.bad_frames and not _is_in_frame(txn, key, location):
            raise CorruptError("extent", key.hex(), f"the index says frame {location.frame}, which does not have it")

    walk(context, Table.EXTENTS, visit)


def _is_in_frame(txn: Reader, digest: bytes, location: Location) -> bool:
    """Whether a frame's head lists an extent where the index says. The frame's own checksum is checked elsewhere."""
    key = u64(location.frame)
    payload = txn.get_unchecked(Table.FRAMES, key)
    if payload is None:
        return False
    try:
        head, _ = FrameHead.decode(payload, name_record(Table.FRAMES, key)[1])
    except CorruptError:
        return False
    offset = 0
    for name, size in head.extents:
        if offset == location.offset:
            return name == digest and size == location.length
        offset += size
    return False
