"""A plain prototype of ingest, to hold the real one against: what any program that stores layers once has to do.

Inflate (isal), SHA-256 of the tar, split it at its headers, BLAKE3 of extents of 128 KiB, look each up, and what is new
into frames of 128 KiB, compressed by zstd at level 3 in two threads, into LMDB, a transaction for each 32 MiB.

In one process with a thread for each of these. What it leaves out is what ours has beyond that: no recipe, so no tar
can be had back; nothing is rebuilt and compared; records have no checksums; headers are read and not checked; what a
crash leaves is nothing that anybody could go on from. Its transactions are synchronous as ours are, and the process is
set up as ours are, so that it is no slower than it has to be.

For measuring only. It understands what the images of `tests/support/images.py` have, and no sparse files.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import struct
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import TYPE_CHECKING, Final

import lmdb
import zstandard
from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.bench.ingest import IngestTime
from pagepool_service.inflate import InflateLimits, inflate
from pagepool_service.maintaining import tune

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from pagepool_service.bench.images import SourceImage

_FRAME_SIZE: Final = 128 << 10
_LEVEL: Final = 3
_BATCH_SIZE: Final = 32 << 20
_COMPRESSORS: Final = 2
_FRAMES_AHEAD: Final = 256
_CHUNKS_AHEAD: Final = 4
_READ_SIZE: Final = 1 << 20
_MAP_SIZE: Final = 64 << 30
_BLOCK: Final = 512
_LOCATION: Final = struct.Struct(">QII")
_WITHOUT_DATA: Final = b"123456"  # links, devices, directories, FIFOs
Extent = tuple[bytes, memoryview]
_Compressed = tuple[int, list[Extent], bytes]


def measure_prototype(images: Sequence[SourceImage], directory: Path) -> list[IngestTime]:
    """Read images one after the other; each finds what those before it have stored. In a process of its own. Blocks.

    Args:
        directory: does not exist yet; removed again.
    """
    directory.mkdir()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(images, directory, sender), daemon=True)
    try:
        process.start()
        sender.close()  # or nobody would notice that the process has ended
        times: list[IngestTime] = receiver.recv()
    except EOFError:
        raise CorruptError("image", images[0].name, "the prototype that read it has ended") from None
    finally:
        process.join()
        shutil.rmtree(directory, ignore_errors=True)
    return times


def _work(images: Sequence[SourceImage], directory: Path, end: Connection) -> None:
    tune()
    with Prototype(directory) as prototype:
        end.send([prototype.read(image) for image in images])


class Prototype:
    """A store that can be written to, and to nothing else. One thread."""

    def __init__(self, directory: Path) -> None:
        self._env = lmdb.open(str(directory), map_size=_MAP_SIZE, max_dbs=2, readahead=False, meminit=False)
        self._extents = self._env.open_db(b"extents")
        self._frames = self._env.open_db(b"frames")
        self._known: set[bytes] = set()
        self._local = threading.local()
        self._number = 0

    def __enter__(self) -> Prototype:
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def read(self, image: SourceImage) -> IngestTime:
        """Store what is new of an image's layers."""
        begun = time.monotonic()
        size = sum(self._read_layer(layer.path) for layer in image.layers)
        return IngestTime(image.name, size, time.monotonic() - begun)

    def _read_layer(self, path: Path) -> int:
        plain: Queue[bytes | None] = Queue(_CHUNKS_AHEAD)
        hashed: Queue[bytes | None] = Queue(_CHUNKS_AHEAD)
        frames: Queue[Future[_Compressed] | None] = Queue(_FRAMES_AHEAD)
        sizes: list[int] = []
        with ThreadPoolExecutor(_COMPRESSORS) as compressors, ThreadPoolExecutor(3) as helpers:
            tasks = [
                helpers.submit(_inflate, path, plain, hashed),
                helpers.submit(_hash, hashed, sizes),
                helpers.submit(self._write, frames),
            ]
            chunks = iter(plain.get, None)
            try:
                for frame in self._new_frames(_cut(chunks)):
                    self._number += 1
                    frames.put(compressors.submit(self._compress, self._number, frame))
            finally:
                frames.put(None)
                for _ in chunks:  # whatever went wrong: who fills the queue must come to its end
                    pass
            for task in tasks:
                task.result()
        return sizes[0]

    def _new_frames(self, extents: Iterable[memoryview]) -> Iterator[list[Extent]]:
        """What is not known yet, by the frame."""
        frame: list[Extent] = []
        size = 0
        for extent in extents:
            digest = blake3(extent).digest()
            if digest in self._known:
                continue
            self._known.add(digest)
            if frame and size + len(extent) > _FRAME_SIZE:
                yield frame
                frame, size = [], 0
            frame.append((digest, extent))
            size += len(extent)
        if frame:
            yield frame

    def _compress(self, number: int, frame: list[Extent]) -> _Compressed:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        data = frame[0][1] if len(frame) == 1 else b"".join(extent for _, extent in frame)
        compressed: bytes = self._local.compressor.compress(data)
        return number, frame, compressed

    def _write(self, frames: Queue[Future[_Compressed] | None]) -> None:
        batch: list[_Compressed] = []
        size = 0
        waiting = iter(frames.get, None)
        try:
            for task in waiting:
                batch.append(task.result())
                size += sum(len(extent) for _, extent in batch[-1][1])
                if size >= _BATCH_SIZE:
                    self._commit(batch)
                    batch, size = [], 0
            self._commit(batch)
        finally:
            for _ in waiting:  # a full disk, say
                pass

    def _commit(self, batch: list[_Compressed]) -> None:
        if not batch:
            return
        index: list[tuple[bytes, bytes]] = []
        with self._env.begin(write=True) as txn:
            for number, frame, data in batch:
                txn.put(number.to_bytes(8, "big"), data, db=self._frames, append=True)
                offset = 0
                for digest, extent in frame:
                    index.append((digest, _LOCATION.pack(number, offset, len(extent))))
                    offset += len(extent)
            with txn.cursor(self._extents) as cursor:
                cursor.putmulti(sorted(index))


