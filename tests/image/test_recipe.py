"""Recipes: chunks, their bounds, and what a decoder refuses."""

from __future__ import annotations

import random
import struct

import pytest
import zstandard

from pagepool.errors import CorruptError
from pagepool.image import (
    LITERAL,
    OBJECT,
    SLICE,
    EncodedChunk,
    Op,
    RecipeWriter,
    decode_chunk,
    iter_members,
)
from tests.image.harness import END, make_file, make_header

A, B, C = (bytes([value]) * 32 for value in b"abc")
MIB = 1 << 20


def take_all(writer: RecipeWriter) -> list[EncodedChunk]:
    chunks = []
    while (chunk := writer.take_chunk()) is not None:
        chunks.append(chunk)
    return chunks


def finish(writer: RecipeWriter) -> list[EncodedChunk]:
    writer.finish()
    chunks = take_all(writer)
    position = 0
    for chunk in chunks:
        assert chunk.plain_start == position
        assert chunk.plain_size == sum(op.size for op in decode_chunk(chunk.payload))
        position += chunk.plain_size
    return chunks


def test_operations_come_back() -> None:
    writer = RecipeWriter()
    writer.append_literal(b"abc")
    writer.append_literal(memoryview(b"def"))
    writer.append_object(A, 7)
    writer.append_object(B, 1 << 40)
    writer.append_slice(C, 4096, 512)
    writer.append_slice(C, 1 << 41, 512)
    writer.append_literal(b"")
    writer.append_slice(A, 0, 0)
    writer.append_object(A, 0)
    writer.append_object(A, 7)
    writer.append_literal(b"x")
    chunks = finish(writer)
    ops = [op for chunk in chunks for op in decode_chunk(chunk.payload)]
    assert ops == [
        Op(LITERAL, b"abcdef", 0, 6),
        Op(OBJECT, A, 0, 7),
        Op(OBJECT, B, 0, 1 << 40),
        Op(SLICE, C, 4096, 512),
        Op(SLICE, C, 1 << 41, 512),
        Op(SLICE, A, 0, 0),
        Op(OBJECT, A, 0, 7),
        Op(LITERAL, b"x", 0, 1),
    ]


def test_nothing_has_no_chunks() -> None:
    assert finish(RecipeWriter()) == []


def test_a_chunk_ends_at_its_bound() -> None:
    writer = RecipeWriter()
    writer.append_object(A, 4 * MIB - 1)
    assert writer.take_chunk() is None
    writer.append_literal(b"12")
    first = writer.take_chunk()
    assert first is not None
    assert (first.plain_start, first.plain_size) == (0, 4 * MIB)
    writer.finish()
    assert [(chunk.plain_start, chunk.plain_size) for chunk in take_all(writer)] == [(4 * MIB, 1)]


def test_a_digest_is_stored_once_in_a_chunk() -> None:
    def size(digests: list[bytes]) -> int:
        writer = RecipeWriter()
        for digest in digests:
            writer.append_literal(b"header")
            writer.append_object(digest, 5)
        (chunk,) = finish(writer)
        assert [op.data for op in decode_chunk(chunk.payload)][1::2] == digests
        return len(chunk.payload)

    assert size([A, B, C, A, B, C, A, A, C]) < size([A, B, C]) + 32


def test_garbage_is_bounded() -> None:
    garbage = random.Random(5).randbytes(3 * MIB)
    for piece in (len(garbage), 1000):
        writer = RecipeWriter()
        for start in range(0, len(garbage), piece):
            writer.append_literal(garbage[start : start + piece])
        chunks = finish(writer)
        assert b"".join(bytes(op.data) for chunk in chunks for op in decode_chunk(chunk.payload)) == garbage
        assert max(len(chunk.payload) for chunk in chunks) < 136 << 10
        assert max(chunk.plain_size for chunk in chunks) <= 4 * MIB


def test_endless_zeros_cost_little() -> None:
    writer = RecipeWriter()
    zeros = bytes(MIB)
    chunks = []
    for _ in range(64):
        writer.append_literal(zeros)
        chunks += take_all(writer)
    chunks += finish(writer)
    assert len(chunks) == 16
    assert sum(len(chunk.payload) for chunk in chunks) < 16 * 500


