"""Uppers that are used again: what containers left there is taken, what somebody put there is not."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pagepool.errors import DeniedError
from pagepool.image import Kind
from pagepool.linux import mounts
from pagepool.upper import check_upper, make_upper, make_work
from tests.support.kernelmounts import Container
from tests.support.trees import TreeBuilder


def _check(container: Container, *, devices: bool = False) -> None:
    check_upper(container.upper, container.image.fs.tree, devices=devices)


def _mark(path: Path, name: str, value: bytes) -> None:
    os.setxattr(path, f"trusted.overlay.{name}", value, follow_symlinks=False)


def test_a_new_upper(container: Container) -> None:
    """It has what the image says of its root, and so has the mount."""
    container.upper.rmdir()
    make_upper(container.upper, container.image.fs.tree)
    _check(container)
    with container.mounted() as at:
        found = at.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o751, 3, 4)
        assert found.st_mtime_ns == 1_500_000_000_000_000_001
        assert os.getxattr(at, "user.root") == b"1"
    _check(container)
    with pytest.raises(FileExistsError):
        make_upper(container.upper, container.image.fs.tree)


def test_an_upper_that_cannot_be_made(place: Path) -> None:
    """Nothing is left of it: the next try would find an upper that lacks what the image says."""
    builder = TreeBuilder()
    builder.directory("", xattrs={b"user.root": b"1"})
    mounts.mount("ramfs", place, "ramfs", 0)  # it has no extended attributes
    with pytest.raises(OSError, match="not supported"):
        make_upper(place / "upper", builder.build())
    assert not list(place.iterdir())


def test_a_new_work_directory(container: Container) -> None:
    """Whatever is there goes, and what it leads to stays."""
    outside = container.directory / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    with container.mounted():
        pass
    assert list(container.work.iterdir())
    make_work(container.work)
    assert list(container.work.iterdir()) == []
    (container.work / "link").symlink_to(outside)
    make_work(container.work)
    container.work.rmdir()
    container.work.symlink_to(outside)
    make_work(container.work)
    assert not container.work.is_symlink()
    assert [path.name for path in outside.iterdir()] == ["kept"]
    with container.mounted() as at:
        (at / "big").unlink()


def _change_metadata(at: Path) -> None:
    (at / "a/g").chmod(0o600)
    (at / "l/1").chmod(0o700)
    os.chown(at / "s", 5, 5, follow_symlinks=False)
    os.setxattr(at / "a/h", "trusted.overlay.redirect", b"/mine")
    os.setxattr(at / "a", "trusted.overlay.opaque", b"y")


def _move_files(at: Path) -> None:
    (at / "a/g").rename(at / "a/g2")
    (at / "a/g2").rename(at / "l/g3")
    (at / "a/h").chmod(0o600)
    (at / "a/h").rename(at / "h2")
    (at / "h3").hardlink_to(at / "h2")


def _write_after_moving(at: Path) -> None:
    # The redirect stays, and leads to nothing from the other directory.
    (at / "big").rename(at / "big2")
    with (at / "big2").open("r+b") as file:
        file.write(b"q")
    (at / "big2").rename(at / "a/big3")


def _move_directories(at: Path) -> None:
    (at / "a/b").rename(at / "bb")
    (at / "bb/f").rename(at / "bb/ff")
    (at / "a").rename(at / "c")
    (at / "other").rename(at / "c/other")
    (at / "a").mkdir()
    (at / "a/n").touch()
    (at / "c").rename(at / "a/c")


def _remove_what_held_a_moved_directory(at: Path) -> None:
    (at / "a/b").rename(at / "l/b")
    for name in ("g", "h"):
        (at / "a" / name).unlink()
    (at / "a").rmdir()


def _swap_directories(at: Path) -> None:
    (at / "other").rename(at / "x")
    (at / "a").rename(at / "other")
    (at / "x").rename(at / "a")


def _make_all_kinds(at: Path) -> None:
    (at / "d/e").mkdir(parents=True)
    (at / "d/e/file").write_bytes(b"new")
    (at / "d/link").hardlink_to(at / "d/e/file")
    (at / "d/symlink").symlink_to("/etc/passwd")
    os.mkfifo(at / "d/fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(at / "d/socket"))
    (at / "big").unlink()
    (at / "s").unlink()
    (at / "s").mkdir()
    (at / "d/e").rename(at / "other/e")


_LEFT = [
    _change_metadata,
    _move_files,
    _write_after_moving,
    _move_directories,
    _remove_what_held_a_moved_directory,
    _swap_directories,
    _make_all_kinds,
]


@pytest.mark.parametrize("change", _LEFT, ids=lambda change: change.__name__)
def test_what_containers_leave(container: Container, change: Callable[[Path], None]) -> None:
    """Whatever programs do, the upper can be mounted again, and shows the same."""

    def show(at: Path) -> list[tuple[str, int, int]]:
        found = [(path.relative_to(at), path.lstat()) for path in at.rglob("*")]
        return sorted((str(path), status.st_mode, status.st_mtime_ns) for path, status in found)

    with container.mounted() as at:
        change(at)
        before = show(at)
    _check(container)
    with container.mounted() as at:
        assert show(at) == before


def _foreign(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 100)
    _mark(path, "metacopy", b"")


def _object_of_another_image(upper: Path) -> None:
    _foreign(upper / "file")
    _mark(upper / "file", "redirect", b"/ab/" + b"cd" * 31)


def _own_object(upper: Path) -> None:
    # The kernel neither writes nor follows that.
    tree = TreeBuilder()
    tree.file("g", b"g" * 100)
    (digest,) = tree.objects
    _foreign(upper / "file")
    _mark(upper / "file", "redirect", f"/{digest.hex()[:2]}/{digest.hex()[2:]}".encode())


def _no_redirect(upper: Path) -> None:
    _foreign(upper / "file")


def _wrong_size(upper: Path) -> None:
    _foreign(upper / "big")


def _to_a_directory(upper: Path) -> None:
    _foreign(upper / "file")
    _mark(upper / "file", "redirect", b"/a")


def _through_dots(upper: Path) -> None:
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"/a/../a")


def _through_a_file(upper: Path) -> None:
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"/a/g/b")


def _directory_to_nothing(upper: Path) -> None:
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"/ab")


def _directory_to_a_file(upper: Path) -> None:
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"big")


def _slash_inside(upper: Path) -> None:
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"a/b")


def _root_again(upper: Path) -> None:
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"/")


def _twice(upper: Path) -> None:
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"/a")


def _two_of_one(upper: Path) -> None:
    os.mknod(upper / "a", stat.S_IFCHR, 0)
    for name in ("one", "two"):
        (upper / name).mkdir()
        _mark(upper / name, "redirect", b"/a")


def _of_the_root(upper: Path) -> None:
    _mark(upper, "redirect", b"/a")


def _opaque_root(upper: Path) -> None:
    _mark(upper, "opaque", b"y")


def _opaque_file(upper: Path) -> None:
    (upper / "file").touch()
    _mark(upper / "file", "opaque", b"y")


def _odd_opaque(upper: Path) -> None:
    (upper / "a").mkdir()
    _mark(upper / "a", "opaque", b"z")


def _metacopy_of_a_symlink(upper: Path) -> None:
    (upper / "s").symlink_to("t")
    _mark(upper / "s", "metacopy", b"")


def _odd_metacopy(upper: Path) -> None:
    _foreign(upper / "file")
    _mark(upper / "file", "metacopy", b"\x01\x04\x00\x00")
    _mark(upper / "file", "redirect", b"/a/g")


def _unknown(upper: Path) -> None:
    (upper / "a").mkdir()
    _mark(upper / "a", "future", b"1")


def _device(upper: Path) -> None:
    os.mknod(upper / "disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))


def _outside(upper: Path) -> None:
    secret = upper.parent / "secret"
    secret.write_bytes(b"secret")
    (upper / "file").hardlink_to(secret)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (_object_of_another_image, r"/file has trusted\.overlay\.redirect='/ab/cd.*names nothing of the image"),
        (_own_object, r"/file has trusted\.overlay\.redirect=.*names nothing of the image"),
        (_no_redirect, r"/file has trusted\.overlay\.metacopy='': the image has no file there"),
        (_wrong_size, r"/big has trusted\.overlay\.metacopy='': it has 100 bytes, and its content in the image 9000"),
        (_to_a_directory, r"/file has trusted\.overlay\.redirect='/a': .*no regular"),
        (_through_dots, r"/dir has trusted\.overlay\.redirect='/a/\.\./a': it is a path"),
        (_through_a_file, r"/dir has trusted\.overlay\.redirect='/a/g/b': it names nothing"),
        (_directory_to_nothing, r"/dir has trusted\.overlay\.redirect='/ab': it names nothing"),
        (_directory_to_a_file, r"/dir has trusted\.overlay\.redirect='big': .*no directory"),
        (_slash_inside, r"/dir has trusted\.overlay\.redirect='a/b': it is a path from the root, or a name"),
        (_root_again, r"/dir has trusted\.overlay\.redirect='/': it is a path"),
        (_twice, r"/dir has trusted\.overlay\.redirect='/a': the directory is still at its old place"),
        (_two_of_one, r"has trusted\.overlay\.redirect='/a': .*/(one|two) is the same directory"),
        (_of_the_root, r"upper has trusted\.overlay\.redirect='/a': the kernel writes no such mark"),
        (_opaque_root, r"upper has trusted\.overlay\.opaque='y': the kernel writes no such mark"),
        (_opaque_file, r"/file has trusted\.overlay\.opaque='y': the kernel writes no such mark"),
        (_odd_opaque, r"/a has trusted\.overlay\.opaque='z': it is y or x"),
        (_metacopy_of_a_symlink, r"/s has trusted\.overlay\.metacopy='': the kernel writes no such mark"),
        (_odd_metacopy, r"/file has trusted\.overlay\.metacopy=.*no version"),
        (_unknown, r"/a has trusted\.overlay\.future='1': the kernel writes no such mark"),
        (_device, r"/disk is a block device 254:0"),
        (_outside, r"/file has 2 names, of which 1 are in the upper"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_attacks(container: Container, attack: Callable[[Path], None], said: str) -> None:
    """What no container leaves is refused, by path and value."""
    attack(container.upper)
    with pytest.raises(DeniedError, match=said):
        _check(container)


def test_deep_below(container: Container) -> None:
    """It is found wherever it is, also where other marks lead to."""
    with container.mounted() as at:
        (at / "a").rename(at / "moved")
        (at / "moved/b/new").touch()
    _check(container)
    _object_of_another_image(container.upper / "moved/b")
    with pytest.raises(DeniedError, match=re.escape("/moved/b/file has")):
        _check(container)


def test_a_directory_that_was_moved_out_of_what_was_not_changed(place: Path) -> None:
    """It is still seen at its old place, unless something above that is hidden; whatever else the upper has."""
    builder = TreeBuilder()
    builder.file("a/f", b"f")
    builder.file("z/deep/below/f", b"f")
    upper = place / "upper"
    (upper / "a").mkdir(parents=True)
    (upper / "dir").mkdir()
    _mark(upper / "dir", "redirect", b"/z/deep/below")
    with pytest.raises(DeniedError, match=r"/dir has .*: the directory is still at its old place"):
        check_upper(upper, builder.build())
    os.mknod(upper / "z", stat.S_IFCHR, 0)
    check_upper(upper, builder.build())


def test_versions_of_metadata_alone(container: Container) -> None:
    """The kernel's header of four bytes, which says the length, or nothing: whatever else is of a later version."""
    with container.mounted() as at:
        (at / "a/g").chmod(0o600)
    for value in (b"", b"\0\4\0\0", b"\0\x24\0\1" + bytes(32)):
        _mark(container.upper / "a/g", "metacopy", value)
        _check(container)
    for value in (b"\0", b"\0\3\0", b"\0\5\0\0", b"\1\4\0\0"):
        _mark(container.upper / "a/g", "metacopy", value)
        with pytest.raises(DeniedError, match="no version that is known"):
            _check(container)


