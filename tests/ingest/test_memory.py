"""Ingest takes a bounded amount of memory, whatever a layer holds or claims.

Each case runs in a process of its own, which looks at its anonymous memory all the time: pages of the database that are
mapped are the page cache's. The stream of real size has 1 GiB by default, 4 GiB with PAGEPOOL_LARGE=1.
"""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from isal import igzip

from pagepool_service.allocator import keep_large_blocks
from pagepool_service.store.schema import LayerState
from pagepool_service.store.store import Store
from tests.faults import in_child, watched_memory
from tests.ingest.sparse import sparse_member
from tests.store.helpers import ingest_all, push_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = bool(os.environ.get("PAGEPOOL_LARGE"))
STREAM = (4 if LARGE else 1) << 30
MOST_MEMORY = 192 << 20  # of the whole process, Python and its modules included


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def large_files() -> Iterator[bytes]:
    """Files of all sizes, one of them half of the stream; compressible about as programs are, every extent new."""
    randomness = random.Random(7)
    noise = randomness.randbytes(1 << 20)
    filler = b"some words that compress well, " * 5000
    sizes = [STREAM // 2]
    while sum(sizes) < STREAM:
        sizes.append(randomness.choice((5000, 60_000, 400_000, 9_000_000, 40_000_000)))
    for number, size in enumerate(sizes):
        yield _header(f"file/{number}", size)
        left = size
        while left:
            start = randomness.randrange(len(noise) - 30_000)
            piece = (noise[start : start + 30_000] + filler)[: min(left, 131_072)]
            left -= len(piece)
            yield piece
        yield bytes(-size % 512)
    yield bytes(1024)


def many_members() -> Iterator[bytes]:
    """Members without data."""
    for number in range(150_000):
        yield _header(f"dir-{number % 100}/{number}", 0)
    yield bytes(1024)


def trailing_zeros() -> Iterator[bytes]:
    """A tar, and 400 MB of zeros behind it: within the ratio that makes a bomb."""
    yield _header("file", 512) + bytes(512 + 1024)
    randomness = random.Random(8)
    for _ in range(400):
        yield bytes(1_000_000)
        yield randomness.randbytes(10_000)


def trailing_garbage() -> Iterator[bytes]:
    """A tar, and garbage behind it."""
    yield _header("file", 512) + bytes(512 + 1024)
    randomness = random.Random(8)
    for _ in range(100):
        yield randomness.randbytes(1 << 20)


def holes() -> Iterator[bytes]:
    """Files that are nearly all hole, of 24 GiB together."""
    for number in range(6):
        yield sparse_member(f"hole-{number}", 4 << 30, [(1 << 20, b"x"), ((4 << 30) - 1, b"y")])
    yield bytes(1024)


def islands() -> Iterator[bytes]:
    """A few kilobytes of data that touch 4 GiB of distinct extents, all of it in one chunk of the stream."""
    pieces = [(number * 131_072 + number % 100_000, b"%06d" % number) for number in range(32_000)]
    yield sparse_member("islands", 32_000 * 131_072, pieces)
    yield bytes(1024)


def bomb() -> Iterator[bytes]:
    """20 GiB of zeros, of which nobody should inflate more than the limit of the ratio."""
    yield _header("zeros", 20 << 30)
    for _ in range(20 << 10):
        yield bytes(1 << 20)


def _ingest(data: Path, blob: Path) -> tuple[int, str, str, int]:
    """In a child: ingest a file as a blob, as the maintenance process does. Returns its peak memory and the result."""
    keep_large_blocks()
    with watched_memory() as memory, Store.open(data) as store:
        digest = push_file(store, blob)
        ingest_all(store)
        record = store.blobs.stat(digest)
        size = 0
        for piece in store.blobs.read(digest):
            size += len(piece)
        assert size == record.size
    return memory.peak, record.state.name, record.reason, record.size


CASES: dict[str, tuple[Callable[[], Iterator[bytes]], LayerState]] = {
    "large files": (large_files, LayerState.READY),
    "many members": (many_members, LayerState.READY),
    "trailing zeros": (trailing_zeros, LayerState.READY),
    "trailing garbage": (trailing_garbage, LayerState.READY),
    "holes": (holes, LayerState.READY),
    "islands": (islands, LayerState.READY),
    "bomb": (bomb, LayerState.UNMOUNTABLE),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    make, expected = CASES[name]
    blob = tmp_path / "blob"
    with igzip.open(blob, "wb", compresslevel=1) as file:  # type: ignore[no-untyped-call]
        for piece in make():
            file.write(piece)
    outcome = in_child(_ingest, tmp_path / "data", blob, timeout_s=500)
    assert outcome.error == ""
    assert outcome.signal is None
    peak, state, reason, size = outcome.value
    print(f"{name}: {size} bytes, peak {peak >> 20} MiB, {state} {reason}")
    assert (state, "bomb" in reason) == (expected.name, name == "bomb")
    assert peak < MOST_MEMORY, f"{peak >> 20} MiB"
