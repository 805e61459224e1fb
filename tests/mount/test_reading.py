"""An image through a mount: what it shows, what it asks for, and what happens when content is slow or lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from pagepool.errors import CorruptError, UnreachableError
from pagepool.image import Kind
from pagepool.mount.fuse.protocol import Opcode
from pagepool.vfs import ROOT, FileSystem, TreeFileSystem
from tests.mount.conftest import Mounting
from tests.support.trees import MemoryContent, TreeBuilder

_TIMEOUT_S = 60.0


def _image() -> TreeBuilder:
    builder = TreeBuilder()
    builder.directory("etc", mode=0o1750, uid=7, gid=8, mtime_ns=1_600_000_000_123_456_789)
    passwd = builder.file("etc/passwd", b"root:x:0:0\n" * 999, mode=0o4755, uid=1000, gid=2**32 - 2)
    builder.add("etc/passwd-", passwd)
    builder.file("empty", mtime_ns=-1_500_000_001)
    builder.file("big", bytes(range(256)) * 20_000, mode=0o600)
    builder.file("with-xattrs", b"x", xattrs={b"user.a": b"b\0c", b"security.capability": b"\1\0\0\2" + bytes(16)})
    builder.symlink("link", "etc/../etc/passwd", uid=3)
    builder.device("dev/null", Kind.CHAR, (1, 3), mode=0o666)
    builder.device("dev/far", Kind.BLOCK, (4095, 1_048_575))
    builder.device("dev/pipe", Kind.FIFO, (0, 0))
    builder.file("name with \u00e4 and\nnewline", b"y")
    return builder


def _all(filesystem: FileSystem, directory: int = ROOT, path: bytes = b"") -> Iterator[tuple[bytes, int]]:
    for entry in filesystem.entries(directory):
        yield path + b"/" + entry.name, entry.ino
        if entry.kind is Kind.DIRECTORY:
            yield from _all(filesystem, entry.ino, path + b"/" + entry.name)


def test_everything_of_an_image_is_shown(mounting: Mounting, point: Path) -> None:
    """Attributes, contents, targets and extended attributes are those of the file system."""
    filesystem = _image().file_system()
    mounting(filesystem)
    base = os.fsencode(point)
    for path, ino in _all(filesystem):
        expected = filesystem.attributes(ino)
        status = os.lstat(base + path)
        shown = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_nlink)
        wanted = (ino, expected.st_mode, expected.uid, expected.gid, expected.size, expected.nlink)
        assert shown == wanted, path
        assert (status.st_mtime_ns, status.st_rdev) == (expected.mtime_ns, expected.st_rdev), path
        assert status.st_blocks == expected.blocks, path
        names = os.listxattr(base + path, follow_symlinks=False)
        assert {os.fsencode(name): os.getxattr(base + path, name, follow_symlinks=False) for name in names} == dict(
            filesystem.xattrs(ino)
        )
        if expected.kind is Kind.REGULAR:
            assert Path(os.fsdecode(base + path)).read_bytes() == bytes(filesystem.read(ino, 0, 1 << 30))
        elif expected.kind is Kind.SYMLINK:
            assert os.fsencode(Path(os.fsdecode(base + path)).readlink()) == filesystem.readlink(ino)
    assert {os.fsencode(path) for path in point.rglob("*")} == {base + path for path, _ in _all(filesystem)}


def test_what_is_cached_asks_for_nothing(mounting: Mounting, point: Path) -> None:
    """The second time, opening, reading, stat, look-ups that fail and `ls -lR` do not reach this process."""
    server = mounting(_image().file_system()).server

    def use() -> None:
        for _ in range(100):
            os.close(os.open(point / "big", os.O_RDONLY))
            os.lstat(point / "etc/passwd")
            (point / "link").readlink()
            with pytest.raises(FileNotFoundError):
                os.lstat(point / "etc/nothing")
        subprocess.run(["cat", point / "big", point / "etc/passwd"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["ls", "-lR", point], check=True, stdout=subprocess.DEVNULL)

    use()
    assert server.requests[Opcode.READ] > 0
    assert server.requests[Opcode.OPEN] == 1
    assert server.requests[Opcode.OPENDIR] == 1
    server.requests.clear()
    use()
    # ls asks once for a label, that of coreutils 9.10 for the names of each file's attributes; and the kernel does
    # not keep the access lists of a root, whatever a tree's size.
    assert set(server.requests) <= {Opcode.GETXATTR, Opcode.LISTXATTR}
    assert server.requests[Opcode.GETXATTR] <= 3


def test_nothing_can_be_changed(mounting: Mounting, point: Path) -> None:
    """The kernel knows that it is read-only."""
    mounting(_image().file_system())
    for attempt in (
        lambda: (point / "new").write_bytes(b""),
        lambda: (point / "big").chmod(0o777),
        lambda: (point / "big").unlink(),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            attempt()


def test_a_directory_of_very_many_entries(mounting: Mounting, point: Path) -> None:
    """Each name comes exactly once, though they are listed in hundreds of pieces."""
    builder = TreeBuilder()
    names = [f"file-{number:06}-{'x' * (number % 40)}" for number in range(66_000)]
    for name in names:
        builder.file(f"many/{name}")
    server = mounting(builder.file_system()).server
    assert sorted(path.name for path in (point / "many").iterdir()) == names
    assert server.requests[Opcode.READDIRPLUS] > 100


def test_seeking_data_and_holes(mounting: Mounting, point: Path) -> None:
    """A file of an image is all data; its only hole is at its end."""
    mounting(_image().file_system())
    with (point / "big").open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        assert os.lseek(file.fileno(), 10, os.SEEK_DATA) == 10
        assert os.lseek(file.fileno(), 10, os.SEEK_HOLE) == size
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(file.fileno(), size, os.SEEK_DATA)


def test_statfs_counts_nodes(mounting: Mounting, point: Path) -> None:
    """It is full, and says of how much."""
    filesystem = _image().file_system()
    mounting(filesystem)
    status = os.statvfs(point)
    usage = filesystem.usage()
    assert (status.f_blocks, status.f_bfree, status.f_files) == (usage.blocks, 0, usage.inodes)


class _Stubborn(MemoryContent):
    """Content that waits before it gives certain sizes, or fails.

    Args:
        slow: the size of the object that is waited for.
        error: what reading it raises in the end, if anything.
    """

    slow = 0
    error: Exception | None = None

    def __init__(self, builder: TreeBuilder) -> None:
        self.tree = builder.build()
        super().__init__(self.tree, builder.objects)
        self.asked = Event()
        self.goes_on = Event()

    def view(self, index: int, start: int, end: int) -> memoryview:
        """See `Content`."""
        if self.tree.object(index).size == self.slow:
            self.asked.set()
            assert self.goes_on.wait(_TIMEOUT_S)
            if self.error is not None:
                raise self.error
        return super().view(index, start, end)


@pytest.fixture
def stubborn() -> Iterator[_Stubborn]:
    """Content of which the file "slow" waits until it is told to go on."""
    builder = TreeBuilder()
    builder.file("slow", b"s" * 10_000)
    for number in range(200):
        builder.file(f"quick-{number}", b"q%d" % number)
    content = _Stubborn(builder)
    content.slow = 10_000
    yield content
    content.goes_on.set()


def _read_in_thread(path: Path) -> tuple[Thread, list[object]]:
    found: list[object] = []

    def read() -> None:
        try:
            found.append(path.read_bytes())
        except OSError as error:
            found.append(error.errno)

    thread = Thread(target=read)
    thread.start()
    return thread, found


def test_a_slow_read_holds_nobody_up(mounting: Mounting, point: Path, stubborn: _Stubborn) -> None:
    """While content is fetched, other files are looked up, opened and read; also when many wait."""
    mount = mounting(TreeFileSystem(stubborn.tree, stubborn))
    readers = [_read_in_thread(point / "slow") for _ in range(20)]
    assert stubborn.asked.wait(_TIMEOUT_S)
    for number in range(200):
        assert (point / f"quick-{number}").read_bytes() == b"q%d" % number
    assert [found for _, found in readers] == [[]] * 20
    stubborn.goes_on.set()
    for thread, found in readers:
        thread.join(_TIMEOUT_S)
        assert found == [b"s" * 10_000]
    assert mount.server.threads <= 25


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_reader_that_waits_can_be_killed(
    mounting: Mounting, point: Path, stubborn: _Stubborn, number: signal.Signals
) -> None:
    """A signal that ends a program ends it while its content is being fetched."""
    mounting(TreeFileSystem(stubborn.tree, stubborn))
    with subprocess.Popen(["cat", point / "slow"], stdout=subprocess.PIPE) as reader:
        assert stubborn.asked.wait(_TIMEOUT_S)
        reader.send_signal(number)
        assert reader.wait(_TIMEOUT_S) == -number
        assert reader.stdout is not None
        assert reader.stdout.read() == b""
    assert not stubborn.goes_on.is_set()
    stubborn.goes_on.set()
    assert (point / "slow").read_bytes() == b"s" * 10_000


@pytest.mark.parametrize(
    "error",
    [
        CorruptError("extent", "ab12", "wrong bytes"),
        UnreachableError("http://127.0.0.1:1", "nobody answers"),
        FileNotFoundError(errno.ENOENT, "a file of the pool"),
        ZeroDivisionError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_content_that_cannot_be_had(
    mounting: Mounting, point: Path, stubborn: _Stubborn, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reason, it is an input/output error, and other files are read as before."""
    mounting(TreeFileSystem(stubborn.tree, stubborn))
    stubborn.error = error
    stubborn.goes_on.set()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (point / "slow").read_bytes()
    assert (point / "quick-1").read_bytes() == b"q1"
    assert isinstance(error, FileNotFoundError) or str(error) in caplog.text
    stubborn.error = None
    assert (point / "slow").read_bytes() == b"s" * 10_000


def test_nodes_are_looked_up_and_given_back(mounting: Mounting, point: Path) -> None:
    """What the kernel knows is held, once for each node; nothing is left when the mount is gone."""
    held: dict[int, int] = {}

    class Counting(TreeFileSystem):
        def hold(self, ino: int) -> None:
            held[ino] = held.get(ino, 0) + 1

        def release(self, ino: int, count: int = 1) -> None:
            held[ino] -= count
            assert held[ino] >= 0

    builder = _image()
    tree = builder.build()
    mount = mounting(Counting(tree, MemoryContent(tree, builder.objects)))
    subprocess.run(["find", point, "-size", "+1"], check=True, stdout=subprocess.DEVNULL)
    assert set(held.values()) == {1}
    assert len(held) == tree.node_count - 1
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("2")  # some are forgotten now, one by one or many at once
    mount.unmount()
    assert set(held.values()) == {0}
