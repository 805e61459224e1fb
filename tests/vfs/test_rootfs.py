"""An image's files by path: what `os`, `open` and `pathlib` would say of the same files."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, assert_type

import pytest

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind
from pagepool.vfs import ROOT, RawFile, Rootfs
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = bytes(range(256)) * 2048  # half a megabyte: several extents
TEXT = "première ligne\nsecond\r\nthird"


@pytest.fixture
def root() -> Iterator[Rootfs]:
    tree = TreeBuilder()
    tree.file("data/large", LARGE, 0o4755, uid=7, gid=8, mtime_ns=1_600_000_000_123_456_789)
    tree.file("data/text", TEXT.encode(), xattrs={b"user.a": b"1"})
    tree.file("data/empty")
    tree.add("data/again", tree.file("data/hard", b"linked"))
    tree.symlink("data/link", "../data/text")
    tree.device("dev/null", Kind.CHAR, (1, 3), 0o666)
    tree.device("dev/pipe", Kind.FIFO, (0, 0))
    tree.directory("deep/" + "d/" * 1500)
    tree.file("raw/" + os.fsdecode(b"\xff\xfe"), b"?")
    with Rootfs(tree.file_system()) as opened:
        yield opened


def test_reading(root: Rootfs) -> None:
    assert root.read_bytes("/data/large") == LARGE
    assert root.read_text("data/link") == TEXT
    assert root.read_bytes(b"data/empty") == b""
    with root.open("data/text", encoding="utf-8") as file:
        assert isinstance(file, io.TextIOWrapper)
        assert file.readlines() == TEXT.replace("\r\n", "\n").splitlines(keepends=True)
    with root.open("data/large", "rb") as stream:
        assert isinstance(stream, io.BufferedReader)
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == LARGE[-10:]
        assert stream.seek(5) == 5
        assert stream.read(3) == LARGE[5:8]


def test_what_is_opened_is_of_the_type_that_the_mode_says(root: Rootfs) -> None:
    """For type checkers, which read this file, as well as when it runs."""
    with root.open("data/text") as text, root.open("data/text", mode="r", encoding="utf-8") as named:
        assert_type(text, io.TextIOWrapper)
        assert_type(named, io.TextIOWrapper)
        assert text.read() == named.read()
    with root.open("data/text", "rb") as stream, root.open("data/text", "rb", 0) as raw:
        assert_type(stream, io.BufferedReader)
        assert_type(raw, RawFile)
        assert (type(stream), type(raw)) == (io.BufferedReader, RawFile)


def test_a_raw_file_reads_without_copying(root: Rootfs) -> None:
    with root.open("data/large", "rb", buffering=0) as file:
        assert isinstance(file, RawFile)
        view = file.view(100, 5000)
        assert view == LARGE[100:5100]
        assert view.readonly
        assert file.pread(10, len(LARGE) - 4) == LARGE[-4:]
        assert file.pread(10, len(LARGE) + 4) == b""
        for offset, size in ((-1, 5), (5, -1)):
            with pytest.raises(OSError, match="Invalid"):
                file.view(offset, size)
        assert (file.seek(0, os.SEEK_HOLE), file.seek(3, os.SEEK_DATA)) == (len(LARGE), 3)
        assert file.readall() == LARGE[3:]
        assert (file.seek(0), file.tell()) == (0, 0)
        for offset, whence in ((-1, os.SEEK_SET), (-1, os.SEEK_CUR), (-len(LARGE) - 1, os.SEEK_END), (0, 9)):
            with pytest.raises(OSError, match="Invalid"):
                file.seek(offset, whence)
        assert file.seek(5, os.SEEK_END) == len(LARGE) + 5
        buffer = bytearray(10)
        assert file.readinto(buffer) == 0
    assert view == LARGE[100:5100], "a view outlives the file"
    with pytest.raises(ValueError, match="closed"):
        file.view(0, 1)


def test_attributes(root: Rootfs) -> None:
    found = root.stat("data/large")
    assert (found.kind, found.mode, found.uid, found.gid, found.size) == (Kind.REGULAR, 0o4755, 7, 8, len(LARGE))
    assert found.mtime_ns == found.ctime_ns == 1_600_000_000_123_456_789
    assert found.st_mode == 0o104755
    assert root.stat("data/again") == root.stat("data/hard")
    assert root.stat("data/hard").nlink == 2
    assert root.stat("data").nlink == 2
    assert root.stat("/").nlink == 6
    assert root.lstat("data/link").kind is Kind.SYMLINK
    assert root.stat("dev/null").st_rdev == os.makedev(1, 3)
    assert root.xattrs("data/link") == {b"user.a": b"1"}
    assert root.xattrs("data/link", follow=False) == {}
    assert root.readlink("data/link") == "../data/text"
    assert root.readlink(b"data/link") == b"../data/text"


def test_listing(root: Rootfs) -> None:
    names = ["again", "empty", "hard", "large", "link", "text"]
    assert root.listdir("data") == names
    assert root.listdir(b"raw") == [b"\xff\xfe"]
    entries = list(root.scandir("/data/"))
    assert [entry.path for entry in entries] == [f"/data/{name}" for name in names]
    assert [entry.name for entry in entries if entry.is_symlink()] == ["link"]
    walked = list(root.walk())
    assert walked[0] == ("/", ["data", "deep", "dev", "raw"], [])
    assert len(walked) == 5 + 1500
    pruned = []
    for path, directories, _ in root.walk(b"/"):
        pruned.append(path)
        if b"deep" in directories:
            directories.remove(b"deep")
    assert pruned == [b"/", b"/data", b"/dev", b"/raw"]


def test_inodes_of_another_kind(root: Rootfs) -> None:
    """As the kernel asks for them, which may be late: each question has its errno."""
    fs = root.fs
    file, directory, link = (root.lstat(path).ino for path in ("data/text", "data", "data/link"))
    last = fs.usage().inodes
    questions: list[tuple[Callable[[], object], int]] = [
        (lambda: fs.lookup(file, b"a"), errno.ENOTDIR),
        (lambda: fs.parent(file), errno.ENOTDIR),
        (lambda: fs.entries(file), errno.ENOTDIR),
        (lambda: fs.readlink(file), errno.EINVAL),
        (lambda: fs.read(directory, 0, 1), errno.EISDIR),
        (lambda: fs.read(link, 0, 1), errno.EINVAL),
        (lambda: fs.seek(file, 0, os.SEEK_SET), errno.EINVAL),
        (lambda: fs.seek(file, -1, os.SEEK_DATA), errno.ENXIO),
        (lambda: fs.seek(file, len(TEXT.encode()), os.SEEK_HOLE), errno.ENXIO),
        (lambda: fs.attributes(0), errno.ESTALE),
        (lambda: fs.attributes(last + 1), errno.ESTALE),
    ]
    for number, (ask, expected) in enumerate(questions):
        with pytest.raises(OSError) as caught:  # noqa: PT011 # the errno says it
            ask()
        assert caught.value.errno == expected, number
    assert fs.attributes(last).ino == last


def test_questions(root: Rootfs) -> None:
    assert (root.exists("data/link"), root.is_file("data/link"), root.is_symlink("data/link")) == (True, True, True)
    assert root.is_dir("data")
    assert not root.exists("data/text/x")
    assert not root.lexists("nothing")
    assert not root.is_file("dev/null")


@pytest.mark.parametrize(
    ("path", "mode", "number"),
    [
        ("data", "rb", errno.EISDIR),
        ("dev/null", "rb", errno.ENXIO),
        ("dev/pipe", "rb", errno.ENXIO),
        ("nothing", "rb", errno.ENOENT),
        ("data/text", "wb", errno.EROFS),
        ("data/text", "r+b", errno.EROFS),
        ("new", "xb", errno.EROFS),
        ("new", "a", errno.EROFS),
    ],
)
def test_opening_what_cannot_be_opened(root: Rootfs, path: str, mode: str, number: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 # the errno says it
        root.open(path, mode)
    assert caught.value.errno == number
    assert caught.value.filename == path
    if "r" in mode and "+" not in mode:
        for read in (root.read_bytes, root.read_view, root.read_text):
            with pytest.raises(OSError) as caught:  # noqa: PT011 # the errno says it
                read(path)
            assert (caught.value.errno, caught.value.filename) == (number, path)


@pytest.mark.parametrize("mode", ["", "rw", "q", "rbt", "rr", "b"])
def test_modes_that_there_are_not(root: Rootfs, mode: str) -> None:
    with pytest.raises(ValueError, match="mode"):
        root.open("data/text", mode)


def test_text_options_of_binary_files(root: Rootfs) -> None:
    with pytest.raises(ValueError, match="binary"):
        root.open("data/text", "rb", encoding="utf-8")
    with pytest.raises(ValueError, match="unbuffered"):
        root.open("data/text", "r", buffering=0)


def test_content_that_cannot_be_had_is_an_error_of_its_own(root: Rootfs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> memoryview:
        raise CorruptError("object", "ab", "it is")

    monkeypatch.setattr(root.fs, "read", refuse)
    with pytest.raises(CorruptError), root.open("data/text", "rb") as stream:
        stream.read()


def test_closing_twice(root: Rootfs) -> None:
    closed = []
    other = Rootfs(root.fs, lambda: closed.append(1))
    other.close()
    other.close()
    assert closed == [1]


def test_holes() -> None:
    """Whole extents of zeros, as lseek(2) and ``du`` tell them; what is less is data."""
    zeros, data = bytes(EXTENT_SIZE), b"x" * EXTENT_SIZE
    files = {
        "between": data + zeros * 3 + data * 2 + zeros + b"x",
        "first": zeros + data + bytes(100),
        "last": data + zeros * 2,
        "one": zeros,
        "all": zeros * 5,
        "small": bytes(1000),
        "none": data * 2 + b"x",
    }
    tree = TreeBuilder()
    for name, content in files.items():
        tree.file(name, content)
    with Rootfs(tree.file_system()) as root:
        for name, content in files.items():
            ino = root.fs.lookup(ROOT, name.encode())
            parts = [content[at : at + EXTENT_SIZE] for at in range(0, len(content), EXTENT_SIZE)]
            full = [part != zeros for part in parts]
            for offset in range(0, len(content), EXTENT_SIZE // 2):
                for whence, wanted in ((os.SEEK_DATA, True), (os.SEEK_HOLE, False)):
                    later = (at for at in range(offset // EXTENT_SIZE, len(full)) if full[at] == wanted)
                    place = next(later, None)
                    if place is None and wanted:
                        with pytest.raises(OSError, match="No such device or address"):
                            root.fs.seek(ino, offset, whence)
                        continue
                    expected = len(content) if place is None else max(offset, place * EXTENT_SIZE)
                    assert root.fs.seek(ino, offset, whence) == expected, (name, offset, whence)
            taken = sum(-(-len(part) // 4096) * 8 for part, is_data in zip(parts, full, strict=True) if is_data)
            assert root.fs.attributes(ino).blocks == taken, name
