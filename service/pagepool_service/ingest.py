"""Read a layer: one streaming pass from the blob's bytes to extents, frames and a recipe, verified before it
counts.

A pipeline of threads, each mostly inside code that releases the GIL:

    inflate, tag -> split, BLAKE3, look up -> zstd (pool) -> LMDB batch -> rebuild, tag, SHA-256

The splitting thread owns all decisions. It gathers new extents into frames, and frames, objects and recipe
chunks into a batch; a batch is committed as one transaction, so a recipe chunk is never visible before the
extents it names. The verifier (`verifying`) reads each committed chunk back and rebuilds the tar from what is stored,
in a process of its own where the service runs.
A layer is ready when what was rebuilt is what came in: tags of both are compared (`streamtag`), at a tenth of what
SHA-256 costs, and the diff_id is the SHA-256 of what was *rebuilt*.

Each maintenance process ingests one layer at a time. Two may meet the same new extent: whoever commits second
leaves it out. What a crash leaves (chunks of an unfinished recipe, extents nobody refers to) is removed by the next
attempt and by collection.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool.errors import CorruptError, LayerInvalidError
from pagepool.extents import EXTENT_SIZE, FRAME_SIZE, Role, check_extent, encode_frame
from pagepool.image import LayerSplitter, RecipeWriter
from pagepool_service.committing import Batch, Committer, discard_recipe, drain
from pagepool_service.cutting import ObjectBuilder
from pagepool_service.store.checks.recipes import references
from pagepool_service.store.environment import Table
from pagepool_service.store.rebuild import read_chunk
from pagepool_service.store.schema import LayerRecord, ObjectRecord, recipe_key
from pagepool_service.streamtag import StreamTag, make_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from pagepool.digest import Digest
    from pagepool.image import Limits, Member
    from pagepool_service.store.environment import Reader
    from pagepool_service.store.schema import Job
    from pagepool_service.store.store import Store
    from pagepool_service.verifying import Verifier

ZSTD_THREADS = 2
_RECIPE_LEVEL = 3  # 4 % more bytes of recipe than level 9, in a third of its time
_CHUNKS_AHEAD = 2  # of 2 MiB, inflated and not yet split
_FRAMES_AHEAD = 8  # of 256 KiB, split and not yet compressed
_FRAME_EXTENTS = 2048  # most extents of a frame: its head and index stay small next to its data
_HELD_MOST = 4 << 20  # bytes of a file that is cut into extents only if it turns out to be new
_TRIM_EVERY = 2  # looks into the index, of some 50 extents each
_SEEN_MOST = 64  # extents of 128 KiB that are not looked up yet
_BATCH_NEW = 12 << 20  # new plain bytes after which a batch is closed ...
_BATCH_STREAM = 16 << 20  # ... or bytes of the stream


@dataclass(frozen=True, slots=True)
class Ingested:
    """A layer that was read: its diff_id and record."""

    diff_id: Digest
    layer: LayerRecord


class LayerIngest:
    """One attempt to read one layer. Use once: `run`.

    Args:
        store: where to.
        job: the job it is done for, as it was begun.
        limits: of what the tar may claim.
        verifier: rebuilds it from what was stored.
    """

    def __init__(self, store: Store, job: Job, limits: Limits, verifier: Verifier) -> None:
        self._store = store
        self._limits = limits
        self._verifier = verifier
        self._stop = threading.Event()
        with store.env.write() as txn:
            if job.recipe:  # of an attempt that ended with its process
                discard_recipe(txn, job.recipe)
            self.recipe = store.jobs.begin_recipe(txn, job).recipe

    def run(self, plain: Iterator[bytes]) -> Ingested:
        """Read the layer.

        Args:
            plain: its plain bytes, in chunks.

        Raises:
            LayerInvalidError: it is not a layer that could be mounted; nothing refers to what was stored of
                it.
            CorruptError: what it shares with the store is damaged there.
            StoreFullError: as it says. `discard` removes what is left.
        """
        chunks: queue.Queue[bytes | None] = queue.Queue(_CHUNKS_AHEAD)
        with ThreadPoolExecutor(3 + ZSTD_THREADS, thread_name_prefix="ingest") as pool:
            key = make_key()
            committer = Committer(
                self._store, self.recipe, partial(self._verifier.rebuild, self.recipe, key), self._stop, pool
            )
            try:
                tagging = pool.submit(self._inflate, plain, StreamTag(key), chunks)
                splitting = Splitting(self._store, committer, pool, self._limits)
                with splitting:
                    while (chunk := chunks.get()) is not None:
                        splitting.feed(chunk)
                    came_in = tagging.result()
                    splitting.close()
                rebuilt = committer.finish()
            except BaseException:
                self._stop.set()
                committer.abandon()
                drain(chunks)
                raise
        if rebuilt.tag != came_in:
            self._check_extents(committer.plain_size)
            raise CorruptError(
                "layer", str(rebuilt.diff_id), "what was stored rebuilds to this, and something else came in"
            )
        record = LayerRecord(self.recipe, committer.plain_size, splitting.members, splitting.file_bytes)
        return Ingested(rebuilt.diff_id, record)

    def discard(self) -> None:
        """Remove the recipe's chunks, after a failed attempt."""
        with self._store.env.write() as txn:
            discard_recipe(txn, self.recipe)

    def _check_extents(self, plain_size: int) -> None:
        """Look for what was rebuilt wrong among the extents that are stored, each of which is in a sound record.

        One with other bytes than its name says, as a bit of memory makes it while it is written, would be found stored
        by every layer that brings it, and none could ever be read.

        Raises:
            CorruptError: an extent is wrong; names it, so that it can be stored anew.
        """
        env, extents, position = self._store.env, self._store.extents, 0
        while position < plain_size:
            ops = read_chunk(env, recipe_key(self.recipe, position))
            position += sum(op.size for op in ops)
            names, large = references(ops)
            with env.read() as txn:
                for digest in large:
                    names |= {name for _, name in extents.object_by_name(txn, digest).runs}
                for name in names:
                    frame = extents.frame_of(txn, name)
                    start, size = frame.index[name]
                    check_extent(name, frame.view[start : start + size], f"frame {frame.number}")

    def _inflate(self, plain: Iterator[bytes], tag: StreamTag, chunks: queue.Queue[bytes | None]) -> bytes:
        """Thread: inflate. Always ends the queue with None. Returns the tag of the tar."""
        try:
            for chunk in plain:
                tag.update(chunk)
                chunks.put(chunk)
                if self._stop.is_set():
                    break
        finally:
            chunks.put(None)
        return tag.tag()


