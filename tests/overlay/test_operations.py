"""What the model does not reach: limits, sparse files, views, holes, and names that nobody should pass."""

from __future__ import annotations

import errno
import os
import random
import sys
from typing import TYPE_CHECKING

import pytest

from pagepool.image import Kind
from pagepool.overlay import arena, storage
from pagepool.overlay.limits import MAX_LINKS
from pagepool.vfs import Changes, RawFile, WritableFileSystem
from tests.overlay.harness import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.overlay import OverlayFileSystem

TIB = 1 << 40


def refused(number: int) -> pytest.RaisesExc[OSError]:
    """The block fails with an errno."""
    return pytest.raises(OSError, match=f"^\\[Errno {number}\\]")


def make(overlay: OverlayFileSystem, name: bytes = b"new", kind: Kind = Kind.REGULAR, parent: int = 1) -> int:
    """A new inode."""
    return overlay.create(parent, name, kind, 0o755, 0, 0, target=b"t" if kind is Kind.SYMLINK else b"")


def find(overlay: OverlayFileSystem, path: str) -> int:
    """The number of a path's inode."""
    ino = 1
    for name in path.encode().split(b"/"):
        ino = overlay.lookup(ino, name)
    return ino


def test_it_is_a_writable_file_system(overlay: OverlayFileSystem) -> None:
    assert isinstance(overlay, WritableFileSystem)
    assert overlay.read_only is False
    usage, disk = overlay.usage(), os.statvfs(overlay.directory)
    assert usage.blocks == disk.f_blocks * disk.f_frsize // PAGE
    assert 0 < usage.free < usage.blocks
    assert usage.inodes == disk.f_files


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_a_name_that_is_none_is_refused(overlay: OverlayFileSystem, name: bytes) -> None:
    ino = make(overlay)
    for attempt in (
        lambda: make(overlay, name),
        lambda: overlay.link(ino, 1, name),
        lambda: overlay.rename(1, b"new", 1, name),
    ):
        with refused(errno.EINVAL):
            attempt()


def test_what_cannot_be_made(overlay: OverlayFileSystem) -> None:
    with refused(errno.EINVAL):
        make(overlay, kind=Kind.HARDLINK)
    with refused(errno.ENOENT):
        overlay.create(1, b"s", Kind.SYMLINK, 0o777, 0, 0)
    with refused(errno.ENAMETOOLONG):
        overlay.create(1, b"s", Kind.SYMLINK, 0o777, 0, 0, target=b"t" * 4096)
    with refused(errno.EINVAL):
        overlay.create(1, b"s", Kind.REGULAR, 0o777, 2**32, 0)
    ino = overlay.create(1, b"s", Kind.SYMLINK, 0o777, 0, 0, target=b"t" * 4095)
    assert overlay.attributes(ino).size == 4095


def test_nothing_is_made_in_a_directory_without_a_name(overlay: OverlayFileSystem) -> None:
    directory, ino = make(overlay, b"dir", Kind.DIRECTORY), make(overlay)
    overlay.hold(directory)
    overlay.rmdir(1, b"dir")
    for attempt in (
        lambda: make(overlay, b"x", parent=directory),
        lambda: overlay.link(ino, directory, b"x"),
        lambda: overlay.rename(1, b"new", directory, b"x"),
    ):
        with refused(errno.ENOENT):
            attempt()
    assert overlay.attributes(directory).nlink == 0
    assert list(overlay.entries(directory)) == []
    overlay.release(directory)
    with refused(errno.ESTALE):
        overlay.attributes(directory)


def test_links_are_counted_up_to_a_limit(overlay: OverlayFileSystem) -> None:
    ino, directory = make(overlay), make(overlay, b"dir", Kind.DIRECTORY)
    for number in range(MAX_LINKS - 1):
        overlay.link(ino, directory, b"%d" % number)
    with refused(errno.EMLINK):
        overlay.link(ino, directory, b"one more")
    assert overlay.attributes(ino).nlink == MAX_LINKS


