"""Sparse members in the four forms that GNU tar has written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pagepool.image import stored_pieces
from tests.image.harness import END, LIMITS, ingest, make_extension, make_file, make_header, make_records, pad

GNU = b"ustar  \0"
Segments = Sequence[tuple[int, int]]


def octal(value: int) -> bytes:
    return b"%011o\0" % value


def entries(segments: Segments) -> bytes:
    return b"".join(octal(offset) + octal(size) for offset, size in segments)


def make_old_gnu(name: bytes, size: int, segments: Segments, data: bytes) -> bytes:
    rest = list(segments[4:])
    tail = bytes(41) + entries(segments[:4]).ljust(96, b"\0") + (b"\1" if rest else b"\0") + octal(size)
    out = make_header(name, len(data), b"S", magic=GNU, tail=tail)
    while rest:
        part, rest = rest[:21], rest[21:]
        out += (entries(part).ljust(504, b"\0") + (b"\1" if rest else b"\0")).ljust(512, b"\0")
    return out + pad(data)


def make_pax_sparse(records: list[tuple[bytes, bytes]], data: bytes, flag: bytes = b"0") -> bytes:
    return make_extension(b"x", make_records(records)) + make_header(b"short", len(data), flag) + pad(data)


def make_00(name: bytes, size: int, segments: Segments, data: bytes) -> bytes:
    records = [(b"path", name), (b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(segments))]
    for offset, length in segments:
        records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    return make_pax_sparse(records, data)


def make_01(name: bytes, size: int, segments: Segments, data: bytes) -> bytes:
    text = b",".join(b"%d,%d" % segment for segment in segments)
    records = [
        (b"GNU.sparse.name", name),
        (b"path", b"GNUSparseFile.0/x"),
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % len(segments)),
        (b"GNU.sparse.map", text),
    ]
    return make_pax_sparse(records, data)


def make_10(name: bytes, size: int, segments: Segments, data: bytes) -> bytes:
    text = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % segment for segment in segments)
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    return make_pax_sparse(records, pad(text) + data)


VERSION_1 = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
FORMS: list[Callable[[bytes, int, Segments, bytes], bytes]] = [make_old_gnu, make_00, make_01, make_10]
MAPS: list[tuple[int, Segments]] = [
    (10_000, [(0, 512), (4096, 1024), (9728, 272)]),
    (100_000, [(1000 * place, 100 + place) for place in range(1, 60)]),
    (5000, [(1024, 512), (5000, 0)]),
    (700, [(0, 700)]),
    (700, [(3, 5), (8, 2), (100, 0), (200, 1)]),
]


@pytest.mark.parametrize("make", FORMS)
@pytest.mark.parametrize(("size", "segments"), MAPS)
def test_forms(make: Callable[..., bytes], size: int, segments: Segments) -> None:
    content = bytearray(size)
    packed = b""
    for offset, length in segments:
        piece = bytes((offset + place) % 251 + 1 for place in range(length))
        content[offset : offset + length] = piece
        packed += piece
    tar = make(b"a/sparse", size, segments, packed) + make_file(b"b", b"2") + END
    sink = ingest(tar, (333,))
    assert sink.problem == ""
    assert sink.files == {b"a/sparse": bytes(content), b"b": b"2"}
    member = sink.members[0]
    assert member.segments == tuple(segment for segment in segments if segment[1])
    assert (member.size, member.stored_size) == (size, len(packed))
    assert sink.members[1].segments is None


@pytest.mark.parametrize("make", FORMS)
@pytest.mark.parametrize("segments", [[(65536, 0)], [(0, 0)]])
def test_one_hole(make: Callable[..., bytes], segments: Segments) -> None:
    tar = make(b"hole", 65536, segments, b"") * 2 + make_file(b"b", b"2") + END
    sink = ingest(tar)
    assert sink.problem == ""
    assert sink.files == {b"hole": bytes(65536), b"b": b"2"}
    assert sink.members[0].stored_size == 0


@pytest.mark.parametrize("make", FORMS)
def test_empty_sparse_file(make: Callable[..., bytes]) -> None:
    sink = ingest(make(b"empty", 0, [(0, 0)], b"") + END)
    assert sink.problem == ""
    assert sink.files == {b"empty": b""}


@pytest.mark.parametrize("make", FORMS)
@pytest.mark.parametrize(
    ("size", "segments", "stored", "reason"),
    [
        (1000, [(0, 500), (400, 100)], 600, "has a sparse map that overlaps or is out of order"),
        (1000, [(500, 100), (0, 100)], 200, "has a sparse map that overlaps or is out of order"),
        (1000, [(900, 101)], 101, "has a sparse map that reaches beyond its size"),
        (1000, [(0, 100)], 101, "has a sparse map of 100 bytes over 101 stored bytes"),
        (1000, [(0, 100)], 99, "has a sparse map of 100 bytes over 99 stored bytes"),
        (
            LIMITS.max_member_size + 1,
            [(0, 100)],
            100,
            "claims 16777217 bytes, holes included, over the limit of 16777216",
        ),
    ],
)
def test_bad_maps(make: Callable[..., bytes], size: int, segments: Segments, stored: int, reason: str) -> None:
    sink = ingest(make(b"bad", size, segments, b"x" * stored) + make_file(b"b", b"2") + END)
    assert sink.problem == f"member 'bad' {reason}"
    assert sink.files == {b"b": b"2"}


def test_map_that_is_cut() -> None:
    tar = make_old_gnu(b"a", 100_000, MAPS[1][1], b"x" * 7000)
    assert "truncated" in ingest(tar[:1024]).problem
    assert "truncated" in ingest(tar[:1500]).problem
    assert "truncated" in ingest(make_10(b"a", 10, [(0, 10)], b"x" * 10)[:1536]).problem


def test_many_small_claims_are_a_bomb() -> None:
    one = make_old_gnu(b"hole", LIMITS.max_member_size, [(0, 0)], b"")
    sink = ingest(one * 100)
    assert sink.problem == f"files of more than {LIMITS.max_layer_size} bytes in all, holes included"
    assert len(sink.members) == 4


@pytest.mark.parametrize(
    ("records", "data", "reason"),
    [
        ([(b"GNU.sparse.offset", b"0")] * 2, b"", "a sparse map out of order"),
        ([(b"GNU.sparse.offset", b"0,1")], b"", "a sparse map out of order"),
        ([(b"GNU.sparse.map", b"0,1")], b"1", "a bad number ''"),
        ([(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"2")], b"1", "a number of entries that is not"),
        ([(b"GNU.sparse.map", b"0,x"), (b"GNU.sparse.numblocks", b"1")], b"1", "a bad number 'x'"),
        (VERSION_1, b"", "more than 0 bytes in its sparse map"),
        (VERSION_1, b"\n" + bytes(511), "a bad number '' in its sparse map"),
        (VERSION_1, b"-1\n" + bytes(509), "a bad number of entries"),
        (VERSION_1, b"1\n0\n" + b"9" * 508, "more than 512 bytes"),
    ],
)  # fmt: skip
def test_malformed_maps(records: list[tuple[bytes, bytes]], data: bytes, reason: str) -> None:
    assert reason in ingest(make_pax_sparse(records, data) + END).problem


def binary(value: int) -> bytes:
    """A number as GNU tar writes those that twelve octal digits do not hold."""
    return b"\x80" + value.to_bytes(11, "big")


def make_gnu_header(entry: bytes, size: bytes, data: bytes) -> bytes:
    tail = bytes(41) + entry.ljust(96, b"\0") + b"\0" + size
    return make_header(b"gnu", len(data), b"S", magic=GNU, tail=tail) + pad(data) + END


def test_old_gnu_numbers_in_binary() -> None:
    sink = ingest(make_gnu_header(binary(4096) + binary(3) + octal(5000) + octal(0), binary(5000), b"abc"))
    assert sink.problem == ""
    assert sink.files == {b"gnu": bytes(4096) + b"abc" + bytes(901)}


@pytest.mark.parametrize(
    ("entry", "size", "reason"),
    [
        (octal(0) + octal(3), b"x" * 12, "a bad size"),
        (b"x" * 12 + octal(3), octal(9), "a bad number"),
        (octal(0) + b"x" * 12, octal(9), "a bad number"),
        (b"\xff" * 12 + octal(3), octal(9), "a negative number"),
        (octal(3) + b"\xff" * 12, octal(9), "a negative number"),
        (octal(0) + octal(3), b"\xff" * 12, "reaches beyond its size"),
    ],
)
def test_malformed_old_gnu_maps(entry: bytes, size: bytes, reason: str) -> None:
    assert reason in ingest(make_gnu_header(entry, size, b"abc")).problem


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"1")],
        [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"2")],
        [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.numblocks", b"1")],
        [(b"GNU.sparse.minor", b"2"), (b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.numblocks", b"1")],
    ],
)
def test_unknown_version_is_a_plain_file(records: list[tuple[bytes, bytes]]) -> None:
    sink = ingest(make_pax_sparse(records, b"data") + END)
    assert sink.problem == ""
    assert sink.files == {b"short": b"data"}


def test_map_without_data() -> None:
    records = [(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"1")]
    assert "a sparse map and no data" in ingest(make_pax_sparse(records, b"", b"5")).problem


def test_old_form_in_another_dialect() -> None:
    assert "a sparse map that is not GNU's" in ingest(make_header(b"a", 0, b"S")).problem


def test_endless_extension_blocks() -> None:
    tail = bytes(41 + 96) + b"\1" + octal(0)
    block = bytes(504) + b"\1" + bytes(7)
    tar = make_header(b"a", 0, b"S", magic=GNU, tail=tail) + block * 1000
    assert f"more than {LIMITS.max_header_size} bytes in its sparse map" in ingest(tar).problem


def test_stored_pieces() -> None:
    segments = ((10, 5), (20, 3), (30, 4))
    assert list(stored_pieces(segments, 0, 12)) == [(10, 5), (20, 3), (30, 4)]
    assert list(stored_pieces(segments, 3, 3)) == [(13, 2), (20, 1)]
    assert list(stored_pieces(segments, 5, 1)) == [(20, 1)]
    assert list(stored_pieces(segments, 8, 2)) == [(30, 2)]
    assert list(stored_pieces(segments, 12, 0)) == []
