"""Headers that are written: read back by our own machine, by Python's tarfile, and by GNU tar."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.errors import LayerInvalidError
from pagepool.image import Kind, LayerSplitter, Limits, Member
from pagepool.image.tarencode import END, encode_member

_NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..") and not name.startswith(b".wh.")
)
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map(b"/".join)
_OWNERS = st.one_of(st.integers(0, 2**32 - 2), st.sampled_from([8**7 - 1, 8**7]))
_TIMES = st.one_of(st.integers(-(2**66), 2**66), st.sampled_from([-1, 8**11 * 10**9 - 10**9, 8**11 * 10**9, 10**9]))
_SIZES = st.one_of(st.integers(0, 64 << 30), st.sampled_from([8**11 - 1, 8**11]))
_XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=255).filter(lambda key: b"=" not in key and b"\0" not in key),
    st.binary(max_size=300),
    max_size=3,
)
_TARGETS = st.binary(min_size=1, max_size=300).filter(lambda text: b"\0" not in text)


def _member(path: bytes, kind: Kind = Kind.REGULAR, **fields: object) -> Member:
    base = Member(path, path, kind, 0o644, 0, 0, 0, 0, 0)
    return base._replace(**fields)  # type: ignore[arg-type]


_COMMON = {"mode": st.integers(0, 0o7777), "uid": _OWNERS, "gid": _OWNERS, "mtime_ns": _TIMES, "xattrs": _XATTRS}
_MEMBERS = st.one_of(
    st.builds(_member, _PATHS, size=_SIZES, **_COMMON),
    st.builds(_member, _PATHS, st.sampled_from([Kind.DIRECTORY, Kind.FIFO]), **_COMMON),
    st.builds(_member, st.just(b""), st.just(Kind.DIRECTORY), **_COMMON),
    st.builds(_member, _PATHS, st.just(Kind.SYMLINK), linkname=_TARGETS, **_COMMON),
    st.builds(_member, _PATHS, st.just(Kind.HARDLINK), linkname=_PATHS, **_COMMON),
    st.builds(
        _member,
        _PATHS,
        st.sampled_from([Kind.CHAR, Kind.BLOCK]),
        devmajor=st.integers(0, 4095),
        devminor=st.integers(0, 2**20 - 1),
        **_COMMON,
    ),
)


class _Ignore:
    def literal(self, data: memoryview, /) -> None: ...

    def begin(self, member: Member, /) -> None: ...

    def data(self, view: memoryview, /) -> None: ...

    def end(self) -> None: ...


def _read(tar: bytes) -> list[Member]:
    found: list[Member] = []
    splitter = LayerSplitter(_Ignore(), Limits(), found.append)
    splitter.feed(tar)
    assert splitter.problem == ""
    return found


@given(_MEMBERS)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read(member: Member) -> None:
    encoded = encode_member(member)
    assert len(encoded) % 512 == 0
    (found,) = _read(encoded)
    assert found.stored_size == member.size
    assert found._replace(raw_path=member.path, stored_size=0) == member


@given(_MEMBERS)
@settings(max_examples=150, deadline=None)
def test_python_reads_the_same(member: Member) -> None:
    """tarfile takes times for floats, and a NUL in a value for what it is."""
    encoded = encode_member(member)
    with tarfile.open(fileobj=io.BytesIO(encoded), errors="surrogateescape") as tar:
        info = tar.next()
    assert info is not None
    assert info.name.encode("utf-8", "surrogateescape") == (member.path or b".")
    assert (info.mode, info.uid, info.gid, info.size) == (member.mode, member.uid, member.gid, member.size)
    assert info.mtime == pytest.approx(member.mtime_ns / 10**9, abs=1e-6)
    assert (info.devmajor, info.devminor) == (member.devmajor, member.devminor)
    assert info.linkname.encode("utf-8", "surrogateescape") == member.linkname


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_gnu_tar_lists_it_without_a_complaint() -> None:
    members = [
        _member(b"", Kind.DIRECTORY, mode=0o755),
        _member(b"d" * 99, Kind.DIRECTORY),
        _member(b"p" * 155 + b"/" + b"n" * 100),
        _member(b"p" * 156 + b"/" + b"n" * 100),
        _member(b"\xff\xfe", uid=8**7, mtime_ns=-1_500_000_000),
        _member(b"\xc3\xa9", Kind.SYMLINK, linkname=b"t" * 300),
        _member(b"x", xattrs={b"user.a": b"\0\n=1"}),
    ]
    data = b"".join(map(encode_member, members)) + END
    command = ["tar", "--quoting-style=escape", "-tf", "-"]
    done = subprocess.run(command, input=data, capture_output=True, check=True, env=os.environ | {"LC_ALL": "C"})
    assert done.stderr == b""
    names = [
        "./",
        "d" * 99 + "/",
        "p" * 155 + "/" + "n" * 100,
        "p" * 156 + "/" + "n" * 100,
        r"\377\376",
        r"\303\251",
        "x",
    ]
    assert done.stdout.decode().split() == names


def test_what_fits_needs_no_extension() -> None:
    """A plain file costs one block, whatever its size is below 8 GiB."""
    plain = [
        _member(b"n" * 100, size=8**11 - 1, mtime_ns=(8**11 - 1) * 10**9, uid=8**7 - 1),
        _member(b"p" * 155 + b"/" + b"n" * 100),
        _member(b"d" * 99, Kind.DIRECTORY),
        _member(b"l", Kind.HARDLINK, linkname=b"t" * 100),
    ]
    assert [len(encode_member(member)) for member in plain] == [512] * len(plain)
    more = [
        _member(b"n" * 101),
        _member(b"f", size=8**11),
        _member(b"f", mtime_ns=1),
        _member(b"f", gid=8**7),
        _member(b"d" * 100, Kind.DIRECTORY),
        _member(b"l", Kind.HARDLINK, linkname=b"t" * 101),
    ]
    assert [len(encode_member(member)) for member in more] == [3 * 512] * len(more)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (_member(b"n" * 256), "has a name that is too long for Linux"),
        (_member(b"n/" * 2100 + b"n"), "has a name that is too long for Linux"),
        (_member(b"f", xattrs={b"user.a=b": b""}), "has an extended attribute 'user.a=b', which no tar can hold"),
        (_member(b"f", xattrs={b"user.%d" % n: bytes(65536) for n in range(16)}), "bytes of extended attributes"),
        (_member(b"f", uid=2**32 - 1), "has an owner out of range"),
        (_member(b"f", Kind.CHAR, devmajor=4096), "has a device number out of range"),
        (_member(b".wh."), "is a whiteout that names no file"),
    ],
    ids=["name", "path", "xattr name", "xattrs", "owner", "device", "whiteout"],
)
def test_what_no_layer_can_hold_is_refused(member: Member, reason: str) -> None:
    with pytest.raises(LayerInvalidError, match=reason):
        encode_member(member)


def test_the_whiteout_of_the_longest_name_is_one() -> None:
    """It is four bytes longer than Linux allows, and never made."""
    whiteout = _member(b"d/.wh." + b"n" * 255)
    (found,) = _read(encode_member(whiteout))
    assert found.path == whiteout.path
    with pytest.raises(LayerInvalidError):
        encode_member(_member(b"d/.wh." + b"n" * 256))