def _inflate(path: Path, *out: Queue[bytes | None]) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            _, chunks = inflate(iter(lambda: file.read(_READ_SIZE), b""), InflateLimits())
            for chunk in chunks:
                for queue in out:
                    queue.put(chunk)
    finally:
        for queue in out:
            queue.put(None)


def _hash(chunks: Queue[bytes | None], sizes: list[int]) -> None:
    digest, size = hashlib.sha256(), 0
    while (chunk := chunks.get()) is not None:
        digest.update(chunk)
        size += len(chunk)
    digest.digest()
    sizes.append(size)


class _Tape:
    """Bytes off chunks, in order."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, size: int) -> memoryview:
        """The next bytes; fewer at the end. A view, where they lie in one chunk."""
        found, self._rest = self._rest[:size], self._rest[size:]
        if len(found) == size:
            return found
        parts = [found]
        missing = size - len(found)
        while missing and (chunk := next(self._chunks, None)) is not None:
            parts.append(memoryview(chunk)[:missing])
            self._rest = memoryview(chunk)[missing:]
            missing -= len(parts[-1])
        return memoryview(b"".join(parts))

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        while size and (passed := len(self.take(min(size, _READ_SIZE)))):
            size -= passed


def _cut(chunks: Iterator[bytes]) -> Iterator[memoryview]:
    """The extents of all regular files of a tar."""
    tape = _Tape(chunks)
    nothing = bytes(_BLOCK)
    while len(head := tape.take(_BLOCK)) == _BLOCK:
        if head == nothing:
            continue
        kind = bytes(head[156:157])
        size = 0 if kind in _WITHOUT_DATA else _number(bytes(head[124:136]))
        if kind in (b"0", b"\0"):
            for start in range(0, size, EXTENT_SIZE):
                yield tape.take(min(EXTENT_SIZE, size - start))
            tape.skip(-size % _BLOCK)
        else:
            tape.skip(size + -size % _BLOCK)


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    return int(field.split(b"\0", 1)[0] or b"0", 8)
