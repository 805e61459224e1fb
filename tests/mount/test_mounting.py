"""How mounts begin and end: in this process and in the background, in order and by force."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from pagepool.errors import BusyError, CorruptError, UnreachableError
from pagepool.linux import mounts as kernel
from pagepool.mount import (
    MountRecord,
    MountState,
    MountUnknownError,
    list_mounts,
    mount_fuse,
    mounts,
    serve_in_background,
    unmount,
)
from pagepool.mount import records as record_files
from pagepool.mount.device import MountOptions, mount_device, unmount_device
from pagepool.mount.mountinfo import FUSE_TYPE, MountPoint, mounted_at, parse_mountinfo
from pagepool.vfs import TreeFileSystem
from tests.mount.conftest import kill
from tests.mount.memoryfs import MemoryFileSystem, open_memory
from tests.mount.overlays import open_overlay
from tests.support.groups import counted_group
from tests.support.trees import TreeBuilder
from tests.support.unmounters import unmount_at_once

_TIMEOUT_S = 60.0


@contextlib.contextmanager
def open_image(content: bytes) -> Iterator[TreeFileSystem]:
    """An image with one file."""
    builder = TreeBuilder()
    builder.file("file", content)
    with contextlib.closing(builder.file_system()) as filesystem:
        yield filesystem


def open_corrupt() -> NoReturn:
    """Raise one of pagepool's errors."""
    raise CorruptError("tree", "ab12", "wrong bytes")


def open_missing() -> NoReturn:
    """Raise one of the system's."""
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/nowhere")


def open_wrongly() -> NoReturn:
    """Have a bug."""
    raise ZeroDivisionError("a bug")


def open_and_die() -> NoReturn:
    """End without a word."""
    os._exit(3)


@contextlib.contextmanager
def open_counted(group: Path) -> Iterator[MemoryFileSystem]:
    """In a control group with room for the main thread and one more."""
    group.joinpath("pids.max").write_text("2")
    group.joinpath("cgroup.procs").write_text("0")
    with open_memory() as filesystem:
        yield filesystem


def _states(records: Path, place: Path) -> list[MountState]:
    """The mounts at a place; the machine may have others."""
    return [state for state in list_mounts(records) if state.path.is_relative_to(place)]


def suppress_gone() -> contextlib.AbstractContextManager[None]:
    """Closing asks the server, too, and may be told that it is gone. The file is closed nevertheless."""
    return contextlib.suppress(OSError)


def _wait(record: MountRecord) -> None:
    """Wait until the process of a mount has ended."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], _TIMEOUT_S)[0]
    finally:
        os.close(descriptor)


def test_in_this_process(point: Path, records: Path) -> None:
    """Mounted while the context lasts, with a record that says by whom."""
    with open_image(b"here") as filesystem, mount_fuse(filesystem, point, directory=records):
        assert (point / "file").read_bytes() == b"here"
        (state,) = _states(records, point)
        assert (state.path, state.read_only, state.dead) == (point, True, False)
        assert state.record is not None
        assert state.record.pid == os.getpid()
        with pytest.raises(BusyError, match="mounted already"):
            mount_fuse(filesystem, point, directory=records)
    assert mounted_at(point) is None
    assert _states(records, point) == []
    assert list(records.iterdir()) == []


@pytest.mark.parametrize("served", [True, False])
def test_two_who_unmount(point: Path, records: Path, monkeypatch: pytest.MonkeyPatch, *, served: bool) -> None:
    """The second one does not take what is below, which is somebody else's."""
    kernel.mount("below", point, "tmpfs")
    with contextlib.ExitStack() as stack:
        if served:
            stack.enter_context(mount_fuse(stack.enter_context(open_image(b"")), point, directory=records))
        else:
            os.close(mount_device(point, MountOptions()))
        (failed,) = unmount_at_once(monkeypatch, lambda: unmount(point, directory=records))
    assert isinstance(failed, MountUnknownError)
    below = mounted_at(point)
    assert below is not None
    assert below.source == "below"


def test_unmounting_what_nobody_uses_by_force(point: Path) -> None:
    """That its requests are ended unmounts it: what is below is not taken."""
    kernel.mount("below", point, "tmpfs")
    os.close(mount_device(point, MountOptions()))
    unmount_device(point, abort=True)
    below = mounted_at(point)
    assert below is not None
    assert below.source == "below"


