"""A disk with a volatile cache that writes in any order: every write and every flush of it is recorded.

One file, served by a process of its own over FUSE, which a loop device lies on with direct I/O: what the file system
on that device writes comes here as WRITE, and its flushes as FSYNC. `possible_images` makes of the record what such a
disk may have after its power was lost: everything that was written before the last flush that ended, and of what came
later any part, in pieces of a block or of a sector.

The kernel needs no more for this than FUSE and loop devices; dm-log-writes, which records the same, many have not.
The process that serves must not use the file system on the disk, nor wait for one who does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from pagepool.image.member import Kind
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.protocol import InitFlag, Opcode
from pagepool.vfs.interface import Attributes
from tests.faults import needs_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROOT: Final = Path(__file__).parents[2]
_RECORD: Final = struct.Struct("<QQ")  # where a write begins, and how long it is; a flush has no length
_COUNTER: Final = struct.Struct("<Q")
_DIRECT_IO: Final = 1  # FOPEN_DIRECT_IO
_SILENT: Final = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}
SECTOR: Final = 512
BLOCK: Final = 4096


# -- the process that serves it ------------------------------------------------------------------------------


class _Disk:
    """Answers the kernel's requests for the one file.

    Args:
        device: an open /dev/fuse, which is mounted.
        directory: has the disk's bytes, the record, and how many entries that has.
    """

    def __init__(self, device: int, directory: Path) -> None:
        self._device = device
        self._file = os.open(directory / "disk", os.O_RDWR)
        self._record = (directory / "record").open("ab")
        self._size = os.fstat(self._file).st_size
        with (directory / "count").open("r+b") as file:
            self._counter = mmap.mmap(file.fileno(), _COUNTER.size)
        self._count = 0

    def serve(self) -> None:
        """Answer until it is unmounted."""
        buffer = bytearray(protocol.BUFFER_SIZE)
        view = memoryview(buffer)
        while True:
            try:
                size = os.readv(self._device, [buffer])
            except OSError:  # ENODEV: unmounted
                return
            _, opcode, unique, *_ = protocol.IN_HEADER.unpack_from(buffer)
            if opcode in _SILENT:
                continue
            answer = self._answer(opcode, view[protocol.IN_HEADER.size : size])
            if isinstance(answer, int):
                os.write(self._device, protocol.encode_error(unique, answer))
            else:
                os.writev(self._device, [protocol.encode_header(unique, len(answer)), answer])

    def _answer(self, opcode: int, body: memoryview) -> bytes | int:
        match opcode:
            case Opcode.READ:
                _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
                return os.pread(self._file, size, offset)
            case Opcode.WRITE:
                _, offset, size, *_ = protocol.WRITE_IN.unpack_from(body)
                data = body[protocol.WRITE_IN.size : protocol.WRITE_IN.size + size]
                os.pwrite(self._file, data, offset)
                self._note(offset, data)
                return protocol.WRITE_OUT.pack(size, 0)
            case Opcode.FSYNC:
                self._note(0, memoryview(b""))
                return 0
            case Opcode.INIT:
                init = protocol.parse_init(body)
                flags = init.flags & (InitFlag.MAX_PAGES | InitFlag.BIG_WRITES | InitFlag.ASYNC_DIO)
                return protocol.encode_init(protocol.MINOR, init.max_readahead, flags, background=16)
            case Opcode.GETATTR | Opcode.SETATTR:
                blocks = self._size // SECTOR
                attributes = Attributes(1, Kind.REGULAR, 0o600, 0, 0, self._size, 1, 0, 0, 0, 0, 0, blocks)
                return protocol.encode_attributes(attributes)
            case Opcode.OPEN:
                return protocol.OPEN_OUT.pack(0, _DIRECT_IO, 0)
            case Opcode.RELEASE | Opcode.FLUSH:
                return 0
            case Opcode.FALLOCATE:
                return 95  # EOPNOTSUPP: zeros come as writes
            case _:
                return 38  # ENOSYS

    def _note(self, offset: int, data: memoryview) -> None:
        self._record.write(_RECORD.pack(offset, len(data)))
        self._record.write(data)
        self._record.flush()
        self._count += 1
        _COUNTER.pack_into(self._counter, 0, self._count)


def _serve(directory: Path, target: Path) -> None:
    """Mount the disk's file on another, say so by a line, and serve it."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=100600,user_id=0,group_id=0"
    subprocess.run(
        ["mount", "-i", "-t", "fuse", "-o", options, "volatiledisk", str(target)], check=True, pass_fds=[device]
    )
    print("mounted", flush=True)
    _Disk(device, directory).serve()


# -- file systems -----------------------------------------------------------------------------------------------


