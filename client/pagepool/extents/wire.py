"""The extents stream: what the service answers to a list of extents, and the list itself.

Owns the format of docs/format/wire.md, both ways; frames in it are `frame`'s. Does no I/O, and does not verify extents
against their names: whoever uses one does. A `StreamDecoder` takes bytes as they come and belongs to one thread; out of
other bytes come CorruptError and no other error, and it never keeps more than one record of `MAX_RECORD` bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError, InvalidError, LimitError
from pagepool.extents.frame import EXTENT_SIZE, Frame, FrameHead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MEDIA_TYPE = "application/vnd.pagepool.extents.v1"
DIGEST_SIZE = 32
MAX_WANTED = 16384
"""Extents in one request."""
MAX_PLAIN = 1 << 20
"""Plain bytes of a frame; those that pagepool stores have less than 384 KiB."""
MAX_RECORD = 16 << 20
"""Bytes of a record: a frame whose extents are all tiny is mostly its head."""
_MAX_REASON = 1000  # bytes

_RECORD = struct.Struct(">BI")
_END = struct.Struct(">IIIQ")


class RecordKind(IntEnum):
    """What a record of the stream is."""

    FRAME = 1
    MISSING = 2
    DAMAGED = 3
    END = 4


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """An extent that was asked for and cannot be sent.

    Args:
        damaged: its bytes are there and wrong; else they are not there.
        digest: of the extent.
        reason: for people.
    """

    damaged: bool
    digest: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class EndRecord:
    """The end of a stream, which is whole only if it has one.

    Args:
        frames: records of frames before it.
        extents: how many extents they have in all, whether they were asked for or not.
        failures: records of failures before it.
        plain_size: plain bytes of the frames.
    """

    frames: int = 0
    extents: int = 0
    failures: int = 0
    plain_size: int = 0

    def with_frame(self, extents: int, plain_size: int) -> EndRecord:
        """The same after one more frame."""
        return EndRecord(self.frames + 1, self.extents + extents, self.failures, self.plain_size + plain_size)

    def with_failure(self) -> EndRecord:
        """The same after one more failure."""
        return EndRecord(self.frames, self.extents, self.failures + 1, self.plain_size)


StreamRecord = Frame | FailureRecord | EndRecord


def encode_wanted(digests: Sequence[bytes]) -> bytes:
    """The body of a request for these extents.

    Raises:
        LimitError: they are more than `MAX_WANTED`.
    """
    if len(digests) > MAX_WANTED:
        raise LimitError("number of extents", len(digests), MAX_WANTED)
    return b"".join(digests)


def parse_wanted(body: bytes) -> list[bytes]:
    """The extents that a request asks for, each once, in the order of their first mention.

    Raises:
        InvalidError: it does not consist of digests.
        LimitError: they are more than `MAX_WANTED`.
    """
    if len(body) % DIGEST_SIZE:
        raise InvalidError(f"body of {len(body)} bytes", f"it must be digests of {DIGEST_SIZE} bytes each")
    if len(body) > MAX_WANTED * DIGEST_SIZE:
        raise LimitError("number of extents", len(body) // DIGEST_SIZE, MAX_WANTED)
    return list(dict.fromkeys(body[at : at + DIGEST_SIZE] for at in range(0, len(body), DIGEST_SIZE)))


def encode_frame_head(payload_size: int) -> bytes:
    """What goes before a frame's payload, which is sent as it is stored."""
    return _RECORD.pack(RecordKind.FRAME, payload_size)


def encode_failure(record: FailureRecord) -> bytes:
    """A record of an extent that cannot be sent."""
    payload = record.digest + record.reason.encode(errors="replace")[:_MAX_REASON]
    return _RECORD.pack(RecordKind.DAMAGED if record.damaged else RecordKind.MISSING, len(payload)) + payload


def encode_end(record: EndRecord) -> bytes:
    """The last record."""
    payload = _END.pack(record.frames, record.extents, record.failures, record.plain_size)
    return _RECORD.pack(RecordKind.END, len(payload)) + payload


class StreamDecoder:
    """Takes a stream apart, as its bytes come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._seen = EndRecord()
        self._ended = False

    def feed(self, data: bytes) -> Iterator[StreamRecord]:
        """The records that `data` completes. Go through all of them before the next call.

        Raises:
            CorruptError: the bytes are no extents stream. It cannot be gone on with.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _RECORD.size:
                kind, size = _RECORD.unpack_from(self._buffer, at)
                self._check_head(kind, size)
                start = at + _RECORD.size
                if len(self._buffer) < start + size:
                    break
                at = start + size
                yield self._record(RecordKind(kind), bytes(memoryview(self._buffer)[start:at]))
        finally:
            del self._buffer[:at]
        if self._ended and self._buffer:
            raise _corrupt("it goes on behind its end")

    def close(self) -> None:
        """Check that the stream came to its end.

        Raises:
            CorruptError: it did not.
        """
        if not self._ended:
            raise _corrupt("it breaks off before its end")

    def _check_head(self, kind: int, size: int) -> None:
        if self._ended:
            raise _corrupt("it goes on behind its end")
        if not RecordKind.FRAME <= kind <= RecordKind.END:
            raise _corrupt(f"it has a record of kind {kind}")
        if size > (MAX_RECORD if kind == RecordKind.FRAME else DIGEST_SIZE + _MAX_REASON):
            raise _corrupt(f"it has a record of {size} bytes, of kind {kind}")

    def _record(self, kind: RecordKind, payload: bytes) -> StreamRecord:
        if kind is RecordKind.FRAME:
            frame = decode_frame(payload, self._seen.frames)
            self._seen = self._seen.with_frame(len(frame.index), len(frame.plain))
            return frame
        if kind is RecordKind.END:
            return self._end(payload)
        if len(payload) < DIGEST_SIZE:
            raise _corrupt("it has a failure that names no extent")
        self._seen = self._seen.with_failure()
        reason = payload[DIGEST_SIZE:].decode(errors="replace")
        return FailureRecord(kind is RecordKind.DAMAGED, payload[:DIGEST_SIZE], reason)

    def _end(self, payload: bytes) -> EndRecord:
        if len(payload) != _END.size or EndRecord(*_END.unpack(payload)) != self._seen:
            raise _corrupt("its end does not count what came before")
        self._ended = True
        return self._seen


def decode_frame(payload: bytes, number: int) -> Frame:
    """Decode a frame that somebody sent: its bounds are checked before anything is decompressed.

    Raises:
        CorruptError: it is none, or beyond the bounds.
    """
    head, _ = FrameHead.decode(memoryview(payload), str(number))
    if head.plain_size > MAX_PLAIN:
        raise _corrupt(f"frame {number} has {head.plain_size} plain bytes")
    if any(not 0 < size <= EXTENT_SIZE for _, size in head.extents):
        raise _corrupt(f"frame {number} has an extent of no bytes, or of too many")
    frame = Frame.decode(number, memoryview(payload))
    if len(frame.index) != len(head.extents):
        raise _corrupt(f"frame {number} has an extent twice")
    return frame


def _corrupt(reason: str) -> CorruptError:
    return CorruptError("extents stream", "answer", reason)
