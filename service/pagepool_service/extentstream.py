"""The extents stream, made out of the store: which frames a request needs, and what of each may be sent.

A stored frame goes out as it lies, not compressed again, if every extent in it belongs to the tree and enough of it was
asked for; else the wanted extents are cut out of it and encoded anew. So nobody is sent a byte of an image that he did
not name, whatever shares a frame with it (design, "Nobody receives content of an image that he may not pull").

Everything blocks. A transaction lasts for one piece of about `PIECE_SIZE`, never while something is sent. Stored
payloads are covered by their record's checksum, and extents that are cut out are compared with their names; what is
damaged or gone is a record of its own in the stream, and the rest goes on.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from struct import iter_unpack
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError, ExtentUnknownError
from pagepool.extents import FrameHead, Role, check_extent, encode_frame
from pagepool.extents.wire import (
    EndRecord,
    FailureRecord,
    encode_end,
    encode_failure,
    encode_frame_head,
)
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import Location, u64

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pagepool.extents import Frame
    from pagepool.image.treefile import TreeFile
    from pagepool_service.store.environment import Reader
    from pagepool_service.store.store import Store

    Wanted = Mapping[bytes, Location | None]
    """Of a frame, what is wanted: where the index says that it lies, or None if only the frame's head said so."""

PIECE_SIZE = 1 << 20
_FIRST_SIZE = 128 << 10  # whoever waits for the first of many has it soon, and is busy while the next ones are made
# Below this share of its plain bytes a frame is cut: docs/benchmarks.md, "Bytes that nobody asked for".
CUT_BELOW = 0.75
_LOOKED_UP_AT_ONCE = 1024
_WORTH_LOOKING = 4  # extents that are still to be looked up
# A set of all digests costs about 0.1 µs for each, a search 3 µs.
_SEARCHES_PER_EXTENT = 32


@dataclass(slots=True)
class Plan:
    """What to send for a request.

    Args:
        frames: by id, what is wanted of each. In the order in which they were asked for first.
        failures: wanted extents of which the place is not known.
    """

    frames: dict[int, dict[bytes, Location | None]] = field(default_factory=dict)
    failures: list[FailureRecord] = field(default_factory=list)


class Membership:
    """Which extents belong to a tree, as fast as a request of a size needs it."""

    def __init__(self, tree: TreeFile, expected: int) -> None:
        self._digests: set[bytes] | None = None
        self._has: Callable[[bytes], bool] = tree.has_extent
        if expected * _SEARCHES_PER_EXTENT >= tree.extent_count:
            self._digests = {digest for (digest,) in iter_unpack("32s", tree.extents)}
            self._has = self._digests.__contains__

    def has_all(self, digests: Iterable[bytes]) -> bool:
        """Whether each of them belongs to the tree."""
        return all(map(self._has, digests)) if self._digests is None else self._digests.issuperset(digests)

    def check(self, wanted: Sequence[bytes]) -> None:
        """Raise ExtentUnknownError for the first that does not belong to the tree."""
        if not self.has_all(wanted):
            raise ExtentUnknownError(next(digest for digest in wanted if not self._has(digest)).hex())


@dataclass(slots=True)
class Sent:
    """What a stream was made of, so far: for measurements.

    Args:
        whole: frames sent as they are stored.
        cut: frames made anew.
        unasked: plain bytes that were not asked for.
        bytes: of the stream.
    """

    whole: int = 0
    cut: int = 0
    unasked: int = 0
    bytes: int = 0