class Splitting:
    """The splitting thread's state: sink of the splitter, maker of extents, frames, objects and recipe."""

    def __init__(self, store: Store, committer: Committer, pool: ThreadPoolExecutor, limits: Limits) -> None:
        self._committer = committer
        self._pool = pool
        self._lookup = Lookup(store)
        self._recipe = RecipeWriter(level=_RECIPE_LEVEL)
        self._splitter = LayerSplitter(self, limits, on_file=self.file, small=EXTENT_SIZE)
        self._slots = threading.Semaphore(_FRAMES_AHEAD)
        self._batch = Batch()
        self._seen: list[tuple[bytes, bytes | memoryview]] = []
        self._frame: list[tuple[bytes, bytes]] = []
        self._frame_size = 0
        self._object = ObjectBuilder(self)
        self._member: Member
        self._digest = b""
        self._whole = False
        self._hold = False
        self._held: list[memoryview] = []
        self._hash = blake3()
        self.members = 0
        self.file_bytes = 0

    def __enter__(self) -> Splitting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lookup.close(kind, error, trace)

    def feed(self, chunk: bytes) -> None:
        """Split a chunk of the tar.

        Raises:
            LayerInvalidError: the splitter met something that cannot be mounted.
        """
        self._splitter.feed(chunk)
        self._check()
        self._sift()
        self._batch.stream_bytes += len(chunk)
        if self._batch.new_bytes >= _BATCH_NEW or self._batch.stream_bytes >= _BATCH_STREAM:
            self._close_batch()

    def close(self) -> None:
        """The tar has ended."""
        self._splitter.close()
        self._check()
        self.members = self._splitter.members
        self._sift()
        self._recipe.finish()
        self._close_batch()

    def _check(self) -> None:
        if self._splitter.problem:
            raise LayerInvalidError("tar", self._splitter.problem)

    def _close_batch(self) -> None:
        self._close_frame()
        while (encoded := self._recipe.take_chunk()) is not None:
            self._batch.chunks.append(encoded)
        self._lookup.batch_closed(self._batch.fresh)
        self._committer.put(self._batch)
        self._batch = Batch()
        self._lookup.renew(self._committer.committed)

    # -- the splitter's sink ---------------------------------------------------------------------------------

    def literal(self, data: memoryview) -> None:
        """Bytes of the tar that are no file's."""
        self._recipe.append_literal(data)

    def file(self, literal: memoryview, data: memoryview) -> None:
        """An ordinary file of one extent, and the bytes before it: most files of most layers."""
        digest = blake3(data).digest()
        if digest not in self._batch.fresh:
            self._seen.append((digest, data))
        size = len(data)
        self.file_bytes += size
        self._recipe.append_file(literal, digest, size)

    def begin(self, member: Member) -> None:
        """A regular file's data begins."""
        self._member = member
        self._digest = b""
        size = member.size
        self._whole = size <= EXTENT_SIZE and member.segments is None
        if not self._whole:
            self._hold = size <= _HELD_MOST and member.segments is None
            if self._hold:
                self._hash = blake3()
            else:
                self._object.begin(member)

    def data(self, view: memoryview) -> None:
        """The next bytes of it."""
        if self._whole:
            if len(view) == self._member.size:  # most files: small, and in one piece
                digest = self._digest = blake3(view).digest()
                if digest not in self._batch.fresh:
                    self._seen.append((digest, view))
                return
            self._whole = self._hold = False
            self._object.begin(self._member)
        if self._hold:
            self._hash.update(view)
            self._held.append(view)
        else:
            self._object.data(view)

    def end(self) -> None:
        """It is complete: name it in the recipe."""
        member = self._member
        self.file_bytes += member.size
        if self._digest:
            self._recipe.append_object(self._digest, member.size)
        elif self._hold:
            self._end_held(member)
        elif not self._whole:
            self._end_object(member)

    def _end_held(self, member: Member) -> None:
        """Cut a file that was held, unless it is stored: then the names of its extents need not be computed."""
        self._hold = False
        digest = self._hash.digest()
        if sum(map(len, self._held)) == member.size and self._lookup.has_object(digest, member.size):
            self._recipe.append_object(digest, member.size)
        else:
            self._object.begin(member, digest)
            for view in self._held:
                self._object.data(view)
            self._end_object(member)
        self._held.clear()

    def _end_object(self, member: Member) -> None:
        digest, size, extents = self._object.end()
        if size > EXTENT_SIZE:
            self._batch.objects.append((digest, size, extents))
        if member.segments is None:
            self._recipe.append_object(digest, size)
            return
        for offset, length in member.segments or ((0, 0),):
            self._recipe.append_slice(digest, offset, length)

    # -- extents ---------------------------------------------------------------------------------------------

    def extent(self, digest: bytes, data: bytes | memoryview) -> None:
        """Store an extent unless it is known. `data` must stay valid until `_sift`."""
        if digest not in self._batch.fresh:
            self._seen.append((digest, data))
            # A sparse map makes any number of extents out of one chunk of the stream, and each is a copy.
            if len(self._seen) >= _SEEN_MOST:
                self._sift()

    def _sift(self) -> None:
        """Put those of the extents seen that are not stored yet into frames.

        Looked up together: each call into LMDB gives up the GIL, and getting it back from four busy threads takes
        longer than the look-up.
        """
        known = self._lookup.known([digest for digest, _ in self._seen])
        fresh = self._batch.fresh
        for digest, data in self._seen:
            if digest in known or digest in fresh:
                continue
            fresh.add(digest)
            self._frame.append((digest, bytes(data)))
            self._frame_size += len(data)
            self._batch.new_bytes += len(data)
            if self._frame_size >= FRAME_SIZE or len(self._frame) >= _FRAME_EXTENTS:
                self._close_frame()
        self._seen.clear()

    def _close_frame(self) -> None:
        if self._frame:
            self._slots.acquire()
            encoding = self._pool.submit(encode_frame, self._frame, Role.FILES)
            encoding.add_done_callback(lambda _: self._slots.release())
            self._batch.frames.append(encoding)
            self._frame = []
            self._frame_size = 0


