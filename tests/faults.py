"""Faults, made through the interfaces where they happen: bytes of files, the kernel's limits, file systems, signals.

Nothing here reaches into the code under test. Damage is done to files while no process has the store open; the name
of a record's place is found by searching the database file for the record's own bytes, so that what is flipped is
what lies on the disk. Whatever is mounted is unmounted when its block is left, however it is left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

from pagepool_service.store.environment import MAP_SIZE, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


PAGE = 4096


# -- damage --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies in the database: its table, key, and value with its checksum."""

    table: Table
    key: bytes
    value: bytes


def records(data: Path, table: Table) -> list[Record]:
    """All records of a table. No process may have the store open for writing."""
    with _raw(data, readonly=True) as env:
        database = env.open_db(table.label.encode(), create=False)
        with env.begin(database) as txn:
            return [Record(table, bytes(key), bytes(value)) for key, value in txn.cursor()]


def flip_record(data: Path, record: Record, at: int) -> None:
    """Flip one bit of a record's value where it lies in data.mdb; in every copy, also those of old pages.

    Args:
        at: which byte of the value; negative from its end.
    """
    _flip_bytes(data, record, record.value, at % len(record.value), 1)


def flip_key(data: Path, record: Record, at: int, bits: int) -> None:
    """The same with bits of a record's key. It lies before the value, if that is small."""
    _flip_bytes(data, record, record.key + record.value, at, bits)


def _flip_bytes(data: Path, record: Record, found: bytes, offset: int, bits: int) -> None:
    path = data / "store" / "data.mdb"
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        place = content.find(found)
        assert place >= 0, f"the value of {record.table.label} {record.key.hex()} does not lie in one piece"
        while place >= 0:
            content[place + offset] ^= bits
            place = content.find(found, place + 1)


def replace_record(data: Path, table: Table, key: bytes, value: bytes | None) -> None:
    """Put a value in the place of another, or take it out, below everything that would prevent it."""
    with _raw(data) as env:
        database = env.open_db(table.label.encode(), create=False)
        with env.begin(database, write=True) as txn:
            if value is None:
                assert txn.delete(key)
            else:
                txn.put(key, value)


def flip_file(path: Path, at: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes((byte ^ 1,)))