def test_devices(container: Container) -> None:
    """A mount without devices may have their nodes; whiteouts may always be there."""
    with container.mounted() as at:
        os.mknod(at / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (at / "big").unlink()
        (at / "s").unlink()
    with pytest.raises(DeniedError, match="char device 1:3"):
        _check(container)
    _check(container, devices=True)


def test_another_image(container: Container) -> None:
    """An upper that belongs to another image is refused."""
    with container.mounted() as at:
        (at / "a/g").chmod(0o600)
    builder = TreeBuilder()
    builder.directory("a")
    with pytest.raises(DeniedError, match="the image has no file there"):
        check_upper(container.upper, builder.build())


def test_where_it_is(container: Container) -> None:
    """Nobody else may be able to exchange it."""
    link = container.directory / "link"
    link.symlink_to(container.upper)
    with pytest.raises(DeniedError, match="symbolic link"):
        check_upper(link, container.image.fs.tree)
    container.directory.chmod(0o777)
    with pytest.raises(DeniedError, match="others may write to"):
        _check(container)
    container.directory.chmod(0o1777)
    _check(container)
    container.directory.chmod(0o755)
    os.chown(container.directory, 1000, 0)
    with pytest.raises(DeniedError, match="user 1000 owns"):
        _check(container)
    os.chown(container.directory, 0, 0)
    file = container.directory / "file"
    file.touch()
    with pytest.raises(NotADirectoryError):
        check_upper(file, container.image.fs.tree)


def test_another_file_system(container: Container) -> None:
    """A mount inside of it is none of the upper."""
    (container.upper / "mounted").mkdir()
    mounts.mount("tmpfs", container.upper / "mounted", "tmpfs", 0)
    with pytest.raises(DeniedError, match="another file system"):
        _check(container)
    mounts.unmount(container.upper / "mounted")
    _check(container)


def test_whiteout_attributes(container: Container) -> None:
    """Whiteouts may be files with an attribute, in directories that say so."""
    (container.upper / "a").mkdir()
    _mark(container.upper / "a", "opaque", b"x")
    (container.upper / "a/g").touch()
    _mark(container.upper / "a/g", "whiteout", b"")
    root = check_upper(container.upper, container.image.fs.tree)
    assert root.children[b"a"].children[b"g"].is_whiteout
    assert not root.children[b"a"].is_opaque
    assert root.children[b"a"].kind is Kind.DIRECTORY
    (container.upper / "a/g").write_bytes(b"content")
    with pytest.raises(DeniedError, match=r"whiteout='': a whiteout has no content"):
        _check(container)
