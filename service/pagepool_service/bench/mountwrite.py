"""One block written into a large file of an image: what it takes, and what reading the file takes afterwards.

Overlayfs copies the file up, by reflink where the upper is on the same file system as the object and that has reflinks:
pagepool's pool is an XFS image here, overlayfs is on the file system of the working directory. Bytes on disk are what
its file system has less afterwards. Reflinks share disk, not memory: the changed file's pages are the container's own.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from pagepool_service.bench.charging import brought_in
from pagepool_service.bench.layouts import blobs_of, complete_layout
from pagepool_service.bench.mountcache import read_files
from pagepool_service.bench.mountrows import MB, row
from pagepool_service.bench.servers import PAGEPOOL
from pagepool_service.bench.subjects import drop_caches
from pagepool_service.bench.usage import disk_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.bench.lab import Bench, Lab
    from pagepool_service.bench.mountrows import Row

PHASE: Final = "write"
_NAME: Final = "large"
_PIECE: Final = 1 << 20
_BLOCK: Final = 4096


class _Write(NamedTuple):
    seconds: float
    disk: float
    cached: float


def measure_write(lab: Lab) -> Iterator[Row]:
    """Measure on an image with one file of noise."""
    figures: dict[str, _Write] = {}
    with tempfile.TemporaryDirectory(prefix="ppb-large-", dir=lab.directory) as name:
        layout = Path(name) / _NAME
        write_large_layout(layout, lab.big_size)
        for kind in lab.kinds:
            options = ("--pool-image", str(10 * lab.big_size + (1 << 30))) if kind == PAGEPOOL else ()
            with lab.bench(kind, [layout], options=options) as bench:
                figures[kind] = _measure(lab, bench)
    size = f"{lab.big_size >> 20} MiB"
    for at, label, unit in (
        (0, f"4 KiB written into {size}, synced, ms", 1e-3),
        (1, f"disk that takes ({size}), MB", MB),
        (2, f"page cache of reading the {size} after, MB", MB),
    ):
        yield row(PHASE, label, {kind: found[at] for kind, found in figures.items()}, "ratio", unit=unit)


def _measure(lab: Lab, bench: Bench) -> _Write:
    bench.subject.fill(_NAME)
    drop_caches()
    with lab.mounted(bench, _NAME) as (point,):
        before = _used(bench)
        begun = time.monotonic()
        descriptor = os.open(point / _NAME, os.O_RDWR)
        try:
            os.pwrite(descriptor, b"w" * _BLOCK, lab.big_size // 2)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        took = time.monotonic() - begun
        disk = _used(bench) - before
        drop_caches()
        found = _Write(took, disk, float(brought_in(partial(read_files, point, [os.fsencode(_NAME)]))))
    lab.say(f"{bench.subject.name}: written in {took * 1000:.0f} ms, {disk / MB:.1f} MB on disk")
    return found


def _used(bench: Bench) -> float:
    """Bytes that are used where containers' changes are kept: of a file system of its own, or of the directory."""
    os.sync()
    place = bench.subject.stored()
    if place.is_mount():
        status = os.statvfs(place)
        return float((status.f_blocks - status.f_bfree) * status.f_frsize)
    return float(disk_bytes(place))


def write_large_layout(layout: Path, size: int) -> None:
    """Write an OCI layout of an image with one file of noise, not compressed.

    Args:
        layout: its directory; made here.
        size: of the file, a multiple of 1 MiB.
    """
    blobs = blobs_of(layout)
    blobs.mkdir(parents=True)
    passing = blobs / "layer"
    hasher = hashlib.sha256()
    with passing.open("wb") as file:
        member = tarfile.TarInfo(_NAME)
        member.size, member.mode = size, 0o644
        _add(file, hasher, member.tobuf())
        for _ in range(size // _PIECE):
            _add(file, hasher, os.urandom(_PIECE))
        _add(file, hasher, bytes(2 * tarfile.BLOCKSIZE))
    layer = hasher.hexdigest()
    passing.rename(blobs / layer)
    complete_layout(layout, layer)


def _add(file: BinaryIO, hasher: hashlib._Hash, data: bytes) -> None:
    hasher.update(data)
    file.write(data)
