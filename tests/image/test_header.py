"""Header blocks, extended headers and names, dialect by dialect."""

from __future__ import annotations

import base64

import pytest

from pagepool.errors import LayerInvalidError
from pagepool.image import Kind, Member, normalise_path
from tests.image.harness import END, ingest, make_extension, make_file, make_header, make_pax, make_records

GNU = b"ustar  \0"


def only(tar: bytes) -> Member:
    """The only member of a tar that has no problem."""
    sink = ingest(tar + END, (513,))
    assert sink.problem == ""
    (member,) = sink.members
    return member


def test_every_field() -> None:
    block = make_header(
        b"dir/dev", 0, b"3", mode=0o104755, uid=1000, gid=100, mtime=1700000000, uname=b"me", gname=b"us",
        major=5, minor=1, tail=b"a/prefix",
    )  # fmt: skip
    assert only(block) == Member(
        path=b"a/prefix/dir/dev", raw_path=b"a/prefix/dir/dev", kind=Kind.CHAR, mode=0o4755, uid=1000, gid=100,
        mtime_ns=1700000000 * 10**9, size=0, stored_size=0, devmajor=5, devminor=1, uname=b"me", gname=b"us",
    )  # fmt: skip


def test_fields_may_be_full() -> None:
    member = only(make_header(b"n" * 100, 0, b"2", link=b"l" * 100, uname=b"u" * 32, tail=b"p" * 155))
    assert member.path == b"p" * 155 + b"/" + b"n" * 100
    assert (member.linkname, member.uname) == (b"l" * 100, b"u" * 32)


def test_v7_has_no_more_than_v7_fields() -> None:
    member = only(make_header(b"a", 0, b"3", magic=b"", uname=b"me", major=5, tail=b"prefix"))
    assert (member.path, member.uname, member.devmajor) == (b"a", b"", 0)


def test_star_prefix_is_shorter() -> None:
    times = b"p" * 131 + b"14536016530\0" + b"14536016530\0"
    member = only(make_header(b"a", 0, tail=times.ljust(163, b"\0") + b"tar\0"))
    assert member.path == b"p" * 131 + b"/a"


def test_gnu_has_times_where_ustar_has_the_prefix() -> None:
    assert only(make_header(b"a", 0, magic=GNU, tail=b"14536016530\0" * 2)).path == b"a"
    assert only(make_header(b"a", 0, magic=GNU, tail=b"\0" * 11 + b" 4536016530\0")).path == b"a"


def test_prefix_of_old_go_in_a_gnu_header() -> None:
    assert only(make_header(b"a", 0, magic=GNU, tail=b"some/prefix")).path == b"some/prefix/a"
    assert only(make_header(b"a", 0, magic=GNU, tail=b"s\xc3\xb6me/prefix")).path == b"a"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"    644 ", 0o644),
        (b"644 \0\0\0\0", 0o644),
        (b"00000644", 0o644),
        (b"\x00\x00644\x00", 0o644),
        (b"644\0999", 0o644),
        (b"", 0),
        (b"        ", 0),
        (b"\x80" + b"\0" * 5 + b"\x01\xa4", 0o644),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert only(make_header(b"a", 0, mode=field)).mode == value


@pytest.mark.parametrize("field", [b"9", b"0x1", b"1_0", b"+1", b"-1", b"1 1", b"\x80\x01" + bytes(10)])
def test_not_numbers(field: bytes) -> None:
    problem = ingest(make_file(b"a", b"", mtime=field)).problem
    assert problem == "member 'a' has a bad mtime"


def test_base_256() -> None:
    big = b"\x80" + (2**31).to_bytes(7, "big")
    time = b"\xff" * 8 + (2**32 - 100).to_bytes(4, "big")
    member = only(make_header(b"a", 0, uid=big, gid=big, mtime=time))
    assert (member.uid, member.gid, member.mtime_ns) == (2**31, 2**31, -100 * 10**9)


def test_signed_checksum() -> None:
    assert only(make_header("schön".encode("latin-1"), 0, signed=True)).path == b"sch\xf6n"


def test_wrong_checksum() -> None:
    block = bytearray(make_header())
    block[0] ^= 1
    assert ingest(bytes(block)).problem.startswith("not a tar")


@pytest.mark.parametrize("field", [b"\x80" * 8, b"zzzzzz\0 "])
def test_checksum_that_is_no_octal_number(field: bytes) -> None:
    block = bytearray(make_header())
    block[148:156] = field
    assert ingest(bytes(block)).problem.startswith("not a tar")


def test_gnu_long_name_and_link() -> None:
    name, link = b"n" * 200 + b"/x", b"l" * 300
    tar = make_extension(b"K", link + b"\0") + make_extension(b"L", name + b"\0rest")
    member = only(tar + make_header(b"n" * 100, 0, b"2", link=b"l" * 100, magic=GNU))
    assert (member.path, member.linkname) == (name, link)


def test_extended_headers_hold_for_one_member() -> None:
    sink = ingest(make_extension(b"L", b"long") + make_file(b"a", b"1") + make_file(b"b", b"2") + END)
    assert list(sink.files) == [b"long", b"b"]
    sink = ingest(make_pax(path=b"long", uid=b"7") + make_file(b"a", b"1") + make_file(b"b", b"2") + END)
    assert [(member.path, member.uid) for member in sink.members] == [(b"long", 7), (b"b", 0)]
    sink = ingest(make_extension(b"L", b"long") + make_file(b"../a", b"1") + make_file(b"b", b"2") + END)
    assert list(sink.files) == [b"long", b"b"]


