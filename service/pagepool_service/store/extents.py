"""Extents and frames: put new extents in, each once, and read them back, checked.

Owns the tables `extents`, `frames` and `objects`, and the totals of what they hold. A frame holds consecutive
new extents, compressed together; frame ids grow forever. An extent's index record points into the frame that
holds it and is written in the same transaction, so neither is ever seen without the other. `extents` can be
rebuilt from the frames.

Reading takes a transaction from the caller, so that many extents are read in one snapshot. Decoded frames are
kept in a small cache: frames are immutable and their ids never used again, so it cannot be stale.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE, EncodedFrame, Frame, encode_frame
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import Location, ObjectRecord, encode_object, u64
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pagepool_service.store.environment import Environment, Reader, Writer


class FrameCache:
    """The last decoded frames, up to a number of bytes. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> Frame | None:
        """The frame, if it is kept; it becomes the most recent."""
        with self._lock:
            frame = self._frames.get(number)
            if frame is not None:
                self._frames.move_to_end(number)
            return frame

    def put(self, frame: Frame) -> None:
        """Keep a frame, dropping the least recent beyond the limit."""
        with self._lock:
            if frame.number in self._frames:
                return
            self._frames[frame.number] = frame
            self._bytes += frame.memory
            while self._bytes > self._limit and len(self._frames) > 1:
                _, dropped = self._frames.popitem(last=False)
                self._bytes -= dropped.memory