def new_file_system(directory: Path, size: int, kind: str) -> Path:
    """Make the image of an empty file system in a directory, and return it."""
    needs_mounts(kind)
    image = directory / "empty.img"
    with image.open("wb") as file:
        file.truncate(size)
    # ext4 all at once: what it would write later, in the background, says nothing about anybody.
    options = {"ext4": ["-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], "xfs": ["-f"], "btrfs": ["-f"]}
    _run(f"mkfs.{kind}", "-q", *options[kind], str(image))
    return image


@contextlib.contextmanager
def mounted_image(image: Path, target: Path, kind: str) -> Iterator[Path]:
    """Mount an image, which its file system mends, for the length of the block.

    Args:
        target: a directory, made if it is not there.
    """
    target.mkdir(exist_ok=True)
    # Another process's mount namespace may keep an earlier image mounted for a while, of the same UUID.
    _run("mount", "-t", kind, "-o", "loop,nouuid" if kind == "xfs" else "loop", str(image), str(target))
    try:
        yield target
    finally:
        _unmount(target)


# -- recording -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Recording:
    """A file system on a disk that is recorded.

    Args:
        directory: what is recorded, and what the disk had when it began (`before`).
        mounted: where it is.
    """

    directory: Path
    mounted: Path
    _counter: mmap.mmap

    def position(self) -> int:
        """How many writes and flushes there were so far."""
        count: int = _COUNTER.unpack_from(self._counter)[0]
        return count


@contextlib.contextmanager
def recorded(directory: Path, image: Path, kind: str = "ext4", options: str = "noatime") -> Iterator[Recording]:
    """Mount a file system from a copy of an image, on a disk that is recorded, for the length of the block.

    Args:
        directory: a new one.
        image: the file system.
        kind: ``ext4``, ``xfs`` or ``btrfs``.
    """
    if not Path("/dev/fuse").exists() or os.geteuid() != 0:
        pytest.skip("this needs root and FUSE")
    mounted = directory / "mounted"
    mounted.mkdir(parents=True)
    for name in ("before", "disk"):
        _copy(image, directory / name)
    (directory / "count").write_bytes(bytes(_COUNTER.size))
    (directory / "record").touch()
    target = directory / "served"
    target.touch()
    command = [sys.executable, "-m", __name__, str(directory), str(target)]
    paths = os.pathsep.join((str(_ROOT), str(_ROOT / "client"), os.environ.get("PYTHONPATH", "")))
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=_ROOT, env={**os.environ, "PYTHONPATH": paths})
    with contextlib.ExitStack() as stack:
        stack.callback(_end, server, target)
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n", "the disk cannot be mounted"
        loop = _run("losetup", "--find", "--show", "--direct-io=on", str(target)).strip()
        stack.callback(_run, "losetup", "--detach", loop)
        assert _run("losetup", "--noheadings", "--output", "DIO", loop).strip() == "1", "no direct I/O"
        _run("mount", "-t", kind, "-o", options, loop, str(mounted))
        stack.callback(_unmount, mounted)
        with (directory / "count").open("r+b") as file:
            counter = mmap.mmap(file.fileno(), _COUNTER.size)
        yield Recording(directory, mounted, counter)


# -- what may be left ----------------------------------------------------------------------------------------


def possible_images(
    directory: Path, points: Sequence[int], randomness: random.Random, tear: int = BLOCK
) -> Iterator[tuple[int, str, Path]]:
    """What the disk may have after its power was lost, at each of some points of a record. Each image is removed next.

    Args:
        directory: of a `Recording` that has ended.
        points: after how many writes and flushes; growing.
        tear: the size of the pieces that are written as a whole or not at all.

    Returns:
        of each: the point, how what was not flushed was chosen, and the image.
    """
    durable = directory / "durable"
    shutil.move(directory / "before", durable)
    image = directory / "image"
    pending: list[tuple[int, bytes]] = []
    position = 0
    with (directory / "record").open("rb") as record, durable.open("r+b") as file:
        for point in points:
            while position < point:
                offset, size = _RECORD.unpack(record.read(_RECORD.size))
                position += 1
                if size:
                    pending.append((offset, record.read(size)))
                    continue
                for at, data in pending:
                    os.pwrite(file.fileno(), data, at)
                pending.clear()
            _copy(durable, image)
            with image.open("r+b") as made:
                name = _choose(made.fileno(), pending, randomness, tear)
            yield point, name, image
            image.unlink(missing_ok=True)


def _choose(fd: int, pending: Sequence[tuple[int, bytes]], randomness: random.Random, tear: int) -> str:
    """Write some of what was not flushed."""
    pieces = [(offset + at, data[at : at + tear]) for offset, data in pending for at in range(0, len(data), tear)]
    way = randomness.choice(("nothing", "everything", "writes", "pieces", "few", "most", "newest", "all but one"))
    match way:
        case "nothing":
            chosen: Sequence[tuple[int, bytes]] = ()
        case "everything":
            chosen = pending
        case "writes":
            chosen = [write for write in pending if randomness.random() < 0.5]
        case "newest":
            chosen = pieces[randomness.randrange(len(pieces) + 1) :]
        case "all but one":
            chosen = list(pieces)
            if chosen:
                del chosen[randomness.randrange(len(chosen))]
        case _:
            part = {"pieces": 0.5, "few": 0.1, "most": 0.9}[way]
            chosen = [piece for piece in pieces if randomness.random() < part]
    for offset, data in chosen:
        os.pwrite(fd, data, offset)
    return f"{way}: {len(chosen)} of {len(pending)} writes, {len(pieces)} pieces"


# -- odds and ends -------------------------------------------------------------------------------------------


def _end(server: subprocess.Popen[bytes], target: Path) -> None:
    subprocess.run(["umount", "--lazy", str(target)], capture_output=True, check=False)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGKILL)
        server.wait()
    if server.stdout is not None:
        server.stdout.close()


def _unmount(mounted: Path) -> None:
    if subprocess.run(["umount", str(mounted)], capture_output=True, check=False).returncode:
        _run("umount", "--lazy", str(mounted))


def _copy(source: Path, target: Path) -> None:
    _run("cp", "--sparse=always", str(source), str(target))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