def test_many_digests_are_bounded() -> None:
    writer = RecipeWriter()
    for number in range(5000):
        writer.append_object(number.to_bytes(32, "big"), 1)
    for _ in range(50_000):
        writer.append_slice(A, 0, 0)
    chunks = finish(writer)
    assert max(len(chunk.payload) for chunk in chunks) < 80 << 10


@pytest.mark.parametrize("size", [1, 511, 512, 8**11 - 1])
def test_headers_fold(size: int) -> None:
    header = make_header(b"a/name", size, mtime=1700000000, uname=b"root")
    writer = RecipeWriter()
    writer.append_literal(b"before" + header)
    writer.append_object(A, size)
    (chunk,) = finish(writer)
    assert list(decode_chunk(chunk.payload)) == [Op(LITERAL, b"before" + header, 0, 518), Op(OBJECT, A, 0, size)]
    assert b"\3" in zstandard.ZstdDecompressor().decompress(chunk.payload[14 + 32 :])[:2]


@pytest.mark.parametrize(
    "header",
    [
        make_header(b"a", 6),
        make_header(b"a", b"          5 "),
        make_header(b"a", b"00000000005 "),
        make_header(b"a", 5)[:-1] + b"\1",
        make_header(b"\xff", 5, signed=True),
        b"\xff" * 512,
        make_header(b"a", 5)[1:],
    ],
)
def test_headers_that_do_not_fold(header: bytes) -> None:
    writer = RecipeWriter()
    writer.append_literal(header)
    writer.append_object(A, 5)
    (chunk,) = finish(writer)
    assert list(decode_chunk(chunk.payload)) == [Op(LITERAL, header, 0, len(header)), Op(OBJECT, A, 0, 5)]


def test_only_the_last_block_folds_and_only_before_an_object() -> None:
    header = make_header(b"a", 5)
    writer = RecipeWriter()
    writer.append_literal(header)
    writer.append_slice(A, 0, 5)
    writer.append_literal(header + b"x")
    writer.append_object(A, 5)
    writer.append_literal(header)
    writer.append_object(A, 5)
    (chunk,) = finish(writer)
    assert [bytes(op.data) for op in decode_chunk(chunk.payload)][::2] == [header, header + b"x", header]


def test_repetitive_headers_are_cheap() -> None:
    writer = RecipeWriter()
    for number in range(1000):
        writer.append_literal(make_header(b"usr/share/doc/file-%d" % number, 1000 + number, mtime=1700000000))
        writer.append_object(A, 1000 + number)
    assert sum(len(chunk.payload) for chunk in finish(writer)) < 1000 * 6


