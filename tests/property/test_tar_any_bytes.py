"""Any bytes whatsoever: split, made a recipe of, and rebuilt; never an exception.

`ingest` checks the rest: the order of the calls, that the recipe rebuilds the stream, that it gives the same members.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.image.harness import END, ingest, make_extension, make_file, make_header, make_pax, make_records
from tests.image.test_sparse import make_00, make_01, make_10, make_old_gnu

SIZES = st.lists(st.sampled_from([1, 7, 100, 511, 512, 513, 1000, 4096, 1 << 20]), min_size=1, max_size=4)

SEED = b"".join(
    [
        make_header(b"d/", 0, b"5"),
        make_file(b"d/a", b"a" * 700),
        make_extension(b"L", b"long/" * 30 + b"\0") + make_file(b"x", b"1"),
        make_pax(path=b"p" * 120, size=b"600", mtime=b"1.5", uid=b"5000000")
        + make_header(b"y")
        + b"y" * 600
        + bytes(424),
        make_old_gnu(b"s0", 9000, [(place * 512, 100) for place in range(9)], b"s" * 900),
        make_00(b"s1", 9000, [(0, 512), (8192, 512)], b"s" * 1024),
        make_01(b"s2", 9000, [(512, 100)], b"s" * 100),
        make_10(b"s3", 9000, [(0, 512), (8192, 8)], b"s" * 520),
        make_10(b"hole", 9000, [(9000, 0)], b""),
        make_header(b"h", 100, b"1", link=b"d/a") + make_header(b"l", 0, b"2", link=b"d"),
        make_extension(b"g", make_records([(b"comment", b"c")])),
        make_file(b"d/.wh.b", b""),
        END,
    ]
)


@given(st.binary(max_size=3000), SIZES)
def test_random_bytes(tar: bytes, sizes: list[int]) -> None:
    ingest(tar, sizes)


@given(SIZES)
def test_the_seed_is_good(sizes: list[int]) -> None:
    sink = ingest(SEED, sizes)
    assert sink.problem == ""
    assert len(sink.members) == 12


def fix_checksum(tar: bytearray, start: int) -> None:
    """Make a mutated block a header again, so that what is wrong with it is found further in."""
    block = tar[start : start + 512]
    if len(block) == 512:
        block[148:156] = b" " * 8
        tar[start + 148 : start + 156] = b"%06o\0 " % sum(block)


EDITS = st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=6)
DIGITS = st.lists(
    st.tuples(st.integers(0, len(SEED) - 1), st.sampled_from(b"0123456789 \0\n=,-\xff\x80xLKgSD")),
    min_size=1,
    max_size=6,
)


@given(st.one_of(EDITS, DIGITS), st.booleans(), st.integers(0, len(SEED)), SIZES)
@settings(max_examples=300, deadline=None)
def test_mutated_tars(edits: list[tuple[int, int]], fix: bool, cut: int, sizes: list[int]) -> None:
    tar = bytearray(SEED)
    for place, value in edits:
        tar[place] = value
        if fix:
            fix_checksum(tar, place - place % 512)
    ingest(bytes(tar), sizes)
    ingest(bytes(tar[:cut]), sizes)


FIELDS: dict[str, Callable[[bytes], bytes]] = {
    "size": lambda raw: make_header(b"a", raw[:12]),
    "sparse": lambda raw: make_header(b"a", 5, b"S", magic=b"ustar  \0", tail=raw),
    "name": lambda raw: make_file(raw[:100], b"1"),
    "link": lambda raw: make_header(b"a", 0, b"1", link=raw[:100]),
    "long name": lambda raw: make_extension(b"L", raw) + make_file(b"a", b"1"),
    "pax": lambda raw: make_extension(b"x", raw) + make_file(b"a", b"1"),
    "pax size": lambda raw: make_pax(size=raw) + make_file(b"a", b"1"),
    "pax map": lambda raw: make_pax(GNU__sparse__map=raw, GNU__sparse__numblocks=b"1") + make_file(b"a", b"1"),
    "data map": lambda raw: (
        make_pax(GNU__sparse__major=b"1", GNU__sparse__minor=b"0") + make_file(b"a", raw + bytes(512))
    ),
    "xattr": lambda raw: make_pax(LIBARCHIVE__xattr__a=raw) + make_file(b"a", b"1"),
    "type": lambda raw: make_file(b"a/", b"1", flag=raw[:1]),
}
RAW = st.one_of(
    st.binary(max_size=160),
    st.text("0123456789.,\n\0 =-/", max_size=160).map(str.encode),
    st.integers(-(1 << 70), 1 << 70).map(lambda number: b"%d" % number),
)


@given(st.sampled_from(sorted(FIELDS)), RAW)
@settings(max_examples=600, deadline=None)
def test_hostile_fields(field: str, raw: bytes) -> None:
    ingest(FIELDS[field](raw) + make_file(b"after", b"2") + END)
