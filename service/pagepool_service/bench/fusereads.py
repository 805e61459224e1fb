"""Reads and writes through a FUSE mount, beside the same files in a plain directory, in one run.

The files of the image are mapped from the plain directory, so that both read the same pages: what differs is the way
there. "Cold" is a first read through the mount, which reaches the server, of files that are in memory already: what
the mount costs, not the disk. "Hot" is every further read, out of the kernel's page cache; the server has no part in
it, so it is measured in processor time of this process, which others that use the machine disturb least. The server is
a process of its own; its processor time is what a request costs. Best of a few rounds.

Where squashfuse is installed, a FUSE file system in C, the hot reads are made through it, too: what no FUSE server can
change, the kernel's part, is in both.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.digest import blake3_raw
from pagepool.errors import UnreachableError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind, Node, Tree, TreeFile, encode_tree
from pagepool.linux.processes import cpu_seconds
from pagepool.mount import list_mounts, serve_in_background, unmount
from pagepool.mount.mountinfo import mounted_at
from pagepool.overlay import OverlayFileSystem
from pagepool.vfs import TreeFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pagepool.vfs import FileSystem

_SMALL_SIZE: Final = 16 << 10
_READ_SIZE: Final = 1 << 20
_PAGE: Final = 4096
_ROUNDS: Final = 5
_START_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is done.

    Args:
        big_size: of the big file, a multiple of 1 MiB.
        small_count: how many small files there are.
        repeats: how often one page is read, or one file opened; the pages must be there.
    """

    big_size: int = 256 << 20
    small_count: int = 2000
    repeats: int = 20_000


@dataclass(frozen=True, slots=True)
class Pair:
    """One thing done both ways.

    Args:
        name: what, with its unit.
        mount: through the mount.
        plain: in the plain directory.
        peer: through squashfuse; None if that is not measured.
    """

    name: str
    mount: float
    plain: float
    peer: float | None = None

    @property
    def ratio(self) -> float:
        """The mount's to the plain directory's."""
        return self.mount / self.plain


@dataclass(frozen=True, slots=True)
class MountFigures:
    """What was measured.

    Args:
        pairs: rates, more is better; of hot reads and opens for each second of processor time.
        request_us: processor time of the server for each request of the `ls` of a big directory, in microseconds.
    """

    pairs: Sequence[Pair]
    request_us: float