def flip_pages(data: Path, randomness: random.Random, count: int, *, trees: bool = False) -> list[int]:
    """Change bytes of random pages of the database, of any kind but the two that locate all others.

    Args:
        trees: only of pages that make up the B-trees, and there mostly of their heads and tables of places.

    Returns:
        the offsets that were changed.
    """
    path = data / "store" / "data.mdb"
    offsets = []
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        pages = [number for number in range(2, len(content) // PAGE) if not trees or _is_tree_page(content, number)]
        for _ in range(count):
            within = randomness.randrange(randomness.choice((24, 80, PAGE)) if trees else PAGE)
            offset = randomness.choice(pages) * PAGE + within
            content[offset] = randomness.randrange(256)
            offsets.append(offset)
    return offsets


def _is_tree_page(content: mmap.mmap, number: int) -> bool:
    """LMDB 0.9: a page begins with its number (8 bytes), 2 bytes of padding, and flags: 1 is a branch, 2 a leaf."""
    head = content[number * PAGE : number * PAGE + 12]
    return int.from_bytes(head[:8], "little") == number and int.from_bytes(head[10:12], "little") in (1, 2)


@contextlib.contextmanager
def _raw(data: Path, *, readonly: bool = False) -> Iterator[lmdb.Environment]:
    with lmdb.open(
        str(data / "store"), map_size=MAP_SIZE, max_dbs=len(Table) + 4, readonly=readonly, lock=not readonly
    ) as env:
        yield env


# -- processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child process ended: what its function returned, or its exception as text, or a signal.

    Args:
        value: what the function returned.
        error: the exception and its traceback, or "".
        signal: what killed it, or None.
    """

    value: Any = None
    error: str = ""
    signal: signal.Signals | None = None


def in_child(function: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> Outcome:
    """Run a module's function in a new process, which may die of it."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            pytest.fail(f"{function.__name__} did not end within {timeout_s} s")
        value, error = receiver.recv()
        return Outcome(value, error)
    except EOFError:
        process.join(timeout_s)
        code = process.exitcode or 0
        return Outcome(signal=signal.Signals(-code) if code < 0 else None, error="" if code < 0 else f"status {code}")
    finally:
        process.kill()
        process.join()
        receiver.close()


def _call(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        result = (function(*arguments), "")
    except Exception:  # noqa: BLE001 - whatever it is, the parent reports it
        result = (None, traceback.format_exc())
    sender.send(result)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let this process's files grow beyond `size`: a real EFBIG from every write."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


@dataclass(slots=True)
class Memory:
    """The most memory of its own that a process was seen to have, in bytes: pages of mapped files not counted."""

    peak: int = 0

    def look(self) -> None:
        """Look now."""
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.peak = max(self.peak, int(fields["RssAnon"].split()[0]) * 1024)


@contextlib.contextmanager
def watched_memory(every_s: float = 0.01) -> Iterator[Memory]:
    """Look at this process's memory again and again for the length of the block."""
    memory, done = Memory(), threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            memory.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        memory.look()


# -- file systems --------------------------------------------------------------------------------------------


def needs_mounts(kind: str) -> None:
    """Skip the test unless this process may make and mount a file system of a kind on a loop device."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    for tool in (f"mkfs.{kind}", "mount", "umount"):
        if shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            pytest.skip(f"{tool} is not installed")
    if not Path("/dev/loop-control").exists():
        pytest.skip("there are no loop devices")


@contextlib.contextmanager
def small_file_system(
    directory: Path, size: int, kind: str = "ext4", *, image: Path | None = None, inodes: int = 0
) -> Iterator[Path]:
    """A file system of `size` bytes, mounted on a new directory for the length of the block.

    Args:
        directory: where its image and mount point go.
        kind: ``ext4``, ``xfs`` or ``btrfs``.
        image: one that an earlier call has made, which a copy is made of: were it mounted itself, and some other
            process's mount namespace had kept the earlier mount, the kernel would hand out that one.
        inodes: of an ext4, about how many it has; as many as are usual if 0.
    """
    needs_mounts(kind)
    target = directory / "small"
    target.mkdir()
    own = directory / "small.img"
    if image is not None:
        _run("cp", "--sparse=always", str(image), str(own))
    else:
        with own.open("wb") as file:
            file.truncate(size)
        options = {"ext4": ["-q", "-F", "-m", "0", *(["-N", str(inodes)] if inodes else [])], "xfs": ["-q", "-f"]}
        options["btrfs"] = options["xfs"]
        _run(f"mkfs.{kind}", *options[kind], str(own))
    made = subprocess.run(["mount", "-o", "loop", str(own), str(target)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting is not possible here: {made.stderr.strip()}")
    try:
        yield target
    finally:
        _unmount(target)


def _unmount(target: Path) -> None:
    # Lazily if need be: a test that failed may have left a process behind that is being killed.
    if subprocess.run(["umount", str(target)], capture_output=True, check=False).returncode:
        _run("umount", "--lazy", str(target))


@contextlib.contextmanager
def thin_file_system(directory: Path, size: int) -> Iterator[tuple[Path, Path]]:
    """An ext4 whose disk has less room than it says: once `size` bytes are taken it refuses what is written to it, and
    takes it again when there is room. It has no journal, which would not survive that.

    Returns:
        where it is mounted, and the directory that its disk has its room from.
    """
    needs_mounts("ext4")
    backing, target = directory / "backing", directory / "thin"
    backing.mkdir()
    target.mkdir()
    own = backing / "thin.img"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(backing)], check=False).returncode:
        pytest.skip("mounting is not possible here")
    try:
        with own.open("wb") as file:
            file.truncate(8 * size)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(own))
        _run("mount", "-o", "loop", str(own), str(target))
        try:
            yield target, backing
        finally:
            _unmount(target)
    finally:
        # Lazily: the loop device lets go of its file a moment after its mount is gone.
        _run("umount", "--lazy", str(backing))


_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), of the kernel's ext4.h
_NO_LOG_FLUSH = 2


def cut_power(target: Path) -> None:
    """Make a mounted ext4 or XFS lose all that is not on its disk yet, and fail every call from now on, as a power
    loss does.

    What the disk has is there again when its image is mounted the next time.
    """
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            pytest.skip("this kernel cannot shut the file system down")
        raise
    finally:
        os.close(fd)


def stop_writing(target: Path) -> None:
    """Have the kernel find an error in a mounted ext4, after which it takes no more writes: not quite as if it were
    mounted read-only, which newer kernels keep apart."""
    device = target.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    trigger = Path("/sys/fs/ext4", name, "trigger_fs_error")
    if not trigger.exists():
        pytest.skip("this kernel cannot be told to find an error in ext4")
    _run("mount", "-o", "remount,errors=remount-ro", str(target))
    trigger.write_text("1")


def remount(target: Path, mode: str) -> None:
    """Remount a file system ``ro`` or ``rw``."""
    _run("mount", "-o", f"remount,{mode}", str(target))


@contextlib.contextmanager
def filled(directory: Path, leave: int = 0) -> Iterator[Path]:
    """Fill the file system of a directory up to the last `leave` bytes, for the length of the block."""
    ballast = directory / "ballast"
    fill(ballast, leave)
    try:
        yield ballast
    finally:
        ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def no_inodes(directory: Path) -> Iterator[Path]:
    """Take the last inode of a directory's file system, for the length of the block."""
    ballast = directory / "names"
    ballast.mkdir()
    try:
        with contextlib.suppress(OSError):
            for number in range(1 << 20):
                (ballast / str(number)).touch()
        yield ballast
    finally:
        shutil.rmtree(ballast)


def fill(ballast: Path, leave: int = 0) -> None:
    """Write a file until the file system is full."""
    step = 1 << 20
    with ballast.open("ab", buffering=0) as file:
        while step >= 512:
            disk = os.statvfs(ballast.parent)
            room = disk.f_bavail * disk.f_frsize - leave
            try:
                if room < step or not file.write(bytes(step)):
                    step //= 2
            except OSError:
                step //= 2
        os.fsync(file.fileno())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