def test_pax_records() -> None:
    records: list[tuple[bytes, bytes]] = [
        (b"path", "grün/x".encode()), (b"linkpath", b"t" * 150), (b"uid", b"4000000000"), (b"gid", b"3000000000"),
        (b"mtime", b"1700000000.123456789999"), (b"uname", b"me"), (b"gname", b""), (b"comment", b"a=b\n12 c"),
        (b"SCHILY.xattr.user.bin", b"\0\xff=\n"), (b"SCHILY.xattr.user.two", b"two"),
    ]  # fmt: skip
    member = only(make_extension(b"x", make_records(records)) + make_header(b"a", 0, b"2", gname=b"us"))
    assert (member.path, member.linkname) == ("grün/x".encode(), b"t" * 150)
    assert (member.uid, member.gid, member.uname, member.gname) == (4000000000, 3000000000, b"me", b"us")
    assert member.mtime_ns == 1700000000_123456789
    assert member.xattrs == {b"user.bin": b"\0\xff=\n", b"user.two": b"two"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0),
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"-0.5", -500_000_000),
        (b"1.", 10**9),
        (b"+3", 3 * 10**9),
        (b"9223372036854775807", (2**63 - 1) * 10**9),
        (b"-9223372036854775808", -(2**63) * 10**9),
    ],
)
def test_pax_times(text: bytes, value: int) -> None:
    assert only(make_pax(mtime=text) + make_header(b"a", 0)).mtime_ns == value


@pytest.mark.parametrize("text", [b"x", b".5", b"1,5", b"9223372036854775808", b"-9223372036854775809"])
def test_not_pax_times(text: bytes) -> None:
    assert f"a bad time {text.decode()!r}" in ingest(make_pax(mtime=text) + make_file(b"a", b"")).problem


@pytest.mark.parametrize("text", [b"9223372036854775808", b"-9223372036854775809", b"1" * 20])
def test_pax_numbers_have_64_bits(text: bytes) -> None:
    assert f"a bad number {text.decode()!r}" in ingest(make_pax(size=text) + make_file(b"a", b"")).problem
    assert "over the limit of" in ingest(make_pax(size=b"9223372036854775807") + make_file(b"a", b"")).problem


@pytest.mark.parametrize(
    "record",
    [(b"path", b"a\0b"), (b"linkpath", b"a\0"), (b"uname", b"\0"), (b"gname", b"\0g"), (b"SCHILY.xattr.a\0b", b"")],
)
def test_pax_records_with_a_nul_where_none_can_be(record: tuple[bytes, bytes]) -> None:
    problem = ingest(make_extension(b"x", make_records([record])) + make_file(b"a", b"")).problem
    assert "a record that is not key=value" in problem


def test_pax_size_wins() -> None:
    sink = ingest(make_pax(size=b"700") + make_header(b"a", 0) + bytes(1024) + make_file(b"b", b"2") + END)
    assert sink.problem == ""
    assert {path: len(data) for path, data in sink.files.items()} == {b"a": 700, b"b": 1}


def test_solaris_extended_header() -> None:
    assert only(make_extension(b"X", make_records([(b"path", b"sun")])) + make_header(b"a", 0)).path == b"sun"


def test_long_name_wins_over_pax_as_in_go() -> None:
    tar = make_pax(path=b"pax") + make_extension(b"L", b"gnu")
    assert only(tar + make_header(b"a", 0)).path == b"gnu"


def test_global_header_forgets_as_in_go() -> None:
    tar = make_pax(path=b"pax") + make_extension(b"g", make_records([(b"comment", b"x")]))
    assert only(tar + make_header(b"a", 0)).path == b"a"


def test_empty_extended_headers() -> None:
    assert only(make_extension(b"L", b"") + make_extension(b"x", b"") + make_header(b"a", 0)).path == b"a"


def test_libarchive_xattrs() -> None:
    value = base64.b64encode(b"\0bin").rstrip(b"=")
    encoded = {
        "LIBARCHIVE__xattr__user.%C3%B6": value,
        "SCHILY__xattr__user.b": b"1",
        "LIBARCHIVE__xattr__user.b": b"Mg",
    }
    member = only(make_pax(**encoded) + make_header(b"a", 0))
    assert member.xattrs == {"user.ö".encode(): b"\0bin", b"user.b": b"1"}


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"a/b", b"a/b"),
        (b"./a", b"a"),
        (b"/a", b"a"),
        (b"//a///b//", b"a/b"),
        (b"./", b""),
        (b".", b""),
        (b"/", b""),
        (b"", b""),
        (b"a/./b", b"a/b"),
        (b"a/../b", b"b"),
        (b"a/..", b""),
        (b"./.hidden", b".hidden"),
        (b"a/.b/..c/d..", b"a/.b/..c/d.."),
        (b"././a/.", b"a"),
        (b"a/b/../../c", b"c"),
    ],
)
def test_names(raw: bytes, path: bytes) -> None:
    assert normalise_path(raw) == path


@pytest.mark.parametrize("raw", [b"..", b"../a", b"/..", b"a/../..", b"./../a", b"a/b/../../../c"])
def test_names_that_escape(raw: bytes) -> None:
    with pytest.raises(LayerInvalidError, match="escapes the root"):
        normalise_path(raw)