def test_sizes_have_a_limit(overlay: OverlayFileSystem) -> None:
    ino = make(overlay)
    most = (1 << 63) - PAGE
    attempt: Callable[[], object]
    for attempt in (
        lambda: overlay.write(ino, most, b"x"),
        lambda: overlay.set_attributes(ino, Changes(size=most + 1)),
        lambda: overlay.allocate(ino, most, 1, 0),
    ):
        with refused(errno.EFBIG):
            attempt()
    overlay.write(ino, most - 1, b"x")
    assert overlay.attributes(ino)[5:] == (most, 1, *overlay.attributes(ino)[7:10], 0, 0, 8)
    assert bytes(overlay.read(ino, most - 3, 10)) == b"\0\0x"
    for attempt in (
        lambda: overlay.write(ino, -1, b"x"),
        lambda: overlay.set_attributes(ino, Changes(size=-1)),
        lambda: overlay.set_attributes(ino, Changes(mtime_ns=1 << 63)),
        lambda: overlay.set_attributes(ino, Changes(uid=1 << 32)),
        lambda: overlay.allocate(ino, 0, 0, 0),
        lambda: overlay.read(ino, -1, 1),
    ):
        with refused(errno.EINVAL):
            attempt()
    with refused(errno.EOPNOTSUPP):
        overlay.allocate(ino, 0, 1, 8)


def test_what_the_disk_has_no_room_for_cannot_be_allocated(overlay: OverlayFileSystem) -> None:
    """As programs ask before they begin a large file. What a file has already is not asked for again."""
    ino = make(overlay)
    more = overlay.usage().blocks * PAGE
    for mode in (0, 1, 16, 17):
        with refused(errno.ENOSPC):
            overlay.allocate(ino, PAGE, more, mode)
    assert overlay.attributes(ino).size == 0
    overlay.allocate(ino, more, PAGE, 1)
    overlay.allocate(ino, 0, more, 3)
    overlay.set_attributes(ino, Changes(size=more + PAGE))
    overlay.allocate(ino, 0, more + 2 * PAGE, 0)
    assert overlay.attributes(ino).size == more + 2 * PAGE


@pytest.mark.parametrize("kind", [Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO])
def test_only_regular_files_have_content(overlay: OverlayFileSystem, kind: Kind) -> None:
    ino = make(overlay, kind=kind)
    for attempt in (
        lambda: overlay.write(ino, 0, b"x"),
        lambda: overlay.read(ino, 0, 1),
        lambda: overlay.seek(ino, 0, os.SEEK_DATA),
        lambda: overlay.set_attributes(ino, Changes(size=0)),
        lambda: overlay.allocate(ino, 0, 1, 0),
    ):
        with refused(errno.EISDIR if kind is Kind.DIRECTORY else errno.EINVAL):
            attempt()


def test_extended_attributes_have_limits(overlay: OverlayFileSystem) -> None:
    ino = make(overlay)
    for name in (b"", b"user." + b"x" * 251):
        with refused(errno.ERANGE):
            overlay.set_xattr(ino, name, b"")
    with refused(errno.E2BIG):
        overlay.set_xattr(ino, b"user.a", bytes(65537))
    with refused(errno.EINVAL):
        overlay.set_xattr(ino, b"user.a", b"", 3)
    for number in range(15):
        overlay.set_xattr(ino, b"user.%d" % number, bytes(65536))
    with refused(errno.ENOSPC):
        overlay.set_xattr(ino, b"user.x", bytes(65536))
    overlay.set_xattr(ino, b"user.0", b"")
    other = make(overlay, b"other")
    with refused(errno.ENOSPC):
        for number in range(300):
            overlay.set_xattr(other, b"user.%0250d" % number, b"")
    assert sum(len(name) + 1 for name in overlay.xattrs(other)) == 65536


