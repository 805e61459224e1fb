"""Read-write mounts: the same system calls as in a plain directory do the same."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from typing_extensions import Buffer

from pagepool.image import Kind
from pagepool.mount import MountOptions, mount_fuse, serve_in_background, unmount
from pagepool.vfs import ROOT
from tests.faults import file_size_limit
from tests.mount.actions import Actions, Held, act
from tests.mount.conftest import Mounting, kill
from tests.mount.memoryfs import MemoryFileSystem
from tests.mount.overlays import crowded_image, open_overlay
from tests.mount.trees import links, see
from tests.support.trees import TreeBuilder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain directory to compare with."""
    path = tmp_path / "plain"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual umask."""
    old = os.umask(0o022)
    yield
    os.umask(old)


def _do(seed: int, count: int, roots: tuple[Path, Path]) -> None:
    """Do the same in two directories, and see that it comes to the same."""
    actions = Actions(seed)
    held: tuple[Held, Held] = ({}, {})
    try:
        for number in range(count):
            name, action = actions.next()
            ours, theirs = (act(action, root, files) for root, files in zip(roots, held, strict=True))
            assert ours == theirs, f"seed {seed}: {name} as number {number}"
    finally:
        _close(held)
    assert see(roots[0]) == see(roots[1])
    assert links(roots[0]) == links(roots[1])


@pytest.mark.parametrize("seed", range(2))
def test_random_system_calls(mounting: Mounting, point: Path, plain: Path, seed: int) -> None:
    """Each returns the same in both, and in the end the trees are the same."""
    mounting(MemoryFileSystem())
    _do(seed, 1500, (point, plain))


@pytest.mark.parametrize("seed", [10, 11])
def test_random_system_calls_over_an_image(point: Path, plain: Path, records: Path, tmp_path: Path, seed: int) -> None:
    """Likewise over an image of which some is changed; what was done is there when the server was killed meanwhile."""
    opener = partial(open_overlay, tmp_path / "upper", crowded_image)
    record = serve_in_background(opener, point, options=MountOptions(dev=True), directory=records)
    subprocess.run(["cp", "-a", f"{point}/.", plain], check=True)
    plain.chmod(0o755)
    roots = (point, plain)
    assert see(point, times=True) == see(plain, times=True)
    _do(seed, 700, roots)
    for part in range(3):
        kill(record)
        record = serve_in_background(opener, point, options=MountOptions(dev=True), directory=records)
        assert see(point) == see(plain)
        _do(100 * seed + part, 250, roots)
    unmount(point, directory=records)


def _image_with_junk() -> TreeBuilder:
    junk = {b"system.posix_acl_access": b"junk", b"nobody.knows": b"1", b"user.": b"2", b"user." + b"n" * 251: b"3"}
    builder = TreeBuilder()
    builder.directory("d", mode=0o777, xattrs=junk | {b"system.posix_acl_default": b"\2\0\0\0junk"})
    builder.file("d/file", b"data", xattrs=junk | {b"security.capability": b"junk", b"user.good": b"1"})
    builder.symlink("d/link", "file", xattrs={b"user.good": b"1"})
    return builder


def test_attributes_that_no_file_can_have(point: Path, records: Path, tmp_path: Path) -> None:
    """They are not listed, and keep nobody from opening a file, changing its mode or making others beside it."""
    serve_in_background(partial(open_overlay, tmp_path / "upper", _image_with_junk), point, directory=records)
    shown = {name: see(point)[name].xattrs for name in ("d", "d/file", "d/link")}
    assert shown == {"d": {}, "d/file": {"user.good": b"1"}, "d/link": {}}
    assert subprocess.run(["cat", point / "d/file"], user=65534, check=True, capture_output=True).stdout == b"data"
    (point / "d/file").chmod(0o600)
    (point / "d/new").mkdir()
    subprocess.run(["cp", "-a", point / "d", point / "copy"], check=True)
    assert (point / "copy/file").read_bytes() == b"data"
    unmount(point, directory=records)


def test_times(mounting: Mounting, point: Path, plain: Path) -> None:
    """What is set is kept to the nanosecond; what changes by itself is the time of the change."""
    mounting(MemoryFileSystem())
    for root in (point, plain):
        (root / "file").write_bytes(b"x")
        (root / "directory").mkdir()
        (root / "link").symlink_to("nowhere")
        for number, name in enumerate(("file", "directory", "link")):
            os.utime(root / name, ns=(10**18 + number, 2 * 10**18 - 7 * number), follow_symlinks=False)
        os.utime(root / "file", ns=(-5, -1_000_000_001))
    for name in ("file", "directory", "link"):
        ours, theirs = (point / name).lstat(), (plain / name).lstat()
        assert (ours.st_atime_ns, ours.st_mtime_ns) == (theirs.st_atime_ns, theirs.st_mtime_ns)
    before = time.time_ns()
    for change in (
        lambda: (point / "file").write_bytes(b"y"),
        lambda: os.truncate(point / "file", 5),
        lambda: os.utime(point / "file"),
    ):
        os.utime(point / "file", ns=(1, 1))
        change()
        status = (point / "file").stat()
        assert before <= status.st_mtime_ns <= time.time_ns()
        assert before <= status.st_ctime_ns <= time.time_ns()
    os.utime(point / "directory", ns=(1, 1))
    (point / "directory/new").touch()
    assert (point / "directory").stat().st_mtime_ns >= before


def test_times_of_other_centuries(point: Path, records: Path, tmp_path: Path) -> None:
    """They become the nearest time that can be kept, as on every file system of Linux, and no error."""
    serve_in_background(partial(open_overlay, tmp_path / "upper"), point, directory=records)
    passwd = point / "etc/passwd"
    for asked, kept in ((1 << 34, (1 << 63) - 1), (-(1 << 34), 1 - (1 << 63)), (1 << 33, (1 << 33) * 10**9)):
        os.utime(passwd, ns=(asked * 10**9, asked * 10**9))
        assert (passwd.stat().st_atime_ns, passwd.stat().st_mtime_ns) == (kept, kept)
    unmount(point, directory=records)


def test_holes_and_large_files(point: Path, plain: Path, records: Path, tmp_path: Path) -> None:
    """A file of 100 GiB that is nearly all hole takes nothing, and seeking finds its data."""
    opener = partial(open_overlay, tmp_path / "upper")
    serve_in_background(opener, point, options=MountOptions(dev=True), directory=records)
    far = 100 << 30
    for root in (point, plain):
        with (root / "sparse").open("wb", buffering=0) as file:
            file.truncate(far)
            assert os.pwrite(file.fileno(), b"data", far - 4096) == 4
            assert os.pwrite(file.fileno(), b"x" * 8192, 1 << 20) == 8192
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 20
            assert os.lseek(file.fileno(), 1 << 20, os.SEEK_HOLE) == (1 << 20) + 8192
            assert os.lseek(file.fileno(), 2 << 20, os.SEEK_DATA) == far - 4096
            assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
        with (root / "sparse").open("rb") as file:
            assert os.pread(file.fileno(), 8, far - 4098) == b"\0\0data\0\0"
    unmount(point, directory=records)


def test_many_entries_come_and_go(mounting: Mounting, point: Path) -> None:
    """`rm -r` and listings that go on while names are removed and made."""
    mounting(MemoryFileSystem())
    names = {f"{number:05}" for number in range(3000)}
    (point / "many").mkdir()
    for name in names:
        (point / "many" / name).touch()
    seen = set()
    with os.scandir(point / "many") as listing:
        for number, entry in enumerate(listing):
            assert entry.name not in seen
            seen.add(entry.name)
            (point / "many" / entry.name).unlink()
            (point / "many" / f"new-{number}").touch()
            (point / "many" / f"new-{number}").unlink()
    assert seen >= names
    assert list((point / "many").iterdir()) == []
    for name in names:
        (point / "many" / name).touch()
    subprocess.run(["rm", "-r", point / "many"], check=True)


def test_fsync_reaches_the_file_system(mounting: Mounting, point: Path) -> None:
    """For files and for directories."""
    filesystem = MemoryFileSystem()
    mounting(filesystem)
    with (point / "file").open("wb") as file:
        file.write(b"x")
        os.fsync(file.fileno())
        assert filesystem.syncs == 1
        os.fdatasync(file.fileno())
        assert filesystem.syncs == 2
    directory = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)
    assert filesystem.syncs == 3


class _SlowFileSystem(MemoryFileSystem):
    """One whose writes wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    def write(self, ino: int, offset: int, data: Buffer, *, kill_privileges: bool = False) -> int:
        """See `MemoryFileSystem`."""
        self.asked.set()
        assert self.go_on.wait(_WAIT_S)
        return super().write(ino, offset, data, kill_privileges=kill_privileges)


