"""The extents stream: what is written is read back, and other bytes are refused without harm."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.errors import CorruptError, InvalidError, LimitError
from pagepool.extents import EXTENT_SIZE, Encoding, Frame, FrameHead, Role, encode_frame
from pagepool.extents.wire import (
    DIGEST_SIZE,
    MAX_PLAIN,
    MAX_RECORD,
    MAX_WANTED,
    EndRecord,
    FailureRecord,
    StreamDecoder,
    encode_end,
    encode_failure,
    encode_frame_head,
    encode_wanted,
    parse_wanted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pagepool.extents.wire import StreamRecord

_DOCS = Path(__file__).parents[2] / "docs" / "format" / "wire.md"


def name(data: bytes) -> bytes:
    return blake3(data).digest()


def frame_record(*contents: bytes) -> bytes:
    payload = encode_frame([(name(data), data) for data in contents], Role.FILES).payload
    return encode_frame_head(len(payload)) + payload


def stream(frames: Sequence[Sequence[bytes]], failures: Sequence[FailureRecord]) -> bytes:
    end = EndRecord(failures=len(failures))
    for contents in frames:
        end = end.with_frame(len(contents), sum(map(len, contents)))
    records = [frame_record(*contents) for contents in frames] + [encode_failure(one) for one in failures]
    return b"".join((*records, encode_end(end)))


def decode(pieces: Iterable[bytes]) -> list[StreamRecord]:
    decoder = StreamDecoder()
    found = [record for piece in pieces for record in decoder.feed(piece)]
    decoder.close()
    return found


FRAMES = [[b"hello", b"world" * 5000], [b"x" * EXTENT_SIZE, b"y"]]
FAILURES = [FailureRecord(True, b"\1" * 32, "bit röt"), FailureRecord(False, b"\2" * 32, "")]
WHOLE = stream(FRAMES, FAILURES)


def test_the_documented_example_is_what_is_written() -> None:
    text = _DOCS.read_text()
    found = re.findall(r"<!-- example: wire -->\n```\n([0-9a-f\s]+)```", text)
    assert len(found) == 1
    gone = FailureRecord(False, bytes(32), "gone")
    assert bytes.fromhex("".join(found[0].split())) == stream([[b"hello", b"world"]], [gone])
    for number in (f"{MAX_WANTED:,}", f"{EXTENT_SIZE:,}", f"{MAX_RECORD >> 20} MiB", f"{MAX_PLAIN >> 20} MiB"):
        assert number in text


@pytest.mark.parametrize("size", [1, 7, 4096, len(WHOLE)])
def test_a_stream_is_read_however_it_is_cut(size: int) -> None:
    records = decode(WHOLE[at : at + size] for at in range(0, len(WHOLE), size))
    frames = [record for record in records if isinstance(record, Frame)]
    for frame, contents in zip(frames, FRAMES, strict=True):
        assert [bytes(frame.view[at : at + size]) for at, size in frame.index.values()] == contents
        assert list(frame.index) == [name(data) for data in contents]
    assert [record for record in records if isinstance(record, FailureRecord)] == FAILURES
    assert records[-1] == EndRecord(2, 4, 2, sum(len(data) for contents in FRAMES for data in contents))


def test_a_long_reason_is_cut_to_what_is_read() -> None:
    """Else whoever is told could read nothing of the answer."""
    (found, _) = decode([stream([], [FailureRecord(True, b"\1" * 32, "x" * 5000)])])
    assert found == FailureRecord(True, b"\1" * 32, "x" * 1000)


def test_a_stream_that_breaks_off_anywhere_is_not_whole() -> None:
    for end in (*range(0, 200), *range(len(WHOLE) - 60, len(WHOLE))):
        with pytest.raises(CorruptError, match="breaks off"):
            decode([WHOLE[:end]])


def record(kind: int, payload: bytes, size: int | None = None) -> bytes:
    return struct.pack(">BI", kind, len(payload) if size is None else size) + payload


def raw_frame(head: FrameHead, stored: bytes) -> bytes:
    return record(1, head.encode() + stored)


def test_frames_that_would_do_harm_are_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    blind = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    many = tuple((struct.pack(">32xI", number)[-32:], 1 << 17) for number in range(9))
    cases = {
        "its data has another size": FrameHead(Encoding.ZSTD, Role.FILES, 5, ((name(b"x"), 5),)).encode() + bomb,
        "zstd": FrameHead(Encoding.ZSTD, Role.FILES, 5, ((name(b"x"), 5),)).encode() + blind,
        "plain bytes": FrameHead(Encoding.ZSTD, Role.FILES, 9 << 17, many).encode() + bomb,
        "no bytes": FrameHead(Encoding.RAW, Role.FILES, 0, ((name(b""), 0),)).encode(),
        "too many": FrameHead(Encoding.RAW, Role.FILES, EXTENT_SIZE + 1, ((name(b"x"), EXTENT_SIZE + 1),)).encode(),
        "twice": FrameHead(Encoding.RAW, Role.FILES, 2, ((name(b"x"), 1),) * 2).encode() + b"xx",
        "contradicts": FrameHead(Encoding.RAW, Role.FILES, 3, ((name(b"x"), 1),)).encode() + b"x",
        "its head cannot be read": b"\7",
    }
    for reason, payload in cases.items():
        with pytest.raises(CorruptError, match=reason):
            decode([record(1, payload)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (record(0, b""), "kind 0"),
        (record(5, b""), "kind 5"),
        (record(1, b"", MAX_RECORD + 1), "a record of"),
        (record(2, b"", 5000), "a record of"),
        (record(3, bytes(31)), "names no extent"),
        (record(4, b""), "does not count"),
        (encode_end(EndRecord(frames=1)), "does not count"),
        (encode_end(EndRecord()) + b"\1", "behind its end"),
        (encode_end(EndRecord()) * 2, "behind its end"),
    ],
)
def test_records_that_cannot_be_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptError, match=reason):
        decode([data])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    decoder = StreamDecoder()
    try:
        list(decoder.feed(data))
        decoder.close()
    except CorruptError:
        return
    assert data == encode_end(EndRecord()), "nothing else so short is a whole stream"


def test_changed_streams_never_do_anything_but_raise_or_give_records() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    randomness = random.Random(seed)
    small = stream([[b"hello", b"world" * 50], [b"abc"]], FAILURES)
    for _ in range(3000):
        data = bytearray(small)
        for _ in range(randomness.randrange(1, 4)):
            place = randomness.randrange(len(data))
            if randomness.random() < 0.7:
                data[place] = randomness.randrange(256)
            else:
                del data[place : place + randomness.randrange(1, 9)]
        cut = randomness.randrange(len(data) + 1)
        try:
            records = decode([bytes(data[:cut]), bytes(data[cut:])])
        except CorruptError:
            continue
        assert isinstance(records[-1], EndRecord)


def test_a_list_of_extents_is_read_back_each_once() -> None:
    digests = [name(bytes((number,))) for number in range(100)]
    assert parse_wanted(encode_wanted(digests + digests[:7])) == digests
    assert parse_wanted(b"") == []
    with pytest.raises(InvalidError):
        parse_wanted(bytes(DIGEST_SIZE + 1))
    with pytest.raises(LimitError):
        encode_wanted([bytes(DIGEST_SIZE)] * (MAX_WANTED + 1))
    with pytest.raises(LimitError):
        parse_wanted(bytes(DIGEST_SIZE * (MAX_WANTED + 1)))