class ExtentStream:
    """One answer. Iterate over it for its pieces; `close` is not needed.

    Args:
        wanted: digests, each once.
        cut_below: see `CUT_BELOW`.
        as_asked: whether frames come in the order in which something of them was asked for first; else as they are
            stored, which a disk reads faster.

    Raises:
        ExtentUnknownError: one of them does not belong to the tree.
    """

    def __init__(
        self,
        store: Store,
        tree: TreeFile,
        wanted: Sequence[bytes],
        *,
        cut_below: float = CUT_BELOW,
        as_asked: bool = False,
    ) -> None:
        self._store = store
        self._members = Membership(tree, len(wanted))
        self._members.check(wanted)
        self._wanted = wanted
        self._cut_below = cut_below
        self._as_asked = as_asked
        self._end = EndRecord()
        self._moved: dict[int, dict[bytes, Location | None]] | None = {}
        self._piece_size = _FIRST_SIZE
        self.sent = Sent()

    def __iter__(self) -> Iterator[bytes]:
        """The stream, in pieces of about `PIECE_SIZE`; the first one is smaller."""
        plan = plan_frames(self._store, self._wanted)
        if plan.failures:
            yield self._count(b"".join(map(self._failure, plan.failures)))
        yield from self._pieces(plan.frames if self._as_asked else dict(sorted(plan.frames.items())))
        moved, self._moved = self._moved or {}, None
        yield from self._pieces(dict(sorted(moved.items())))
        yield self._count(encode_end(self._end))

    def _count(self, piece: bytes) -> bytes:
        self.sent.bytes += len(piece)
        return piece

    def _failure(self, record: FailureRecord) -> bytes:
        self._end = self._end.with_failure()
        return encode_failure(record)

    def _pieces(self, frames: Mapping[int, Wanted]) -> Iterator[bytes]:
        left = iter(frames.items())
        while piece := self._piece(left):
            yield self._count(piece)

    def _piece(self, frames: Iterator[tuple[int, Wanted]]) -> bytes:
        """The next records; what they are cut out of is decompressed after the transaction."""
        parts: list[bytes | memoryview] = []
        cuts: list[tuple[int, bytes, Wanted]] = []
        size = 0
        with self._store.env.read() as txn:
            for number, wanted in frames:
                try:
                    payload = _payload(txn, number)
                    if self._goes_whole(payload, number, wanted):
                        parts += (encode_frame_head(len(payload)), payload)
                    else:
                        cuts.append((number, bytes(payload), wanted))
                    size += len(payload)
                except CorruptError as error:
                    parts += self._failed(self._not_moved(txn, number, wanted), error)
                if size >= self._piece_size:
                    break
            piece = b"".join(parts)  # the only copy: the views end with the transaction
        self._piece_size = PIECE_SIZE
        return piece + b"".join(part for cut in cuts for part in self._cut(*cut)) if cuts else piece

    def _not_moved(self, txn: Reader, number: int, wanted: Wanted) -> list[bytes]:
        """Those that are in no other frame, by the index; the others are read from there in the end, once."""
        if self._moved is None:
            return list(wanted)
        stay: list[bytes] = []
        for digest in wanted:
            with suppress(CorruptError):
                found = self._store.extents.find(txn, digest)
                if found is not None and found.frame != number:
                    self._moved.setdefault(found.frame, {})[digest] = found
                    continue
            stay.append(digest)
        return stay

    def _goes_whole(self, payload: memoryview, number: int, wanted: Wanted) -> bool:
        head, _ = FrameHead.decode(payload, str(number))
        sizes = dict(head.extents)
        if not _lie_there(sizes, wanted):
            return False
        asked = head.plain_size if len(wanted) == len(sizes) else sum(map(sizes.__getitem__, wanted))
        if asked < self._cut_below * head.plain_size or not self._members.has_all(sizes):
            return False
        self._end = self._end.with_frame(len(head.extents), head.plain_size)
        self.sent.whole += 1
        self.sent.unasked += head.plain_size - asked
        return True

    def _cut(self, number: int, payload: bytes, wanted: Wanted) -> list[bytes]:
        """A frame of the wanted extents alone; failures for those that cannot be had."""
        try:
            frame = self._store.extents.decode(number, memoryview(payload))
        except CorruptError as error:
            return self._failed(wanted, error)
        parts: list[bytes] = []
        kept: list[tuple[bytes, memoryview]] = []
        for digest in _as_they_lie(frame, wanted):
            try:
                kept.append((digest, _extent(frame, digest, wanted[digest])))
            except CorruptError as error:
                parts += self._failed([digest], error)
        if kept:
            made = encode_frame(kept, Role.FILES, compress=len(payload) < len(frame.plain))
            self._end = self._end.with_frame(len(made.extents), made.plain_size)
            self.sent.cut += 1
            parts += (encode_frame_head(len(made.payload)), made.payload)
        return parts

    def _failed(self, wanted: Iterable[bytes], error: CorruptError) -> list[bytes]:
        return [self._failure(FailureRecord(True, digest, str(error))) for digest in wanted]


