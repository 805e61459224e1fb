"""Splitting a layer: the protocol, and what counts as a problem."""

from __future__ import annotations

import pytest

from pagepool.errors import CorruptError
from pagepool.image import Kind, LayerSplitter, Limits
from tests.image.harness import (
    END,
    LIMITS,
    Ingest,
    ingest,
    make_extension,
    make_file,
    make_header,
    make_pax,
    make_records,
    pad,
)


class Recorder:
    """The calls, one by one."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def literal(self, data: memoryview, /) -> None:
        self.calls.append(("literal", len(data)))

    def begin(self, member: object, /) -> None:
        self.calls.append(("begin", member.path))  # type: ignore[attr-defined]

    def data(self, view: memoryview, /) -> None:
        self.calls.append(("data", bytes(view)))

    def end(self) -> None:
        self.calls.append(("end",))


def test_calls_of_a_whole_layer() -> None:
    tar = make_header(b"d/", 0, b"5") + make_file(b"d/a", b"hello") + make_file(b"d/b", b"x" * 512) + END
    recorder = Recorder()
    splitter = LayerSplitter(recorder)
    splitter.feed(tar)
    splitter.close()
    assert recorder.calls == [
        ("literal", 1024),
        ("begin", b"d/a"),
        ("data", b"hello"),
        ("end",),
        ("literal", 507 + 512),
        ("begin", b"d/b"),
        ("data", b"x" * 512),
        ("end",),
        ("literal", 1024),
    ]
    assert splitter.problem == ""
    assert splitter.members == 3
    assert splitter.logical_size == 517


def test_file_data_is_not_copied() -> None:
    tar = make_file(b"a", b"x" * 5000) + END
    views: list[memoryview] = []

    class Keeper(Ingest):
        def data(self, view: memoryview, /) -> None:
            views.append(view)
            super().data(view)

    sink = Keeper()
    splitter = LayerSplitter(sink, LIMITS, sink.members.append)
    splitter.feed(tar)
    assert views[0].obj is tar


def test_data_comes_as_it_is_fed() -> None:
    tar = make_file(b"a", b"abcdef")
    recorder = Recorder()
    splitter = LayerSplitter(recorder)
    for chunk in (tar[:100], b"", tar[100:514], bytearray(tar[514:517]), memoryview(tar)[517:]):
        splitter.feed(chunk)
    splitter.close()
    assert recorder.calls[2:] == [
        ("begin", b"a"),
        ("data", b"ab"),
        ("data", b"cde"),
        ("data", b"f"),
        ("end",),
        ("literal", 506),
    ]


@pytest.mark.parametrize("tar", [b"", bytes(512), bytes(1024), bytes(10240), bytes(512 * 3 + 7), bytes(200_000)])
def test_empty_layers(tar: bytes) -> None:
    assert ingest(tar).problem == ""


def test_trailing_garbage_is_literal() -> None:
    garbage = make_file(b"after", b"the end") + b"\xff" * 999
    sink = ingest(make_file(b"a", b"1") + END + garbage, (700,))
    assert sink.problem == ""
    assert [member.path for member in sink.members] == [b"a"]


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024)])
def test_missing_end_blocks_and_padding(end: bytes) -> None:
    assert ingest(make_file(b"a", b"1" * 512) + end).problem == ""
    assert ingest(make_header(b"a", 5) + b"12345").problem == ""


def test_giant_literals_come_in_bounded_pieces() -> None:
    sink = ingest(make_file(b"a", b"1") + bytes(5 << 20), (8 << 20,))
    assert sink.problem == ""


def test_other_kinds_have_no_data() -> None:
    tar = b"".join(
        make_header(b"m" + flag, size, flag, link=b"m0" if flag in b"12" else b"")
        for flag, size in [(b"0", 0), (b"1", 700), (b"2", 700), (b"3", 9), (b"4", 9), (b"5", 4096), (b"6", 1)]
    )
    sink = ingest(tar + END)
    assert sink.problem == ""
    assert [member.kind for member in sink.members] == [
        Kind.REGULAR, Kind.HARDLINK, Kind.SYMLINK, Kind.CHAR, Kind.BLOCK, Kind.DIRECTORY, Kind.FIFO,
    ]  # fmt: skip
    assert all(member.size == member.stored_size == 0 for member in sink.members)


def test_dumpdir_has_data_and_is_a_directory() -> None:
    sink = ingest(make_header(b"d", 6, b"D") + pad(b"Yfile\0") + make_file(b"a", b"1") + END)
    assert sink.problem == ""
    assert [(member.path, member.kind) for member in sink.members] == [(b"d", Kind.DIRECTORY), (b"a", Kind.REGULAR)]


@pytest.mark.parametrize("flag", [b"7", b"0", b"\0", b"Z", b"M"])
def test_types_that_are_files(flag: bytes) -> None:
    sink = ingest(make_file(b"a", b"123", flag=flag) + END)
    assert sink.problem == ""
    assert sink.files == {b"a": b"123"}


def test_only_the_oldest_type_makes_a_directory_of_a_slash() -> None:
    sink = ingest(make_header(b"old/", 3, b"\0") + make_header(b"new/", 0, b"0") + END)
    assert [(member.path, member.kind) for member in sink.members] == [
        (b"old", Kind.DIRECTORY),
        (b"new", Kind.REGULAR),
    ]


def test_volume_label_and_global_header_are_passed_over() -> None:
    label = make_header(b"label", 0, b"V")
    common = make_extension(b"g", make_records([(b"uid", b"77"), (b"path", b"no")]))
    sink = ingest(label + common + make_file(b"a", b"1") + END)
    assert sink.problem == ""
    assert [(member.path, member.uid) for member in sink.members] == [(b"a", 0)]


PROBLEMS: list[tuple[str, bytes, str]] = [
    ("text", b"hello, world\n" * 80, "not a tar"),
    ("short text", b"hello", "not a tar"),
    ("cut header", make_header()[:300], "not a tar"),
    ("EROFS", bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(8188), "not a tar: it begins with zeros"),
    ("ISO 9660", bytes(32 << 10) + b"\1CD001" + bytes(64 << 10), "not a tar: it begins with zeros"),
    ("btrfs", bytes(64 << 10) + b"\1" * 65 + bytes(64 << 10), "not a tar: it begins with zeros"),
    ("later garbage", make_file(b"a", b"1") + b"\1" * 512, "a bad header follows member 'a'"),
    ("cut after a member", make_file(b"a", b"1") + b"\1" * 5, "the stream ends within a block (truncated)"),
    ("lone zero block", bytes(512) + make_file(b"a", b"1"), "a lone zero block is followed by more"),
    ("truncated", make_header(b"a", 600) + b"1" * 599, "member 'a' says it holds more bytes than the stream has"),
    ("truncated body", make_header(b"l", 600, b"L") + b"1" * 599, "an extended header is longer than the stream"),
    ("escape", make_file(b"a/../../b", b"1"), "member 'a/../../b' escapes the root"),
    ("absolute escape", make_file(b"/../b", b"1"), "member '/../b' escapes the root"),
    ("link escape", make_header(b"a", 0, b"1", link=b"x/../../y"), "hard link to 'x/../../y', which escapes the root"),
    ("root file", make_file(b"./", b"1"), "member './' has the name of the root"),
    ("root link", make_header(b"a", 0, b"1", link=b"/"), "is a hard link to the root"),
    ("no target", make_header(b"a", 0, b"2"), "is a symbolic link with an empty"),
    ("whiteout of nothing", make_file(b"a/.wh.", b""), "is a whiteout that names no file"),
    ("whiteout of the parent", make_file(b"a/.wh...", b""), "is a whiteout that names no file"),
    ("long name", make_extension(b"L", b"a/" + b"n" * 256) + make_file(b"n", b"1"), "too long for Linux"),
    ("long path", make_extension(b"L", b"n/" * 2048 + b"n") + make_file(b"n", b"1"), "too long for Linux"),
    ("negative size", make_header(b"a", b"\xff" * 12), "member 'a' has a bad size"),
    ("bad size", make_header(b"a", b"12x45"), "member 'a' has a bad size"),
    ("bad mode", make_file(b"a", b"1", mode=b"rwxr-xr"), "member 'a' has a bad mode"),
    ("bad owner", make_file(b"a", b"1", uid=b"999"), "member 'a' has a bad uid"),
    ("negative owner", make_file(b"a", b"1", gid=b"\xff" * 8), "has an owner out of range (0:-1)"),
    ("owner out of range", make_pax(uid=b"4294967295") + make_file(b"a", b"1"), "has an owner out of range"),
    ("device out of range", make_header(b"a", 0, b"3", major=4096), "has a device number out of range"),
    ("bad pax length", make_extension(b"x", b"99 path=x\n"), "has a record with a wrong length"),
    ("bad pax record", make_extension(b"x", b"8 pathx\n"), "has a record that is not key=value"),
    ("bad pax number", make_pax(uid=b"1e3") + make_file(b"a", b"1"), "'a' has a bad number '1e3' in its headers"),
    ("bad pax time", make_pax(mtime=b"now") + make_file(b"a", b"1"), "'a' has a bad time 'now' in its headers"),
    ("bad pax size", make_pax(size=b"-1") + make_file(b"a", b"1"), "member 'a' has a negative size in its headers"),
    ("large header", make_extension(b"x", bytes(LIMITS.max_header_size + 1)), "an extended header of 262145 bytes"),
    ("large member", make_header(b"a", LIMITS.max_member_size + 1), "claims 16777217 bytes, holes included, over the"),
]  # fmt: skip


@pytest.mark.parametrize(("tar", "reason"), [row[1:] for row in PROBLEMS], ids=[row[0] for row in PROBLEMS])
@pytest.mark.parametrize("size", [1 << 20, 511])
def test_problems(tar: bytes, reason: str, size: int) -> None:
    assert reason in ingest(tar, (size,)).problem


def test_splitting_goes_on_after_a_bad_member() -> None:
    tar = make_file(b"../a", b"1" * 600) + make_file(b"b", b"2") + make_file(b"../c", b"3") + END
    sink = ingest(tar)
    assert sink.problem == "member '../a' escapes the root"
    assert sink.files == {b"b": b"2"}


def respelled(header: bytes, checksum: bytes) -> bytes:
    """A header with its checksum, right as it is, written in another way."""
    value = int(header[148:154], 8)
    return header[:148] + checksum % value + header[148 + len(checksum % value) :]


@pytest.mark.parametrize(
    "header",
    {
        "an owner out of range": make_header(b"a", 5, uid=b"\x80\0\0\0\xff\xff\xff\xff"),
        "a group below zero": make_header(b"a", 5, gid=b"\xff" * 8),
        "a prefix that leads out": make_header(b"a", 5, tail=b"../b"),
        "no mode": make_header(b"a", 5, mode=b"zzz"),
        "no time": make_header(b"a", 5, mtime=b"9"),
        "twelve digits of size": make_header(b"a", b"000000000050"),
        "few digits of size": make_header(b"a", b"5"),
        "spaces before the size": make_header(b"a", b"          5\0"),
        "a digit that is not octal": make_header(b"a", b"00000000008\0"),
        "a large number's size": make_header(b"a", b"\x80" + bytes(10) + b"\x05"),
        "a checksum with spaces": respelled(make_header(b"a", 5), b"%6o\0 "),
        "a checksum of seven digits": respelled(make_header(b"a", 5), b"%07o\0"),
        "a checksum of NUL last": respelled(make_header(b"a", 5), b"%06o \0"),
        "a wrong checksum": make_header(b"a", 5)[:148] + b"000000\0 " + make_header(b"a", 5)[156:],
        "no name": make_header(b"", 5),
        "the root's name": make_header(b"./", 5),
        "a slash last": make_header(b"a/", 5),
        "an old directory": make_header(b"a/", 5, b"\0"),
        "a file of version seven": make_header(b"a", 5, b"\0", magic=b""),
        "two slashes": make_header(b"a//b", 5),
        "bytes after the name's end": make_header(b"a\0b", 5),
        "a whiteout": make_header(b"d/.wh.a", 5),
        "a link's target": make_header(b"a", 5, link=b"b"),
    }.values(),
)  # fmt: skip
def test_headers_that_are_not_quite_ordinary(header: bytes) -> None:
    """`ingest` compares the quick way with the other, which they must not take, or come to the same by."""
    ingest(make_file(b"before", b"1") + header + pad(b"12345") + make_file(b"after", b"2") + END)


def test_limits_hold_on_the_quick_way() -> None:
    tar = make_file(b"a", b"1" * 4096) + make_file(b"b", b"2" * 4097) + make_file(b"c", b"3" * 600) + END
    for limits in (Limits(max_member_size=599), Limits(max_members=2), Limits(max_layer_size=8192)):
        assert ingest(tar, limits=limits).problem


def test_nothing_is_split_after_what_cannot_be_followed() -> None:
    sink = ingest(make_file(b"a", b"1") + make_header(b"b", b"zzz") + make_file(b"c", b"3") + END)
    assert sink.files == {b"a": b"1"}


def test_too_many_members() -> None:
    limits = Limits(max_members=2)
    assert ingest(make_file(b"a", b"1") * 2, limits=limits).problem == ""
    sink = ingest(make_file(b"a", b"1") * 3, limits=limits)
    assert sink.problem == "more than 2 members"
    assert len(sink.members) == 2


def test_too_large_in_all() -> None:
    limits = Limits(max_layer_size=1000)
    assert ingest(make_file(b"a", b"1" * 500) * 2, limits=limits).problem == ""
    sink = ingest(make_file(b"a", b"1" * 500) * 3, limits=limits)
    assert sink.problem == "files of more than 1000 bytes in all, holes included"


def test_data_that_is_passed_over_must_be_due() -> None:
    splitter = LayerSplitter(Recorder())
    splitter.feed(make_header(b"a", 5))
    splitter.skip_data(3)
    with pytest.raises(CorruptError, match="3 bytes of file data where its headers want 2"):
        splitter.skip_data(3)