def test_in_use(point: Path, records: Path) -> None:
    """Unmounting names who uses it, and leaves it alone; at the end of a context it goes nevertheless."""
    filesystem = MemoryFileSystem()
    with mount_fuse(filesystem, point, directory=records) as mount:
        with (point / "file").open("wb", buffering=0) as file:
            with pytest.raises(BusyError, match=rf"\({os.getpid()}\)"):
                mount.unmount()
            with pytest.raises(BusyError, match=r"in use by"):
                unmount(point, directory=records)
            assert file.write(b"still here") == 10
        (point / "file").rename(point / "other")
        held = os.open(point / "other", os.O_RDONLY)
    assert mounted_at(point) is None
    assert mount.server.ended
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.pread(held, 10, 0)
    with suppress_gone():
        os.close(held)


def test_in_the_background(point: Path, records: Path, tmp_path: Path) -> None:
    """Another process serves, which is nobody's child; it ends when it is unmounted."""
    upper = tmp_path / "upper"
    record = serve_in_background(partial(open_overlay, upper), point, upper=upper, directory=records)
    assert (point / "etc/passwd").stat().st_size == 10_989
    (point / "new").write_bytes(b"kept")
    (state,) = _states(records, point)
    assert state.record == record
    assert (record.upper, record.read_only, record.backend) == (str(upper), False, "fuse")
    assert os.getsid(record.pid) != os.getsid(0)
    assert Path(f"/proc/{record.pid}/cwd").readlink() == Path("/")
    unmount(point, directory=records)
    assert not record.is_served
    assert list(records.iterdir()) == []
    with pytest.raises(MountUnknownError):
        unmount(point, directory=records)
    with open_overlay(upper) as overlay:
        assert bytes(overlay.read(overlay.lookup(1, b"new"), 0, 10)) == b"kept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount(point: Path, records: Path, number: signal.Signals) -> None:
    """A process that is told to end unmounts first, also while somebody uses the mount."""
    record = serve_in_background(partial(open_image, b"here"), point, directory=records)
    with suppress_gone(), (point / "file").open("rb"):
        os.kill(record.pid, number)
        _wait(record)
    assert mounted_at(point) is None
    assert [path.suffix for path in records.iterdir()] == [".log"]


def test_unmounted_by_somebody_else(point: Path, records: Path) -> None:
    """`umount` is as good: the process ends, and its record is gone."""
    record = serve_in_background(open_memory, point, directory=records)
    subprocess.run(["umount", point], check=True)
    _wait(record)
    assert list(records.iterdir()) == []


def test_aborted_by_somebody_else(point: Path, records: Path) -> None:
    """`umount -f` of a mount in use ends its connection and leaves it there; its process takes it away."""
    record = serve_in_background(open_memory, point, directory=records)
    (point / "file").touch()
    with suppress_gone(), (point / "file").open("rb"):
        assert subprocess.run(["umount", "-f", point], check=False, capture_output=True).returncode
        _wait(record)
    assert mounted_at(point) is None
    assert list(records.glob("*.json")) == []


def test_by_force(point: Path, records: Path) -> None:
    """A mount in use is unmounted if that is asked for; what was written through a mapping is not lost."""
    program = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    mapping = mmap.mmap(file.fileno(), 0)
    mapping[:4] = b"kept"
    print("mapped", flush=True)
    sys.stdin.read()