def test_what_was_read_during_an_asynchronous_direct_write_is_not_kept(mounting: Mounting, point: Path) -> None:
    filesystem = _SlowFileSystem()
    ino = filesystem.create(ROOT, b"file", Kind.REGULAR, 0o644, 0, 0)
    filesystem.append(ino, b"a" * 4096)
    mounting(filesystem)
    write_once = [sys.executable, "-c", _WRITE_ASYNCHRONOUSLY, str(point / "file")]
    with subprocess.Popen(write_once, stdout=subprocess.PIPE) as writer:
        try:
            assert filesystem.asked.wait(_WAIT_S)
            assert (point / "file").read_bytes() == b"a" * 4096
        finally:
            filesystem.go_on.set()
        assert writer.communicate(timeout=_WAIT_S)[0] == b"4096\n"
    assert (point / "file").read_bytes() == b"b" * 4096


_WAIT_S = 30.0
_WRITE_ASYNCHRONOUSLY = """
import ctypes, mmap, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
setup, submit, events = (206, 209, 208) if platform.machine() == "x86_64" else (0, 2, 4)
buffer = mmap.mmap(-1, 4096)
buffer[:] = b"b" * 4096
at = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
file = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
request = ctypes.create_string_buffer(struct.pack("QIiHhIQQq16x", 0, 0, 0, 1, 0, file, at, 4096, 0))
context = ctypes.c_ulong()
assert libc.syscall(setup, 1, ctypes.byref(context)) == 0
requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
assert libc.syscall(submit, context, ctypes.c_long(1), requests) == 1, ctypes.get_errno()
done = ctypes.create_string_buffer(32)
assert libc.syscall(events, context, ctypes.c_long(1), ctypes.c_long(1), done, None) == 1
print(struct.unpack("QQqq", done.raw)[2])
"""
"""By io_submit(2), which libc does not wrap."""


