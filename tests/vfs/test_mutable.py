"""Writing by path: what `os` and `open` do to a plain directory, done to an overlay, with the same result or errno."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

import pytest

from pagepool.image import Kind
from pagepool.overlay import OverlayFileSystem
from pagepool.vfs import MutableRootfs
from tests.overlay.harness import TREE
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILES: Final = {"file": b"0123456789", "other": b"other", "d/below": b"below", "d/e/deep": b"deep"}
LINKS: Final = {"link": "file", "todir": "d", "dangling": "d/made", "loop": "loop"}


class Both:
    """The same files on the disk and in an overlay."""

    def __init__(self, place: Path) -> None:
        builder = TreeBuilder()
        self.plain = place / "plain"
        for name, data in FILES.items():
            builder.file(name, data)
            (self.plain / name).parent.mkdir(parents=True, exist_ok=True)
            (self.plain / name).write_bytes(data)
        for name, target in LINKS.items():
            builder.symlink(name, target)
            (self.plain / name).symlink_to(target)
        for path in self.plain.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
        self.root = MutableRootfs(OverlayFileSystem.open(place / "upper", builder.file_system(), tree=TREE))

    def do(self, ours: Callable[[MutableRootfs], object], theirs: Callable[[Path], object]) -> None:
        """Do it to both, and compare what comes of it."""
        assert _errno(lambda: ours(self.root)) == _errno(lambda: theirs(self.plain))
        assert self._seen() == self._on_disk()

    def _seen(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, directories, names in self.root.walk("/"):
            for name in (*directories, *names):
                at = os.path.join(path, name)  # noqa: PTH118 # paths in the overlay
                status = self.root.lstat(at)
                found[at] = (status.st_mode, status.nlink, status.uid, self._content(at, status.kind))
        return found

    def _content(self, at: str, kind: Kind) -> object:
        if kind is Kind.SYMLINK:
            return self.root.readlink(at)
        return self.root.read_bytes(at) if kind is Kind.REGULAR else None

    def _on_disk(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in self.plain.rglob("*"):
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
            link = str(path.readlink()) if path.is_symlink() else content
            found[f"/{path.relative_to(self.plain)}"] = (status.st_mode, status.st_nlink, status.st_uid, link)
        return found


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path)
    with made.root:
        yield made


def _write(path: str, mode: str, data: bytes) -> tuple[Callable[[MutableRootfs], object], Callable[[Path], object]]:
    def ours(root: MutableRootfs) -> None:
        with root.open(path, mode) as file:
            file.write(data)

    def theirs(plain: Path) -> None:
        with open(f"{plain}/{path}", mode) as file:  # noqa: PTH123 # a slash at the end stays
            file.write(data)

    return ours, theirs


@pytest.mark.parametrize("mode", ["wb", "xb", "ab", "r+b", "w+b", "a+b"])
def test_opening_to_write(both: Both, mode: str) -> None:
    """What is there is emptied, kept, or refused, as the mode says; a link leads to what is written."""
    for path in (
        "file",
        "new",
        "link",
        "dangling",
        "loop",
        "d",
        "more/",
        "other/",
        "link/",
        "d/e/deep",
        "no/new",
        "no/new/",
    ):
        both.do(*_write(path, mode, b"new"))
        both.do(*_write(path, mode, b"er"))


def test_a_file_that_is_written_anew_stays_the_same(both: Both) -> None:
    """Whoever has it open, or another name of it, sees what was written."""
    before = both.root.stat("file").ino
    with both.root.open("file", "rb", buffering=0) as file:
        assert both.root.write_bytes("link", b"abc") == 3
        assert (both.root.stat("file").ino, file.readall()) == (before, b"abc")
    assert both.root.write_text("new", "ä") == 2
    assert both.root.read_text("new") == "ä"


def test_directories(both: Both) -> None:
    both.do(lambda root: root.mkdir("a", 0o1750), lambda plain: _mkdir(plain / "a", 0o1750))
    both.do(lambda root: root.mkdir("a"), lambda plain: (plain / "a").mkdir())
    both.do(lambda root: root.mkdir("a", exist_ok=True), lambda plain: (plain / "a").mkdir(exist_ok=True))
    both.do(lambda root: root.mkdir("file", exist_ok=True), lambda plain: (plain / "file").mkdir(exist_ok=True))
    both.do(lambda root: root.mkdir("x/y"), lambda plain: (plain / "x/y").mkdir())
    both.do(lambda root: root.mkdir("x/y/z/", parents=True), lambda plain: (plain / "x/y/z").mkdir(parents=True))
    both.do(lambda root: root.mkdir("file/y", parents=True), lambda plain: (plain / "file/y").mkdir(parents=True))
    both.do(lambda root: root.mkdir("todir/y", parents=True), lambda plain: (plain / "todir/y").mkdir(parents=True))
    both.root.mkdir("/", exist_ok=True)
    both.do(lambda root: root.rmdir("x"), lambda plain: (plain / "x").rmdir())
    both.do(lambda root: root.rmdir("x/y/z"), lambda plain: (plain / "x/y/z").rmdir())
    both.do(lambda root: root.rmdir("file"), lambda plain: (plain / "file").rmdir())


def _mkdir(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)


def test_removing(both: Both) -> None:
    both.do(lambda root: root.unlink("link"), lambda plain: (plain / "link").unlink())
    both.do(lambda root: root.unlink("link"), lambda plain: (plain / "link").unlink())
    both.do(lambda root: root.unlink("link", missing_ok=True), lambda plain: (plain / "link").unlink(missing_ok=True))
    both.do(lambda root: root.unlink("d"), lambda plain: (plain / "d").unlink())
    both.do(lambda root: root.rmtree("todir"), lambda plain: (plain / "todir").unlink())
    both.do(lambda root: root.rmtree("d"), lambda plain: _remove(plain / "d"))
    both.do(lambda root: root.rmtree("d"), lambda plain: (plain / "d").rmdir())


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        (path.rmdir if path.is_dir() else path.unlink)()
    directory.rmdir()


def test_renaming(both: Both) -> None:
    """Over what is there, not over it, or both ways; never a directory into itself."""
    both.do(lambda root: root.rename("file", "new"), lambda plain: (plain / "file").rename(plain / "new"))
    both.do(lambda root: root.rename("new", "other"), lambda plain: (plain / "new").rename(plain / "other"))
    both.do(lambda root: root.rename("d", "d/e/f"), lambda plain: (plain / "d").rename(plain / "d/e/f"))
    both.do(lambda root: root.rename("other", "d"), lambda plain: (plain / "other").rename(plain / "d"))
    both.do(lambda root: root.rename("gone", "d"), lambda plain: (plain / "gone").rename(plain / "d"))
    with pytest.raises(FileExistsError):
        both.root.rename("other", "d/below", replace=False)
    both.do(
        lambda root: root.rename("other", "d/new", replace=False),
        lambda plain: (plain / "other").rename(plain / "d/new"),
    )
    both.root.rename("d/new", "d/e", exchange=True)
    assert (both.root.read_bytes("d/e"), both.root.listdir("d/new")) == (FILES["file"], ["deep"])


def test_what_a_file_is(both: Both) -> None:
    """Its mode, owner, times, size, names and attributes; of a link, what it leads to, unless that is said."""
    root = both.root
    both.do(lambda root: root.chmod("link", 0o6751), lambda plain: (plain / "link").chmod(0o6751))
    both.do(lambda root: root.truncate("link", 4), lambda plain: os.truncate(plain / "link", 4))
    both.do(lambda root: root.truncate("other", 9), lambda plain: os.truncate(plain / "other", 9))
    both.do(lambda root: root.truncate("d", 0), lambda plain: os.truncate(plain / "d", 0))
    both.do(
        lambda root: root.link("link", "again"),
        lambda plain: os.link(plain / "link", plain / "again", follow_symlinks=False),
    )
    both.do(lambda root: root.link("other", "d/again"), lambda plain: (plain / "d/again").hardlink_to(plain / "other"))
    both.do(lambda root: root.link("d", "more"), lambda plain: (plain / "more").hardlink_to(plain / "d"))
    both.do(lambda root: root.symlink("to/where", "s"), lambda plain: (plain / "s").symlink_to("to/where"))
    with pytest.raises(FileNotFoundError):
        root.symlink("", "t")
    both.do(lambda root: root.mknod("pipe", Kind.FIFO, 0o640), lambda plain: os.mkfifo(plain / "pipe", 0o640))
    root.chmod("other", 0o6755)
    root.chown("other", uid=5)
    assert (root.stat("other").uid, root.stat("other").gid, root.stat("other").mode) == (5, 0, 0o755)
    root.chown("link", gid=7, follow=False)
    assert (root.lstat("link").gid, root.stat("link").gid) == (7, 0)
    root.utime("other", mtime_ns=5)
    before = root.stat("other").atime_ns
    root.utime("other", mtime_ns=6)
    assert (root.stat("other").mtime_ns, root.stat("other").atime_ns) == (6, before)
    root.set_xattr("link", b"user.a", b"1")
    assert root.xattrs("file") == {b"user.a": b"1"}
    root.remove_xattr("file", b"user.a")
    assert root.xattrs("link") == {}
    for kind in (Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK):
        with pytest.raises(PermissionError):
            root.mknod("never", kind)