@pytest.mark.parametrize("kind", [Kind.SYMLINK, Kind.FIFO, Kind.CHAR, Kind.BLOCK, Kind.SOCKET])
def test_users_attributes_are_of_files_and_directories(overlay: OverlayFileSystem, kind: Kind) -> None:
    """As Linux has it: elsewhere only those of others can be changed."""
    ino = make(overlay, kind=kind)
    for flags in (0, 1, 2):
        with refused(errno.EPERM):
            overlay.set_xattr(ino, b"user.a", b"1", flags)
    with refused(errno.EPERM):
        overlay.remove_xattr(ino, b"user.a")
    for name in (b"trusted.a", b"security.a", b"user"):
        overlay.set_xattr(ino, name, b"1")
        overlay.remove_xattr(ino, name)
    assert not overlay.xattrs(ino)


def test_a_mapping_of_xattrs_does_not_change(overlay: OverlayFileSystem) -> None:
    ino = make(overlay)
    overlay.set_xattr(ino, b"user.a", b"1")
    before = overlay.xattrs(ino)
    overlay.set_xattr(ino, b"user.a", b"2")
    assert dict(before) == {b"user.a": b"1"}
    with pytest.raises(TypeError):
        before[b"user.a"] = b"3"  # type: ignore[index]


# -- content -------------------------------------------------------------------------------------------------


def test_what_is_the_images_is_not_copied(overlay: OverlayFileSystem) -> None:
    """A view of the image's own pages, also of a file that was written to elsewhere."""
    ino = find(overlay, "b")
    image = overlay.base.read(ino, 0, 70_000).obj
    overlay.write(ino, 10 * PAGE, b"x")
    view = overlay.read(ino, 0, 10 * PAGE)
    assert view.obj is image
    assert overlay.read(ino, 0, 10 * PAGE + 1).obj is not image


def test_a_view_shows_what_was_there(overlay: OverlayFileSystem) -> None:
    """Whatever becomes of the file, and of the slots that it had."""
    ino = find(overlay, "b")
    overlay.write(ino, PAGE, b"a" * 2 * PAGE)
    views = [overlay.read(ino, 0, PAGE), overlay.read(ino, PAGE, PAGE), overlay.read(ino, 100, 4 * PAGE)]
    before = [bytes(view) for view in views]
    for number in range(4):
        overlay.write(ino, 0, bytes([number]) * 5 * PAGE)
        overlay.sync()
    overlay.unlink(1, b"b")
    other = make(overlay)
    overlay.write(other, 0, b"z" * 20 * PAGE)
    assert [bytes(view) for view in views] == before