class _MappedContent:
    """Objects that are files in a directory, by the order of their digests; implements `Content`."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._views: list[memoryview] = []
        for path in paths:
            with path.open("rb") as file:
                self._views.append(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)))

    def view(self, index: int, start: int, end: int) -> memoryview:
        """See `Content`."""
        return self._views[index][start:end]

    def whole(self, index: int) -> memoryview:
        """See `Content`."""
        return self._views[index]

    def prefetch(self, indices: Iterable[int]) -> None:
        """See `Content`."""

    def close(self) -> None:
        """See `Content`."""


def measure_mount(directory: Path, work: Workload | None = None) -> MountFigures:
    """Measure. Takes a minute at most, 1 GiB of disk, and root or `fusermount3`.

    Args:
        directory: an empty one, on the file system that is compared with.
        work: how much is done.
    """
    work = work or Workload()
    plain = directory / "plain"
    for path in (plain / "small", plain / "new", directory / "mount"):
        path.mkdir(parents=True)
    _make_files(plain, work)
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(_squashed(plain, directory)) if peer_installed() else None
        return _measure(directory, work, peer)


def peer_installed() -> bool:
    """Tell whether squashfuse is there, and what makes an image for it."""
    return None not in map(shutil.which, ("mksquashfs", "squashfuse"))


def _measure(directory: Path, work: Workload, peer: Path | None) -> MountFigures:
    plain, point, upper = (directory / name for name in ("plain", "mount", "upper"))
    records = directory / "records"
    record = serve_in_background(partial(_open, plain, upper), point, directory=records)
    try:
        small = [f"small/{number}" for number in range(work.small_count)]
        begun, count = cpu_seconds(record.pid), _stat_all(point, small)
        request_us = (cpu_seconds(record.pid) - begun) / count * 1e6
        pairs = [
            _pair("first read of a big file, MB/s", partial(_read_big, work), point, plain, rounds=1, unit=1e6),
            _pair("first read of small files, files/s", partial(_read_small, small), point, plain, rounds=1),
            _pair("hot read of a big file, MB/s", partial(_read_big, work), point, plain, unit=1e6, peer=peer),
            _pair("hot 4 KiB reads, reads/s", partial(_read_pages, work), point, plain, peer=peer),
            _pair("hot read of small files, files/s", partial(_read_small, small), point, plain, peer=peer),
            _pair("open and close, /s", partial(_open_often, work), point, plain, peer=peer),
            _pair("write of a big file, MB/s", partial(_write, work), point, plain, rounds=1, unit=1e6),
            _pair("new files of 4 KiB, files/s", partial(_create, work), point, plain, rounds=1),
        ]
        assert not any(state.dead for state in list_mounts(records))
    finally:
        unmount(point, directory=records)
    return MountFigures(pairs, request_us)


def _make_files(directory: Path, work: Workload) -> None:
    with (directory / "big").open("wb") as file:
        for _ in range(work.big_size // _READ_SIZE):
            file.write(os.urandom(_READ_SIZE))
    for number in range(work.small_count):
        (directory / "small" / str(number)).write_bytes(os.urandom(_SMALL_SIZE))


@contextlib.contextmanager
def _open(plain: Path, upper: Path) -> Iterator[FileSystem]:
    """An overlay over an image of the plain files."""
    small = Node(Kind.DIRECTORY, 0o755, children={})
    root = Node(Kind.DIRECTORY, 0o755, children={b"small": small, b"new": Node(Kind.DIRECTORY, 0o755, children={})})
    paths: dict[bytes, Path] = {}
    runs: dict[bytes, Sequence[tuple[int, bytes]]] = {}
    for path in (plain / "big", *(plain / "small").iterdir()):
        data = path.read_bytes()
        digest = blake3_raw(data)
        paths[digest] = path
        parts = range(0, len(data), EXTENT_SIZE)
        runs[digest] = [(1, blake3_raw(data[start : start + EXTENT_SIZE])) for start in parts]
        node = Node(Kind.REGULAR, 0o644, size=len(data), object=digest)
        children = (root if path.parent == plain else small).children
        assert children is not None
        children[path.name.encode()] = node
    encoded = encode_tree(Tree(root), lambda digest, _: runs[digest])
    with contextlib.closing(TreeFile(encoded)) as tree:
        content = _MappedContent(paths[tree.object(index).digest] for index in range(tree.object_count))
        with contextlib.closing(TreeFileSystem(tree, content)) as base:
            overlay = OverlayFileSystem.open(upper, base, tree=blake3_raw(encoded))
            with contextlib.closing(overlay):
                yield overlay


@contextlib.contextmanager
def _squashed(plain: Path, directory: Path) -> Iterator[Path]:
    """The plain files in a squashfs image, not compressed, mounted by squashfuse for the length of the block."""
    image, point = directory / "squashed", directory / "peer"
    point.mkdir()
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["mksquashfs", plain, image, "-noD", "-noF", "-no-progress"], **quiet)  # type: ignore[call-overload]
    server = subprocess.Popen(["squashfuse", "-f", image, point], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_S
        while mounted_at(point) is None:
            if server.poll() is not None or time.monotonic() > deadline:
                raise UnreachableError("squashfuse", "it did not mount")
            time.sleep(0.01)
        yield point
    finally:
        server.terminate()  # which unmounts
        server.wait()


def _pair(
    name: str,
    act: Callable[[Path], int],
    mount: Path,
    plain: Path,
    *,
    rounds: int = _ROUNDS,
    unit: float = 1,
    peer: Path | None = None,
) -> Pair:
    """Do something each way, in turns: the best rate of each. A first time (one round) is measured in seconds."""
    clock = time.perf_counter if rounds == 1 else time.process_time
    roots = [root for root in (mount, plain, peer) if root is not None]
    best = [0.0] * len(roots)
    for turn in range(rounds + (peer is not None)):
        for number, root in enumerate(roots):
            begun = clock()
            done = act(root)
            if turn or peer is None:  # the peer has not been read before
                best[number] = max(best[number], done / (clock() - begun))
    rates = [rate / unit for rate in best]
    return Pair(name, rates[0], rates[1], None if peer is None else rates[2])


def _stat_all(root: Path, names: Sequence[str]) -> int:
    """Look up names that the kernel does not know, one request each."""
    for name in names:
        (root / name).stat()
    return len(names)


def _read_big(work: Workload, root: Path) -> int:
    buffer = bytearray(_READ_SIZE)
    with (root / "big").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return work.big_size


def _read_pages(work: Workload, root: Path) -> int:
    buffers = [bytearray(_PAGE)]
    descriptor = os.open(root / "big", os.O_RDONLY)
    for offset in range(0, work.repeats * _PAGE, _PAGE):
        os.preadv(descriptor, buffers, offset)
    os.close(descriptor)
    return work.repeats


def _read_small(names: Sequence[str], root: Path) -> int:
    directory, buffers = os.open(root, os.O_RDONLY), [bytearray(_SMALL_SIZE)]
    for name in names:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
        os.readv(descriptor, buffers)
        os.close(descriptor)
    os.close(directory)
    return len(names)


def _open_often(work: Workload, root: Path) -> int:
    path = os.fsencode(root / "big")
    for _ in range(work.repeats):
        os.close(os.open(path, os.O_RDONLY))
    return work.repeats


def _write(work: Workload, root: Path) -> int:
    data = os.urandom(_READ_SIZE)
    with (root / "new/big").open("wb", buffering=0) as file:
        for _ in range(work.big_size // _READ_SIZE):
            file.write(data)
    return work.big_size


def _create(work: Workload, root: Path) -> int:
    data = os.urandom(_PAGE)
    for number in range(work.small_count):
        descriptor = os.open(root / "new" / str(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, data)
        os.close(descriptor)
    return work.small_count
