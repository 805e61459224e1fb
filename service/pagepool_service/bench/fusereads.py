"""Reads and writes through a FUSE mount, beside the same files in a plain directory, in one run.

The files of the image are mapped from the plain directory, so that both read the same pages: what differs is the way
there. "Cold" is a first read through the mount, which reaches the server, of files that are in memory already: what
the mount costs, not the disk. "Hot" is every further read, out of the kernel's page cache. The server is a process of
its own; its processor time is what a request costs. Best of a few rounds, since others use the machine too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.digest import blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind, Node, Tree, TreeFile, encode_tree
from pagepool.mount import list_mounts, serve_in_background, unmount
from pagepool.overlay import OverlayFileSystem
from pagepool.vfs import TreeFileSystem
from pagepool_service.bench.pagereads import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pagepool.vfs import FileSystem

BIG_SIZE: Final = 256 << 20
SMALL_COUNT: Final = 2000
SMALL_SIZE: Final = 16 << 10
_READ_SIZE: Final = 1 << 20
_ROUNDS: Final = 5
_OPENS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Pair:
    """One thing done both ways.

    Args:
        name: what, with its unit.
        mount: through the mount.
        plain: in the plain directory.
    """

    name: str
    mount: float
    plain: float

    @property
    def ratio(self) -> float:
        """The mount's to the plain directory's."""
        return self.mount / self.plain


@dataclass(frozen=True, slots=True)
class MountFigures:
    """What was measured.

    Args:
        pairs: rates, more is better.
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

    def prefetch(self, indices: Iterable[int]) -> None:
        """See `Content`."""

    def close(self) -> None:
        """See `Content`."""


def measure_mount(directory: Path) -> MountFigures:
    """Measure. Takes a minute at most, 1 GiB of disk, and root or `fusermount3`.

    Args:
        directory: an empty one, on the file system that is compared with.
    """
    plain, point, upper = (directory / name for name in ("plain", "mount", "upper"))
    for path in (plain / "small", plain / "new", point):
        path.mkdir(parents=True)
    _make_files(plain)
    records = directory / "records"
    record = serve_in_background(partial(_open, plain, upper), point, directory=records)
    try:
        small = [f"small/{number}" for number in range(SMALL_COUNT)]
        begun, count = cpu_seconds(record.pid), _stat_all(point, small)
        request_us = (cpu_seconds(record.pid) - begun) / count * 1e6
        pairs = [
            Pair("first read of a big file, MB/s", _rate(point / "big", 1), _rate(plain / "big", 1)),
            Pair("first read of small files, files/s", _files(point, small, 1), _files(plain, small, 1)),
            Pair("hot read of a big file, MB/s", _rate(point / "big"), _rate(plain / "big")),
            Pair("hot 4 KiB reads, reads/s", _pages(point / "big"), _pages(plain / "big")),
            Pair("hot read of small files, files/s", _files(point, small), _files(plain, small)),
            Pair("open and close, /s", _opens(point / "big"), _opens(plain / "big")),
            Pair("write of a big file, MB/s", _write(point / "new"), _write(plain / "new")),
            Pair("new files of 4 KiB, files/s", _create(point / "new"), _create(plain / "new")),
        ]
        assert not any(state.dead for state in list_mounts(records))
    finally:
        unmount(point, directory=records)
    return MountFigures(pairs, request_us)


def _make_files(directory: Path) -> None:
    with (directory / "big").open("wb") as file:
        for _ in range(BIG_SIZE // _READ_SIZE):
            file.write(os.urandom(_READ_SIZE))
    for number in range(SMALL_COUNT):
        (directory / "small" / str(number)).write_bytes(os.urandom(SMALL_SIZE))


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


def _best(act: Callable[[], int], rounds: int = _ROUNDS) -> float:
    """The best rate of what is done, for each second."""
    best = 0.0
    for _ in range(rounds):
        begun = time.perf_counter()
        done = act()
        best = max(best, done / (time.perf_counter() - begun))
    return best


def _stat_all(root: Path, names: Sequence[str]) -> int:
    """Look up names that the kernel does not know, one request each."""
    for name in names:
        (root / name).stat()
    return len(names)


def _rate(path: Path, rounds: int = _ROUNDS) -> float:
    buffer = bytearray(_READ_SIZE)

    def act() -> int:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        return BIG_SIZE

    return _best(act, rounds) / 1e6


def _pages(path: Path) -> float:
    def act() -> int:
        descriptor = os.open(path, os.O_RDONLY)
        for offset in range(0, _OPENS * 4096, 4096):
            os.pread(descriptor, 4096, offset)
        os.close(descriptor)
        return _OPENS

    return _best(act)


def _files(root: Path, names: Sequence[str], rounds: int = _ROUNDS) -> float:
    paths = [os.fsencode(root / name) for name in names]

    def act() -> int:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            os.read(descriptor, SMALL_SIZE)
            os.close(descriptor)
        return len(paths)

    return _best(act, rounds)


def _opens(path: Path) -> float:
    name = os.fsencode(path)

    def act() -> int:
        for _ in range(_OPENS):
            os.close(os.open(name, os.O_RDONLY))
        return _OPENS

    return _best(act)


def _write(directory: Path) -> float:
    data = os.urandom(_READ_SIZE)

    def act() -> int:
        with (directory / "big").open("wb", buffering=0) as file:
            for _ in range(BIG_SIZE // _READ_SIZE):
                file.write(data)
        return BIG_SIZE

    return _best(act, 2) / 1e6


def _create(directory: Path) -> float:
    data = os.urandom(4096)

    def act() -> int:
        for number in range(SMALL_COUNT):
            descriptor = os.open(directory / str(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, data)
            os.close(descriptor)
        return SMALL_COUNT

    return _best(act, 1)