"""
    filesystem = MemoryFileSystem()
    mount = mount_fuse(filesystem, point, directory=records)
    (point / "file").write_bytes(bytes(100))
    with subprocess.Popen(
        [sys.executable, "-c", program, point / "file"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"mapped\n"
        unmount(point, force=True, directory=records)
        assert mounted_at(point) is None
        assert mount.join(_TIMEOUT_S)
        user.kill()
    assert bytes(filesystem.read(filesystem.lookup(1, b"file"), 0, 4)) == b"kept"
    mount.close()


def test_something_else_in_its_place(point: Path, records: Path) -> None:
    """Only the mount itself is unmounted, not what is there when it is gone."""
    with mount_fuse(MemoryFileSystem(), point, directory=records) as mount:
        subprocess.run(["umount", point], check=True)
        assert mount.join(_TIMEOUT_S)
        with open_image(b"other") as image, mount_fuse(image, point, directory=records):
            mount.unmount()
            mount.close()
            assert (point / "file").read_bytes() == b"other"


def test_a_killed_server(point: Path, records: Path, tmp_path: Path) -> None:
    """What it leaves is seen as dead, can be unmounted, and is no hindrance to the next mount."""
    opener = partial(open_overlay, tmp_path / "upper")
    for _ in range(2):
        record = serve_in_background(opener, point, directory=records)
        (point / f"by-{record.pid}").write_bytes(b"")
        kill(record)
        (state,) = _states(records, point)
        assert state.dead
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            (point / "anything").stat()
    record = serve_in_background(opener, point, directory=records)
    assert len(list(point.glob("by-*"))) == 2
    kill(record)
    unmount(point, directory=records)
    assert mounted_at(point) is None
    assert _states(records, point) == []


def test_records_of_nothing_are_removed(records: Path, tmp_path: Path) -> None:
    """A record whose process is gone and whose mount too is left over from a crash."""
    record = record_files.new_record(tmp_path / "x", "image", upper=None, read_only=True)
    record_files.write_record(records, MountRecord(record.path, record.pid, record.born - 1, "image", None, True, 0.0))
    (records / "torn.json").write_text('{"path": "/x"')
    assert _states(records, tmp_path) == []
    assert record_files.read_record(records, tmp_path / "x") is None


@pytest.mark.parametrize(
    ("opener", "kind", "words"),
    [
        (open_corrupt, CorruptError, "corrupt tree ab12: wrong bytes"),
        (open_missing, FileNotFoundError, "/nowhere"),
        (open_wrongly, RuntimeError, "ZeroDivisionError: a bug"),
        (open_and_die, UnreachableError, "its server ended"),
    ],
)
def test_what_opening_raises(
    point: Path, records: Path, opener: partial[NoReturn], kind: type[Exception], words: str
) -> None:
    """It is raised where the mount was asked for, as what it is, and nothing is mounted."""
    with pytest.raises(kind, match=words):
        serve_in_background(opener, point, directory=records)
    assert mounted_at(point) is None
    assert list(records.glob("*.json")) == []
    assert [path for path in records.glob("*.log") if not path.stat().st_size] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: control groups")
def test_a_server_without_another_thread(point: Path, records: Path) -> None:
    """A mount is not said to be there when its server ends for want of what it needs to stay."""
    with counted_group() as group:
        opener = partial(open_counted, group)
        with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
            serve_in_background(opener, point, max_threads=1, directory=records)
    assert mounted_at(point) is None


def test_places_that_cannot_be_mounted_upon(point: Path, records: Path) -> None:
    """Nothing is left of the attempt."""
    with pytest.raises(FileNotFoundError):
        serve_in_background(open_memory, point / "missing", directory=records)
    (point / "file").touch()
    with pytest.raises(NotADirectoryError), open_image(b"") as filesystem:
        mount_fuse(filesystem, point / "file", directory=records)


def test_no_descriptors_left_in_the_middle_of_mounting(
    point: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is closed once, by who serves it: its number may be another file's right after. Nothing is left."""
    found: list[None] = []
    closed: list[int] = []
    close = os.close

    def find(path: Path) -> MountPoint | None:
        found.append(None)
        if len(found) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return mounted_at(path)

    def note(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    def mount(path: Path, options: MountOptions) -> int:
        devices.append(mount_device(path, options))
        return devices[0]

    devices: list[int] = []
    monkeypatch.setattr(mounts, "mount_device", mount)
    monkeypatch.setattr(mounts, "mounted_at", find)
    monkeypatch.setattr(os, "close", note)
    with contextlib.closing(MemoryFileSystem()) as filesystem:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            mount_fuse(filesystem, point, directory=records)
        for thread in threading.enumerate():
            if thread.name.startswith("fuse-"):
                thread.join(60)
    assert closed.count(devices[0]) == 1
    assert mounted_at(point) is None


def test_the_overlay_is_free_when_unmounting_returns(point: Path, records: Path, tmp_path: Path) -> None:
    """An overlay is open once at a time, so the process must have let go of it."""
    opener = partial(open_overlay, tmp_path / "upper")
    for number in range(3):
        serve_in_background(opener, point, directory=records)
        with pytest.raises(BusyError):
            serve_in_background(opener, _other(tmp_path), directory=records)
        (point / str(number)).touch()
        unmount(point, directory=records)
    with open_overlay(tmp_path / "upper") as overlay:
        assert {entry.name for entry in overlay.entries(1)} >= {b"0", b"1", b"2"}


def _other(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    path.mkdir(exist_ok=True)
    return path


def test_mounts_that_a_program_forgets(point: Path, tmp_path: Path) -> None:
    """A program that ends without unmounting leaves nothing behind."""
    program = f"""
import sys
from pathlib import Path
from pagepool.mount import mount_fuse
from tests.mount.memoryfs import MemoryFileSystem
mount = mount_fuse(MemoryFileSystem(), {str(point)!r}, directory=Path({str(tmp_path / "records")!r}))
Path({str(point)!r}, "file").write_bytes(b"x")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert mounted_at(point) is None


_WAITING = """
import os, signal, sys, time
from pathlib import Path
from pagepool.mount import mount_fuse
from tests.mount.memoryfs import MemoryFileSystem
with mount_fuse(MemoryFileSystem(), sys.argv[1], directory=Path(sys.argv[2])):
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    while True:  # what comes before a `pause` that it was meant to end would be heeded after the next one
        time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_a_program_does_nothing_about(point: Path, tmp_path: Path, number: signal.Signals) -> None:
    """They end it, unmounted; and a child that it forked as ever."""
    command = [sys.executable, "-c", _WAITING, str(point), str(tmp_path / "records")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "-15\n"
        assert mounted_at(point) is not None
        program.send_signal(number)
        assert program.wait(60) == 128 + number
    assert mounted_at(point) is None


def test_signals_are_given_back(point: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN, lambda *_: None):
            signal.signal(signal.SIGTERM, handler)
            with mount_fuse(MemoryFileSystem(), point, directory=tmp_path / "records"):
                assert (signal.getsignal(signal.SIGTERM) is handler) == (handler is not signal.SIG_DFL)
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_children_let_go(point: Path, tmp_path: Path) -> None:
    """A child that a serving process forks neither unmounts at its end, nor keeps a mount whose server is killed."""
    program = f"""
import os, signal, sys
from pathlib import Path
from pagepool.mount import mount_fuse
from tests.mount.memoryfs import MemoryFileSystem
point = Path({str(point)!r})
mount = mount_fuse(MemoryFileSystem(), point, directory=Path({str(tmp_path / "records")!r}))
if not os.fork():
    sys.exit()
os.wait()
(point / "file").write_bytes(b"still mounted")
if not os.fork():
    signal.pause()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], cwd=Path(__file__).parents[2], start_new_session=True
    ) as server:
        assert server.wait(_TIMEOUT_S) == -signal.SIGKILL
        try:
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                (point / "anything").stat()
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_read_ahead_is_raised(point: Path, records: Path) -> None:
    """The kernel reads a megabyte ahead, not 128 KiB."""
    with open_image(b"x") as filesystem, mount_fuse(filesystem, point, directory=records):
        device = point.stat().st_dev
        control = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        if not os.access(control, os.W_OK):
            logging.getLogger(__name__).warning("%s cannot be written here", control)
            return
        assert control.read_text() == "1024\n"


def test_mountinfo() -> None:
    """Paths with blanks, optional fields, what is mounted over something else, and names that end lines elsewhere."""
    data = (
        b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        b"40 22 0:39 / /mnt/with\\040blank ro,nodev shared:3 master:1 - fuse.pagepool app:1 ro,user_id=0\n"
        b"41 22 0:40 / /mnt/a\rb\x0b\x1c rw - tmpfs x\r rw\n"
    )
    assert parse_mountinfo(data) == [
        MountPoint(Path("/"), "ext4", "/dev/root", (254, 1), False),
        MountPoint(Path("/mnt/with blank"), FUSE_TYPE, "app:1", (0, 39), True),
        MountPoint(Path("/mnt/a\rb\x0b\x1c"), "tmpfs", "x\r", (0, 40), False),
    ]