class ExtentStore:
    """Extents, frames and objects in the environment.

    Args:
        cache_bytes: bytes of decoded frames to keep.
    """

    def __init__(self, *, cache_bytes: int = 8 << 20) -> None:
        self._cache = FrameCache(cache_bytes)

    # -- reading ---------------------------------------------------------------------------------------------

    def find(self, txn: Reader, digest: bytes) -> Location | None:
        """Where an extent lies, or None."""
        try:
            payload = txn.get(Table.EXTENTS, digest)
        except CorruptError as error:
            raise CorruptError("extent", digest.hex(), f"its index record: {error.reason}") from error
        return None if payload is None else Location.decode(payload)

    def frame(self, txn: Reader, number: int) -> Frame:
        """A frame, from the cache or the environment.

        Raises:
            CorruptError: it is damaged, or missing though something refers to it.
        """
        kept = self._cache.get(number)
        if kept is not None:
            return kept
        try:
            payload = txn.get(Table.FRAMES, u64(number))
        except CorruptError as error:
            raise CorruptError("frame", str(number), error.reason) from error
        if payload is None:
            raise CorruptError("frame", str(number), "it is referred to and not there")
        return self.decode(number, payload)

    def decode(self, number: int, payload: memoryview) -> Frame:
        """A frame whose record was read just now, from the cache or decompressed.

        Raises:
            CorruptError: as `Frame.decode`.
        """
        frame = self._cache.get(number)
        if frame is None:
            frame = Frame.decode(number, payload)
            self._cache.put(frame)
        return frame

    def extent(self, txn: Reader, digest: bytes) -> memoryview:
        """The plain bytes of an extent. The view stays valid after the transaction.

        Raises:
            CorruptError: it is damaged or missing; names the extent.
        """
        frame = self.frame_of(txn, digest)
        offset, length = frame.index[digest]
        return frame.view[offset : offset + length]

    def frame_of(self, txn: Reader, digest: bytes) -> Frame:
        """The frame that holds an extent.

        Raises:
            CorruptError: as `extent`.
        """
        location = self.find(txn, digest)
        if location is None:
            raise CorruptError("extent", digest.hex(), "it is referred to and not there")
        frame = self.frame(txn, location.frame)
        if frame.index.get(digest) != (location.offset, location.length):
            raise CorruptError("extent", digest.hex(), f"its place in frame {location.frame} holds another")
        return frame

    def object_by_name(self, txn: Reader, digest: bytes) -> ObjectRecord:
        """The extents of an object of which only the name is known.

        Raises:
            CorruptError: it is damaged, or not there.
        """
        payload = txn.get(Table.OBJECTS, digest)
        if payload is not None:
            return ObjectRecord.decode(payload, digest.hex())
        location = self.find(txn, digest)
        if location is None:
            raise CorruptError("object", digest.hex(), "it is referred to and not there")
        return ObjectRecord(location.length, ((1, digest),))

    def object_record(self, txn: Reader, digest: bytes, size: int) -> ObjectRecord:
        """The extents of an object whose size is known.

        Raises:
            CorruptError: the record is damaged, missing, or of another size.
        """
        if size == 0:
            return ObjectRecord(0, ())
        if size <= EXTENT_SIZE:
            return ObjectRecord(size, ((1, digest),))
        payload = txn.get(Table.OBJECTS, digest)
        if payload is None:
            raise CorruptError("object", digest.hex(), "it is referred to and not there")
        record = ObjectRecord.decode(payload, digest.hex())
        if record.size != size:
            raise CorruptError("object", digest.hex(), f"its size is {record.size}, {size} was expected")
        return record

    def known_object(self, txn: Reader, digest: bytes) -> ObjectRecord | None:
        """The extents of an object of which no more is known than its name; None if the store does not have it.

        Raises:
            CorruptError: the record is damaged.
        """
        payload = txn.get(Table.OBJECTS, digest)
        if payload is not None:
            return ObjectRecord.decode(payload, digest.hex())
        place = self.find(txn, digest)
        return None if place is None else ObjectRecord(place.length, ((1, digest),))

    def check_stored(self, txn: Reader, record: ObjectRecord) -> None:
        """See that all extents of an object are stored, also those that nobody reads to rebuild a tar: of its holes.

        Raises:
            CorruptError: one is not; names it.
        """
        names = {name for _, name in record.runs}
        missing = names - txn.present(Table.EXTENTS, sorted(names))
        if missing:
            raise CorruptError("extent", min(missing).hex(), "it is referred to and not there")

    # -- writing ---------------------------------------------------------------------------------------------

    def put_frames(self, txn: Writer, frames: Sequence[EncodedFrame]) -> None:
        """Store frames and the index of their extents, each extent once.

        An extent that another process stored since the frame was made is cut out of it: whoever commits first keeps it.
        """
        totals = Totals.load(txn)
        for offered in frames:
            frame = _without_stored(txn, offered)
            if frame is None:
                continue
            number = totals.next_frame
            if not txn.append(Table.FRAMES, u64(number), frame.payload):
                raise CorruptError("totals", "next frame", f"frame {number} is there already")
            offset = 0
            for digest, size in frame.extents:
                txn.put(Table.EXTENTS, digest, Location(number, offset, size).encode())
                offset += size
            totals.count_frame(frame.role, frame.plain_size, len(frame.payload), len(frame.extents))
            totals.next_frame = number + 1
        totals.store(txn)

    def put_object(self, txn: Writer, digest: bytes, size: int, extents: Iterable[bytes]) -> None:
        """Store the extent list of an object of more than one extent, if it is not there or damaged."""
        if size <= EXTENT_SIZE:
            return
        try:
            known = txn.get(Table.OBJECTS, digest) is not None
        except CorruptError:
            known = False
        if not known:
            txn.put(Table.OBJECTS, digest, encode_object(size, extents))

    def forget_damaged(self, env: Environment, error: CorruptError) -> int:
        """Take damaged extents out of the index, so that the next layer which brings them stores them anew.

        Args:
            error: what a read raised: of a ``frame`` (all extents that lie in it) or an ``extent``.

        Returns:
            how many were taken out. The frame's bytes are left to collection.
        """
        # The error may be of another copy (a spool file), or the damage mended by now: what is sound stays.
        if error.kind == "extent":
            with env.write() as txn:
                return self.forget_unsound(txn, [bytes.fromhex(error.name)])
        number = int(error.name)
        with env.read() as reader:  # the whole index: not under the writer lock
            if self._is_sound_frame(reader, number):
                return 0
            records = reader.scan(Table.EXTENTS, check=False)
            found = [digest for digest, value in records if _location(value).frame == number]
        with env.write() as txn:
            lost = [name for name in found if _location(txn.get_unchecked(Table.EXTENTS, name)).frame == number]
            return _forget(txn, lost)

    def forget_unsound(self, txn: Writer, digests: Iterable[bytes]) -> int:
        """Take those of some extents out of the index that are stored and damaged, before good ones are stored.

        Returns:
            how many.
        """
        return _forget(txn, [name for name in digests if txn.has(Table.EXTENTS, name) and not self.is_sound(txn, name)])

    def is_sound(self, txn: Reader, digest: bytes) -> bool:
        """Whether an extent can be read from where it is stored, and has its name. Nothing kept in memory is asked."""
        try:
            location = self.find(txn, digest)
            payload = None if location is None else txn.get(Table.FRAMES, u64(location.frame))
            if location is None or payload is None:
                return False
            frame = Frame.decode(location.frame, payload)
            place = frame.index.get(digest)
        except CorruptError:
            return False
        if place != (location.offset, location.length):
            return False
        return blake3_raw(frame.view[location.offset : location.offset + location.length]) == digest

    def _is_sound_frame(self, txn: Reader, number: int) -> bool:
        """Whether a frame can be read from where it is stored."""
        try:
            payload = txn.get(Table.FRAMES, u64(number))
            return payload is not None and bool(Frame.decode(number, payload).index)
        except CorruptError:
            return False


def _forget(txn: Writer, digests: Sequence[bytes]) -> int:
    """Take extents out of the index; their bytes stay in their frames, dead."""
    if digests:
        totals = Totals.load(txn)
        for digest in digests:
            totals.dead_bytes += _location(txn.get_unchecked(Table.EXTENTS, digest)).length
            txn.delete(Table.EXTENTS, digest)
        totals.store(txn)
    return len(digests)


def _location(value: memoryview | None) -> Location:
    """What an index record says, whether its checksum is right or not; a place of no bytes if it says nothing."""
    return (
        Location(0, 0, 0) if value is None or len(value) < _LOCATION_SIZE else Location.decode(value[:_LOCATION_SIZE])
    )


_LOCATION_SIZE = len(Location(0, 0, 0).encode())


def _without_stored(txn: Reader, frame: EncodedFrame) -> EncodedFrame | None:
    """The frame with only those extents that are not stored yet; None if that is none of them."""
    stored = txn.present(Table.EXTENTS, [digest for digest, _ in frame.extents])
    if not stored:
        return frame
    plain = Frame.decode(0, memoryview(frame.payload))
    places = ((digest, *place) for digest, place in plain.index.items() if digest not in stored)
    left = [(digest, plain.view[offset : offset + size]) for digest, offset, size in places]
    return encode_frame(left, frame.role) if left else None