def test_much_is_read_in_pieces(overlay: OverlayFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads less than 2 GiB at a time: here it is asked for no more than a block."""
    monkeypatch.setattr(arena, "_READ_AT_ONCE", PAGE)
    ino, data = make(overlay), random.Random(1).randbytes(5 * PAGE + 7)
    overlay.write(ino, 0, data)
    for start, size in ((0, len(data)), (1, 2 * PAGE), (PAGE - 1, 2), (PAGE, PAGE), (5, 3 * PAGE - 5)):
        assert overlay.read(ino, start, size) == data[start : start + size]


def test_a_write_copies_no_more_blocks_than_it_touches(overlay: OverlayFileSystem) -> None:
    ino = find(overlay, "b")
    before = overlay.attributes(ino)
    overlay.write(ino, 3 * PAGE - 1, b"xy")
    assert (overlay.directory / "blocks").stat().st_size == 2 * PAGE
    assert overlay.attributes(ino).blocks == before.blocks
    content = bytes(overlay.base.read(ino, 0, 70_000))
    assert bytes(overlay.read(ino, 0, 70_000)) == content[: 3 * PAGE - 1] + b"xy" + content[3 * PAGE + 1 :]


def test_a_sparse_file_stays_small(overlay: OverlayFileSystem) -> None:
    """A terabyte with a few blocks in it, in memory and on disk."""
    ino = make(overlay)
    for number in range(64):
        overlay.write(ino, number * (TIB // 64), b"x")
    overlay.set_attributes(ino, Changes(size=TIB))
    assert overlay.attributes(ino).blocks == 64 * 8
    table = overlay._state.nodes[ino].blocks
    assert sum(sys.getsizeof(chunk) for chunk in table.chunks.values()) < 64 * 5000
    assert (overlay.directory / "blocks").stat().st_size == 64 * PAGE
    found = [overlay.seek(ino, number * (TIB // 64), os.SEEK_DATA) for number in range(64)]
    assert [overlay.seek(ino, offset, os.SEEK_HOLE) for offset in found] == [offset + PAGE for offset in found]
    assert [overlay.seek(ino, offset + PAGE, os.SEEK_DATA) for offset in found[:-1]] == found[1:]
    assert found == [number * (TIB // 64) for number in range(64)]
    overlay.allocate(ino, 1, TIB - 1, 3)
    assert overlay.attributes(ino).blocks == 8


def test_data_and_holes_are_told_apart(overlay: OverlayFileSystem) -> None:
    """Private blocks and the image's are data; what was punched, and what lies beyond, are holes."""
    ino = find(overlay, "b")  # 70,000 bytes: 17 blocks and a bit
    overlay.allocate(ino, 2 * PAGE, 2 * PAGE, 3)
    overlay.write(ino, 3 * PAGE, b"x")
    overlay.set_attributes(ino, Changes(size=40 * PAGE))
    overlay.write(ino, 30 * PAGE, b"y")
    data, hole = os.SEEK_DATA, os.SEEK_HOLE
    for offset, whence, expected in (
        (0, data, 0),
        (0, hole, 2 * PAGE),
        (2 * PAGE, data, 3 * PAGE),
        (2 * PAGE + 5, hole, 2 * PAGE + 5),
        (3 * PAGE, hole, 70_000),
        (70_000, data, 30 * PAGE),
        (70_001, hole, 70_001),
        (30 * PAGE + 7, data, 30 * PAGE + 7),
        (30 * PAGE, hole, 31 * PAGE),
    ):
        assert overlay.seek(ino, offset, whence) == expected, (offset, whence)
    for offset in (31 * PAGE, 40 * PAGE, -1):
        with refused(errno.ENXIO):
            overlay.seek(ino, offset, data)
    with refused(errno.EINVAL):
        overlay.seek(ino, 0, os.SEEK_SET)


def test_what_was_cut_off_does_not_come_back(overlay: OverlayFileSystem) -> None:
    for path in ("b", "a/b/b"):
        ino = find(overlay, path)
        for size in (PAGE + 10, 8 * PAGE):
            overlay.set_attributes(ino, Changes(size=size))
        assert bytes(overlay.read(ino, PAGE, 8 * PAGE))[10:] == bytes(7 * PAGE - 10)
        overlay.write(ino, 0, b"x" * 2 * PAGE)
        for size in (PAGE + 20, 8 * PAGE):
            overlay.set_attributes(ino, Changes(size=size))
        assert bytes(overlay.read(ino, PAGE, 8 * PAGE)) == b"x" * 20 + bytes(7 * PAGE - 20)


def test_space_is_used_again(overlay: OverlayFileSystem) -> None:
    """What is written over and over takes the space of two versions; what is removed gives it back."""
    ino = make(overlay)
    for _ in range(30):
        overlay.write(ino, 0, bytes(1 << 20))
    blocks = overlay.directory / "blocks"
    assert blocks.stat().st_size <= 3 << 20
    overlay.write(ino, 0, bytes(8 << 20))
    keep = make(overlay, b"keep")
    overlay.write(keep, 0, bytes(PAGE))
    overlay.sync()
    overlay.set_attributes(ino, Changes(size=0))
    overlay.sync()
    assert blocks.stat().st_blocks * 512 < 2 << 20
    overlay.write(make(overlay, b"short-lived"), 0, bytes(8 << 20))
    make(overlay, b"behind")
    overlay.write(overlay.lookup(1, b"behind"), 0, bytes(PAGE))
    assert blocks.stat().st_blocks * 512 > 8 << 20
    overlay.unlink(1, b"short-lived")  # never synced, so nothing waits for a sync
    assert blocks.stat().st_blocks * 512 < 2 << 20
    for hold in (False, True):
        ino = make(overlay, b"more")
        overlay.write(ino, 0, bytes(8 << 20))
        overlay.sync()
        if hold:
            overlay.hold(ino)
        overlay.unlink(1, b"more")
        overlay.sync()
        if hold:
            assert blocks.stat().st_blocks * 512 > 8 << 20
            overlay.release(ino)
            overlay.sync()
        assert blocks.stat().st_blocks * 512 < 2 << 20


def test_much_that_waits_for_a_sync_causes_one(overlay: OverlayFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, and not one for each operation from there on."""
    monkeypatch.setattr(storage, "PENDING_SLOTS", 10)
    flushes, fdatasync = [], os.fdatasync

    def count(descriptor: int) -> None:
        flushes.append(descriptor)
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", count)
    ino = make(overlay)
    overlay.write(ino, 0, bytes(40 * PAGE))
    overlay.sync()
    flushes.clear()
    for number in range(40):
        overlay.write(ino, number * PAGE, b"x" * PAGE)
    # After the 11th; the 22nd; and the 33rd. Both files each time.
    assert len(flushes) == 3 * 2
    assert (overlay.directory / "blocks").stat().st_size < 62 * PAGE


def test_an_operation_that_is_interrupted(
    opened: Callable[..., OverlayFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between journal and memory: nothing more is done until the overlay is opened again, and then it is there."""
    overlay = opened()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(overlay._state, "create", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(overlay)
    for attempt in (lambda: make(overlay, b"more"), overlay.sync):
        with refused(errno.EIO):
            attempt()
    overlay.close()
    overlay = opened()
    assert overlay.attributes(find(overlay, "new")).nlink == 1


def test_what_is_held_outlives_a_compaction(opened: Callable[..., OverlayFileSystem]) -> None:
    """The journal that begins with it can be read again, whatever was done to it afterwards."""
    overlay = opened()
    for ino in (find(overlay, "b"), make(overlay)):
        overlay.hold(ino)
    overlay.unlink(1, b"b")
    overlay.unlink(1, b"new")
    overlay._storage.compact()
    for ino in (find(opened("other"), "b"), overlay._state.next_ino - 1):
        overlay.write(ino, 0, b"x")
        assert bytes(overlay.read(ino, 0, 1)) == b"x"
        assert overlay.attributes(ino).nlink == 0
    overlay.close()
    overlay = opened()
    with refused(errno.ESTALE):
        overlay.attributes(overlay._state.next_ino - 1)


def test_a_file_that_is_closed_twice_is_let_go_of_once(overlay: OverlayFileSystem) -> None:
    """Another one that is open goes on reading, though its last name is gone."""
    ino = make(overlay)
    overlay.write(ino, 0, b"kept")
    one, other = (RawFile(overlay, ino, readable=True) for _ in range(2))
    one.close()
    one.close()
    overlay.unlink(1, b"new")
    assert other.readall() == b"kept"
    other.close()
    with refused(errno.ESTALE):
        overlay.attributes(ino)


def test_two_overlays_of_one_image_never_see_each_other(opened: Callable[..., OverlayFileSystem]) -> None:
    one, two = opened("one"), opened("two")
    ino = find(one, "b")
    before = bytes(two.read(ino, 0, 100))
    for overlay, mark in ((one, b"1"), (two, b"2")):
        overlay.write(ino, 0, mark)
        overlay.set_xattr(ino, b"user.mark", mark)
        made = make(overlay)
        overlay.write(made, 0, mark * PAGE)
    one.unlink(1, b"c")
    for overlay, mark in ((one, b"1"), (two, b"2")):
        assert bytes(overlay.read(ino, 0, 100)) == mark + before[1:]
        assert overlay.xattrs(ino) == {b"user.mark": mark}
        assert bytes(overlay.read(find(overlay, "new"), 0, PAGE)) == mark * PAGE
    assert bytes(one.base.read(ino, 0, 100)) == before
    assert find(two, "c")