def test_unlinked_nodes_go_when_nobody_has_them(mounting: Mounting, point: Path) -> None:
    """A file without a name lives as long as it is open."""
    filesystem = MemoryFileSystem()
    mounting(filesystem)
    with (point / "file").open("w+b", buffering=0) as file:
        file.write(b"before")
        ino = os.fstat(file.fileno()).st_ino
        (point / "file").unlink()
        (point / "file").write_bytes(b"another")
        file.write(b" after")
        os.ftruncate(file.fileno(), 10)
        assert os.pread(file.fileno(), 100, 0) == b"before aft"
        assert os.fstat(file.fileno()).st_nlink == 0
    (point / "file").unlink()
    # FORGET is sent without anybody waiting for it.
    os.statvfs(point)
    for _ in range(1000):
        if ino not in filesystem.nodes:
            break
        os.statvfs(point)
    assert ino not in filesystem.nodes


def _close(held: tuple[Held, ...]) -> None:
    for files in held:
        for descriptor in files.values():
            with suppress(OSError):
                os.close(descriptor)


_NOBODY = (1 << 32) - 1
_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, _NOBODY), (2, 4, 65534), (4, 0, _NOBODY), (16, 4, _NOBODY), (32, 0, _NOBODY))
)
"""An access control list: the owner may write, and the user 65534 may read."""


def test_what_inherits_an_access_list_has_it_or_is_not_made(point: Path, records: Path, tmp_path: Path) -> None:
    """However much of the journal the disk takes: else its name would be there, and with other permissions."""
    with open_overlay(tmp_path / "upper") as overlay, mount_fuse(overlay, point, directory=records):
        at, journal = point / "listed", tmp_path / "upper" / "journal"
        at.mkdir()
        os.setxattr(at, "system.posix_acl_default", _LIST)
        made = refused = 0
        for room in range(0, 400, 20):
            place = at / str(room)
            make = place.mkdir if room % 40 else place.touch
            with file_size_limit(journal.stat().st_size + room), suppress(OSError):
                make()
            if place in at.iterdir():
                made += 1
            else:
                refused += 1
                make()
            assert "system.posix_acl_access" in os.listxattr(place)
        assert made > 0
        assert refused > 0
