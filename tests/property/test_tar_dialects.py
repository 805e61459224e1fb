"""Every dialect that real writers emit, against two oracles: Python's tarfile, and the files on disk.

Python's tarfile writes ustar, GNU and PAX from random members. GNU tar and bsdtar write random trees, sparse files
among them, in every format they have.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.image import Kind, Member
from tests.image.harness import Ingest, ingest

SIZES = st.lists(st.sampled_from([100, 511, 512, 513, 1000, 4096, 1 << 20]), min_size=1, max_size=4)

TYPES = {
    tarfile.REGTYPE: Kind.REGULAR,
    tarfile.AREGTYPE: Kind.REGULAR,
    tarfile.CONTTYPE: Kind.REGULAR,
    tarfile.GNUTYPE_SPARSE: Kind.REGULAR,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHAR,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


# -- Python's tarfile


@dataclass(frozen=True)
class Entry:
    info: tarfile.TarInfo
    data: bytes


PART = st.one_of(
    st.sampled_from(["a", "usr", "bin", ".hidden", "..x", "x.", "ä€", "sp ace"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
).filter(lambda part: part not in (".", "..") and not part.startswith(".wh."))
NAME = st.lists(PART, min_size=1, max_size=8).map("/".join)
SHORT = st.lists(st.text("abc", min_size=1, max_size=20), min_size=1, max_size=4).map("/".join)
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b"]), st.text(st.characters(exclude_categories=["Cs"])), max_size=2
)


@st.composite
def entries(draw: st.DrawFn, form: str) -> Entry:
    names = SHORT if form == "ustar" else NAME
    info = tarfile.TarInfo(draw(st.sampled_from(["", "./", "/"])) + draw(names))
    info.type = draw(st.sampled_from([b"0", b"1", b"2", b"3", b"4", b"5", b"6"]))
    info.mode = draw(st.integers(0, 0o7777))
    owners = st.integers(0, 0o7777777 if form == "ustar" else (1 << 32) - 2)
    info.uid, info.gid = draw(owners), draw(owners)
    info.mtime = draw(st.integers(0 if form == "ustar" else -(1 << 40), 0o77777777777 if form == "ustar" else 1 << 40))
    info.uname, info.gname = draw(st.sampled_from(["", "root", "ä"])), draw(st.sampled_from(["", "wheel"]))
    info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 100_000))
    if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        info.linkname = draw(names)
    if form == "pax":
        info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in draw(XATTRS).items()}
    data = draw(st.binary(max_size=1500)) if info.isreg() else b""
    info.size = len(data)
    return Entry(info, data)


def write(members: list[Entry], form: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form], errors="surrogateescape") as tar:
        for entry in members:
            tar.addfile(entry.info, io.BytesIO(entry.data))
    return out.getvalue()


def clean(name: str) -> bytes:
    return os.fsencode(os.path.normpath(name.strip("/"))).removeprefix(b"./") if name.strip("/") else b""


def expect(info: tarfile.TarInfo) -> Member:
    """What tarfile, reading it back, says of a member."""
    kind = TYPES[info.type]
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    xattrs = {
        key.removeprefix("SCHILY.xattr.").encode(): value.encode("utf-8", "surrogateescape")
        for key, value in info.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    seconds, _, fraction = info.pax_headers.get("mtime", str(int(info.mtime))).partition(".")
    size = info.size if kind is Kind.REGULAR else 0
    # tarfile lets a PAX path win over the name that GNU tar gives to a sparse file.
    name = info.pax_headers.get("GNU.sparse.name", info.name)
    return Member(
        path=clean(name),
        raw_path=b"",
        kind=kind,
        mode=info.mode & 0o7777,
        uid=info.uid,
        gid=info.gid,
        mtime_ns=int(seconds) * 10**9 + int(fraction[:9].ljust(9, "0")) * (-1 if seconds.startswith("-") else 1),
        size=size,
        stored_size=size,
        linkname=os.fsencode(info.linkname) if kind in (Kind.HARDLINK, Kind.SYMLINK) else b"",
        devmajor=info.devmajor if is_device else 0,
        devminor=info.devminor if is_device else 0,
        uname=os.fsencode(info.uname),
        gname=os.fsencode(info.gname),
        xattrs=xattrs,
    )


def seen(member: Member) -> Member:
    """A member without what tarfile does not say, or says otherwise."""
    fields = {name: getattr(member, name) for name in Member._fields}
    return Member(**fields | {"raw_path": b"", "stored_size": member.size, "segments": None})


def read_back(tar: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape", encoding="utf-8") as reader:
        return [expect(info) for info in reader]


@pytest.mark.parametrize("form", FORMATS)
@given(data=st.data(), sizes=SIZES)
@settings(max_examples=60, deadline=None)
def test_tarfile(form: str, data: st.DataObject, sizes: list[int]) -> None:
    members = data.draw(st.lists(entries(form), max_size=6))
    tar = write(members, form)
    sink = ingest(tar, sizes)
    assert sink.problem == ""
    assert [seen(member) for member in sink.members] == read_back(tar)
    files = {clean(entry.info.name): entry.data for entry in members if entry.info.isreg()}
    assert sink.files == files


# -- GNU tar and bsdtar


def is_gnu_tar() -> bool:
    found = shutil.which("tar")
    return (
        found is not None and "GNU tar" in subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    )


GNU_TAR = [
    ["tar", "--format=v7"],
    ["tar", "--format=ustar"],
    ["tar", "--format=oldgnu"],
    ["tar", "--format=gnu"],
    ["tar", "--format=posix"],
    ["tar", "--format=posix", "--xattrs", "--pax-option=delete=atime,delete=ctime"],
    ["tar", "--format=oldgnu", "--sparse"],
    ["tar", "--format=gnu", "--sparse"],
    ["tar", "--format=gnu", "--sparse", "--hole-detection=raw"],
    ["tar", "--format=posix", "--sparse", "--sparse-version=0.0"],
    ["tar", "--format=posix", "--sparse", "--sparse-version=0.1"],
    ["tar", "--format=posix", "--sparse", "--sparse-version=1.0"],
    ["tar", "--format=gnu", "--blocking-factor=1", "--label=volume"],
    ["tar", "--format=gnu", "--listed-incremental=snapshot"],
]
BSDTAR = [["bsdtar", f"--format={form}"] for form in ("v7", "ustar", "gnutar", "pax")]

# A file: pieces of data, each after a hole of so many blocks; then a hole at the end.
PIECES = st.lists(st.tuples(st.integers(0, 30), st.binary(min_size=1, max_size=600)), max_size=40)
FILES = st.lists(st.tuples(PIECES, st.integers(0, 20), st.integers(0, 0o7777)), min_size=1, max_size=5)
STEM = st.text("abcdefghijklmnopqrstuvwxyz-_. ", min_size=1, max_size=30).filter(lambda name: name.strip(". ") == name)


def grow(
    root: Path, files: list[tuple[list[tuple[int, bytes]], int, int]], stem: str, long: bool
) -> dict[bytes, bytes]:
    """Make a tree on disk; returns the content of its files by their path in the tar."""
    contents: dict[bytes, bytes] = {}
    directory = root / "t" / (("d" * 90 + "/" + "e" * 90) if long else "d")
    directory.mkdir(parents=True)
    for number, (pieces, hole, mode) in enumerate(files):
        path = directory / f"{stem}{number}{'n' * 150 if long else ''}"
        with path.open("wb") as out:
            for skipped, piece in pieces:
                out.seek(skipped * 4096, os.SEEK_CUR)
                out.write(piece)
            out.truncate(out.tell() + hole * 4096)
        path.chmod(mode)
        contents[os.fsencode(path.relative_to(root))] = path.read_bytes()
    (root / "t" / "hard").hardlink_to(path)
    (root / "t" / "soft").symlink_to(path.name[:90])
    return contents


def check_disk(sink: Ingest, contents: dict[bytes, bytes]) -> None:
    assert sink.problem == ""
    found = dict(sink.files)
    kinds = {member.path: member.kind for member in sink.members}
    for member in sink.members:
        if member.kind is Kind.HARDLINK:
            found[member.path] = found[member.link_path]
    assert found.pop(b"t/hard") == list(contents.values())[-1]
    assert found == contents
    assert kinds[b"t/soft"] is Kind.SYMLINK
    assert kinds[b"t"] is Kind.DIRECTORY


def check_command(command: list[str], data: st.DataObject, sizes: list[int]) -> None:
    long = not any(form in command for form in ("--format=v7", "--format=ustar")) and data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        contents = grow(root, data.draw(FILES), data.draw(STEM), long)
        tar = subprocess.run([*command, "-c", "-f", "-", "t"], cwd=root, capture_output=True, check=True).stdout
        sink = ingest(tar, sizes)
        check_disk(sink, contents)
        if "--listed-incremental=snapshot" not in command and "--label=volume" not in command:
            assert [seen(member) for member in sink.members] == read_back(tar)


@pytest.mark.skipif(not is_gnu_tar(), reason="needs GNU tar")
@pytest.mark.parametrize("command", GNU_TAR, ids=" ".join)
@given(data=st.data(), sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_gnu_tar(command: list[str], data: st.DataObject, sizes: list[int]) -> None:
    check_command(command, data, sizes)


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="needs bsdtar")
@pytest.mark.parametrize("command", BSDTAR, ids=" ".join)
@given(data=st.data(), sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_bsdtar(command: list[str], data: st.DataObject, sizes: list[int]) -> None:
    check_command(command, data, sizes)