class Lookup:
    """Whether an extent is stored, or on its way in a batch that is not committed yet.

    Holds a read transaction for the length of a batch, never longer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: deque[set[bytes]] = deque()
        self._looked = 0
        self._closed = 0
        self._open()

    def known(self, digests: list[bytes]) -> set[bytes]:
        """Which of them to store again would be once too often."""
        found = self._txn.present(Table.EXTENTS, digests)
        self._looked += 1
        if self._looked % _TRIM_EVERY == 0:
            self._store.env.trim()
        return found.union(*(fresh.intersection(digests) for fresh in self._under_way))

    def has_object(self, digest: bytes, size: int) -> bool:
        """Whether a file of more than one extent is stored, with all its extents."""
        try:
            payload = self._txn.get(Table.OBJECTS, digest)
            record = None if payload is None else ObjectRecord.decode(payload, digest.hex())
        except CorruptError:  # it is written anew
            return False
        if record is None or record.size != size:
            return False
        names = {name for _, name in record.runs}
        return len(self._txn.present(Table.EXTENTS, list(names))) == len(names)

    def batch_closed(self, fresh: set[bytes]) -> None:
        """A batch is on its way."""
        self._under_way.append(fresh)
        self._closed += 1

    def renew(self, committed: int) -> None:
        """Look from a newer snapshot, in which the first `committed` batches are."""
        self.close()
        self._open()
        while len(self._under_way) > self._closed - committed:
            self._under_way.popleft()

    def close(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """End the read transaction. Told of the error that ends it, the transaction says it in our words."""
        self._context.__exit__(kind, error, trace)

    def _open(self) -> None:
        self._context = self._store.env.read()
        self._txn: Reader = self._context.__enter__()
