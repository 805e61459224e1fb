"""Blobs: admitted whole, read back from wherever their bytes are, bit for bit.

Owns the tables `blobs` and the spool directory. A blob comes in as a verified file: up to one extent it goes
straight into a frame, a larger one is renamed into the spool and settled later. Write order: file synced,
renamed, directory synced, then one transaction with the object's extent list, the blob record, and the job
that reads it as a layer. A crash before the transaction leaves a spool file without a record, which
`sweep_spool` removes at the next start.

Every read checks BLAKE3 of each extent (or the checksum of its frame) before a byte is returned.

What an encoder makes again is kept for the next reader in `rebuilt`, beside the spool.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from pagepool.digest import Digest, new_hasher
from pagepool.errors import (
    BlobUnknownError,
    BusyError,
    CorruptError,
    InvalidError,
    PagepoolError,
    RangeInvalidError,
)
from pagepool.extents import EXTENT_SIZE, Role, check_extent, encode_frame
from pagepool.linux import sync_directory
from pagepool_service.encoders import decode, remake
from pagepool_service.store.cycle import NoteKind, note
from pagepool_service.store.disk import UnsyncedError, refused
from pagepool_service.store.environment import Table
from pagepool_service.store.rebuild import rebuild
from pagepool_service.store.rebuilt import RebuiltBlob, RebuiltCache
from pagepool_service.store.schema import BlobRecord, ContentKind, JobKind, LayerRecord, LayerState, ObjectRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool.extents import Frame
    from pagepool_service.store.environment import Environment, Reader, Writer
    from pagepool_service.store.extents import ExtentStore
    from pagepool_service.store.jobs import JobQueue
    from pagepool_service.store.sums import Sums

log = logging.getLogger("pagepool.store")

BATCH_SIZE = 1 << 20  # bytes read in one transaction


class SpoolFailedError(BusyError):
    """The disk does not read a file of the spool now; it may another time."""


class BlobStore:
    """Blobs by digest, whatever repository they were pushed to.

    Args:
        spool: directory of blobs not settled yet; on the file system of the uploads.
    """

    def __init__(self, env: Environment, extents: ExtentStore, jobs: JobQueue, spool: Path) -> None:
        self._env = env
        self._extents = extents
        self._jobs = jobs
        self._spool = spool
        self.rebuilt = RebuiltCache(spool.with_name("rebuilt"))
        self.on_job: Callable[[], None] | None = None

    # -- admitting -------------------------------------------------------------------------------------------

    def admit(self, source: Path, sums: Sums, also: Callable[[Writer], None]) -> None:
        """Take a verified file in as a blob. On return it is durable and `source` is gone.

        Idempotent: a blob that is there already, and can be read, stays as it is; one that cannot is written anew.
        On an error `source` is left, and nothing else.

        Args:
            source: the file; its bytes are those `sums` was computed over.
            also: runs in the same transaction (the link to the repository).

        Raises:
            UnsyncedError: nothing was kept, and the bytes of `source` may be lost.
            StoreFullError, ReadOnlyError: nothing was kept.
        """
        if sums.size <= EXTENT_SIZE:
            self.admit_bytes(source.read_bytes(), sums, also)
            source.unlink(missing_ok=True)
            return
        sound = self.is_sound(sums.digest)
        if not sound:
            _sync_file(source)
        try:
            with self._env.write(reserve=len(sums.extents) * 36 + 4096) as txn:
                if not (sound and txn.has(Table.BLOBS, sums.digest.key)):
                    if sound:  # removed since
                        _sync_file(source)
                    # Renamed under the writer lock, as `forget_file` unlinks under it: a blob that is removed and
                    # pushed again at the same time cannot lose its new file.
                    self._into_spool(source, sums.digest)
                    self._extents.put_object(txn, sums.object, sums.size, sums.extents)
                    self._add_record(txn, sums, ContentKind.SPOOL)
                also(txn)
        except BaseException:
            self._out_of_spool(source, sums.digest)
            raise
        source.unlink(missing_ok=True)
        self._wake()

    def admit_bytes(self, data: bytes, sums: Sums, also: Callable[[Writer], None]) -> None:
        """Take a blob of at most one extent in; see `admit`."""
        if data:
            check_extent(sums.object, data, "what was uploaded")
        frame = encode_frame([(sums.object, data)], Role.OPAQUE) if data else None
        sound = self.is_sound(sums.digest)
        with self._env.write(reserve=len(data) + 4096) as txn:
            if not (sound and txn.has(Table.BLOBS, sums.digest.key)):
                if frame:
                    self._extents.forget_unsound(txn, [sums.object])
                    self._extents.put_frames(txn, [frame])
                self._add_record(txn, sums, ContentKind.OBJECT)
            also(txn)
        self._wake()

    def is_sound(self, digest: Digest) -> bool:
        """Whether the blob is stored and can be read, all of it: a push that brings it again can mend it."""
        try:
            record = self.stat(digest)
            if record.content is ContentKind.RECIPE and record.encoder:
                return decode(record.encoder, str(digest)).is_here() and self._has_layer(record)
            for _ in self.read(digest):
                pass
        except (BlobUnknownError, CorruptError, SpoolFailedError):
            return False
        return True

    def _has_layer(self, record: BlobRecord) -> bool:
        """Whether the tar that a blob is rebuilt from is what it was: its encoder, which takes long, is not run."""
        with self._env.read() as txn:
            layer = self.layer(txn, record)
        if layer is None or record.diff_id is None:
            return False
        hasher = new_hasher(record.diff_id.algorithm)
        for piece in rebuild(self._env, self._extents, layer.recipe, 0, layer.plain_size):
            hasher.update(piece)
        return hasher.digest() == record.diff_id.raw

    def _into_spool(self, source: Path, digest: Digest) -> None:
        target = self.spool_path(digest)
        try:
            source.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            raise refused(error, f"cannot keep {digest}") from error

    def _out_of_spool(self, source: Path, digest: Digest) -> None:
        """Undo `_into_spool` after its transaction failed, so that the upload can be finished later."""
        if source.exists():
            return
        # Under the writer lock: another process may have admitted the same blob meanwhile, and the file is its.
        with contextlib.suppress(PagepoolError, OSError), self._env.write() as txn:
            if not txn.has(Table.BLOBS, digest.key):
                self.spool_path(digest).rename(source)

    def _add_record(self, txn: Writer, sums: Sums, content: ContentKind) -> None:
        record = BlobRecord(content, LayerState.PENDING, sums.size, time.time_ns(), sums.object)
        txn.put(Table.BLOBS, sums.digest.key, record.encode())
        note(txn, NoteKind.BLOB, (sums.digest.key,))
        self._jobs.add(txn, JobKind.INGEST, sums.digest, record.created_ns)

    def _wake(self) -> None:
        if self.on_job:
            self.on_job()

    # -- records ---------------------------------------------------------------------------------------------

    def exists(self, digest: Digest) -> bool:
        """Whether the blob is stored at all."""
        with self._env.read() as txn:
            return txn.has(Table.BLOBS, digest.key)

    def record(self, txn: Reader, digest: Digest) -> BlobRecord:
        """The blob's record.

        Raises:
            BlobUnknownError: there is none.
        """
        payload = txn.get(Table.BLOBS, digest.key)
        if payload is None:
            raise BlobUnknownError(digest)
        return BlobRecord.decode(payload, str(digest))

    def stat(self, digest: Digest) -> BlobRecord:
        """`record`, in a transaction of its own."""
        with self._env.read() as txn:
            return self.record(txn, digest)

    def layer(self, txn: Reader, record: BlobRecord) -> LayerRecord | None:
        """The layer that a blob was understood as, or None."""
        return None if record.diff_id is None else self.find_layer(txn, record.diff_id)

    def find_layer(self, txn: Reader, diff_id: Digest) -> LayerRecord | None:
        """The layer of a diff_id, or None. It does not go with the blob that it was read from."""
        payload = txn.get(Table.LAYERS, diff_id.key)
        return None if payload is None else LayerRecord.decode(payload)

    def update(self, txn: Writer, digest: Digest, record: BlobRecord) -> None:
        """Replace a blob's record."""
        txn.put(Table.BLOBS, digest.key, record.encode())
        note(txn, NoteKind.BLOB, (digest.key,))

    def remove(self, txn: Writer, digest: Digest) -> None:
        """Remove the record: the blob is unknown from then on. Its extents are left to collection.

        The caller has made sure that no repository links to it, and calls `forget_file` after the
        transaction.
        """
        txn.delete(Table.BLOBS, digest.key)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, digest: Digest, start: int = 0, end: int | None = None, *, wait: bool = True) -> Iterator[bytes]:
        """The blob's bytes `[start, end)` in pieces of at most about 1 MiB. No transaction is held between pieces.

        Args:
            wait: block until an encoder has made more; False to be given empty pieces meanwhile.

        Raises:
            BlobUnknownError: no such blob.
            RangeInvalidError: the range is not within it.
            CorruptError: stored bytes are wrong; what was yielded before was right.
            SpoolFailedError: they cannot be read now.
            EncoderMissingError: what makes them again is not here.
        """
        record = self.stat(digest)
        end = record.size if end is None else end
        if not 0 <= start <= end <= record.size:
            raise RangeInvalidError(f"{start}-{end}", f"the blob has {record.size} bytes")
        return self._pieces(digest, record, start, end, wait=wait)

    def _pieces(self, digest: Digest, record: BlobRecord, start: int, end: int, *, wait: bool) -> Iterator[bytes]:
        if record.content is ContentKind.RECIPE:
            yield from self._rebuilt(digest, record, start, end, wait=wait)
            return
        with self._env.read() as txn:
            extents = self._extents.object_record(txn, record.object, record.size)
        if record.content is ContentKind.SPOOL:
            try:
                file = self.spool_path(digest).open("rb", buffering=0)
            except FileNotFoundError:
                # Settled since the record was read, or removed and pushed again: the record now says where.
                newer = self.stat(digest)
                if newer == record:
                    raise CorruptError("blob", str(digest), "its spool file is missing") from None
                yield from self._pieces(digest, newer, start, end, wait=wait)
                return
            except OSError as error:
                raise _failed(error) from error
            with file:
                yield from _spool_pieces(file.fileno(), extents, start, end)
            return
        yield from self._object_pieces(extents, start, end)

    def _rebuilt(self, digest: Digest, record: BlobRecord, start: int, end: int, *, wait: bool) -> Iterator[bytes]:
        with self._env.read() as txn:
            layer = self.layer(txn, record)
            if layer is None or not (record.encoder or layer.plain_size == record.size):
                raise CorruptError("blob", str(digest), f"its layer {record.diff_id} is missing or of another size")
            extents = self._extents.object_record(txn, record.object, record.size) if record.encoder else None
        if extents is None:
            yield from rebuild(self._env, self._extents, layer.recipe, start, end)
            return
        encoder = decode(record.encoder, str(digest))

        def make(look: Callable[[], None]) -> Iterator[bytes]:
            plain = partial(rebuild, self._env, self._extents, layer.recipe, 0, layer.plain_size)
            return remake(encoder, plain, [name for _, name in extents.extents()], str(digest), look)

        yield from self.rebuilt.read(RebuiltBlob(digest, extents, make), start, end, wait=wait)

    def _object_pieces(self, record: ObjectRecord, start: int, end: int) -> Iterator[bytes]:
        extents = record.extents(start) if start < end else iter(())
        position = start
        while position < end:
            runs: list[tuple[Frame, int, int]] = []
            size = 0
            with self._env.read() as txn:
                for offset, digest in extents:
                    frame = self._extents.frame_of(txn, digest)
                    place, length = frame.index[digest]
                    first, last = place + max(0, start - offset), place + min(length, end - offset)
                    size += last - first
                    if runs and runs[-1][0] is frame and runs[-1][2] == first:
                        first = runs.pop()[1]
                    runs.append((frame, first, last))
                    if size >= BATCH_SIZE or position + size >= end:
                        break
            if not runs:
                raise CorruptError("object", "", "it ends before its size")
            position += size
            # A frame that is wanted whole, as most are, is not copied: slicing all of a bytes object gives itself.
            yield from (frame.plain[first:last] for frame, first, last in runs)

    # -- the spool -------------------------------------------------------------------------------------------

    def spool_path(self, digest: Digest) -> Path:
        """Where a blob's file is while it is not settled."""
        return self._spool / f"{digest.algorithm}-{digest.hex}"

    def forget_file(self, digest: Digest) -> None:
        """Remove a blob's spool file if no record refers to it any more. Open readers keep it.

        Called after the transaction that stopped referring to it, never within: a file must outlive its
        record.
        """
        with self._env.write() as txn:
            try:
                kept = self.record(txn, digest).content is ContentKind.SPOOL
            except BlobUnknownError:
                kept = False
            except CorruptError:  # what it says cannot be known
                kept = True
            if not kept:
                self.spool_path(digest).unlink(missing_ok=True)
        self.rebuilt.forget(digest)

    def sweep_spool(self) -> int:
        """Remove files that no record refers to, left by a crash. Only when no service is running. Returns how many."""
        removed = 0
        for path in list(self._spool.iterdir()):
            try:
                keep = self._is_spooled(Digest.parse(path.name.replace("-", ":", 1)))
            except InvalidError:
                continue  # not ours
            except CorruptError as error:
                log.error("the spool file %s is kept: %s", path.name, error)
                continue
            if not keep:
                path.unlink()
                removed += 1
        return removed

    def _is_spooled(self, digest: Digest) -> bool:
        with self._env.read() as txn:
            payload = txn.get(Table.BLOBS, digest.key)
            return payload is not None and BlobRecord.decode(payload, str(digest)).content is ContentKind.SPOOL


def _spool_pieces(fd: int, record: ObjectRecord, start: int, end: int) -> Iterator[bytes]:
    """Read a spool file by extents, each checked against its name in the extent list."""
    for offset, digest in record.extents(start) if start < end else ():
        try:
            data = os.pread(fd, min(EXTENT_SIZE, record.size - offset), offset)
        except OSError as error:  # of the disk, not of the blob: it may be read another time
            raise _failed(error) from error
        check_extent(digest, data, f"the spool file at {offset}")
        yield data[max(0, start - offset) : end - offset]
        if offset + len(data) >= end:
            return


def _failed(error: OSError) -> SpoolFailedError:
    return SpoolFailedError(f"reading the spool failed: {error.strerror}")


def _sync_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise UnsyncedError(f"cannot keep {path.name}: {error.strerror}") from error