def plan_frames(store: Store, wanted: Sequence[bytes]) -> Plan:
    """Find out where extents lie. A transaction for every so many of them.

    One of a frame is looked up; that others which are wanted lie there too, the frame's head says. What it says is
    compared when the frame is sent: it was not checked here, which would take reading all of the frame.
    """
    plan = Plan()
    left = set(wanted)
    digests = iter(wanted)
    while some := list(islice(digests, _LOOKED_UP_AT_ONCE)):
        with store.env.read() as txn:
            for digest in some:
                if digest in left:
                    left.remove(digest)
                    _look_up(store, txn, digest, plan, left)
    return plan


def read_extents(store: Store, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview | CorruptError]]:
    """The plain bytes of extents, compared with their names, in the order in which they are stored.

    Yields:
        (digest, its bytes), or (digest, why it cannot be had). The views stay valid.
    """
    failed: dict[bytes, CorruptError] = {}
    for digest, data in _read_once(store, wanted):
        if isinstance(data, CorruptError):
            failed[digest] = data
        else:
            yield digest, data
    if failed:  # collection may have moved them since they were looked up
        yield from _read_once(store, list(failed))


def _read_once(store: Store, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview | CorruptError]]:
    plan = plan_frames(store, wanted)
    for record in plan.failures:
        yield record.digest, CorruptError("extent", record.digest.hex(), record.reason)
    for number, some in sorted(plan.frames.items()):
        try:
            with store.env.read() as txn:
                frame = store.extents.frame(txn, number)
        except CorruptError as error:
            yield from ((digest, error) for digest in some)
            continue
        for digest in _as_they_lie(frame, some):
            try:
                yield digest, _extent(frame, digest, some[digest])
            except CorruptError as error:
                yield digest, error


def _look_up(store: Store, txn: Reader, digest: bytes, plan: Plan, left: set[bytes]) -> None:
    try:
        place = store.extents.find(txn, digest)
    except CorruptError as error:
        plan.failures.append(FailureRecord(True, digest, str(error)))
        return
    if place is None:
        plan.failures.append(FailureRecord(False, digest, "it is referred to and not there"))
    else:
        some = plan.frames.setdefault(place.frame, {})
        some[digest] = place
        if len(left) >= _WORTH_LOOKING:
            found = _neighbours(txn, place.frame, left)
            left -= found
            some.update(dict.fromkeys(found))


def _neighbours(txn: Reader, number: int, left: set[bytes]) -> set[bytes]:
    """What else of `left` a frame says that it has."""
    value = txn.get_unchecked(Table.FRAMES, u64(number))
    try:
        head, _ = FrameHead.decode(value or memoryview(b""), str(number))
    except CorruptError:
        return set()
    return left.intersection(dict(head.extents))


def _payload(txn: Reader, number: int) -> memoryview:
    try:
        payload = txn.get(Table.FRAMES, u64(number))
    except CorruptError as error:
        raise CorruptError("frame", str(number), error.reason) from error
    if payload is None:
        raise CorruptError("frame", str(number), "it is referred to and not there")
    return payload


def _lie_there(sizes: Mapping[bytes, int], wanted: Wanted) -> bool:
    """Whether a frame's head has each, and agrees with the index."""
    if not wanted.keys() <= sizes.keys():
        return False
    return all(place is None or sizes[digest] == place.length for digest, place in wanted.items())


def _as_they_lie(frame: Frame, wanted: Wanted) -> list[bytes]:
    """Those of a frame in its order, then those that it has not."""
    here = [digest for digest in frame.index if digest in wanted]
    return here if len(here) == len(wanted) else [*here, *(digest for digest in wanted if digest not in frame.index)]


def _extent(frame: Frame, digest: bytes, place: Location | None) -> memoryview:
    lies = frame.index.get(digest)
    if lies is None or (place is not None and lies != (place.offset, place.length)):
        raise CorruptError("extent", digest.hex(), f"its place in frame {frame.number} holds another")
    data = frame.view[lies[0] : lies[0] + lies[1]]
    check_extent(digest, data, f"frame {frame.number}")
    return data