def encode(
    kinds: bytes,
    sizes: bytes,
    references: bytes = b"",
    offsets: bytes = b"",
    literals: bytes = b"",
    *,
    digests: bytes = b"",
    head: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    frame = zstandard.ZstdCompressor().compress(kinds + sizes + references + offsets + literals)
    head = head or struct.pack("<BBIII", 1, 0, len(kinds), len(digests) // 32, len(literals))
    return head + digests + frame + after


def test_a_chunk_by_hand() -> None:
    payload = encode(b"\0\1\2\1", b"\2\5\3\5", b"\0\0\2", b"\x09", b"ab", digests=A + B)
    assert list(decode_chunk(payload)) == [
        Op(LITERAL, b"ab", 0, 2),
        Op(OBJECT, A, 0, 5),
        Op(SLICE, B, 9, 3),
        Op(OBJECT, A, 0, 5),
    ]


BAD: dict[str, bytes] = {
    "empty": b"",
    "short": b"\1\0\1",
    "version": encode(b"\0", b"\1", literals=b"a", head=struct.pack("<BBIII", 2, 0, 1, 0, 1)),
    "widths": encode(b"\0", b"\1", literals=b"a", head=struct.pack("<BBIII", 1, 64, 1, 0, 1)),
    "no operations": encode(b"", b""),
    "too many operations": encode(b"\0" * 20000, b"\1" * 20000, literals=b"a" * 20000),
    "too many digests": encode(b"\0", b"\1", literals=b"a", digests=A * 2),
    "too many literals": encode(
        b"\0", struct.pack("<I", 4 * MIB + 1), literals=bytes(4 * MIB + 1),
        head=struct.pack("<BBIII", 1, 2, 1, 0, 4 * MIB + 1),
    ),
    "cut digests": encode(b"\1", b"\1", b"\0", digests=A)[:30],
    "cut frame": encode(b"\0", b"\1", literals=b"a")[:-1],
    "more after the frame": encode(b"\0", b"\1", literals=b"a", after=b"x"),
    "giant frame": struct.pack("<BBIII", 1, 0, 1, 0, 1) + zstandard.ZstdCompressor().compress(bytes(100_000)),
    "frame of unknown size": struct.pack("<BBIII", 1, 0, 1, 0, 1)
    + zstandard.ZstdCompressor(write_content_size=False).compress(b"\0\1a"),
    "kind": encode(b"\4", b"\1", literals=b"a"),
    "literals left over": encode(b"\0", b"\1", literals=b"ab"),
    "literals missing": encode(b"\0", b"\3", literals=b"ab"),
    "empty literal": encode(b"\0\0", b"\0\1", literals=b"a"),
    "empty object": encode(b"\1", b"\0", b"\0", digests=A),
    "reference to no digest": encode(b"\1", b"\1", b"\1", digests=A),
    "reference to too few": encode(b"\1\1", b"\1\1", b"\0\0", digests=A),
    "unused digest": encode(b"\1\1", b"\1\1", b"\0\1", digests=A + B),
    "slice beyond all": encode(
        b"\2", b"\1", b"\0", b"\xff" * 7 + b"\x7f", digests=A, head=struct.pack("<BBIII", 1, 0x30, 1, 1, 0)
    ),
    "fold without an object": encode(b"\3", b"\0\2", literals=bytes(512), head=struct.pack("<BBIII", 1, 1, 1, 0, 512)),
    "fold of a short literal": encode(b"\3\1", b"\x0a\1", b"\0", literals=bytes(10), digests=A),
    "fold of a giant": encode(
        b"\3\1",
        b"".join((512).to_bytes(8, "little")[place : place + 1] + (8**11).to_bytes(8, "little")[place : place + 1]
                 for place in range(8)),
        b"\0", literals=bytes(512), digests=A, head=struct.pack("<BBIII", 1, 3, 2, 1, 512),
    ),
}  # fmt: skip


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD.keys())
def test_what_no_writer_writes(payload: bytes) -> None:
    with pytest.raises(CorruptError, match="corrupt recipe chunk 7:"):
        decode_chunk(payload, "7")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("too many operations", "counts out of range"),
        ("too many digests", "counts out of range"),
        ("too many literals", "counts out of range"),
        ("giant frame", "a frame of a size that does not agree"),
    ],
)
def test_bounds_are_compared_before_anything_is_decompressed(case: str, reason: str) -> None:
    """Else memory is taken for what is refused later."""
    with pytest.raises(CorruptError, match=reason):
        decode_chunk(BAD[case])


def members(*ops: Op) -> list[tuple[bytes, list[Op]]]:
    return [(member.path, found) for member, found in iter_members([ops])]


def literal(data: bytes) -> Op:
    return Op(LITERAL, data, 0, len(data))


def test_members_of_a_recipe() -> None:
    tar = make_header(b"d", 0, b"5") + make_header(b"empty") + make_header(b"a", 600)
    found = members(literal(tar), Op(OBJECT, A, 0, 600), literal(bytes(424) + make_file(b"kept", b"here") + END))
    assert found == [
        (b"d", []),
        (b"empty", []),
        (b"a", [Op(OBJECT, A, 0, 600)]),
        (b"kept", [Op(LITERAL, b"here", 0, 4)]),
    ]


@pytest.mark.parametrize(
    "ops",
    [
        [literal(make_header(b"a", 600)), Op(OBJECT, A, 0, 601)],
        [literal(make_header(b"a", 0)), Op(OBJECT, A, 0, 1)],
        [literal(make_header(b"a", 5)), Op(SLICE, A, 0, 0)],
        [Op(SLICE, A, 0, 0)],
        [Op(OBJECT, A, 0, 1)],
    ],
)
def test_file_data_out_of_place(ops: list[Op]) -> None:
    with pytest.raises(CorruptError, match="corrupt recipe"):
        members(*ops)


def test_a_problem_in_an_accepted_recipe() -> None:
    ops = [literal(make_file(b"../a", b"1"))]
    with pytest.raises(CorruptError, match=r"it was accepted, but member '../a' escapes the root"):
        list(iter_members([ops]))
    assert list(iter_members([ops], strict=False)) == []
    with pytest.raises(CorruptError, match="truncated"):
        list(iter_members([[literal(make_header(b"a", 5))]]))
